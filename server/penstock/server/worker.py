"""Runs batches on one session: stack, run, check. Knows nothing of queues' policy or of transports.

``execute`` is the whole work of a batch and is used by both kinds of worker; ``ThreadWorker`` is a
thread that pulls its next batch itself the moment it is free.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from penstock.backends.base import BoundSession, InterruptibleSession, RunError, Session
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array
from penstock.server.job import Job, State
from penstock.server.outlets import Outlets
from penstock.server.stacking import Stacker

_log = logging.getLogger(__name__)


class BatchRun:
    """What became of one batch. ``error`` is set, or ``outputs`` hold ``rows`` rows each.

    The times are monotonic nanoseconds: taken, inputs ready, outputs there. ``workers`` is how many
    of the lane's workers were awake when it ended, this one included. ``given_up`` says that it
    failed because it was interrupted: nobody wanted its results.
    """

    __slots__ = (
        "error", "given_up", "infer_ns", "input_ns", "jobs", "outputs", "rows", "started_ns",
        "workers",
    )  # fmt: skip

    def __init__(self, jobs: Sequence[Job], rows: int, started_ns: int) -> None:
        self.jobs = jobs
        self.rows = rows
        self.started_ns = started_ns
        self.input_ns = 0
        self.infer_ns = 0
        self.outputs: Sequence[Array] = ()
        self.error: InferError | None = None
        self.given_up = False
        self.workers = 1

    def times(self, now: int) -> tuple[int, int, int, int]:
        """When it began, had its inputs, had its outputs, and ``now``."""
        ready = self.started_ns + self.input_ns
        return (self.started_ns, ready, ready + self.infer_ns, now)


def execute(
    session: Session,
    stacker: Stacker,
    jobs: Sequence[Job],
    batches: bool,
    outlets: Outlets | None = None,
    worker: ThreadWorker | None = None,
) -> list[BatchRun]:
    """Runs ``jobs`` as one batch; if that fails, in halves, so that only the culprit fails.

    ``outlets`` are the session's, where it can write results in place (``outlets_of``). ``worker``
    is the thread that it is done on, if there is one: what it gave up is not run again. Returns one
    result per run that stands: a single one when all went well, none if all were cancelled after it
    had failed. Never raises.
    """
    run = _run(session, stacker, jobs, batches, outlets, worker)
    if run.error is None:
        return [run]
    if worker is not None and worker.gave_up:
        # All of these jobs are cancelled or late; only the late ones will be told.
        run.given_up, run.error = True, InferError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
        return [run]
    if len(jobs) == 1:
        return [run]
    return [
        again
        for part in _parts(jobs)
        for again in execute(session, stacker, part, batches, outlets, worker)
    ]


def _parts(jobs: Sequence[Job]) -> list[Sequence[Job]]:
    """What to run of a batch that failed: its halves, or those of its jobs that were not cancelled
    meanwhile: nothing of the others shall be computed or written again."""
    waiting = [job for job in jobs if job.state is not State.DONE]
    if len(waiting) < len(jobs):
        return [waiting] if waiting else []
    half = len(jobs) // 2
    return [jobs[:half], jobs[half:]]


def _run(
    session: Session,
    stacker: Stacker,
    jobs: Sequence[Job],
    batches: bool,
    outlets: Outlets | None,
    worker: ThreadWorker | None,
) -> BatchRun:
    started_ns = monotonic_ns()
    rows = jobs[0].rows if len(jobs) == 1 else sum([job.rows for job in jobs])
    run = BatchRun(jobs, rows, started_ns)
    try:
        inputs = stacker.stack(jobs, rows)
        run.input_ns = monotonic_ns() - started_ns
        # An interrupt that came before the run began is not the session's to remember.
        if worker is not None and worker.gave_up:
            raise RunError("nobody waits for this run any more")
        if outlets is None or len(jobs) > 1 or not jobs[0].request.targets:
            outputs = session.run(inputs)
        else:
            outputs = _run_into(session, outlets, jobs[0], inputs, worker)
        run.infer_ns = monotonic_ns() - started_ns - run.input_ns
        check_outputs(outputs, len(session.outputs), rows if batches else -1)
        run.outputs = outputs
    except BaseException as error:
        run.error = failure_of(error)
    return run


def outlets_of(session: Session) -> Outlets | None:
    """What ``execute`` needs to let ``session`` write results in place; None where it cannot."""
    return Outlets(session.outputs) if isinstance(session, BoundSession) else None


def _run_into(
    session: Any, outlets: Outlets, job: Job, inputs: Sequence[Array], worker: ThreadWorker | None
) -> Sequence[Array]:
    places = outlets.places(job, inputs)
    if places:
        try:
            done: Sequence[Array] = session.run_into(inputs, places)
        except RunError:
            if worker is not None and worker.gave_up:
                raise
            # Either the shape is another this time, or the request is at fault and fails again.
        else:
            return done
    outputs: Sequence[Array] = session.run(inputs)
    if places is None:
        outlets.learn(inputs, outputs)
    elif places:
        outlets.varies(inputs)
    return outputs


def failure_of(error: BaseException) -> InferError:
    """What to tell the callers about what a run raised."""
    if isinstance(error, RunError):
        code = Code.INVALID_ARGUMENT if error.caller_fault else Code.INTERNAL
        return InferError(code, str(error))
    if isinstance(error, InferError):
        return error
    # A backend broke its contract, perhaps by SystemExit or a foreign panic: its callers must still
    # be answered, and this thread or loop must go on.
    _log.error("backend raised outside its contract", exc_info=error)
    return InferError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def check_outputs(outputs: Sequence[Array], count: int, rows: int) -> None:
    """What the lane relies on: ``count`` arrays, with ``rows`` rows each unless that is -1."""
    shapes = [output.shape for output in outputs]
    if len(shapes) != count:
        raise RunError(f"the model returned {len(shapes)} outputs instead of {count}")
    if rows >= 0:
        for shape in shapes:
            if shape[:1] != (rows,):
                raise RunError(
                    f"the model returned an output of shape {list(shape)} for a batch of {rows} "
                    "rows"
                )


class ThreadWorker:
    """A thread with a session of its own to use.

    ``pull`` gives the next batch, an empty list (the thread parks until ``unpark``) or None (the
    thread ends); ``deliver`` takes the results. Both are called on this thread. ``pull`` calls
    ``begin`` under the lane's lock, under which alone ``wanted_until`` and ``give_up`` are called:
    whoever holds it sees what the thread runs, and may end that.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        batches: bool,
        pull: Callable[[ThreadWorker], list[Job] | None],
        deliver: Callable[[list[BatchRun]], None],
    ) -> None:
        self.session = session
        self._stacker = Stacker(len(session.inputs))
        self._outlets = outlets_of(session)
        self._batches = batches
        self._pull = pull
        self._deliver = deliver
        self._running: Sequence[Job] = ()
        self.interruptible = session if isinstance(session, InterruptibleSession) else None
        """Set to None where an interrupt could meet the run of another thread."""
        self.gave_up = False
        """Whether the batch that runs was interrupted because nobody wanted it."""
        # A lock used as a binary semaphore: released once per unpark, taken by the sleeper.
        self._parked = threading.Lock()
        self._parked.acquire()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def begin(self, jobs: Sequence[Job]) -> None:
        """Notes the batch that this thread will run next; an interrupt is for this one from now on.

        The session forgets earlier interrupts when a run begins, which is after this.
        """
        self._running = jobs
        self.gave_up = False

    def wanted_until(self) -> int | None:
        """When the last of those who wait for the running batch stops waiting: 0 if that is past,
        None if it is not known, the run cannot be ended or none is in progress.

        How long a job may wait in the queue does not matter once it runs.
        """
        if not self._running or self.interruptible is None:
            return None
        until = 0
        for job in self._running:
            if job.state is State.DONE:
                continue
            if not job.deadline_ns or job.impatient:
                return None
            until = max(until, job.deadline_ns)
        return until

    def give_up(self) -> None:
        """Ends the running batch."""
        if self.interruptible is not None:
            self.gave_up = True
            self.interruptible.interrupt()

    def unpark(self) -> None:
        """Lets the parked thread pull again. The caller took it off the list of parked ones."""
        self._parked.release()

    def join(self, timeout_s: float) -> bool:
        """True when the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (jobs := self._pull(self)) is not None:
            if not jobs:
                self._parked.acquire()
                continue
            self._work(jobs)
            del jobs  # A sleeping worker must not keep the last batch alive.

    def _work(self, jobs: list[Job]) -> None:
        self._deliver(
            execute(self.session, self._stacker, jobs, self._batches, self._outlets, self)
        )
