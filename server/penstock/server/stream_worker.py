"""Runs decoupled models: one request, any number of responses, one after another.

Knows sessions that stream. Must not know queues, wires or what becomes of a response.

The producer waits while its consumer has enough to do: ``PartGate`` is the one thing that both
threads touch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from time import monotonic_ns
from typing import Any, Final

from penstock.backends.base import StreamingSession
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array
from penstock.server.job import Job
from penstock.server.worker import BatchRun, ThreadWorker, check_outputs, failure_of

PARTS_MAX: Final = 8
"""Responses of one request that are produced and not yet handed to its front."""
STALL_S_MAX: Final = 60.0
"""A client that lets its responses lie for so long loses them: it holds up an instance."""


class PartGate:
    """Lets the responses of one job pass, at most ``parts_max`` of them on the way at a time."""

    __slots__ = ("_changed", "_ended", "_parts_max", "_paused", "_under_way")

    def __init__(self, parts_max: int = PARTS_MAX) -> None:
        self._changed = threading.Condition()
        self._parts_max = parts_max
        self._under_way = 0
        self._paused = False
        self._ended = False

    def admit(self) -> bool:
        """Waits until a response may go and counts it; False if nobody wants it any more.

        For the producer's thread; everything else is for the consumer's.

        Raises:
            InferError: DEADLINE_EXCEEDED after ``STALL_S_MAX`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(self._open, STALL_S_MAX):
                raise InferError(
                    Code.DEADLINE_EXCEEDED,
                    f"the client did not read its responses for {STALL_S_MAX:g} s",
                )
            self._under_way += 1
            return not self._ended

    def _open(self) -> bool:
        return self._ended or not (self._paused or self._under_way >= self._parts_max)

    def taken(self) -> None:
        """A response that was admitted has been handed over."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify()

    def pause(self) -> None:
        """Admits nothing until ``resume``; what is on the way still comes."""
        self._paused = True

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify()

    def end(self) -> None:
        """Nobody wants more."""
        with self._changed:
            self._ended = True
            self._changed.notify()


class StreamWorker(ThreadWorker):
    """A thread that runs one job at a time; ``offer(job, outputs)`` takes each response.

    The jobs are ``StreamJob``s whose gate is set. All that ``offer`` gets of a job comes before the
    ``BatchRun`` that ends it, which has no outputs.
    """

    def __init__(
        self,
        name: str,
        session: StreamingSession,
        pull: Callable[[ThreadWorker], list[Job] | None],
        deliver: Callable[[list[BatchRun]], None],
        offer: Callable[[Any, Sequence[Array]], None],
    ) -> None:
        self._streaming = session
        self._offer = offer
        super().__init__(name, session, False, pull, deliver)
        self.interruptible = None  # Streams end at their next response, by their gate.

    def _work(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._deliver([self._stream(job)])

    def _stream(self, job: Any) -> BatchRun:
        run = BatchRun([job], job.rows, monotonic_ns())
        try:
            inputs = self._stacker.stack([job], job.rows)
            run.input_ns = monotonic_ns() - run.started_ns
            count = len(self._streaming.outputs)
            with closing(self._streaming.stream(inputs)) as parts:
                for outputs in parts:
                    check_outputs(outputs, count, -1)
                    if not job.gate.admit():
                        break
                    self._offer(job, outputs)
            run.infer_ns = monotonic_ns() - run.started_ns - run.input_ns
        except BaseException as error:
            run.error = failure_of(error)
        return run
