"""TensorFlow Serving's REST API and KServe v1: which models there are, their state, their tensors.

One document serves the readers of both: KServe's clients look at ``ready`` and at the status,
TensorFlow Serving's at ``model_version_status``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import ModelMetadata, TensorSpec
from penstock.protocol.predict_json import SIGNATURE
from penstock.protocol.tf_dtype import BY_DTYPE
from penstock.server.front.failure import failure
from penstock.server.front.operation import Schema, json_operation
from penstock.server.front.predict import MODEL_PATHS, PredictTarget, refuse
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, Buffer, RequestHead, Responder
from penstock.server.models import ModelState, ModelVersion
from penstock.server.version_labels import VersionLabels

STATES: Final[Mapping[ModelState, str]] = {
    ModelState.LOADING: "LOADING",
    ModelState.READY: "AVAILABLE",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.UNAVAILABLE: "END",
}
"""TensorFlow Serving's names; nothing comes after END."""


_OBJECT: Final[Schema] = {"type": "object"}
_LIST: Final = json_operation(
    "metadata", "The names of all models (KServe v1)",
    {"type": "object", "properties": {"models": {"type": "array", "items": {"type": "string"}}}},
)  # fmt: skip
_STATUS: Final = json_operation(
    "health", "Whether a model is ready, and the state of its versions", _OBJECT, errors=(404, 503)
)
_METADATA: Final = json_operation(
    "metadata", "A model's tensors, as TensorFlow Serving tells them", _OBJECT, errors=(404, 503)
)


class PredictAdminFront:
    """Everything of the protocol that does not run a model."""

    def __init__(self, gateway: Gateway, labels: VersionLabels) -> None:
        self._gateway = gateway
        self._labels = labels

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/v1/models", self._list, describe=_LIST)
        for path in MODEL_PATHS:
            routes.add("GET", path, self._status, PredictTarget, _STATUS)
            routes.add("GET", path + "/metadata", self._metadata, PredictTarget, _METADATA)

    def _list(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        names = sorted({entry.name for entry in self._gateway.models})
        responder.reply(200, JSON, (msgspec.json.encode({"models": names}),))

    def _status(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        target: PredictTarget = head.memo
        try:
            version = target.version_by(self._labels)
            entries = status_entries(self._gateway, target.model, version)
        except Exception as error:
            refuse(responder, failure(error))
            return
        ready = self._gateway.model_ready(target.model, version)
        document = {
            "name": target.model,
            "ready": ready,
            "model_version_status": [_version_status(entry) for entry in entries],
        }
        responder.reply(200 if ready else 503, JSON, (msgspec.json.encode(document),))

    def _metadata(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        target: PredictTarget = head.memo
        try:
            version = target.version_by(self._labels)
            metadata = self._gateway.models.find(target.model, version).metadata
            document = msgspec.json.encode(_metadata_document(metadata))
        except Exception as error:
            refuse(responder, failure(error))
            return
        responder.reply(200, JSON, (document,))


def status_entries(gateway: Gateway, model: str, version: str) -> Sequence[ModelVersion]:
    """The versions to tell the state of, the newest first.

    Raises:
        InferError: NOT_FOUND, there is no such model or version.
    """
    entries = gateway.models.versions(model)[::-1]
    chosen = [entry for entry in entries if version in ("", entry.version)]
    if not chosen:
        which = f" version {version}" if entries else ""
        raise InferError(
            Code.NOT_FOUND, f"Request for unknown model: '{model}'{which} is not found"
        )
    return chosen


def _version_status(entry: ModelVersion) -> dict[str, Any]:
    bad = entry.state is ModelState.UNAVAILABLE
    return {
        "version": entry.version or "0",
        "state": STATES[entry.state],
        "status": {
            "error_code": "UNAVAILABLE" if bad else "OK",
            "error_message": entry.reason if bad else "",
        },
    }


def _metadata_document(metadata: ModelMetadata) -> dict[str, Any]:
    signature = {
        "inputs": {spec.name: _tensor_info(spec) for spec in metadata.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in metadata.outputs},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    return {
        "model_spec": {
            "name": metadata.name, "signature_name": "", "version": metadata.version,
        },
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }  # fmt: skip


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": BY_DTYPE[spec.dtype].name,
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape],
            "unknown_rank": False,
        },
        "name": f"{spec.name}:0",
    }
