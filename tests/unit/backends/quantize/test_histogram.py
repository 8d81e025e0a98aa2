import tracemalloc

import numpy as np
import pytest

from penstock.backends.quantize.histogram import (
    BINS,
    EXPONENT_MAX,
    EXPONENT_MIN,
    Histogram,
    exponent_of,
)


def of(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return histogram


def test_an_empty_one_is_empty() -> None:
    histogram = Histogram()
    histogram.add(np.empty((0, 3), np.float32))
    assert (histogram.count, histogram.magnitude_max, histogram.signed().any()) == (0, 0, False)
    assert histogram.exponent == EXPONENT_MIN


def test_the_edge_is_the_next_power_of_two() -> None:
    assert of(3.9).limit == 4
    assert of(4.0).limit == 8, "the edge itself is outside"
    assert of(-4.0).limit == 8
    assert of(0.0).limit == 2.0**EXPONENT_MIN
    assert of(np.finfo(np.float32).max).exponent == EXPONENT_MAX
    assert exponent_of(1e-45) == EXPONENT_MIN


def test_a_wider_value_moves_the_edge_and_keeps_the_counts() -> None:
    histogram = of(0.1, 0.2, -0.3)
    histogram.add(np.float32([1000]))
    assert histogram.limit == 1024
    assert histogram == of(0.1, 0.2, -0.3, 1000)
    assert histogram.count == histogram.signed().sum() == 4


def test_both_sides_mirror() -> None:
    magnitudes = [0.5, 1.0, 1.5, 2.0, 3.0]  # on edges of bins, where floor and truncation differ
    plus, minus = of(*magnitudes), of(*(-m for m in magnitudes))
    assert np.array_equal(plus.signed(), minus.signed()[::-1])
    assert np.array_equal(plus.magnitudes(), minus.magnitudes())


def test_minus_zero_is_zero() -> None:
    histogram = of(-0.0, 0.0)
    assert histogram.signed()[BINS] == histogram.zeros == 2


def test_nan_and_infinities_are_counted_apart() -> None:
    histogram = of(np.nan, 1.0, np.inf, -np.inf, np.nan, -2.0)
    assert (histogram.nans, histogram.infinities, histogram.count) == (2, 2, 2)
    assert (histogram.minimum, histogram.maximum) == (-2, 1)
    nothing = of(np.nan)
    assert (nothing.nans, nothing.count, nothing.magnitude_max) == (1, 0, 0)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8"])
def test_other_dtypes_are_taken_as_float32(dtype: str) -> None:
    histogram = Histogram()
    histogram.add(np.array([[1, 2], [3, 100]], dtype))
    assert histogram == of(1, 2, 3, 100)


def test_what_float32_cannot_hold_is_infinite() -> None:
    histogram = Histogram()
    histogram.add(np.array([1e300, 1.0]))
    assert (histogram.infinities, histogram.maximum) == (1, 1)


def test_arrays_that_are_not_contiguous() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    histogram = Histogram()
    histogram.add(values[::2, ::3])
    assert histogram == of(0, 3, 12, 15)


def test_state_and_bins_make_the_same_again() -> None:
    histogram = of(1, -2, 0, np.nan, 1e-9)
    again = Histogram.of_state(histogram.state(), histogram.signed())
    assert again == histogram
    again.add(np.float32([7]))
    assert again != histogram
    assert histogram != "something else"
    assert Histogram.of_state(Histogram().state(), Histogram().signed()) == Histogram()


def test_bins_of_another_histogram_are_refused() -> None:
    histogram = of(1, 2)
    with pytest.raises(ValueError, match="do not hold 2 values"):
        Histogram.of_state(histogram.state(), of(1).signed())
    with pytest.raises(ValueError, match="shape"):
        Histogram.of_state(histogram.state(), histogram.signed()[1:])


def test_an_outline_holds_all_counts() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).standard_normal(10_000).astype(np.float32))
    edges, counts = histogram.outline(64)
    assert (len(edges), len(counts), sum(counts)) == (65, 64, 10_000)
    assert edges[0] <= histogram.minimum
    assert histogram.maximum <= edges[-1]
    assert np.ptp(np.diff(edges)) < 1e-12
    assert sum(Histogram().outline()[1]) == 0


def test_memory_does_not_grow_with_the_data() -> None:
    rng = np.random.default_rng(0)
    histogram = Histogram()

    def peak(arrays: int) -> int:
        block = rng.standard_normal(1 << 20).astype(np.float32)
        tracemalloc.start()
        for at in range(arrays):
            histogram.add(block * np.float32(2.0**at))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(2), peak(12)
    assert many < 1.1 * few
