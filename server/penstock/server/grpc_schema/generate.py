"""Turns the .proto files of this folder into ``descriptor.py``. Run as a module.

Everything else is said in ``penstock.server.model_config_schema.generate``.
"""

from __future__ import annotations

from pathlib import Path

from penstock.server.model_config_schema.generate import SCHEMA as MODEL_CONFIG
from penstock.server.model_config_schema.generate import Schema, write

SCHEMA = Schema(
    Path(__file__).parent,
    [
        "grpc_service.proto",
        "grpc/health/v1/health.proto",
        "grpc/reflection/v1/reflection.proto",
        "grpc/reflection/v1alpha/reflection.proto",
    ],
    "penstock.server.grpc_schema.generate",
    [MODEL_CONFIG.folder],
)

if __name__ == "__main__":
    write(SCHEMA)
