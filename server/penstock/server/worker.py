"""Runs batches on one session: stack, run, check. Knows nothing of queues' policy or of transports.

``execute`` is the whole work of a batch and is used by both kinds of worker; ``ThreadWorker`` is a
thread that pulls its next batch itself the moment it is free.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic_ns

from penstock.backends.base import RunError, Session
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array
from penstock.server.job import Job
from penstock.server.stacking import Stacker

_log = logging.getLogger(__name__)


class BatchRun:
    """What became of one batch. ``error`` is set, or ``outputs`` hold ``rows`` rows each.

    The times are monotonic nanoseconds: taken, inputs ready, outputs there. ``workers`` is how many
    of the lane's workers were awake when it ended, this one included.
    """

    __slots__ = (
        "error", "infer_ns", "input_ns", "jobs", "outputs", "rows", "started_ns", "workers",
    )  # fmt: skip

    def __init__(self, jobs: Sequence[Job], rows: int, started_ns: int) -> None:
        self.jobs = jobs
        self.rows = rows
        self.started_ns = started_ns
        self.input_ns = 0
        self.infer_ns = 0
        self.outputs: Sequence[Array] = ()
        self.error: InferError | None = None
        self.workers = 1

    def times(self, now: int) -> tuple[int, int, int, int]:
        """When it began, had its inputs, had its outputs, and ``now``."""
        ready = self.started_ns + self.input_ns
        return (self.started_ns, ready, ready + self.infer_ns, now)


def execute(
    session: Session, stacker: Stacker, jobs: Sequence[Job], batches: bool
) -> list[BatchRun]:
    """Runs ``jobs`` as one batch; if that fails, in halves, so that only the culprit fails.

    Returns one result per run that stands: a single one when all went well. Never raises.
    """
    run = _run(session, stacker, jobs, batches)
    if run.error is None or len(jobs) == 1:
        return [run]
    half = len(jobs) // 2
    return [
        *execute(session, stacker, jobs[:half], batches),
        *execute(session, stacker, jobs[half:], batches),
    ]


def _run(session: Session, stacker: Stacker, jobs: Sequence[Job], batches: bool) -> BatchRun:
    started_ns = monotonic_ns()
    rows = jobs[0].rows if len(jobs) == 1 else sum([job.rows for job in jobs])
    run = BatchRun(jobs, rows, started_ns)
    try:
        inputs = stacker.stack(jobs, rows)
        run.input_ns = monotonic_ns() - started_ns
        outputs = session.run(inputs)
        run.infer_ns = monotonic_ns() - started_ns - run.input_ns
        check_outputs(outputs, len(session.outputs), rows if batches else -1)
        run.outputs = outputs
    except BaseException as error:
        run.error = failure_of(error)
    return run


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
    thread ends); ``deliver`` takes the results. Both are called on this thread.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        batches: bool,
        pull: Callable[[ThreadWorker], list[Job] | None],
        deliver: Callable[[list[BatchRun]], None],
    ) -> None:
        self._session = session
        self._stacker = Stacker(len(session.inputs))
        self._batches = batches
        self._pull = pull
        self._deliver = deliver
        # A lock used as a binary semaphore: released once per unpark, taken by the sleeper.
        self._parked = threading.Lock()
        self._parked.acquire()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

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
        self._deliver(execute(self._session, self._stacker, jobs, self._batches))
