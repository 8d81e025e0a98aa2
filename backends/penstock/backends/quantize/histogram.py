"""A streaming histogram of one tensor: constant memory, and the same result however data arrive.

Knows NumPy only; nothing of models or of what a threshold is.

Contract. There are ``BINS`` bins on each side of zero and the outer edge is a power of two, so the
bin of a value is exact in floating point, and widening is adding neighbours: no count is ever
split. The edge depends on the largest magnitude alone. Hence histograms of the same values are
equal, whatever the order, the split into arrays or the merging. NaN and infinities are counted
apart and touch nothing else. Values are taken as float32; beyond its range they count as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

BINS: Final = 4096
"""On each side of zero. The largest magnitude lies in the outer half, so that between 2,048 and
4,096 bins divide what was seen: never coarser than the 2,048 of the published calibration."""
EXPONENT_MIN: Final = -100
"""Of the outer edge. Below it bins stay as wide as they are: scales would leave float32."""
EXPONENT_MAX: Final = 128
_BLOCK: Final = 1 << 16
"""Values binned at a time: what is made on the way stays in the processor's cache."""


class Histogram:
    """Counts of one tensor's values. Not thread-safe. 64 KiB whatever the data.

    ``minimum`` and ``maximum`` are exact, over the finite values (``inf`` and ``-inf`` while there
    are none); ``count`` is that of the finite values, ``zeros`` of them being exactly zero.
    """

    __slots__ = (
        "_bins", "count", "exponent", "infinities", "maximum", "minimum", "nans", "zeros",
    )  # fmt: skip

    def __init__(self) -> None:
        self._bins: Counts = np.zeros(2 * BINS, np.int64)
        self.exponent = EXPONENT_MIN
        self.minimum, self.maximum = math.inf, -math.inf
        self.count = self.zeros = self.nans = self.infinities = 0

    @property
    def limit(self) -> float:
        """The outer edge; every finite value's magnitude is below it."""
        return math.ldexp(1.0, self.exponent)

    @property
    def width(self) -> float:
        """Of a bin."""
        return self.limit / BINS

    @property
    def magnitude_max(self) -> float:
        """The largest finite magnitude seen; 0 where none was."""
        return max(-self.minimum, self.maximum) if self.count else 0.0

    def signed(self) -> Counts:
        """Counts of ``2 * BINS`` bins from ``-limit`` to ``limit``; a copy."""
        return self._bins.copy()

    def magnitudes(self) -> Counts:
        """Counts of ``BINS`` bins of |x| from 0 to ``limit``: exact, for both sides mirror."""
        return self._bins[BINS:] + self._bins[BINS - 1 :: -1]

    def add(self, values: NDArray[Any]) -> None:
        """Counts every element of ``values``, of any shape and any real dtype."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            if block.dtype != np.float32:
                with np.errstate(over="ignore"):
                    block = block.astype(np.float32)
            self._add(block)

    def _add(self, block: NDArray[np.float32]) -> None:
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(block)
            nans = int(np.count_nonzero(np.isnan(block)))
            self.nans += nans
            block = block[finite]
            self.infinities += finite.size - nans - block.size
            if not block.size:
                return
            low, high = float(block.min()), float(block.max())
        self.widen(exponent_of(max(-low, high)))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.count += block.size
        self.zeros += block.size - int(np.count_nonzero(block))
        # A power of two: a product is exact, or so small that it is bin 0 anyway. The sign is the
        # value's own, for the product's may be lost; adding zero makes -0 a plain zero.
        at = (block + np.float32(0)).view(np.int32) >> 31  # 0, or -1 on the mirror's side
        at += (block * np.float32(1 / self.width)).astype(np.int32)
        at += BINS
        self._bins += np.bincount(at, minlength=2 * BINS)

    def widen(self, exponent: int) -> None:
        """Moves the outer edge to ``2 ** exponent``, unless it is there or beyond."""
        while self.exponent < exponent:
            if not self.count:
                self.exponent = exponent
                return
            pairs = self._bins.reshape(-1, 2).sum(axis=1)
            self._bins[:] = 0
            self._bins[BINS // 2 : BINS // 2 + BINS] = pairs
            self.exponent += 1

    def merge(self, other: Histogram) -> None:
        """Adds what ``other`` has counted. Associative and commutative, exactly."""
        if other.exponent < self.exponent:
            other = other.copy()
        self.widen(other.exponent)
        other.widen(self.exponent)
        self._bins += other._bins
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count
        self.zeros += other.zeros
        self.nans += other.nans
        self.infinities += other.infinities

    def copy(self) -> Histogram:
        """An independent histogram with the same counts."""
        return Histogram.of_state(self.state(), self._bins)

    def state(self) -> dict[str, float | int]:
        """Everything but the bins, for JSON; see ``of_state``."""
        return {
            "exponent": self.exponent,
            "count": self.count,
            "zeros": self.zeros,
            "nans": self.nans,
            "infinities": self.infinities,
            "minimum": self.minimum if self.count else 0.0,
            "maximum": self.maximum if self.count else 0.0,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], bins: NDArray[Any]) -> Histogram:
        """The histogram that ``state()`` and ``signed()`` were taken from.

        Raises:
            ValueError: they are not of one histogram.
        """
        made = cls()
        count = int(state["count"])
        if bins.shape != (2 * BINS,) or int(bins.sum()) != count or int(bins.min()) < 0:
            raise ValueError(f"bins of shape {list(bins.shape)} do not hold {count} values")
        made._bins[:] = bins
        made.exponent = int(state["exponent"])
        made.count, made.zeros = count, int(state["zeros"])
        made.nans, made.infinities = int(state["nans"]), int(state["infinities"])
        if count:
            made.minimum, made.maximum = float(state["minimum"]), float(state["maximum"])
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.state() == other.state() and bool(np.array_equal(self._bins, other._bins))

    __hash__ = None  # type: ignore[assignment]  # it changes

    def outline(self, bars: int = 128) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """A coarse picture: ``bars + 1`` edges around what was seen, and ``bars`` counts.

        Bars are equally wide, and whole numbers of bins; the outermost ones may reach beyond the
        extremes.
        """
        used = np.flatnonzero(self._bins)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (BINS, BINS + 1)
        step = max(1, -(-(last - first) // bars))
        edges = first + step * np.arange(bars + 1)
        sums = np.concatenate(([0], np.cumsum(self._bins)))[np.minimum(edges, 2 * BINS)]
        places = (edges - BINS) * self.width
        return tuple(places.tolist()), tuple(np.diff(sums).tolist())


def exponent_of(magnitude: float) -> int:
    """The least exponent of an outer edge that ``magnitude`` is below."""
    return max(EXPONENT_MIN, math.frexp(magnitude)[1]) if magnitude else EXPONENT_MIN


def merged(parts: Iterable[Histogram]) -> Histogram:
    """One histogram of all that ``parts`` have counted; they stay as they are."""
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole
