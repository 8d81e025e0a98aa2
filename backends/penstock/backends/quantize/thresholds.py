"""From a histogram to a range: min-max, percentile, least squared error, entropy.

Knows histograms and the number of integers; nothing of models. Pure.

Contract. Every method gives ``(low, high)`` with ``low <= 0 <= high``, inside what was seen (and
zero). ``symmetric`` gives ``(-t, t)``, for signed integers with zero point 0; otherwise a side on
which nothing was seen is 0. The methods themselves want a histogram with something other than zero
in it; ``find`` takes any, and says what was unusual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from penstock.backends.quantize.affine import S8_MAX, SCALE_MIN, U8_MAX
from penstock.backends.quantize.divergence import bins_kept
from penstock.backends.quantize.histogram import BINS, Histogram
from penstock.backends.quantize.ranges import Observed, Range

Bounds = tuple[float, float]
MethodName = Literal["minmax", "percentile", "mse", "entropy"]
METHODS: Final[tuple[MethodName, ...]] = get_args(MethodName)

MAGNITUDE_MIN: Final = U8_MAX * SCALE_MIN
"""A tensor that never exceeds it cannot be told from zero by a scale that is a normal float32."""
_GRID: Final = 64
"""Clips a side that the asymmetric search tries at a time; then again around the best."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose ranges, with what it can be told.

    ``percent`` of the values are kept by ``percentile``. ``level_zero`` lets ``entropy`` count the
    innermost bin like its neighbour, as NVIDIA's later toolkits do: otherwise the zeros of a ReLU,
    which are exact at any scale, outweigh the rest, and half of a clipped gaussian is cut off.
    """

    name: MethodName = "entropy"
    percent: float = 99.99
    level_zero: bool = True

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"method {self.name!r} is not one of {', '.join(METHODS)}")
        if not 50 < self.percent <= 100:
            raise ValueError(f"percent is {self.percent}; it must be above 50 and at most 100")


def find(histogram: Histogram, method: Method, *, symmetric: bool) -> Range:
    """The range of any histogram whatever it holds; ``Range.note`` has what was unusual."""
    notes = []
    if lost := histogram.nans + histogram.infinities:
        notes.append(f"{histogram.nans} NaN and {lost - histogram.nans} infinite values left out")
    if histogram.magnitude_max <= MAGNITUDE_MIN:
        notes.append(_nothing(histogram))
        low, high = (-1.0, 1.0) if symmetric else (0.0, 1.0)
    else:
        low, high = _BY_NAME[method.name](histogram, method, symmetric)
        if histogram.minimum == histogram.maximum:
            notes.append("it is constant")
    observed = Observed.of(histogram)
    return Range(low, high, method.name, "; ".join(notes), observed)


def minmax(histogram: Histogram, *, symmetric: bool) -> Bounds:
    """All that was seen."""
    top = histogram.magnitude_max
    return (-top, top) if symmetric else _seen(histogram, top, top)


def percentile(histogram: Histogram, *, symmetric: bool, percent: float = 99.99) -> Bounds:
    """What leaves ``100 - percent`` of the values outside, to a bin's width.

    Symmetric: counted by magnitude. Otherwise, where there are values on both sides of zero, half
    of those left outside may be on either side; else all of them on the one.
    """
    spared = histogram.count * (100 - percent) / 100
    inner = histogram.magnitudes()
    if symmetric:
        top = _outermost(inner, spared) * histogram.width
        return _mirrored(histogram, top)
    low, high = _sides(histogram)
    if histogram.minimum < 0 < histogram.maximum:
        spared /= 2
    return _seen(
        histogram,
        _outermost(low, spared) * histogram.width,
        _outermost(high, spared) * histogram.width,
    )


def mse(histogram: Histogram, *, symmetric: bool) -> Bounds:
    """The least mean squared error of the values that come back.

    Inside the range the error of a rounded value is uniform in a step, step^2 / 12, and none for
    zeros; outside it is the distance to the clip. Both follow from running sums over bins for any
    clip, so that symmetric clips are tried at every bin, and asymmetric ones on a grid of pairs
    that is then refined around the best.
    """
    if symmetric:
        return _mirrored(histogram, _mse_symmetric(histogram))
    below, above = (_Tail(side, histogram.width) for side in _sides(histogram))
    rounded = histogram.count - histogram.zeros
    lows, highs = _grid(0, below.size), _grid(0, above.size)
    low, high = _best_pair(below, above, lows, highs, rounded)
    while max(_step(lows), _step(highs)) > 1:
        lows = _grid(low - _step(lows), min(below.size, low + _step(lows)))
        highs = _grid(high - _step(highs), min(above.size, high + _step(highs)))
        low, high = _best_pair(below, above, lows, highs, rounded)
    return _seen(histogram, low * histogram.width, high * histogram.width)


def entropy(histogram: Histogram, *, symmetric: bool, level_zero: bool = True) -> Bounds:
    """The published calibration on |x| (``divergence``): the threshold is mid of the next bin.

    It is symmetric by nature, with 128 levels for a magnitude. For asymmetric integers it bounds
    both sides, each also by what was seen there. Where one side then is the larger, that side is
    searched again on its own, with its share of 256 levels: folded onto it, the many small values
    of the other (SiLU's, say) would draw the threshold inwards.
    """
    top = _kept(histogram.magnitudes(), S8_MAX + 1, level_zero) * histogram.width
    if symmetric:
        return _mirrored(histogram, top)
    low, high = _seen(histogram, top, top)
    levels = round((U8_MAX + 1) * max(-low, high) / (high - low))
    if levels > S8_MAX + 1:
        below, above = _sides(histogram)
        top = _kept(above if high > -low else below, levels, level_zero) * histogram.width
    return _seen(histogram, top, top)


def _kept(counts: NDArray[np.int64], levels: int, level_zero: bool) -> float:
    if level_zero and counts.size > 1:
        counts = counts.copy()
        counts[0] = counts[1]
    return bins_kept(counts, levels) + 0.5


_BY_NAME: Final[dict[str, Callable[[Histogram, Method, bool], Bounds]]] = {
    "minmax": lambda h, _, symmetric: minmax(h, symmetric=symmetric),
    "percentile": lambda h, m, symmetric: percentile(h, symmetric=symmetric, percent=m.percent),
    "mse": lambda h, _, symmetric: mse(h, symmetric=symmetric),
    "entropy": lambda h, m, symmetric: entropy(h, symmetric=symmetric, level_zero=m.level_zero),
}


def _nothing(histogram: Histogram) -> str:
    if not histogram.count:
        return "no finite value was seen"
    if histogram.magnitude_max:
        return f"nothing beyond {histogram.magnitude_max:.1e} was seen, which 8 bits cannot hold"
    return "only zeros were seen"


def _mirrored(histogram: Histogram, top: float) -> Bounds:
    top = max(min(top, histogram.magnitude_max), MAGNITUDE_MIN)
    return -top, top


def _seen(histogram: Histogram, low: float, high: float) -> Bounds:
    """``(-low, high)``, no further than the extremes, and not empty."""
    bottom = max(-low, min(histogram.minimum, 0.0)) + 0.0  # no -0
    top = min(high, max(histogram.maximum, 0.0))
    if top - bottom < MAGNITUDE_MIN:
        return minmax(histogram, symmetric=False)
    return bottom, top


def _sides(histogram: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts by magnitude of what is below and what is above zero, up to the last in use."""
    bins = histogram.signed()
    return _used(bins[BINS - 1 :: -1]), _used(bins[BINS:])


def _used(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    at = np.flatnonzero(counts)
    return counts[: int(at[-1]) + 1 if at.size else 0]


def _outermost(counts: NDArray[np.int64], spared: float) -> int:
    """The fewest innermost bins that leave at most ``spared`` values outside."""
    outside = np.cumsum(counts[::-1])[::-1]
    return int(np.count_nonzero(outside > spared))


class _Tail:
    """Squared distances of one side's values to any clip at a bin's edge."""

    def __init__(self, counts: NDArray[np.int64], width: float) -> None:
        self.size, self.width = counts.size, width
        centres = np.arange(counts.size) + 0.5
        self._sums = [_beyond(counts * centres**power) for power in (0, 1, 2)]

    def error(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """The sum, in squared bins, for each number of innermost bins kept."""
        zeroth, first, second = (sums[kept] for sums in self._sums)
        error: NDArray[np.float64] = second - 2 * kept * first + kept**2 * zeroth + zeroth / 12
        return error


def _beyond(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((np.cumsum(values[::-1])[::-1], [0.0]))


def _mse_symmetric(histogram: Histogram) -> float:
    tail = _Tail(_used(histogram.magnitudes()), 1.0)
    kept = np.arange(1, tail.size + 1)
    step = kept / S8_MAX
    error = tail.error(kept) + (histogram.count - histogram.zeros) * step**2 / 12
    return float(kept[np.argmin(error)] * histogram.width)


def _best_pair(
    below: _Tail, above: _Tail, lows: NDArray[np.int64], highs: NDArray[np.int64], rounded: int
) -> tuple[int, int]:
    step = (lows[:, None] + highs[None, :]) / U8_MAX
    error = below.error(lows)[:, None] + above.error(highs)[None, :] + rounded * step**2 / 12
    error[step == 0] = np.inf
    low, high = np.unravel_index(np.argmin(error), error.shape)
    return int(lows[low]), int(highs[high])


def _grid(first: int, last: int) -> NDArray[np.int64]:
    """At most ``_GRID + 1`` numbers of bins, evenly apart, with both ends."""
    first = max(first, 0)
    step = max(1, -(-(last - first) // _GRID))
    return np.unique(np.append(np.arange(first, last, step), last))


def _step(grid: NDArray[np.int64]) -> int:
    return int(np.diff(grid).max()) if grid.size > 1 else 0
