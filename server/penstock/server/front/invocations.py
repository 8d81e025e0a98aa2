"""``/invocations``, ``/ping`` and their like: what hosting platforms ask of a container.

One route serves SageMaker, MLflow and Vertex AI, told apart by the content type and the body:

* ``application/vnd.sagemaker-triton.binary+json;json-header-size=N``, and JSON whose ``inputs`` are
  objects with a ``datatype``: a v2 request, as Triton's SageMaker endpoint takes it;
* ``text/csv``, and JSON with ``dataframe_split`` or ``dataframe_records``: a table;
* JSON with ``instances`` or ``inputs``: as in TensorFlow Serving's API, but answered as
  ``predictions`` always.

The model is the one that ``X-Amzn-SageMaker-Target-Model`` names, or the default model. Errors are
an object that every one of these clients finds its own key in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET

from penstock.protocol.dataframe import columns_for, csv_table, records_table, split_table
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.json_values import Document
from penstock.protocol.message import InferRequest
from penstock.protocol.predict_form import Form
from penstock.server.front.failure import failure
from penstock.server.front.json_door import Inputs, JsonDoor, Read, Readers
from penstock.server.front.oip import OipFront
from penstock.server.front.operation import BINARY, Operation
from penstock.server.front.routes import Routes
from penstock.server.front.target import Target
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, TEXT, Buffer, Cancellable, RequestHead, Responder

SAGEMAKER: Final = b"application/vnd.sagemaker-triton.binary+json;json-header-size="
TARGET_MODEL: Final = b"x-amzn-sagemaker-target-model"
_ARCHIVE: Final = ".tar.gz"
"""SageMaker names models by their archives."""
_JSON_TYPES: Final = (
    b"", b"application/json", b"text/json", b"application/x-www-form-urlencoded",
)  # fmt: skip
"""The last is what curl says where it is told nothing, as simple clients say nothing at all."""
_LENGTH_FIELD: Final = re.compile(rb"Inference-Header-Content-Length: (\d+)\r\n")
_UNSUPPORTED_MEDIA: Final = 415
_MLFLOW_CODES: Final = {
    Code.INVALID_ARGUMENT: "BAD_REQUEST",
    Code.NOT_FOUND: "RESOURCE_DOES_NOT_EXIST",
    Code.UNAVAILABLE: "TEMPORARILY_UNAVAILABLE",
    Code.RESOURCE_EXHAUSTED: "REQUEST_LIMIT_EXCEEDED",
    Code.UNIMPLEMENTED: "NOT_IMPLEMENTED",
}
_INVOKE: Final = Operation(
    "inference",
    "Runs the default model, or the one that a header names",
    {"application/json": {"type": "object"}, SAGEMAKER.decode() + "N": BINARY},
    {
        "application/json": {"type": "object"},
        "text/csv": {"type": "string"},
        SAGEMAKER.decode() + "N": BINARY,
    },
    (400, 404, 415, 500, 503),
    {"X-Amzn-SageMaker-Target-Model": "The model's name, or that of its archive."},
)
_PING: Final = Operation("health", "Whether models are served", {"text/plain": {}}, errors=(503,))
_VERSION: Final = Operation("metadata", "This server's version", {"text/plain": {}})


class _Body(msgspec.Struct, gc=False):
    """The keys that say what a JSON body is."""

    dataframe_split: Any = UNSET
    dataframe_records: Any = UNSET
    instances: Any = UNSET
    inputs: Any = UNSET

    @property
    def is_v2(self) -> bool:
        first = self.inputs[0] if type(self.inputs) is list and self.inputs else None
        return type(first) is dict and "datatype" in first


_body = Document(_Body)


class InvocationTarget(Target):
    """What a head says; ``media`` is the media type, ``header`` whether a CSV has names,
    ``path_model`` the model in the path, where there is one."""

    __slots__ = ("header", "media", "path_model")

    def __init__(self, head: RequestHead, captured: Mapping[str, str]) -> None:
        named = head.headers.get(TARGET_MODEL, b"").decode("latin-1").strip()
        self.path_model = captured.get("model", "")
        super().__init__(head, {"model": named.removesuffix(_ARCHIVE)})
        kind = head.headers.get(b"content-type", b"").strip()
        media, _, rest = kind.partition(b";")
        self.media = media.strip().lower()
        option = rest.strip().lower().removeprefix(b"header=")
        self.header = {b"present": True, b"absent": False}.get(option)
        if self.media == SAGEMAKER.partition(b";")[0]:
            size = kind.removeprefix(SAGEMAKER)
            if size.isdigit() and len(size) < 11:
                self.json_length = int(size)
            else:
                self.json_length, self.odd = -1, True
                self.fault = "Unable to parse inference header size in the content type"


class InvocationsFront:
    """``predict_route`` and ``health_route`` are further paths that a platform wants served."""

    def __init__(
        self,
        gateway: Gateway,
        door: JsonDoor,
        oip: OipFront,
        version: str,
        predict_route: str = "",
        health_route: str = "",
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._oip = oip
        self._version = version.encode()
        self._predict = {"/invocations", predict_route} - {""}
        self._health = {"/ping", "/health", health_route} - {""}

    def add_to(self, routes: Routes) -> None:
        for path in sorted(self._predict):
            routes.add("POST", path, self.invoke, InvocationTarget, _INVOKE)
        for path in sorted(self._health):
            routes.add("GET", path, self._ping, describe=_PING)
        routes.add("GET", "/version", self._tell_version, describe=_VERSION)

    def invoke(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        target: InvocationTarget = head.memo

        def as_v2() -> Cancellable | None:
            return self._oip.infer(_SagemakerResponder(responder), head, body)

        if target.json_length is not None:  # bytes follow the JSON: only v2 requests have that
            return as_v2()
        read: Read = _read_json
        if target.media == b"text/csv":
            read = _READ_CSV[target.header]
        elif target.media not in _JSON_TYPES:
            kind = target.media.decode("latin-1")
            error = InferError(Code.INVALID_ARGUMENT, f"content type '{kind}' is not supported")
            refuse(responder, error, _UNSUPPORTED_MEDIA)
            return None
        try:
            return self._door.infer(responder, target, "", body, read, refuse, as_v2)
        except Exception as error:
            refuse(responder, failure(error))
            return None

    def _ping(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        ready = self._gateway.ready
        responder.reply(200 if ready else 503, TEXT, (b"\n" if ready else b"not ready\n",))

    def _tell_version(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        responder.reply(200, TEXT, (self._version,))


def _read_json(readers: Readers, text: Buffer, inputs: Inputs) -> InferRequest | None:
    """The request; None if it is a v2 one."""
    read = _body.read(text)
    if read.is_v2:
        return None
    given = [key for key in _Body.__struct_fields__ if getattr(read, key) is not UNSET]
    if len(given) != 1:
        raise ProtocolError(
            f"expected exactly one of {', '.join(_Body.__struct_fields__)}; "
            f"got {', '.join(given) or 'none of them'}"
        )
    if read.dataframe_split is not UNSET:
        table = split_table(read.dataframe_split)
    elif read.dataframe_records is not UNSET:
        table = records_table(read.dataframe_records)
    else:
        form = Form.COLUMNS_AS_PREDICTIONS
        return readers.predict.tensors(read.instances, read.inputs, inputs, form)
    return readers.signatures.request(Form.ROWS, columns_for(table, inputs, limits=readers.limits))


def _read_csv(header: bool | None, readers: Readers, text: Buffer, inputs: Inputs) -> InferRequest:
    table = csv_table(text, header)
    columns = columns_for(table, inputs, text=True, limits=readers.limits)
    return readers.signatures.request(Form.ROWS, columns)


_READ_CSV: Final[dict[bool | None, Read]] = {
    header: partial(_read_csv, header) for header in (None, True, False)
}


class _SagemakerResponder:
    """Puts the JSON's length into the content type, where SageMaker's clients look for it."""

    __slots__ = ("_responder", "begin", "chunk", "end")

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self.begin, self.chunk, self.end = responder.begin, responder.chunk, responder.end

    @property
    def congested(self) -> bool:
        return self._responder.congested

    def reply(
        self,
        status: int,
        content_type: str,
        buffers: Sequence[Buffer],
        fields: bytes = b"",
        reason: str = "",
        close: bool = False,
    ) -> None:
        length = _LENGTH_FIELD.search(fields)
        if length is not None:
            fields = fields.replace(length[0], b"")
            content_type = (SAGEMAKER + length[1]).decode()
        self._responder.reply(status, content_type, buffers, fields, reason, close)


def refuse(responder: Responder, error: PenstockError | None, status: int = 0) -> None:
    """Answers an error; ``status`` stands instead of the code's."""
    error = error or InferError(Code.INTERNAL, "no reply")
    fields = b"Penstock-Code: %b\r\n" % error.code.name.encode()
    if error.code.retryable:
        fields += b"Retry-After: 1\r\n"
    text = error.message.encode(errors="replace").decode()
    kind = _MLFLOW_CODES.get(error.code, "INTERNAL_ERROR")
    body = msgspec.json.encode({"error": text, "error_code": kind, "message": text})
    responder.reply(status or error.code.http_status, JSON, (body,), fields)
