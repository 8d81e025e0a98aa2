"""TensorFlow Serving over gRPC: ModelService, the state of models and the labels of versions.

Models are loaded and unloaded through the repository API. Of a new configuration only the version
labels have an effect; one that would add or drop models is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.front.grpc_unary import REQUEST_BYTES_MAX, parsed
from penstock.server.front.predict_admin import STATES, status_entries
from penstock.server.front.tfs_grpc import version_asked
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer
from penstock.server.models import ModelState
from penstock.server.tfs_schema import MODEL, message
from penstock.server.version_labels import VersionLabels

_UNAVAILABLE: Final = Code.UNAVAILABLE.grpc_status


class TfsGrpcModelsFront:
    def __init__(self, gateway: Gateway, labels: VersionLabels) -> None:
        self._gateway = gateway
        self._labels = labels

    def methods(self) -> list[Method]:
        return [
            _answering("GetModelStatus", message("GetModelStatusRequest"), self._status),
            _answering("HandleReloadConfigRequest", message("ReloadConfigRequest"), self._reload),
        ]

    def _status(self, request: Any) -> Any:
        model, version = version_asked(request.model_spec, self._labels)
        reply = message("GetModelStatusResponse")()
        states = message("ModelVersionStatus").State
        for entry in status_entries(self._gateway, model, version):
            told = reply.model_version_status.add()
            told.version = int(entry.version) if entry.version.isdigit() else 0
            told.state = states.Value(STATES[entry.state])
            told.status.SetInParent()
            if entry.state is ModelState.UNAVAILABLE:
                told.status.error_code = _UNAVAILABLE
                told.status.error_message = entry.reason
        return reply

    def _reload(self, request: Any) -> Any:
        if request.config.WhichOneof("config") != "model_config_list":
            raise InferError(Code.INVALID_ARGUMENT, "the request has no model_config_list")
        named = {}
        for config in request.config.model_config_list.config:
            if config.name in named:
                raise InferError(Code.INVALID_ARGUMENT, f"model '{config.name}' is there twice")
            named[config.name] = {label: str(v) for label, v in config.version_labels.items()}
        served = {entry.name for entry in self._gateway.models}
        if dropped := sorted(served - named.keys()):
            raise InferError(
                Code.FAILED_PRECONDITION,
                f"the configuration leaves out model '{dropped[0]}', which is served: models are "
                "unloaded through the repository API, not by this call",
            )
        for model, labels in named.items():
            self._labels.check(model, labels)
        for model, labels in named.items():
            self._labels.assign(model, labels)
        reply = message("ReloadConfigResponse")()
        reply.status.SetInParent()
        return reply


def _answering(name: str, request_type: Any, answer: Callable[[Any], Any]) -> Method:
    def unary(call: Call, head: object, data: Buffer) -> None:
        try:
            call.reply((answer(parsed(request_type, data)).SerializeToString(),))
        except Exception as error:
            call.fail(failure(error))

    return Method(f"/{MODEL}/{name}", unary=unary, request_bytes_max=REQUEST_BYTES_MAX)
