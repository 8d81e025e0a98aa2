"""A histogram of latencies with bounded memory, cheap enough to be fed for every reply.

Knows numbers only. Resolution is 1 µs below 65 ms and 1 ms above, up to 120 s; longer ones count
as 120 s in quantiles, ``max_us`` is exact.
"""

from __future__ import annotations

from array import array

_FINE_US = 65_536
_COARSE_MS = 120_000


class Latencies:
    """Counts by bucket. Not thread-safe; owned by one load run."""

    __slots__ = ("_coarse", "_fine", "count", "max_us")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._fine = array("Q", bytes(8 * _FINE_US))
        self._coarse = array("Q", bytes(8 * (_COARSE_MS + 1)))
        self.count = 0
        self.max_us = 0

    def add(self, us: int) -> None:
        """Count one latency of ``us`` microseconds (>= 0)."""
        self.count += 1
        if us > self.max_us:
            self.max_us = us
        if us < _FINE_US:
            self._fine[us] += 1
        else:
            self._coarse[min(us // 1000, _COARSE_MS)] += 1

    def quantile_us(self, q: float) -> int:
        """The smallest bucket that at least a share ``q`` of the latencies does not exceed."""
        wanted = max(1, -int(-q * self.count // 1))
        seen = 0
        for scale, buckets in ((1, self._fine), (1000, self._coarse)):
            for index, n in enumerate(buckets):
                seen += n
                if seen >= wanted:
                    return min(index * scale, self.max_us)
        return 0
