"""The Open Inference Protocol over gRPC: health, metadata, configuration, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from penstock.protocol import oip_json
from penstock.server.front.grpc_unary import answering
from penstock.server.front.oip_documents import statistics
from penstock.server.gateway import Gateway
from penstock.server.grpc_schema import INFERENCE, METHODS
from penstock.server.grpc_seam import Method
from penstock.server.models import version_number

PREFIX = f"/{INFERENCE}/"


class GrpcAdminFront:
    """Everything of the service that neither runs nor changes a model."""

    def __init__(self, gateway: Gateway, version: str, extensions: Sequence[str]) -> None:
        self._gateway = gateway
        self._server = oip_json.server_metadata_document(version, extensions)

    def methods(self) -> list[Method]:
        answers = {
            "ServerLive": lambda request: {"live": True},
            "ServerReady": lambda request: {"ready": self._gateway.ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda request: self._server,
            "ModelMetadata": self._metadata,
            "ModelStatistics": self._statistics,
        }
        made = [answering(PREFIX + name, _message(name, give)) for name, give in answers.items()]
        return [*made, answering(PREFIX + "ModelConfig", self._config)]

    def _model_ready(self, request: Any) -> dict[str, Any]:
        version_number(request.version)
        return {"ready": self._gateway.model_ready(request.name, request.version)}

    def _metadata(self, request: Any) -> dict[str, Any]:
        loaded = self._gateway.models.find(request.name, request.version)
        document = oip_json.model_metadata_document(loaded.metadata, alone=bool(request.version))
        return {**document, "properties": dict(loaded.config.parameters)}

    def _statistics(self, request: Any) -> dict[str, Any]:
        return statistics(self._gateway.models, request.name, request.version)

    def _config(self, request: Any) -> Any:
        loaded = self._gateway.models.find(request.name, request.version)
        return METHODS[PREFIX + "ModelConfig"].reply(config=loaded.config.message)


def _message(name: str, document: Any) -> Any:
    """What gives the reply of method ``name``, made from the dictionary ``document(request)``."""
    reply_type = METHODS[PREFIX + name].reply

    def answer(request: Any) -> Any:
        return json_format.ParseDict(document(request), reply_type())

    return answer
