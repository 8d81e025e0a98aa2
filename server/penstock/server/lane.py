"""One loaded model version: its queue, its workers and the choice between them.

The event loop owns a lane: every public method is called on the loop. Worker threads touch only
``_pull`` and ``_deliver``, under ``_lock``.

Two ways to run a batch, chosen by what was learned and not by configuration:

* *inline*, on the loop itself, for models that finish sooner than a thread could be woken;
* *threads*, each pulling its next batch the moment it is free, so that a batch keeps growing until
  somebody can run it.

Requests that arrive in the same turn of the loop are dispatched together at the end of that turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic_ns, time_ns

from penstock.backends.base import OffLoopSession, Session
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferReply
from penstock.server.admission import Admission
from penstock.server.alarm import Alarm
from penstock.server.batching import BatchQueue
from penstock.server.crew import Crew
from penstock.server.curve import BatchCurve
from penstock.server.job import Job, State
from penstock.server.pace import Pace
from penstock.server.policy import LanePolicy
from penstock.server.splitting import Splitter
from penstock.server.stacking import Stacker
from penstock.server.stats import FailReason, LaneStats
from penstock.server.worker import BatchRun, ThreadWorker, execute, outlets_of

_log = logging.getLogger(__name__)

STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"


class Lane:
    """Queue, policy and workers of one model version.

    ``sessions`` holds one session for each thread worker; a thread-safe session may stand in it
    several times. ``admission`` tells whether a request fits, and whether the model batches at all
    (``rows_max`` > 0); ``policy`` who may wait and how long; ``reshapes`` how outputs differ for
    callers. The lane owns the sessions and closes them.
    """

    def __init__(
        self,
        name: str,
        version: str,
        sessions: Sequence[Session],
        admission: Admission,
        *,
        policy: LanePolicy | None = None,
        reshapes: Sequence[tuple[int, ...] | None] = (),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.admission = admission
        self.stats = LaneStats()
        self.in_flight = 0
        """Jobs accepted and not yet answered."""
        self._sessions = list(sessions)
        self._policy = policy or LanePolicy()
        self._batches = admission.rows_max > 0
        self._queue = BatchQueue(max(admission.rows_max, 1), self._policy.jobs_max)
        self._loop = loop or asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._inline = False
        self._pace = Pace(any(isinstance(s, OffLoopSession) and s.off_loop for s in sessions))
        self._curve = BatchCurve(self._queue.rows_max)
        # A session may have more outputs than callers: those of a sequence's states.
        hidden = sessions[0].outputs[len(admission.outputs) :]
        self._splitter = Splitter(
            name,
            version,
            (*admission.outputs, *hidden),
            self._batches,
            (*reshapes, *[None] * len(hidden)),
        )
        self._stacker = Stacker(len(self._sessions[0].inputs))
        self._outlets = outlets_of(self._sessions[0])
        self._crew = Crew()
        self._finished: deque[BatchRun] = deque()
        self._expired: deque[Job] = deque()
        self._notified = False
        self._scheduled = False
        self._alarm = Alarm(self._loop, self._on_alarm)
        self._closing = False
        self._idle = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Jobs in the queue now."""
        return len(self._queue)

    @property
    def mode(self) -> str:
        """``inline`` or ``threads``: how the next batch will run."""
        return "inline" if self._inline else "threads"

    def learned(self, run_ns: int) -> None:
        """Seeds the learned run time with a measurement made at load."""
        self._inline = self._pace.seed(run_ns)

    # ------------------------------------------------------------------ the way of a job

    def submit(self, job: Job, held: bool = False) -> None:
        """Queues ``job``; never blocks.

        It waits until its ``deadline_ns``, if it has one, or for as long as the policy lets it,
        whichever is over first. One that is ``held`` is accepted like any other, but does not run
        before it is released.

        Raises:
            InferError: RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE when closing.
        """
        job.arrived_ns = now = monotonic_ns()
        policy, request = self._policy, job.request
        if policy.priority_levels:
            job.priority = policy.priority(request.priority)
        time_us = policy.time_us(request.timeout_us, job.priority)
        if time_us:
            until_ns = now + time_us * 1000
            if not job.deadline_ns or until_ns < job.deadline_ns:
                job.deadline_ns, job.impatient = until_ns, True
        with self._lock:
            accepted = self._queue.offer(job, held)
        if not accepted:
            raise self._rejected()
        job.lane = self
        self.in_flight += 1
        if not self._scheduled and not held:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        if job.deadline_ns:
            self._alarm.set_by(job.deadline_ns, now)

    def release(self, job: Job) -> bool:
        """Lets a job run that was held; False if it expired meanwhile, and is told so."""
        with self._lock:
            waited = self._queue.release(job)
        if waited and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        return waited

    def refuse(self, job: Job, error: InferError) -> None:
        """Answers a job that waits, and shall not run, with ``error``."""
        with self._lock:
            waited = self._queue.cancel(job)
        if waited:
            job.release()
            job.state = State.TAKEN
            self._fail(job, error, FailReason.OTHER, monotonic_ns())

    def cancel(self, job: Job) -> None:
        """Forgets ``job``, unless it is done: it is taken off the queue, or its result is dropped
        and the run ended if nobody else waits for it. ``on_done`` will not be called.
        """
        with self._lock:
            waited = self._queue.cancel(job)
        if waited:
            job.release()  # The queue may remember a dead job for a while, but not its tensors.
        elif job.state is State.DONE:
            return
        else:
            job.state = State.DONE
            now = monotonic_ns()
            with self._lock:
                again_at = self._crew.give_up(now)
            if again_at:
                self._alarm.set_by(again_at, now)
        self.stats.fail_count[FailReason.CANCELED] += 1
        self.stats.fail_ns += monotonic_ns() - job.arrived_ns
        self._left()

    def _rejected(self) -> InferError:
        self.stats.fail_count[FailReason.REJECTED] += 1
        if self._closing:
            return InferError(Code.UNAVAILABLE, STOPPING)
        return InferError(
            Code.RESOURCE_EXHAUSTED,
            f"Exceeds maximum queue size of {self._queue.jobs_max} for model '{self.name}'",
        )

    def _dispatch(self) -> None:
        self._scheduled = False
        if not self._inline:
            self._wake_worker()
            return
        with self._lock:
            jobs = self._take()
        if jobs:
            first, outlets = self._sessions[0], self._outlets
            for run in execute(first, self._stacker, jobs, self._batches, outlets):
                self._finish(run)
        self._finish_expired()
        if self._queue.ready and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _wake_worker(self) -> None:
        if not self._crew.workers:
            self._start_threads()
        with self._lock:
            parked = self._crew.parked
            worker = parked.pop() if parked and self._queue.ready else None
        if worker is not None:
            worker.unpark()

    def _take(self) -> list[Job]:
        """The next batch; called under the lock, on the loop or on a worker thread."""
        if self._queue.wake_at():  # The alarm cannot tell: it may ring at this moment.
            self._expired.extend(self._queue.expire(monotonic_ns()))
        return self._queue.take(0 if self._inline else self._curve.limit())

    # ------------------------------------------------------------------ worker threads

    def _start_threads(self) -> None:
        with self._lock:  # None takes a batch before all are there.
            for i, session in enumerate(self._sessions):
                self._crew.hire(self._worker(f"{self.name}:{self.version}#{i}", session))

    def _worker(self, name: str, session: Session) -> ThreadWorker:
        return ThreadWorker(name, session, self._batches, self._pull, self._deliver)

    def _pull(self, worker: ThreadWorker) -> list[Job] | None:
        helper, parked = None, self._crew.parked
        with self._lock:
            jobs: list[Job] | None = [] if self._inline else self._take()
            worker.begin(jobs or ())
            if jobs:
                # This worker is busy now: what it left is for one that sleeps.
                if parked and self._queue.ready:
                    helper = parked.pop()
            elif self._closing and not self._queue:
                jobs = None
            else:
                parked.append(worker)
        if helper is not None:
            helper.unpark()
        # The last thing before the model runs and the GIL is free: woken any sooner, the loop would
        # only wait for it.
        if self._finished or self._expired:
            self._notify()
        return jobs

    def _deliver(self, runs: list[BatchRun]) -> None:
        awake = max(self._crew.awake, 1)
        for run in runs:
            run.workers = awake
        self._finished.extend(runs)

    def _notify(self) -> None:
        # Set before the call and cleared before the drain: a result is never left behind.
        if not self._notified:
            self._notified = True
            with contextlib.suppress(RuntimeError):  # The loop is gone, and with it who would care.
                self._loop.call_soon_threadsafe(self._drain_finished)

    def _drain_finished(self) -> None:
        self._notified = False
        finished = self._finished
        while finished:
            self._finish(finished.popleft())
        self._finish_expired()

    # ------------------------------------------------------------------ results

    def _finish(self, run: BatchRun) -> None:
        now = monotonic_ns()
        replies: list[InferReply | None] = []
        if run.error is None:
            try:
                replies = self._splitter.split(run.jobs, run.outputs)
            except ValueError as error:  # Outputs that cannot have the shape that is declared.
                run.error = InferError(Code.INTERNAL, f"model '{self.name}': {error}")
        if run.error is not None:
            reason = FailReason.CANCELED if run.given_up else FailReason.BACKEND
            for job in run.jobs:
                self._fail(job, run.error, reason, now)
            return
        self._learn(run.infer_ns)
        self.stats.ran(
            len(run.jobs),
            run.rows,
            run.input_ns,
            run.infer_ns,
            now - run.started_ns - run.input_ns - run.infer_ns,
            time_ns() // 1_000_000,
        )
        if not self._inline:
            self._curve.observe(run.rows, run.infer_ns // run.workers)
        latencies: list[int] = []
        waits: list[int] = []
        for job, reply in zip(run.jobs, replies, strict=True):
            # Looked at again: an earlier job's callback may have cancelled this one.
            if reply is None or job.state is State.DONE:
                continue
            job.state = State.DONE
            job.reply = reply
            if job.times is not None:
                job.times = run.times(now)
            latencies.append(now - job.arrived_ns)
            waits.append(run.started_ns - job.arrived_ns)
            self._answer(job)
        self.stats.succeeded(latencies, waits)

    def _fail(self, job: Job, error: InferError, reason: FailReason, now: int) -> None:
        if job.state is State.DONE:
            return
        job.state = State.DONE
        job.error = error
        self.stats.fail_count[reason] += 1
        self.stats.fail_ns += now - job.arrived_ns
        self._answer(job)

    def _answer(self, job: Job) -> None:
        self._left()
        try:
            job.on_done(job)
        except Exception:
            # A front door's bug must not cost the rest of the batch its answers.
            _log.exception("reply failed for model %s", self.name)

    def _left(self) -> None:
        self.in_flight -= 1
        if self._closing and not self.in_flight:
            self._idle.set()

    def _learn(self, run_ns: int) -> None:
        if self._inline:
            self._inline = not self._pace.leaves_loop(run_ns)
        elif self._pace.joins_loop(run_ns) and not self._closing:
            # Only while every thread sleeps: a session may not be safe to share.
            with self._lock:
                self._inline = not self._crew.awake

    # ------------------------------------------------------------------ deadlines

    def _on_alarm(self) -> None:
        now = monotonic_ns()
        with self._lock:
            self._expired.extend(self._queue.expire(now))
            next_at = self._crew.give_up(now, self._queue.wake_at())
        if next_at:
            self._alarm.set(next_at, now)
        self._finish_expired()  # Last: its callbacks may submit, and set the alarm themselves.

    def _finish_expired(self) -> None:
        now = monotonic_ns()
        while self._expired:
            job = self._expired.popleft()
            job.release()
            if job.impatient:
                error = InferError(Code.UNAVAILABLE, "Request timeout expired")
                self._fail(job, error, FailReason.REJECTED, now)
            else:
                error = InferError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
                self._fail(job, error, FailReason.CANCELED, now)

    # ------------------------------------------------------------------ the end

    async def drain(self) -> None:
        """Refuses new jobs and returns when every accepted one is answered."""
        self._closing = True
        with self._lock:
            self._queue.close()
        if self.in_flight:
            await self._idle.wait()

    async def close(self) -> None:
        """Drains, ends the threads and closes the sessions."""
        await self.drain()
        self._inline = False
        self._alarm.cancel()
        with self._lock:
            parked = self._crew.call_up()
        for worker in parked:
            worker.unpark()
        await self._loop.run_in_executor(None, self._release)

    def _release(self) -> None:
        if self._crew.dismiss(self.name, self._sessions):
            self._stacker = Stacker(0)
