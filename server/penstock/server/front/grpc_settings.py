"""Triton's trace and log settings over gRPC."""

from __future__ import annotations

from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.server.front.grpc_admin import PREFIX
from penstock.server.front.grpc_unary import answering
from penstock.server.front.oip_settings import trace_model
from penstock.server.gateway import Gateway
from penstock.server.grpc_schema import METHODS
from penstock.server.grpc_seam import Method
from penstock.server.log_settings import LogSettings
from penstock.server.trace_settings import TraceBook

_TRACE = METHODS[PREFIX + "TraceSetting"].reply
_LOGS = METHODS[PREFIX + "LogSettings"].reply

_EXPECTED: Final = {
    "log_verbose_level": ("uint32_param", "int32"),
    **{f"log_{word}": ("bool_param", "boolean") for word in ("info", "warning", "error")},
}
"""The fields that values come in, and Triton's words for them."""


class GrpcSettingsFront:
    """A request without settings only asks what they are."""

    def __init__(self, gateway: Gateway, traces: TraceBook, logs: LogSettings) -> None:
        self._gateway = gateway
        self._traces = traces
        self._logs = logs

    def methods(self) -> list[Method]:
        return [
            answering(PREFIX + "TraceSetting", self._trace),
            answering(PREFIX + "LogSettings", self._logging),
        ]

    def _trace(self, request: Any) -> Any:
        model = trace_model(self._gateway, request.model_name)
        if request.settings:
            changes = {name: list(given.value) for name, given in request.settings.items()}
            self._traces.update(changes, model)
        reply = _TRACE()
        for name, value in self._traces.document(model).items():
            reply.settings[name].value.extend(value if isinstance(value, list) else [value])
        return reply

    def _logging(self, request: Any) -> Any:
        changes = {name: _chosen(name, given) for name, given in request.settings.items()}
        if changes:
            self._logs.update(changes)
        reply = _LOGS()
        for name, value in self._logs.document().items():
            setting = reply.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return reply


def _chosen(name: str, setting: Any) -> Any:
    field = setting.WhichOneof("parameter_choice")
    if field is None:
        raise InferError(Code.INVALID_ARGUMENT, f"log setting '{name}' has no value")
    expected, word = _EXPECTED.get(name, (field, ""))
    if field != expected:
        raise InferError(Code.INVALID_ARGUMENT, f"expect {word} for '{name}'")
    return getattr(setting, field)
