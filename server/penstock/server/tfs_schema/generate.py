"""Turns the .proto files of this folder into ``descriptor.py``. Run as a module.

Everything else is said in ``penstock.server.model_config_schema.generate``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from penstock.server.model_config_schema.generate import Schema, write

_COMPILER = find_spec("grpc_tools")
SCHEMA = Schema(
    Path(__file__).parent,
    ["tensorflow.proto", "tensorflow_serving.proto"],
    "penstock.server.tfs_schema.generate",
    # Where grpcio-tools keeps google/protobuf/*.proto.
    [Path(folder, "_proto") for folder in (_COMPILER.submodule_search_locations or ())]
    if _COMPILER
    else [],
)

if __name__ == "__main__":
    write(SCHEMA)
