"""ModelStreamInfer: many requests on one call, answered as they are done.

Knows the lives of requests in a stream. Replies to different requests come in the order in which
they are done, those of one request (of a decoupled model) in their own. An error is a message like
any other and ends only its request, unless the client asked for gRPC's way: metadata
``triton_grpc_error: true`` makes the first error the status of the whole call.

Each reply says by the parameter ``triton_final_response`` whether it is the last of its request. A
decoupled model does not know which one that is: for the end of its replies a client may ask by the
parameter ``triton_enable_empty_final_response``, and gets a reply without outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from penstock.protocol.errors import PenstockError
from penstock.protocol.message import InferReply, InferRequest, Signature
from penstock.protocol.oip_proto import encode_stream_response
from penstock.server.front.failure import failure
from penstock.server.front.grpc_large import INLINE_MESSAGE_BYTES_MAX
from penstock.server.front.offload import Work
from penstock.server.grpc_seam import Call, CallHead
from penstock.server.http_seam import Buffer
from penstock.server.job import Job, StreamJob

if TYPE_CHECKING:
    from penstock.server.front.grpc_oip import GrpcOipFront

REQUESTS_MAX: Final = 256
"""In progress in one stream; further ones stay with the client until one is answered."""
_ERRORS_END: Final = "triton_grpc_error"
_WANTS_END: Final = "triton_enable_empty_final_response"
_FINAL: Final = {"triton_final_response": True}
_NOT_FINAL: Final = {"triton_final_response": False}
_NOTHING: Final = Signature(())


class InferStream:
    """One call; see ``grpc_seam.Stream``."""

    def __init__(self, front: GrpcOipFront, call: Call, head: CallHead) -> None:
        self._front = front
        self._call = call
        self._head = head
        self._errors_end = head.metadata.get(_ERRORS_END) == "true"
        self._jobs: set[Job] = set()
        self._paused: set[StreamJob] = set()
        self._work: Work | None = None
        """A message that is being decoded aside; those behind it wait with the transport."""
        self._half_closed = False
        self._over = False

    # ------------------------------------------------------------------ what the client does

    @property
    def full(self) -> bool:
        return self._work is not None or len(self._jobs) >= REQUESTS_MAX

    def received(self, message: Buffer) -> None:
        if self._over:
            return
        front = self._front
        try:
            if len(message) > INLINE_MESSAGE_BYTES_MAX:
                self._work = front.large.decode(message, self._decoded, self._not_decoded)
                if self._work is not None:
                    return
            request = front.decoder.decode(message)
        except Exception as error:
            self._fail("", front.refusal(error))
        else:
            self._submit(request)

    def _submit(self, request: InferRequest) -> None:
        front = self._front
        try:
            front.add_forwarded(request, self._head)
            job = front.gateway.infer(request, self._done, None, self._call.deadline_ns, self._part)
        except Exception as error:
            self._fail(request.id, front.refusal(error))
        else:
            self._jobs.add(job)

    def _decoded(self, request: InferRequest) -> None:
        self._work = None
        self._submit(request)
        self._go_on()

    def _not_decoded(self, error: Exception) -> None:
        self._work = None
        self._fail("", self._front.refusal(error))
        self._go_on()

    def _go_on(self) -> None:
        """After a message that was decoded aside: as after any other."""
        if self._over:
            return
        if self._half_closed and not self._jobs:
            self._end()
        elif not self.full:
            self._call.resume()

    def half_closed(self) -> None:
        self._half_closed = True
        if not self._busy:
            self._end()

    @property
    def _busy(self) -> bool:
        return bool(self._jobs) or self._work is not None

    def drained(self) -> None:
        paused, self._paused = self._paused, set()
        for job in paused:
            job.resume()

    def cancel(self) -> None:
        if self._over:
            return
        self._close()

    def leave(self, error: PenstockError) -> None:
        """Ends the call with ``error`` if nothing is in progress."""
        if not self._busy and not self._over:
            self._close()
            self._call.fail(error)

    # ------------------------------------------------------------------ what becomes of requests

    def _part(self, job: StreamJob, reply: InferReply) -> None:
        if not self._send(job, reply, _NOT_FINAL):
            job.cancel()
            self._left(job)
        elif self._call.congested:
            self._paused.add(job)
            job.pause()

    def _done(self, job: Job) -> None:
        if job.error is not None:
            self._fail(job.request.id, job.error)
        elif job.reply is not None:
            self._send(job, job.reply, _FINAL)
        elif job.request.parameters.get(_WANTS_END) is True:
            lane = job.lane
            last = InferReply(_NOTHING, (), lane.name, lane.version, job.request.id, _FINAL)
            self._call.send(encode_stream_response(self._front.encoder.encode(last)))
        self._left(job)

    def _send(self, job: Job, reply: InferReply, mark: dict[str, Any]) -> bool:
        """Sends a reply; False if it cannot be said, which the client is told instead."""
        reply.parameters = {**reply.parameters, **mark} if reply.parameters else mark
        try:
            message = encode_stream_response(self._front.encode(job, reply))
        except Exception as error:
            self._fail(job.request.id, failure(error))
            return False
        self._call.send(message)
        return True

    def _fail(self, id: str, error: PenstockError) -> None:
        if self._over:
            return
        if self._errors_end:
            self._close()
            self._call.fail(error)
        else:
            self._call.send(encode_stream_response(error.message, id))

    def _left(self, job: Job) -> None:
        was_full = self.full
        self._jobs.discard(job)
        if isinstance(job, StreamJob):
            self._paused.discard(job)
        if self._over:
            return
        if self._half_closed and not self._busy:
            self._end()
        elif was_full and not self.full:
            self._call.resume()

    def _end(self) -> None:
        if not self._over:
            self._close()
            self._call.finish()

    def _close(self) -> None:
        self._over = True
        self._front.closed(self)
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        jobs, self._jobs = self._jobs, set()
        for job in jobs:
            job.cancel()
