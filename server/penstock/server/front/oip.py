"""The Open Inference Protocol (KServe v2, Triton) over HTTP: inference.

Knows the JSON codec and how its JSON length travels. The other documents of the protocol are in
``oip_admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.protocol import oip_json
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import InferRequest
from penstock.server.front.compression import accepted, compress, decompress
from penstock.server.front.failure import failure
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, OCTETS, Buffer, Cancellable, RequestHead, Responder
from penstock.server.job import Job

_LENGTH: Final = b"Inference-Header-Content-Length: %d\r\n"
DECOMPRESSED_BYTES_MAX: Final = 64 * 1024**2
"""As Triton's default: a small body may not become an unbounded one."""
COMPRESSED_BYTES_MIN: Final = 1024
"""Smaller replies fit a packet as they are. Many clients accept gzip without asking anybody, and
compressing a few numbers costs as much time as inferring them."""
COMPRESSED_BYTES_MAX: Final = 1024**2
"""Larger ones would hold up the event loop: tens of milliseconds for each MiB."""


class Target:
    """What a head says about an inference request: whom it is for and how it is encoded.

    ``json_length`` is None where the whole body is JSON, 0 where it is the raw input, -1 where the
    header is not a number.
    """

    __slots__ = ("accepts", "coding", "json_length", "model", "version")

    def __init__(self, head: RequestHead, captured: Mapping[str, str]) -> None:
        self.model = captured["model"]
        self.version = captured.get("version", "")
        raw = head.headers.get(b"inference-header-content-length")
        self.json_length = None if raw is None else _length(raw)
        self.coding = head.headers.get(b"content-encoding", b"").lower()
        if self.coding == b"identity":
            self.coding = b""
        self.accepts = accepted(head.headers.get(b"accept-encoding", b""))


def _length(raw: bytes) -> int:
    return int(raw) if raw.isdigit() and len(raw) < 11 else -1


class OipFront:
    """The inference endpoints of one gateway."""

    def __init__(self, gateway: Gateway, limits: WireLimits = DEFAULT) -> None:
        self._gateway = gateway
        self._decoder = oip_json.RequestDecoder(limits)
        self._encoder = oip_json.ReplyEncoder()

    def add_to(self, routes: Routes) -> None:
        for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
            routes.add("POST", path, self.infer, Target)

    def infer(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        target: Target = head.memo
        try:
            if target.coding:
                body = decompress(body, target.coding, DECOMPRESSED_BYTES_MAX)
            length = target.json_length
            if length is None or length > 0:
                request = self._decoder.decode(body, length, target.model)
            else:
                request = self._raw(target, body)
            request.model = target.model
            request.version = target.version
            done = self._done_compressed if target.accepts else self._done
            context = (responder, target.accepts) if target.accepts else responder
            return self._gateway.infer(request, done, context)
        except Exception as error:
            refuse(responder, failure(error))
            return None

    def _raw(self, target: Target, body: Buffer) -> InferRequest:
        if target.json_length != 0:
            raise ProtocolError("Inference-Header-Content-Length is not a length")
        loaded = self._gateway.models.find(target.model, target.version)
        batched = loaded.lane.admission.rows_max > 0
        return oip_json.decode_raw(body, loaded.metadata.inputs, target.model, batched=batched)

    def _done(self, job: Job) -> None:
        reply = job.reply
        if reply is None:
            refuse(job.context, job.error)
            return
        try:
            buffers, length = self._encoder.encode(reply, job.request.signature.form)
        except Exception as error:
            refuse(job.context, failure(error))
            return
        _answer(job.context, buffers, length)

    def _done_compressed(self, job: Job) -> None:
        responder, coding = job.context
        reply = job.reply
        if reply is None:
            refuse(responder, job.error)
            return
        try:
            buffers, length = self._encoder.encode(reply, job.request.signature.form)
            fields = b""
            if COMPRESSED_BYTES_MIN <= sum(map(len, buffers)) <= COMPRESSED_BYTES_MAX:
                buffers = [compress(buffers, coding)]
                fields = b"Content-Encoding: %b\r\n" % coding
        except Exception as error:
            refuse(responder, failure(error))
            return
        _answer(responder, buffers, length, fields)


def _answer(
    responder: Responder, buffers: list[Buffer], length: int | None, fields: bytes = b""
) -> None:
    if length is None:
        responder.reply(200, JSON, buffers, fields)
    else:
        responder.reply(200, OCTETS, buffers, fields + _LENGTH % length)


def refuse(responder: Responder, error: PenstockError | None) -> None:
    """Answers an error in the protocol's form."""
    error = error or InferError(Code.INTERNAL, "no reply")
    fields = b"Penstock-Code: %b\r\n" % error.code.name.encode()
    if error.message == "Unsupported compression type":
        fields += b"Accept-Encoding: gzip, deflate\r\n"
    if error.code.retryable:
        fields += b"Retry-After: 1\r\n"
    body = oip_json.encode_error(error.message)
    responder.reply(error.code.http_status, JSON, (body,), fields)
