"""The lane of a decoupled model: each job gets any number of replies, then its end.

Knows lanes. Must not know wires.

Jobs run alone and on threads only. ``on_part`` and ``on_done`` of a job are called on the event
loop, the former for each response in the order in which the model made them, the latter once after
the last. A front whose client does not keep up says ``job.pause()``, and later ``job.resume()``:
until then the model makes no more than a few further responses for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from time import monotonic_ns, time_ns
from typing import Any, cast

from penstock.backends.base import Session, StreamingSession
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array
from penstock.server.job import Job, State, StreamJob
from penstock.server.lane import Lane
from penstock.server.splitting import Splitter
from penstock.server.stats import FailReason
from penstock.server.stream_worker import PartGate, StreamWorker
from penstock.server.worker import BatchRun

_log = logging.getLogger(__name__)


class DecoupledModelError(InferError):
    """One reply was asked of a model that may give none or many. Fronts have words of their own."""

    def __init__(self, model: str) -> None:
        super().__init__(
            Code.UNIMPLEMENTED,
            f"model '{model}' has a decoupled transaction policy: it answers streams only",
        )


class StreamLane(Lane):
    """See ``Lane``; the sessions can stream, and every job is a ``StreamJob``."""

    def __init__(
        self,
        name: str,
        version: str,
        sessions: Sequence[Session],
        admission: Any,
        *,
        reshapes: Sequence[tuple[int, ...] | None] = (),
        **options: Any,
    ) -> None:
        super().__init__(name, version, sessions, admission, **options)
        self._splitter = Splitter(
            name, version, admission.outputs, self._batches, reshapes, whole=True
        )
        self._parts: deque[tuple[StreamJob, Sequence[Array]]] = deque()

    def learned(self, run_ns: int) -> None:
        """Nothing: streams never run on the loop."""

    def submit(self, job: Job, held: bool = False) -> None:
        """See ``Lane.submit``.

        Raises:
            DecoupledModelError: the job has no ``on_part``.
        """
        if not isinstance(job, StreamJob):
            self.stats.fail_count[FailReason.OTHER] += 1
            raise DecoupledModelError(self.name)
        job.gate = PartGate()
        super().submit(job, held)

    def cancel(self, job: Job) -> None:
        """See ``Lane.cancel``; a stream that runs is closed by its thread at the next response."""
        super().cancel(job)
        if isinstance(job, StreamJob) and job.gate is not None:
            job.gate.end()

    # ------------------------------------------------------------------ worker threads

    def _take(self) -> list[Job]:
        if self._alarm.at_ns:
            self._expired.extend(self._queue.expire(monotonic_ns()))
        return self._queue.take(1)

    def _worker(self, name: str, session: Session) -> StreamWorker:
        streaming = cast("StreamingSession", session)
        return StreamWorker(name, streaming, self._pull, self._deliver, self._offer)

    def _offer(self, job: StreamJob, outputs: Sequence[Array]) -> None:
        self._parts.append((job, outputs))
        self._notify()

    # ------------------------------------------------------------------ on the loop

    def _drain_finished(self) -> None:
        self._notified = False  # Before the drain; see ``_notify``.
        self._hand_over()
        super()._drain_finished()

    def _hand_over(self) -> None:
        parts = self._parts
        while parts:
            job, outputs = parts.popleft()
            if job.state is not State.DONE:
                self._answer_part(job, outputs)
            job.gate.taken()

    def _answer_part(self, job: StreamJob, outputs: Sequence[Array]) -> None:
        try:
            (reply,) = self._splitter.split([job], outputs)
        except ValueError as error:
            self._give_up(job, f"model '{self.name}': {error}", FailReason.BACKEND)
            return
        if reply is None:
            return
        self.stats.response_count += 1
        try:
            job.on_part(job, reply)
        except Exception:
            _log.exception("reply failed for model %s", self.name)
            self._give_up(job, "internal error", FailReason.OTHER)

    def _give_up(self, job: StreamJob, message: str, reason: FailReason) -> None:
        self._fail(job, InferError(Code.INTERNAL, message), reason, monotonic_ns())
        job.gate.end()

    def _finish(self, run: BatchRun) -> None:
        # Whatever the job offered stands before its end: the end was not there when that was taken.
        self._hand_over()
        now = monotonic_ns()
        (job,) = run.jobs
        if job.state is State.DONE:
            return
        if run.error is not None:
            stalled = run.error.code is Code.DEADLINE_EXCEEDED
            reason = FailReason.CANCELED if stalled else FailReason.BACKEND
            self._fail(job, run.error, reason, now)
            return
        job.state = State.DONE
        if job.times is not None:
            job.times = run.times(now)
        self.stats.ran(1, run.rows, run.input_ns, run.infer_ns, 0, time_ns() // 1_000_000)
        self.stats.succeeded([now - job.arrived_ns], [run.started_ns - job.arrived_ns])
        self._answer(job)
