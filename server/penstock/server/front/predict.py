"""TensorFlow Serving's REST API and KServe v1: predict, classify and regress.

Knows the codec and its routes. The documents about models are in ``predict_admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.message import InferRequest
from penstock.protocol.predict_form import Form
from penstock.protocol.predict_json import SIGNATURE
from penstock.server.front import oip
from penstock.server.front.failure import failure
from penstock.server.front.json_door import Inputs, JsonDoor, Read, Readers
from penstock.server.front.operation import Schema, json_operation
from penstock.server.front.routes import Routes
from penstock.server.front.target import Target
from penstock.server.http_seam import Buffer, Cancellable, RequestHead, Responder
from penstock.server.version_labels import VersionLabels

MODEL_PATHS: Final = (
    "/v1/models/{model}",
    "/v1/models/{model}/versions/{version}",
    "/v1/models/{model}/labels/{label}",
)
_STATUSES: Final = {Code.RESOURCE_EXHAUSTED: 429}
"""What TensorFlow Serving answers where a queue is full, and what its clients wait for."""


_ANY: Final[Schema] = {}
_ERRORS: Final = (400, 404, 429, 500, 503, 504)
_SIGNATURE_NAME: Final[Schema] = {"type": "string", "enum": ["", SIGNATURE]}


def _document(keys: Mapping[str, Schema], **more: object) -> Schema:
    return {"type": "object", "properties": keys, **more}


_EXAMPLES: Final = _document(
    {
        "signature_name": _SIGNATURE_NAME,
        "context": {"type": "object"},
        "examples": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    },
    required=["examples"],
)
_PREDICT: Final = json_operation(
    "inference",
    "Runs a model on rows (instances) or on whole tensors (inputs)",
    _document({"predictions": _ANY, "outputs": _ANY}),
    _document(
        {
            "signature_name": _SIGNATURE_NAME,
            "instances": {"type": "array", "minItems": 1},
            "inputs": _ANY,
        }
    ),
    _ERRORS,
    request_needed=True,
    details="KServe v1 and TensorFlow Serving.",
)
_RESULTS: Final = _document({"results": {"type": "array"}})
_CLASSIFY: Final = json_operation(
    "inference", "Labels and scores of examples", _RESULTS, _EXAMPLES, _ERRORS, request_needed=True
)
_REGRESS: Final = json_operation(
    "inference", "One number for each example", _RESULTS, _EXAMPLES, _ERRORS, request_needed=True
)
_EXPLAIN: Final = json_operation(
    "inference", "Not supported: answers 501", _ANY, {"type": "object"}, (501,)
)


class PredictTarget(Target):
    """What a head says about a request, with the label that may stand for a version."""

    __slots__ = ("label",)

    def __init__(self, head: RequestHead, captured: Mapping[str, str]) -> None:
        super().__init__(head, captured)
        self.label = captured.get("label", "")

    def version_by(self, labels: VersionLabels) -> str:
        """The version that is asked for; empty for the policy's choice."""
        return labels.version(self.model, self.label) if self.label else self.version


class PredictFront:
    """The inference endpoints of one gateway."""

    def __init__(self, door: JsonDoor, labels: VersionLabels) -> None:
        self._door = door
        self._labels = labels

    def add_to(self, routes: Routes) -> None:
        for path in MODEL_PATHS:
            routes.add("POST", path + ":predict", self.predict, PredictTarget, _PREDICT)
            routes.add("POST", path + ":classify", self.classify, PredictTarget, _CLASSIFY)
            routes.add("POST", path + ":regress", self.regress, PredictTarget, _REGRESS)
            routes.add("POST", path + ":explain", self.explain, PredictTarget, _EXPLAIN)

    def predict(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        return self._infer(responder, head.memo, body, _read_predict)

    def classify(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        return self._infer(responder, head.memo, body, _read_classify)

    def regress(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        return self._infer(responder, head.memo, body, _read_regress)

    def explain(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        refuse(responder, InferError(Code.UNIMPLEMENTED, "models here have no explainer"))

    def _infer(
        self, responder: Responder, target: PredictTarget, body: Buffer, read: Read
    ) -> Cancellable | None:
        try:
            version = target.version_by(self._labels)
            return self._door.infer(responder, target, version, body, read, refuse)
        except Exception as error:
            refuse(responder, failure(error))
            return None


def _read_predict(readers: Readers, body: Buffer, inputs: Inputs) -> InferRequest:
    return readers.predict.predict(body, inputs)


def _read_classify(readers: Readers, body: Buffer, inputs: Inputs) -> InferRequest:
    return readers.predict.examples(body, inputs, Form.CLASSES)


def _read_regress(readers: Readers, body: Buffer, inputs: Inputs) -> InferRequest:
    return readers.predict.examples(body, inputs, Form.VALUES)


def refuse(responder: Responder, error: PenstockError | None) -> None:
    """Answers an error in the protocol's form."""
    oip.refuse(responder, error, _STATUSES)
