"""The Open Inference Protocol over gRPC: inference, one request a call or many in a stream.

Knows the protobuf codec and what of a call's metadata concerns a request. Everything else of the
service is in ``grpc_admin``, ``grpc_repository``, ``grpc_settings`` and ``grpc_shared_memory``.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import InferReply, InferRequest, Parameter, Regions
from penstock.protocol.oip_proto import ReplyEncoder, RequestDecoder
from penstock.protocol.oip_region import NO_REGIONS
from penstock.server.front.failure import failure
from penstock.server.front.grpc_admin import PREFIX
from penstock.server.front.grpc_large import INLINE_MESSAGE_BYTES_MAX, LargeMessages
from penstock.server.front.grpc_stream import InferStream
from penstock.server.front.offload import Offload, Work
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Call, CallHead, Method
from penstock.server.http_seam import Buffer, Cancellable
from penstock.server.job import Job
from penstock.server.stream_lane import DecoupledModelError

_DECOUPLED: Final = "ModelInfer RPC doesn't support models with decoupled transaction policy"
_DRAINING: Final = "GRPC server is shutting down and has stopped accepting new requests"


class GrpcOipFront:
    """ModelInfer and ModelStreamInfer of one gateway.

    ``forward`` is a pattern of metadata names: those in which it is found become parameters of the
    request, as strings.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: WireLimits = DEFAULT,
        regions: Regions = NO_REGIONS,
        forward: re.Pattern[str] | None = None,
        offload: Offload | None = None,
    ) -> None:
        self.gateway = gateway
        self.decoder = RequestDecoder(limits, regions)
        self.encoder = ReplyEncoder()
        self.large = LargeMessages(limits, regions, self.decoder, offload or Offload())
        self._forward = forward
        self._streams: set[InferStream] = set()

    def methods(self) -> list[Method]:
        infer = self._infer if self._forward is None else self._infer_forwarding
        return [
            Method(PREFIX + "ModelInfer", unary=infer),
            Method(PREFIX + "ModelStreamInfer", stream=self._open),
        ]

    # ------------------------------------------------------------------ one request a call

    def _infer(self, call: Call, head: CallHead, message: Buffer) -> Cancellable | None:
        try:
            if len(message) > INLINE_MESSAGE_BYTES_MAX:
                return self._infer_large(call, head, message)
            request = self.decoder.decode(message)
            return self.gateway.infer(request, self._done, call, call.deadline_ns)
        except Exception as error:
            self._refuse(call, error)
        return None

    def _infer_forwarding(self, call: Call, head: CallHead, message: Buffer) -> Cancellable | None:
        try:
            if len(message) > INLINE_MESSAGE_BYTES_MAX:
                return self._infer_large(call, head, message)
            return self._submit(call, head, self.decoder.decode(message))
        except Exception as error:
            self._refuse(call, error)
        return None

    def _infer_large(self, call: Call, head: CallHead, message: Buffer) -> Cancellable:
        def decoded(request: InferRequest) -> None:
            pending.now = self._submit(call, head, request)

        def refused(error: Exception) -> None:
            self._refuse(call, error)

        work = self.large.decode(message, decoded, refused)
        if work is None:
            return self._submit(call, head, self.decoder.decode(message))
        pending = _Pending(work)
        return pending

    def _submit(self, call: Call, head: CallHead, request: InferRequest) -> Job:
        self.add_forwarded(request, head)
        return self.gateway.infer(request, self._done, call, call.deadline_ns)

    def _refuse(self, call: Call, error: Exception) -> None:
        if isinstance(error, DecoupledModelError):
            call.fail(InferError(Code.UNIMPLEMENTED, _DECOUPLED))
        else:
            call.fail(self.refusal(error))

    def _done(self, job: Job) -> None:
        call, reply, request = job.context, job.reply, job.request
        if reply is None:
            call.fail(job.error or InferError(Code.INTERNAL, "no reply"))
            return
        try:
            buffers = self.encoder.encode(reply, request.signature.form, request.targets)
        except Exception as error:
            call.fail(failure(error))
            return
        call.reply(buffers)

    # ------------------------------------------------------------------ many in a stream

    def _open(self, call: Call, head: CallHead) -> InferStream:
        stream = InferStream(self, call, head)
        self._streams.add(stream)
        return stream

    def closed(self, stream: InferStream) -> None:
        """Says that ``stream`` has ended."""
        self._streams.discard(stream)

    def drain(self) -> None:
        """Ends the streams that wait for nothing: clients keep them open for hours."""
        for stream in tuple(self._streams):
            stream.leave(InferError(Code.UNAVAILABLE, _DRAINING))

    # ------------------------------------------------------------------ what both need

    def refusal(self, error: Exception) -> PenstockError:
        """What to answer to a request that was not accepted because of ``error``."""
        if self.gateway.draining:
            return InferError(Code.UNAVAILABLE, _DRAINING)
        found = failure(error)
        if found.code is Code.RESOURCE_EXHAUSTED:
            # A full queue: UNAVAILABLE in Triton, and what the retries of its clients know.
            return InferError(Code.UNAVAILABLE, found.message)
        return found

    def encode(self, job: Job, reply: InferReply) -> list[Buffer]:
        """``reply`` to the request of ``job``, as a message."""
        request = job.request
        return self.encoder.encode(reply, request.signature.form, request.targets)

    def add_forwarded(self, request: InferRequest, head: CallHead) -> None:
        """Adds what the pattern lets through; it wins, for a proxy may have written it."""
        if self._forward is None:
            return
        if head.memo is None:
            head.memo = _forwarded(self._forward, head)
        if head.memo:
            request.parameters = {**request.parameters, **head.memo}


class _Pending:
    """A request that is being decoded, and then a job."""

    __slots__ = ("now",)

    def __init__(self, now: Work | Job) -> None:
        self.now = now

    def cancel(self) -> None:
        self.now.cancel()


def _forwarded(pattern: re.Pattern[str], head: CallHead) -> dict[str, Parameter]:
    return {
        name: value
        for name, value in head.metadata.items()
        if isinstance(value, str) and pattern.search(name)
    }
