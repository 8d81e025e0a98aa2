"""What must hold of histograms and ranges for any data, and for kinds of data that are typical."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.backends.quantize.published import bins_kept_as_published

from penstock.backends.quantize.affine import dequantized, quantized
from penstock.backends.quantize.divergence import bins_kept
from penstock.backends.quantize.histogram import BINS, Histogram, merged
from penstock.backends.quantize.thresholds import METHODS, Method, find, mse

Floats = NDArray[np.float32]

anything = st.lists(st.floats(width=32), max_size=40)
finite = st.lists(st.floats(-(2.0**125), 2.0**125, width=32), max_size=40)
methods = st.sampled_from(
    [Method(name) for name in METHODS] + [Method("entropy", level_zero=False)]
)


def of(values: list[float] | NDArray[np.floating]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


@given(st.lists(anything, max_size=6), st.randoms(use_true_random=False))
def test_the_same_values_give_the_same_histogram_however_they_come(
    parts: list[list[float]], chance: random.Random
) -> None:
    values = [value for part in parts for value in part]
    at_once = of(values)

    in_parts = Histogram()
    for part in parts:
        in_parts.add(np.asarray(part, np.float32))
    assert in_parts == at_once

    chance.shuffle(values)
    assert of(values) == at_once


@given(st.lists(anything, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_merging_is_associative_and_commutative(
    parts: list[list[float]], chance: random.Random
) -> None:
    waiting = [of(part) for part in parts]
    before = [histogram.copy() for histogram in waiting]
    whole = of([value for part in parts for value in part])
    assert merged(waiting) == whole
    assert waiting == before, "merging changed what was merged"
    while len(waiting) > 1:  # in any order, as any tree
        chance.shuffle(waiting)
        waiting.append(merged([waiting.pop(), waiting.pop()]))
    assert waiting[0] == whole


@given(anything)
def test_nothing_is_lost_and_every_value_is_in_its_bin(values: list[float]) -> None:
    array = np.asarray(values, np.float32)
    histogram = of(values)
    kept = array[np.isfinite(array)].astype(np.float64)
    assert histogram.count == kept.size == histogram.signed().sum() == histogram.magnitudes().sum()
    assert histogram.nans == np.isnan(array).sum()
    assert histogram.infinities == np.isinf(array).sum()
    assert histogram.zeros == (kept == 0).sum()
    if not kept.size:
        return
    assert (histogram.minimum, histogram.maximum) == (kept.min(), kept.max())
    expected = np.zeros(2 * BINS, np.int64)
    for value in kept.tolist():
        inner = math.floor(abs(value) / histogram.width)
        expected[BINS - 1 - inner if value < 0 else BINS + inner] += 1
    assert np.array_equal(histogram.signed(), expected)


@given(anything, methods, st.booleans())
def test_a_range_is_always_usable(values: list[float], method: Method, symmetric: bool) -> None:
    histogram = of(values)
    found = find(histogram, method, symmetric=symmetric)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.low <= 0 <= found.high
    assert found.low < found.high
    if symmetric:
        assert found.low == -found.high
    how = found.s8() if symmetric else found.u8()
    assert np.isfinite(np.float32(1) / np.float32(how.scale))
    assert how.least <= how.zero_point <= how.most
    assert not dequantized(quantized(np.zeros(1, np.float32), how), how).any()
    if not np.isfinite(np.asarray(values, np.float32)).all():
        assert "left out" in found.note


@given(finite, methods, st.booleans())
def test_no_range_is_wider_than_what_was_seen(
    values: list[float], method: Method, symmetric: bool
) -> None:
    histogram = of(values)
    found = find(histogram, method, symmetric=symmetric)
    widest = find(histogram, Method("minmax"), symmetric=symmetric)
    assert widest.low <= found.low
    assert found.high <= widest.high


@given(finite, st.booleans())
def test_values_inside_a_range_come_back_within_half_a_step(
    values: list[float], symmetric: bool
) -> None:
    found = find(of(values), Method("minmax"), symmetric=symmetric)
    how = found.s8() if symmetric else found.u8()
    array = np.asarray(values, np.float32)
    back = dequantized(quantized(array, how), how).astype(np.float64)
    assert (np.abs(back - array) <= how.scale * (0.5 + 1e-4)).all()


sparse_counts = st.lists(
    st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 10**6)), min_size=1, max_size=80
)


@settings(max_examples=300)
@given(sparse_counts, st.integers(2, 16))
def test_entropy_agrees_with_the_published_description(counts: list[int], levels: int) -> None:
    assert bins_kept(np.array(counts), levels) == bins_kept_as_published(counts, levels)


@functools.cache
def draw(kind: str, seed: int = 0, size: int = 100_000) -> Floats:
    rng = np.random.default_rng(seed)
    values = {
        "gaussian": lambda: rng.standard_normal(size),
        "uniform": lambda: rng.uniform(-1, 1, size),
        "laplace": lambda: rng.laplace(size=size),
        "relu": lambda: np.maximum(rng.standard_normal(size), 0),
    }[kind]()
    return values.astype(np.float32)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["entropy", "mse", "percentile"])
def test_a_gaussian_is_cut_between_two_and_a_half_and_four_and_a_half_sigma(
    method: str, seed: int, scale: float
) -> None:
    histogram = of(draw("gaussian", seed) * np.float32(scale))
    found = find(histogram, Method(method), symmetric=True)
    assert 2.5 * scale < found.high < 4.5 * scale


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["entropy", "mse", "percentile", "minmax"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_uniform_is_kept_whole(method: str, seed: int, symmetric: bool) -> None:
    histogram = of(draw("uniform", seed))
    assert find(histogram, Method(method), symmetric=symmetric).high > 0.99 * histogram.maximum


@pytest.mark.parametrize("seed", range(4))
def test_a_relu_is_not_cut_by_the_weight_of_its_zeros(seed: int) -> None:
    """By the letter of the publication it is cut at two sigma; with zeros levelled it is not."""
    histogram = of(draw("relu", seed))
    letter = find(histogram, Method("entropy", level_zero=False), symmetric=False)
    assert letter.high < 2.5
    for name in ("entropy", "mse"):
        found = find(histogram, Method(name), symmetric=False)
        assert found.low == 0
        assert 3.0 < found.high < 5.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_a_few_far_outliers_hardly_move_entropy_and_percentile(kind: str, seed: int) -> None:
    values = draw(kind, seed)
    for name in ("entropy", "percentile"):
        for far in (40, 60, 100):
            spoilt = values.copy()
            spoilt[:5] = far
            found = find(of(spoilt), Method(name), symmetric=True)
            assert found.high < 1.3 * np.abs(values).max()
            assert find(of(spoilt), Method("minmax"), symmetric=True).high == far


@pytest.mark.parametrize("name", ["mse", "percentile"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_grows_with_the_mass_of_outliers(name: str, symmetric: bool) -> None:
    highs = []
    for mass in (1, 10, 100, 1_000, 10_000):
        values = draw("laplace").copy()
        values[:mass] = 40.0
        highs.append(find(of(values), Method(name), symmetric=symmetric).high)
    assert highs == sorted(highs)
    assert highs[0] < highs[-1] == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_few_and_sparse_values_are_kept(name: str, symmetric: bool) -> None:
    """Three values, far apart, all frequent: none may be given up."""
    values = np.repeat(np.float32([-1, 0.25, 8]), 1000)
    assert find(of(values), Method(name), symmetric=symmetric).high > 7.9


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["gaussian", "uniform", "laplace"]),
    st.floats(-3, 3, width=32),
    st.booleans(),
)
def test_least_error_is_nearly_the_least_there_is(kind: str, shift: float, symmetric: bool) -> None:
    """Against quantising the values themselves with a grid of other ranges."""
    values = draw(kind, size=20_000) + np.float32(shift)
    histogram = of(values)

    def error(low: float, high: float) -> float:
        found = find(histogram, Method("minmax"), symmetric=symmetric)
        found = type(found)(low, high, "grid")
        how = found.s8() if symmetric else found.u8()
        return float(np.mean((dequantized(quantized(values, how), how) - values) ** 2))

    low, high = mse(histogram, symmetric=symmetric)
    if symmetric:
        tried = [error(-t, t) for t in np.linspace(0.2, 1, 40) * histogram.magnitude_max]
    else:
        lows = [min(histogram.minimum, 0.0) * part for part in np.linspace(0.2, 1, 9)]
        highs = [max(histogram.maximum, 0.0) * part for part in np.linspace(0.2, 1, 9)]
        tried = [error(a, b) for a in lows for b in highs if b - a > 1e-3]
    assert error(low, high) <= 1.06 * min(tried)
