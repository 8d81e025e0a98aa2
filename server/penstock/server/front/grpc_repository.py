"""The model repository over gRPC: its index, loading and unloading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.server.front.grpc_admin import PREFIX
from penstock.server.front.grpc_unary import awaiting
from penstock.server.grpc_schema import METHODS
from penstock.server.grpc_seam import Method
from penstock.server.model_control import NO_REPOSITORY_NAME, ModelControl

LOAD_BYTES_MAX: Final = 2 * 1024**3
"""Of a request to load, which may hold the model's files."""
_FILE: Final = "file:"
_DEPENDENTS: Final = "unload_dependents"
_INDEX: Final = METHODS[PREFIX + "RepositoryIndex"].reply
_LOADED: Final = METHODS[PREFIX + "RepositoryModelLoad"].reply
_UNLOADED: Final = METHODS[PREFIX + "RepositoryModelUnload"].reply


class GrpcRepositoryFront:
    """What clients may do to the models of ``control``."""

    def __init__(self, control: ModelControl) -> None:
        self._control = control

    def methods(self) -> list[Method]:
        return [
            awaiting(PREFIX + "RepositoryIndex", self._index),
            awaiting(PREFIX + "RepositoryModelLoad", self._load, LOAD_BYTES_MAX),
            awaiting(PREFIX + "RepositoryModelUnload", self._unload),
        ]

    async def _index(self, request: Any) -> Any:
        if request.repository_name:
            raise InferError(Code.UNIMPLEMENTED, NO_REPOSITORY_NAME)
        reply = _INDEX()
        for entry in await self._control.index(ready_only=request.ready):
            state = entry.state.value if entry.state is not None else ""
            reply.models.add(
                name=entry.name, version=entry.version, state=state, reason=entry.reason
            )
        return reply

    async def _load(self, request: Any) -> Any:
        config: str | None = None
        files: dict[str, bytes] = {}
        for name, parameter in request.parameters.items():
            if name == "config":
                config = _value(f"load parameter '{name}'", parameter, "string_param")
            elif name.startswith(_FILE):
                files[name.removeprefix(_FILE)] = _value(
                    f"load parameter '{name}'", parameter, "bytes_param"
                )
            else:
                raise InferError(Code.INVALID_ARGUMENT, f"unrecognized load parameter '{name}'")
        await self._control.load(
            request.model_name, config, files, repository_name=request.repository_name
        )
        return _LOADED()

    async def _unload(self, request: Any) -> Any:
        given: Mapping[str, Any] = request.parameters
        dependents = False
        if _DEPENDENTS in given:
            dependents = _value(f"'{_DEPENDENTS}' parameter", given[_DEPENDENTS], "bool_param")
        await self._control.unload(
            request.model_name, dependents, repository_name=request.repository_name
        )
        return _UNLOADED()


def _value(what: str, parameter: Any, field: str) -> Any:
    if parameter.WhichOneof("parameter_choice") != field:
        raise InferError(Code.INVALID_ARGUMENT, f"invalid value type for {what}, expected {field}.")
    return getattr(parameter, field)
