"""``/generate`` and ``/generate_stream``: Triton's flat JSON requests, replies as they are made.

Knows the generate codec and server-sent events. ``/generate`` answers with the one reply that the
model makes, ``/generate_stream`` with an event for each; a model that is not decoupled makes one.

A stream that has begun cannot change its status: what fails then is an event with an ``error``.
While the client does not read, a decoupled model is held back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import monotonic_ns
from typing import Final

from penstock.protocol import oip_json
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.generate_json import decode_generate, encode_generate
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import InferReply, InferRequest
from penstock.server.front.failure import failure
from penstock.server.front.offload import Offload
from penstock.server.front.oip import refuse
from penstock.server.front.oip_codecs import INLINE_JSON_BYTES_MAX
from penstock.server.front.oip_operations import GENERATE, GENERATE_STREAM
from penstock.server.front.routes import Routes
from penstock.server.front.target import Target
from penstock.server.gateway import Gateway
from penstock.server.http_seam import EVENTS, JSON, Buffer, Cancellable, RequestHead, Responder
from penstock.server.job import Job, StreamJob

_ONE: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)


class GenerateFront:
    """The generate endpoints of one gateway; ``forward`` as in ``OipFront``."""

    def __init__(
        self,
        gateway: Gateway,
        limits: WireLimits = DEFAULT,
        forward: re.Pattern[str] | None = None,
        offload: Offload | None = None,
    ) -> None:
        self.gateway = gateway
        self.limits = limits
        self._forward = forward
        self.offload = offload or Offload()

    def add_to(self, routes: Routes) -> None:
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes.add("POST", model + "/generate", self.generate, self._target, GENERATE)
            path = model + "/generate_stream"
            routes.add("POST", path, self.stream, self._target, GENERATE_STREAM)

    def _target(self, head: RequestHead, captured: Mapping[str, str]) -> Target:
        return Target(head, captured, self._forward)

    def generate(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable:
        return _OneReply(responder, self, head.memo).start(body)

    def stream(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable:
        return _Events(responder, self, head.memo).start(body)


class _Exchange:
    """One request and its answer, of which a subclass knows the form."""

    __slots__ = ("_deadline_ns", "_front", "_now", "_responder", "_target")

    def __init__(self, responder: Responder, front: GenerateFront, target: Target) -> None:
        self._responder = responder
        self._front = front
        self._target = target
        self._deadline_ns = 0
        self._now: Cancellable | None = None

    def start(self, body: Buffer) -> _Exchange:
        front, target = self._front, self._target
        try:
            if target.fault:
                raise ProtocolError(target.fault)
            if target.coding:
                raise ProtocolError("Unsupported content-encoding, only 'identity' is supported.")
            if target.timeout_ns:
                self._deadline_ns = monotonic_ns() + target.timeout_ns
            inputs = front.gateway.models.find(target.model, target.version).metadata.inputs
            limits = front.limits
            if len(body) > INLINE_JSON_BYTES_MAX:
                self._now = front.offload.run(
                    lambda: decode_generate(body, inputs, limits), self._decoded
                )
            else:
                self._submit(decode_generate(body, inputs, limits))
        except Exception as error:
            refuse(self._responder, failure(error))
        return self

    def _decoded(self, request: InferRequest, error: Exception | None) -> None:
        try:
            if error is not None:
                raise error
            self._submit(request)
        except Exception as fault:
            refuse(self._responder, failure(fault))

    def _submit(self, request: InferRequest) -> None:
        self._target.address(request)
        self._now = self._front.gateway.infer(
            request, self._done, None, self._deadline_ns, self._part
        )

    def cancel(self) -> None:
        if self._now is not None:
            self._now.cancel()

    def _part(self, job: StreamJob, reply: InferReply) -> None:
        raise NotImplementedError

    def _done(self, job: Job) -> None:
        raise NotImplementedError


class _OneReply(_Exchange):
    """``/generate``."""

    __slots__ = ("_count", "_reply")

    def __init__(self, responder: Responder, front: GenerateFront, target: Target) -> None:
        super().__init__(responder, front, target)
        self._count = 0
        self._reply: InferReply | None = None

    def _part(self, job: StreamJob, reply: InferReply) -> None:
        self._count += 1
        self._reply = reply
        if self._count > 1:
            job.cancel()
            refuse(self._responder, InferError(Code.INVALID_ARGUMENT, _ONE))

    def _done(self, job: Job) -> None:
        try:
            if job.error is not None:
                raise job.error
            reply = job.reply or self._reply
            if reply is None:
                raise InferError(Code.INVALID_ARGUMENT, _ONE)
            text = encode_generate(reply)
        except Exception as error:
            refuse(self._responder, failure(error))
        else:
            self._responder.reply(200, JSON, (text,))


class _Events(_Exchange):
    """``/generate_stream``."""

    __slots__ = ("_begun", "_job")

    def __init__(self, responder: Responder, front: GenerateFront, target: Target) -> None:
        super().__init__(responder, front, target)
        self._begun = False
        self._job: StreamJob | None = None

    def _part(self, job: StreamJob, reply: InferReply) -> None:
        self._job = job
        try:
            self._send(encode_generate(reply))
        except Exception as error:
            job.cancel()
            self._fail(failure(error))
            return
        if self._responder.congested:
            job.pause()

    def _send(self, text: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._responder.begin(200, EVENTS, b"Cache-Control: no-cache\r\n", self._drained)
        self._responder.chunk((b"data: %b\n\n" % text,))

    def _drained(self) -> None:
        if self._job is not None:
            self._job.resume()

    def _done(self, job: Job) -> None:
        try:
            if job.error is not None:
                raise job.error
            if job.reply is not None:
                self._send(encode_generate(job.reply))
        except Exception as error:
            self._fail(failure(error))
            return
        if self._begun:
            self._responder.end()
        else:
            self._responder.reply(200, EVENTS, ())

    def _fail(self, error: PenstockError) -> None:
        if self._begun:
            self._responder.chunk((b"data: %b\n\n" % oip_json.encode_error(error.message),))
            self._responder.end()
        else:
            refuse(self._responder, error)
