"""How large a batch of one model is worth making, learned from its runs. Pure.

A larger batch pays while the time per row falls. Beyond that point it only makes everybody in it
wait for everybody else, and keeps rows from a worker that is idle. So: batches up to the smallest
size whose time per row is within a tenth of the best that was seen. The time of a run is divided by
the number of workers that ran beside it: what counts is the rows that the lane gets done.
"""

from __future__ import annotations

from typing import Final

_SAMPLES_MIN: Final = 4
_SETTLE_EVERY: Final = 16
_EXPLORE_EVERY: Final = 64
"""One batch in so many may be of any size, so that what was learned once can be unlearned."""


class BatchCurve:
    """Time per row by batch size, in steps of powers of two.

    Until a size larger than the cheapest one was seen, nothing limits batches but ``rows_max``.
    """

    __slots__ = ("_observed", "_row_ns", "_samples", "_taken", "goal", "rows_max")

    def __init__(self, rows_max: int) -> None:
        steps = rows_max.bit_length() + 1
        self.rows_max = rows_max
        self.goal = rows_max
        """Rows worth waiting for in one batch, as far as is known."""
        self._row_ns = [0] * steps
        self._samples = [0] * steps
        self._observed = 0
        self._taken = 0

    def observe(self, rows: int, run_ns: int) -> None:
        """Learns from a run of ``rows`` rows (at most ``rows_max``).

        ``run_ns`` is its time in nanoseconds, divided by the number of workers then running.
        """
        if rows < 1:
            return
        step = min((rows - 1).bit_length(), len(self._row_ns) - 1)
        row_ns = run_ns // rows
        if self._samples[step]:
            self._row_ns[step] += (row_ns - self._row_ns[step]) // 8
        else:
            self._row_ns[step] = row_ns
        self._samples[step] += 1
        self._observed += 1
        if self._observed % _SETTLE_EVERY == 0:
            self._settle()

    def limit(self) -> int:
        """Rows that the next batch may have."""
        self._taken += 1
        return self.rows_max if self._taken % _EXPLORE_EVERY == 0 else self.goal

    def _settle(self) -> None:
        known = [i for i, count in enumerate(self._samples) if count >= _SAMPLES_MIN]
        if not known:
            return
        enough = min(self._row_ns[i] for i in known) * 11 // 10
        step = next(i for i in known if self._row_ns[i] <= enough)
        self.goal = self.rows_max if step == known[-1] else min(1 << step, self.rows_max)
