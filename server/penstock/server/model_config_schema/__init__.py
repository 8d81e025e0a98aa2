"""Protobuf classes of the model configuration, out of a pool of their own.

Knows: the compiled schema. Knows nothing of what the fields mean.

The pool is private because tritonclient and kserve register the same names (package ``inference``)
in protobuf's default pool, and one process may hold both them and us.
``POOL`` is public for the gRPC messages, whose schema imports ``model_config.proto``.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory

from penstock.server.model_config_schema.descriptor import FILES

POOL: Final[Any] = descriptor_pool.DescriptorPool()
for _file in FILES.values():
    POOL.AddSerializedFile(base64.b64decode(_file))

ModelConfigMessage: Final[Any] = message_factory.GetMessageClass(
    POOL.FindMessageTypeByName("inference.ModelConfig")
)
DATA_TYPES: Final[dict[int, str]] = {
    value.number: value.name for value in POOL.FindEnumTypeByName("inference.DataType").values
}
"""Number to name, as in ``{11: "TYPE_FP32"}``."""
