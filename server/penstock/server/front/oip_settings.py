"""The Open Inference Protocol over HTTP: Triton's trace and logging settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.protocol.errors import Code, InferError
from penstock.server.front import oip_operations as told
from penstock.server.front.json_endpoint import answering, json_object
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import Buffer, RequestHead
from penstock.server.log_settings import LogSettings
from penstock.server.trace_settings import TraceBook


def trace_model(gateway: Gateway, model: str) -> str:
    """``model`` itself, which may be empty for the server.

    Raises:
        InferError: INVALID_ARGUMENT, in the words of Triton's trace settings.
    """
    if model and not gateway.models.versions(model):
        raise InferError(Code.INVALID_ARGUMENT, f"Request for unknown model : {model}")
    return model


class OipSettingsFront:
    """Settings of one server."""

    def __init__(self, gateway: Gateway, traces: TraceBook, logs: LogSettings) -> None:
        self._gateway = gateway
        self._traces = traces
        self._logs = logs

    def add_to(self, routes: Routes) -> None:
        for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
            routes.add("GET", path, answering(self._trace), _model, told.TRACE)
            routes.add("POST", path, answering(self._update_trace), _model, told.UPDATE_TRACE)
        path = "/v2/logging"
        routes.add("GET", path, answering(self._logging), describe=told.LOGGING)
        routes.add("POST", path, answering(self._update_logging), describe=told.UPDATE_LOGGING)

    def _trace(self, head: RequestHead, body: Buffer) -> object:
        return self._traces.document(trace_model(self._gateway, head.memo))

    def _update_trace(self, head: RequestHead, body: Buffer) -> object:
        model = trace_model(self._gateway, head.memo)
        changes = {name: _strings(name, value) for name, value in json_object(body).items()}
        self._traces.update(changes, model)
        return self._traces.document(model)

    def _logging(self, head: RequestHead, body: Buffer) -> object:
        return self._logs.document()

    def _update_logging(self, head: RequestHead, body: Buffer) -> object:
        self._logs.update(json_object(body))
        return self._logs.document()


def _model(head: RequestHead, captured: Mapping[str, str]) -> str:
    return captured.get("model", "")


def _strings(name: str, value: object) -> Sequence[str]:
    """A setting as the strings that it stands for; none where it is null."""
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise InferError(
                Code.INVALID_ARGUMENT, f"unable to parse '{name}': expected a string or a list"
            )
    return [str(item) for item in values]
