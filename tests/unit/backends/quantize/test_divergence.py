"""The quick computation against the slow one of ``published``, which follows the description."""

import time

import numpy as np
import pytest
from tests.unit.backends.quantize.published import (
    bins_kept_as_published,
    divergence,
    divergences_as_published,
    expanded,
)

from penstock.backends.quantize.divergence import bins_kept, divergences

SLIDE = [1, 0, 2, 3, 5, 3, 1, 7]


def test_the_example_of_the_slides() -> None:
    assert expanded(SLIDE, 2) == [2, 0, 2, 2, 4, 4, 4, 4]
    assert divergences(np.array(SLIDE), 2)[-1] == pytest.approx(
        divergence(SLIDE, [2, 0, 2, 2, 4, 4, 4, 4])
    )


@pytest.mark.parametrize("seed", range(60))
def test_all_divergences_are_those_of_the_description(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, levels = int(rng.integers(20, 150)), int(rng.integers(2, 20))
    counts = rng.poisson(rng.choice([0.3, 3, 300]) * np.exp(-np.arange(size) / size * 5))
    counts[-1] = 1
    expected = divergences_as_published(counts.tolist(), levels)
    assert divergences(counts, levels) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)
    assert bins_kept(counts, levels) == bins_kept_as_published(counts.tolist(), levels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["laplace", "gaussian", "outliers"])
def test_at_the_published_size(kind: str) -> None:
    """2,048 bins and 128 levels."""
    rng = np.random.default_rng(1)
    values = np.abs(rng.laplace(size=50_000) if kind != "gaussian" else rng.normal(size=50_000))
    if kind == "outliers":
        values[:5] = 60
    counts, _ = np.histogram(values, 2048, (0, values.max()))
    assert bins_kept(counts, 128) == bins_kept_as_published(counts.tolist(), 128)


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ([], 0),
        ([0] * 50, 0),
        ([7], 1),
        ([0, 0, 5, 0, 0], 3),
        ([1] * 4, 4),
        ([0] * 40 + [9], 41),
        ([5] * 64, 64),
    ],
)
def test_degenerate_counts_are_kept_whole(counts: list[int], kept: int) -> None:
    assert bins_kept(np.array(counts, np.int64), 4) == kept


def test_all_candidates_at_once_are_much_quicker_than_one_by_one() -> None:
    counts = np.random.default_rng(0).integers(1, 50, 1024)

    def seconds(work: object, *args: object) -> float:
        start = time.process_time()
        work(*args)  # type: ignore[operator]
        return time.process_time() - start

    quick = min(seconds(bins_kept, counts, 128) for _ in range(3))
    assert seconds(bins_kept_as_published, counts.tolist(), 128) > 10 * quick
