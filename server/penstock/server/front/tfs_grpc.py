"""TensorFlow Serving over gRPC: PredictionService.

Knows Predict's codec, and protobuf's classes for Classify, Regress and GetModelMetadata. The
service about models is in ``tfs_grpc_models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import TensorSpec
from penstock.protocol.predict_form import Form
from penstock.protocol.predict_json import (
    SIGNATURE,
    PredictDecoder,
    check_signature,
    classes,
    numbers,
)
from penstock.protocol.tf_dtype import BY_DTYPE
from penstock.protocol.tfs_proto import PredictReader, PredictWriter
from penstock.server.front.failure import failure
from penstock.server.front.grpc_unary import parsed
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer, Cancellable
from penstock.server.job import Job
from penstock.server.tfs_schema import PREDICTION, message
from penstock.server.version_labels import VersionLabels

_REPLIES: Final = {
    Form.CLASSES: message("ClassificationResponse"),
    Form.VALUES: message("RegressionResponse"),
}
_NO_REPLY: Final = InferError(Code.INTERNAL, "no reply")


class TfsGrpcFront:
    """The methods that run models, or tell of their tensors."""

    def __init__(
        self, gateway: Gateway, labels: VersionLabels, limits: WireLimits = DEFAULT
    ) -> None:
        self._gateway = gateway
        self._labels = labels
        self._reader = PredictReader(limits)
        self._writer = PredictWriter()
        self._examples = PredictDecoder(limits)

    def methods(self) -> list[Method]:
        classify = partial(self._infer, message("ClassificationRequest"), Form.CLASSES)
        regress = partial(self._infer, message("RegressionRequest"), Form.VALUES)
        return [
            Method(f"/{PREDICTION}/Predict", unary=self.predict),
            Method(f"/{PREDICTION}/Classify", unary=classify),
            Method(f"/{PREDICTION}/Regress", unary=regress),
            Method(f"/{PREDICTION}/MultiInference", unary=self.multi_inference),
            Method(f"/{PREDICTION}/GetModelMetadata", unary=self.metadata),
        ]

    def predict(self, call: Call, head: object, data: Buffer) -> Cancellable | None:
        try:
            request, label = self._reader.read(data)
            if label:
                request.version = self._labels.version(request.model, label)
            return self._gateway.infer(request, self._done, call, call.deadline_ns)
        except Exception as error:
            call.fail(failure(error))
            return None

    def _done(self, job: Job) -> None:
        call: Call = job.context
        reply = job.reply
        if reply is None:
            call.fail(job.error or _NO_REPLY)
            return
        try:
            buffers = self._writer.write(reply)
        except Exception as error:
            call.fail(failure(error))
            return
        call.reply(buffers)

    def _infer(
        self, request_type: Any, form: Form, call: Call, head: object, data: Buffer
    ) -> Cancellable | None:
        try:
            asked = parsed(request_type, data)
            model, version = version_asked(asked.model_spec, self._labels)
            loaded = self._gateway.models.find(model, version)
            kind = asked.input.WhichOneof("kind")
            given = getattr(asked.input, kind) if kind else asked.input.example_list
            context = getattr(given, "context", None)
            request = self._examples.features(
                [_features(example) for example in given.examples],
                _features(context) if context is not None else {},
                loaded.metadata.inputs,
                form,
            )
            request.model, request.version = model, version
            return self._gateway.infer(request, _told, (call, loaded.labels), call.deadline_ns)
        except Exception as error:
            call.fail(failure(error))
            return None

    def multi_inference(self, call: Call, head: object, data: Buffer) -> None:
        text = "MultiInference is not supported: send Classify and Regress requests"
        call.fail(InferError(Code.UNIMPLEMENTED, text))

    def metadata(self, call: Call, head: object, data: Buffer) -> None:
        try:
            asked = parsed(message("GetModelMetadataRequest"), data)
            if list(asked.metadata_field) != ["signature_def"]:
                raise InferError(
                    Code.INVALID_ARGUMENT,
                    "metadata_field must be 'signature_def', the only one that there is",
                )
            model, version = version_asked(asked.model_spec, self._labels)
            known = self._gateway.models.find(model, version).metadata
            told = message("SignatureDefMap")()
            signature = told.signature_def[SIGNATURE]
            signature.method_name = "tensorflow/serving/predict"
            _describe(signature.inputs, known.inputs)
            _describe(signature.outputs, known.outputs)
            reply = message("GetModelMetadataResponse")()
            reply.metadata["signature_def"].Pack(told)
            answered(reply.model_spec, known.name, known.version)
            call.reply((reply.SerializeToString(),))
        except Exception as error:
            call.fail(failure(error))


def version_asked(spec: Any, labels: VersionLabels) -> tuple[str, str]:
    """(model, version) of a ModelSpec; an empty version is the policy's choice.

    Raises:
        InferError: NOT_FOUND for an unknown label, INVALID_ARGUMENT for an unknown signature.
    """
    check_signature(spec.signature_name)
    choice = spec.WhichOneof("version_choice")
    if choice == "version_label":
        return spec.name, labels.version(spec.name, spec.version_label)
    return spec.name, str(spec.version.value) if choice == "version" else ""


def answered(spec: Any, model: str, version: str) -> None:
    """Fills in the ModelSpec of a reply."""
    spec.name = model
    spec.signature_name = SIGNATURE
    if version.isdigit():
        spec.version.value = int(version)


def _features(example: Any) -> dict[str, Any]:
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


def _told(job: Job) -> None:
    call, labels = job.context
    reply = job.reply
    if reply is None:
        call.fail(job.error or _NO_REPLY)
        return
    try:
        signature = job.request.signature
        rows = signature.tensors[0].shape[0] if signature.tensors else 0
        message_ = _REPLIES[signature.form]()
        if signature.form is Form.CLASSES:
            _fill_classes(message_.result, classes(reply, rows, labels))
        else:
            for number in numbers(reply, rows):
                message_.result.regressions.add().value = number
        answered(message_.model_spec, reply.model, reply.version)
        call.reply((message_.SerializeToString(),))
    except Exception as error:
        call.fail(failure(error))


def _fill_classes(result: Any, rows: list[list[tuple[str, float]]]) -> None:
    for row in rows:
        classifications = result.classifications.add()
        for label, score in row:
            classifications.classes.add(label=label, score=score)


def _describe(signature: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> None:
    for spec in specs:
        info = signature[spec.name]
        info.name = f"{spec.name}:0"
        info.dtype = BY_DTYPE[spec.dtype].number
        for size in spec.shape:
            info.tensor_shape.dim.add().size = size
        info.tensor_shape.SetInParent()
