"""The Open Inference Protocol over HTTP: health, metadata, configuration, statistics."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.protocol import oip_json
from penstock.server.front import oip_operations as told
from penstock.server.front.json_endpoint import answering
from penstock.server.front.oip_documents import extensions, statistics
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, Buffer, RequestHead, Responder
from penstock.server.model_config import config_json
from penstock.server.models import Loaded


class OipAdminFront:
    """Everything of the protocol that does not run a model."""

    def __init__(self, gateway: Gateway, version: str, shared_memory: bool = False) -> None:
        self._extensions = extensions(shared_memory)
        self._gateway = gateway
        self._version = version

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/v2", answering(self._server), describe=told.SERVER)
        routes.add("GET", "/v2/health/live", self._live, describe=told.LIVE)
        routes.add("GET", "/v2/health/ready", self._ready, describe=told.READY)
        every = answering(self._all_stats)
        routes.add("GET", "/v2/models/stats", every, describe=told.ALL_STATISTICS)
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes.add("GET", model, answering(self._metadata), _target, told.METADATA)
            routes.add("GET", model + "/ready", self._model_ready, _target, told.MODEL_READY)
            routes.add("GET", model + "/config", answering(self._config), _target, told.CONFIG)
            routes.add("GET", model + "/stats", answering(self._stats), _target, told.STATISTICS)

    def _live(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        responder.reply(200, JSON, (b'{"live":true}',))

    def _ready(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        if self._gateway.ready:
            responder.reply(200, JSON, (b'{"ready":true}',))
        else:
            responder.reply(400, JSON, (b'{"ready":false}',))

    def _model_ready(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        model, version = head.memo
        if self._gateway.model_ready(model, version):
            document = msgspec.json.encode({"name": model, "ready": True})
            responder.reply(200, JSON, (document,))
        else:
            responder.reply(400, JSON, (oip_json.encode_error("Model version not ready"),))

    def _server(self, head: RequestHead, body: Buffer) -> object:
        return oip_json.server_metadata_document(self._version, self._extensions)

    def _find(self, head: RequestHead) -> Loaded:
        model, version = head.memo
        return self._gateway.models.find(model, version)

    def _metadata(self, head: RequestHead, body: Buffer) -> object:
        _, version = head.memo
        return oip_json.model_metadata_document(self._find(head).metadata, alone=bool(version))

    def _config(self, head: RequestHead, body: Buffer) -> object:
        return config_json(self._find(head).config)

    def _stats(self, head: RequestHead, body: Buffer) -> object:
        return statistics(self._gateway.models, *head.memo)

    def _all_stats(self, head: RequestHead, body: Buffer) -> object:
        return statistics(self._gateway.models)


def _target(head: RequestHead, captured: Mapping[str, str]) -> tuple[str, str]:
    return captured["model"], captured.get("version", "")
