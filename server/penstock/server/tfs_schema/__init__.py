"""TensorFlow Serving's messages, as protobuf classes out of a pool of their own.

Knows the compiled schema. Knows nothing of what the methods do. Predict does not use these classes:
its messages have a codec of their own, ``penstock.protocol.tfs_proto``.

The pool is private because a process may hold TensorFlow's classes of the same names too.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pool, message_factory, wrappers_pb2

from penstock.server.tfs_schema.descriptor import FILES

PREDICTION: Final = "tensorflow.serving.PredictionService"
MODEL: Final = "tensorflow.serving.ModelService"

POOL: Final[Any] = descriptor_pool.DescriptorPool()
for _file in (any_pb2.DESCRIPTOR.serialized_pb, wrappers_pb2.DESCRIPTOR.serialized_pb):
    POOL.AddSerializedFile(_file)
for _text in FILES.values():
    POOL.AddSerializedFile(base64.b64decode(_text))


@cache
def message(name: str) -> Any:
    """The class of a message of package ``tensorflow.serving``; of another by its full name.

    Raises:
        KeyError: there is no such message.
    """
    full = name if "." in name else f"tensorflow.serving.{name}"
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full))
