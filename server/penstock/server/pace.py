"""Where a lane's batches shall run, learned from how long they take. Pure: times are arguments.

Short runs belong on the event loop (*inline*): waking a thread would take longer. All others belong
on threads, and so do models that are short on average but once held up the loop.
"""

from __future__ import annotations

INLINE_BELOW_NS = 100_000
"""A thread hand-off costs about this much; shorter runs go onto the loop."""
THREADS_ABOVE_NS = 250_000
"""Longer runs leave it. The gap keeps a model near the border from flapping."""
STALL_NS = 10 * THREADS_ABOVE_NS
"""A single run on the loop that takes this long sends the lane to threads for many runs."""
_STAY_RUNS_MAX = 1 << 20


class Pace:
    """The learned run time of one lane: a moving mean over about eight runs.

    With ``off_loop`` the lane stays on threads, whatever is learned.
    """

    __slots__ = ("_off_loop", "_run_ns", "_stay", "_stay_next")

    def __init__(self, off_loop: bool = False) -> None:
        self._off_loop = off_loop
        self._run_ns = THREADS_ABOVE_NS
        self._stay = 0
        """Runs for which the lane stays on threads, whatever their mean."""
        self._stay_next = 1024

    def seed(self, run_ns: int) -> bool:
        """Starts from a measurement; says whether the lane shall begin inline."""
        self._run_ns = run_ns
        return run_ns < INLINE_BELOW_NS and not self._off_loop

    def leaves_loop(self, run_ns: int) -> bool:
        """Counts a run that was inline; says whether the next one shall be on a thread."""
        self._run_ns += (run_ns - self._run_ns) >> 3
        if run_ns > STALL_NS:
            # Short on average, but not always: the loop was held up, and shall not be soon.
            self._stay, self._stay_next = self._stay_next, min(2 * self._stay_next, _STAY_RUNS_MAX)
            return True
        return self._run_ns > THREADS_ABOVE_NS

    def joins_loop(self, run_ns: int) -> bool:
        """Counts a run that was on a thread; says whether the next one may be inline."""
        self._run_ns += (run_ns - self._run_ns) >> 3
        if self._stay:
            self._stay -= 1
            return False
        return self._run_ns < INLINE_BELOW_NS and not self._off_loop
