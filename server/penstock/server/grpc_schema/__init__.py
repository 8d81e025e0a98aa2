"""The gRPC services: their methods, their protobuf classes, and the files that describe them.

Knows: the compiled schemas of package ``inference`` (Open Inference Protocol and Triton) and of
gRPC's own health and reflection services. Knows nothing of what the methods do. Inference itself
does not use these classes: its messages have a codec of their own, ``penstock.protocol.oip_proto``.

Everything lives in the private pool of ``model_config_schema``, for the reason given there: this
process may hold tritonclient's classes of the same names too.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf import message_factory

from penstock.server.grpc_schema.descriptor import FILES as _FILES
from penstock.server.model_config_schema import POOL
from penstock.server.model_config_schema.descriptor import FILES as _MODEL_CONFIG_FILES

INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = "grpc.reflection.v1.ServerReflection"
REFLECTION_ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"
SERVICES: Final = (INFERENCE, HEALTH, REFLECTION, REFLECTION_ALPHA)

FILES: Final[dict[str, bytes]] = {
    name: base64.b64decode(text) for name, text in (_MODEL_CONFIG_FILES | _FILES).items()
}
"""Serialized FileDescriptorProto by file name, each behind those that it imports. For reflection:
``FILES[POOL.FindFileContainingSymbol(symbol).name]``."""

for _name in _FILES:
    POOL.AddSerializedFile(FILES[_name])


class MethodTypes(NamedTuple):
    """One RPC: ``path`` is ``/package.Service/Method``, the types are message classes."""

    path: str
    request: Any
    reply: Any
    client_streaming: bool
    server_streaming: bool


@cache
def message(name: str) -> Any:
    """The class of a message, by its full name; ``inference.`` may be left out.

    Raises:
        KeyError: there is no such message.
    """
    try:
        found = POOL.FindMessageTypeByName(name)
    except KeyError:
        found = POOL.FindMessageTypeByName(f"inference.{name}")
    return message_factory.GetMessageClass(found)


def _methods(service: str) -> dict[str, MethodTypes]:
    methods = {}
    for method in POOL.FindServiceByName(service).methods:
        path = f"/{service}/{method.name}"
        methods[path] = MethodTypes(
            path,
            message(method.input_type.full_name),
            message(method.output_type.full_name),
            method.client_streaming,
            method.server_streaming,
        )
    return methods


METHODS: Final[dict[str, MethodTypes]] = {
    path: method for service in SERVICES for path, method in _methods(service).items()
}
"""All methods by path, as in ``METHODS["/inference.GRPCInferenceService/ModelReady"]``."""
