"""The Open Inference Protocol (KServe v2, Triton) over HTTP: inference.

Knows the JSON codec and how its JSON length travels. The other documents of the protocol are in
``oip_admin``.

Messages that would hold up the event loop (large JSON, large or compressed bodies) are decoded and
encoded on threads; see ``oip_codecs`` for where that begins. Whatever came in a small and plain
message stays on the straight way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import monotonic_ns
from typing import Final

from penstock.protocol import oip_json
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import InferReply, InferRequest, Regions
from penstock.protocol.oip_json import ALL_BINARY
from penstock.protocol.oip_region import NO_REGIONS
from penstock.server.front.compression import decompress
from penstock.server.front.failure import failure
from penstock.server.front.offload import Offload
from penstock.server.front.oip_codecs import (
    INLINE_CODED_BYTES_MAX,
    INLINE_JSON_BYTES_MAX,
    Encoded,
    LargeCodecs,
    is_large,
    packed,
)
from penstock.server.front.oip_operations import INFER
from penstock.server.front.routes import Routes
from penstock.server.front.target import Target
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, OCTETS, Buffer, Cancellable, RequestHead, Responder
from penstock.server.job import Job
from penstock.server.stream_lane import DecoupledModelError

_LENGTH: Final = b"Inference-Header-Content-Length: %d\r\n"
_DECOUPLED: Final = "HTTP end point doesn't support models with decoupled transaction policy"


class OipFront:
    """The inference endpoints of one gateway.

    ``regions`` is the memory that clients share, ``forward`` matches the headers that become
    parameters of their request.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: WireLimits = DEFAULT,
        regions: Regions = NO_REGIONS,
        forward: re.Pattern[str] | None = None,
        offload: Offload | None = None,
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self._decoder = oip_json.RequestDecoder(limits, regions)
        self._encoder = oip_json.ReplyEncoder()
        self._forward = forward
        self._offload = offload or Offload()
        self._large = LargeCodecs(limits)

    def add_to(self, routes: Routes) -> None:
        for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
            routes.add("POST", path, self.infer, self._target, INFER)

    def _target(self, head: RequestHead, captured: Mapping[str, str]) -> Target:
        return Target(head, captured, self._forward)

    def infer(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        target: Target = head.memo
        try:
            length = target.json_length
            if target.odd or (len(body) if length is None else length) > INLINE_JSON_BYTES_MAX:
                return self._infer_oddly(responder, target, body)
            request = self._decode(target, body)
            request.model = target.model
            request.version = target.version
            if target.accepts:
                return self._gateway.infer(request, self._done_accepting, (responder, target))
            return self._gateway.infer(request, self._done, responder)
        except Exception as error:
            refuse(responder, _in_words(error))
            return None

    def _decode(self, target: Target, body: Buffer) -> InferRequest:
        length = target.json_length
        if length != 0:
            return self._decoder.decode(body, length, target.model)
        loaded = self._gateway.models.find(target.model, target.version)
        batched = loaded.lane.admission.rows_max > 0
        return oip_json.decode_raw(body, loaded.metadata.inputs, target.model, batched=batched)

    def _done(self, job: Job) -> None:
        reply, request = job.reply, job.request
        if reply is None:
            refuse(job.context, job.error)
            return
        try:
            form = request.signature.form
            if form is not ALL_BINARY and not request.targets and is_large(reply):
                self._answer_aside(job.context, reply, form)
                return
            buffers, length = self._encoder.encode(reply, form, request.targets)
        except Exception as error:
            refuse(job.context, failure(error))
            return
        _answer(job.context, buffers, length)

    def _done_accepting(self, job: Job) -> None:
        """As ``_done``, for a client that takes compressed replies."""
        responder, target = job.context
        reply, request = job.reply, job.request
        if reply is None:
            refuse(responder, job.error)
            return
        try:
            form = request.signature.form
            if not request.targets and is_large(reply):
                self._answer_aside(responder, reply, form, target.accepts)
                return
            encoded = self._encoder.encode(reply, form, request.targets)
            answer = packed(*encoded, target.accepts)
        except Exception as error:
            refuse(responder, failure(error))
            return
        _answer(responder, *answer)

    # ------------------------------------------------------------------ large and rare messages

    def _infer_oddly(self, responder: Responder, target: Target, body: Buffer) -> Cancellable:
        if target.fault:
            raise ProtocolError(target.fault)
        deadline_ns = monotonic_ns() + target.timeout_ns if target.timeout_ns else 0
        if target.coding:
            if len(body) > INLINE_CODED_BYTES_MAX:
                return self._infer_aside(responder, target, body, deadline_ns)
            body = decompress(body, target.coding, self._limits.json_bytes_max)
        elif target.json_length != 0:
            size = len(body) if target.json_length is None else target.json_length
            if size > INLINE_JSON_BYTES_MAX:
                return self._infer_aside(responder, target, body, deadline_ns)
        return self._submit(responder, target, self._decode(target, body), deadline_ns)

    def _submit(
        self, responder: Responder, target: Target, request: InferRequest, deadline_ns: int
    ) -> Job:
        target.address(request)
        if target.accepts:
            context = (responder, target)
            return self._gateway.infer(request, self._done_accepting, context, deadline_ns)
        return self._gateway.infer(request, self._done, responder, deadline_ns)

    def _infer_aside(
        self, responder: Responder, target: Target, body: Buffer, deadline_ns: int
    ) -> Cancellable:
        """Decodes on a thread; what that gives back undecoded is decoded here after all."""

        def decoded(result: InferRequest | Buffer, error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                if not isinstance(result, InferRequest):
                    result = self._decode(target, result)
                pending.now = self._submit(responder, target, result, deadline_ns)
            except Exception as fault:
                refuse(responder, _in_words(fault))

        large = self._large
        pending = _Pending(self._offload.run(lambda: large.decode(target, body), decoded))
        return pending

    def _answer_aside(
        self, responder: Responder, reply: InferReply, form: object, coding: bytes = b""
    ) -> None:
        def encoded(answer: Encoded, error: Exception | None) -> None:
            if error is not None:
                refuse(responder, failure(error))
            else:
                _answer(responder, *answer)

        large = self._large
        self._offload.run(lambda: large.encode(reply, form, coding), encoded, owed=True)


class _Pending:
    """A request that is being decoded, and then a job."""

    __slots__ = ("now",)

    def __init__(self, now: Cancellable) -> None:
        self.now = now

    def cancel(self) -> None:
        self.now.cancel()


def _in_words(error: Exception) -> PenstockError:
    if isinstance(error, DecoupledModelError):
        return InferError(Code.UNIMPLEMENTED, _DECOUPLED)
    return failure(error)


def _answer(
    responder: Responder, buffers: list[Buffer], length: int | None, fields: bytes = b""
) -> None:
    if length is None:
        responder.reply(200, JSON, buffers, fields)
    else:
        responder.reply(200, OCTETS, buffers, fields + _LENGTH % length)


_STATUSES: Final = {Code.ALREADY_EXISTS: 400}
"""Triton's clients know no conflict: what is there already is a bad request."""


def refuse(
    responder: Responder, error: PenstockError | None, statuses: Mapping[Code, int] = _STATUSES
) -> None:
    """Answers an error as JSON; ``statuses`` stand instead of the codes' own."""
    error = error or InferError(Code.INTERNAL, "no reply")
    fields = b"Penstock-Code: %b\r\n" % error.code.name.encode()
    if error.message == "Unsupported compression type":
        fields += b"Accept-Encoding: gzip, deflate\r\n"
    if error.code.retryable:
        fields += b"Retry-After: 1\r\n"
    body = oip_json.encode_error(error.message)
    status = statuses.get(error.code, error.code.http_status)
    responder.reply(status, JSON, (body,), fields)
