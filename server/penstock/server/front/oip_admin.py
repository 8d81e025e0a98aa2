"""The Open Inference Protocol over HTTP: health, metadata, configuration, statistics, index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from penstock.protocol import oip_json
from penstock.protocol.errors import Code, InferError
from penstock.server.front.json_endpoint import answering, json_object
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, Buffer, RequestHead, Responder
from penstock.server.model_config import config_json
from penstock.server.models import Loaded, ModelState, ModelVersion
from penstock.server.stats import FailReason, LaneStats

EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
"""What this server does of Triton's extensions (of model_repository: the index)."""


class OipAdminFront:
    """Everything of the protocol that does not run a model."""

    def __init__(self, gateway: Gateway, version: str) -> None:
        self._gateway = gateway
        self._version = version

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/v2", answering(self._server))
        routes.add("GET", "/v2/health/live", self._live)
        routes.add("GET", "/v2/health/ready", self._ready)
        routes.add("GET", "/v2/models/stats", answering(self._all_stats))
        routes.add("POST", "/v2/repository/index", answering(self._index))
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes.add("GET", model, answering(self._metadata), _target)
            routes.add("GET", model + "/ready", self._model_ready, _target)
            routes.add("GET", model + "/config", answering(self._config), _target)
            routes.add("GET", model + "/stats", answering(self._stats), _target)

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
        return oip_json.server_metadata_document(self._version, EXTENSIONS)

    def _find(self, head: RequestHead) -> Loaded:
        model, version = head.memo
        return self._gateway.models.find(model, version)

    def _metadata(self, head: RequestHead, body: Buffer) -> object:
        return oip_json.model_metadata_document(self._find(head).metadata)

    def _config(self, head: RequestHead, body: Buffer) -> object:
        return config_json(self._find(head).config)

    def _stats(self, head: RequestHead, body: Buffer) -> object:
        self._find(head)
        model, version = head.memo
        entries = self._gateway.models.versions(model)
        chosen = [e for e in entries if e.loaded and version in ("", e.version)]
        return {"model_stats": [_statistics(entry) for entry in chosen]}

    def _all_stats(self, head: RequestHead, body: Buffer) -> object:
        return {"model_stats": [_statistics(e) for e in self._gateway.models if e.loaded]}

    def _index(self, head: RequestHead, body: Buffer) -> object:
        ready_only = json_object(body).get("ready", False)
        if not isinstance(ready_only, bool):
            raise InferError(Code.INVALID_ARGUMENT, "Invalid value for 'ready': expected a boolean")
        return [
            _index_entry(entry)
            for entry in self._gateway.models
            if entry.state is ModelState.READY or not ready_only
        ]


def _target(head: RequestHead, captured: Mapping[str, str]) -> tuple[str, str]:
    return captured["model"], captured.get("version", "")


def _index_entry(entry: ModelVersion) -> dict[str, str]:
    described = {"name": entry.name, "version": entry.version, "state": entry.state.value}
    if entry.reason:
        described["reason"] = entry.reason
    return described


def _statistics(entry: ModelVersion) -> dict[str, object]:
    """One model's statistics in Triton's shape; durations in nanoseconds."""
    if entry.loaded is None:
        raise ValueError("only loaded versions have statistics")
    stats: LaneStats = entry.loaded.lane.stats
    count = stats.success_count
    failed = sum(stats.fail_count[reason] for reason in FailReason)
    return {
        "name": entry.name,
        "version": entry.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {
            "success": _duration(count, stats.success_ns),
            "fail": _duration(failed, stats.fail_ns),
            "queue": _duration(count, stats.queue_ns),
            "compute_input": _duration(count, stats.compute_input_ns),
            "compute_infer": _duration(count, stats.compute_infer_ns),
            "compute_output": _duration(count, stats.compute_output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batch.count, batch.compute_input_ns),
                "compute_infer": _duration(batch.count, batch.compute_infer_ns),
                "compute_output": _duration(batch.count, batch.compute_output_ns),
            }
            for rows, batch in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
