"""Latency rows, on a clock that is ours."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.speed import ROUNDS, ROUNDS_MIN, filled, latency


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Session:
    """Takes as long as it says for each row; every third run is disturbed."""

    def __init__(self, clock: Clock, row_s: float, runs: list[str], name: str, size: Any) -> None:
        self._clock, self._row_s, self._runs, self._name = clock, row_s, runs, name
        self._size = size
        self.rows: list[int] = []

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(shape=[self._size, 2])]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        self._runs.append(self._name)
        self.rows.append(len(feed["x"]))
        self._clock.now_s += self._row_s * len(feed["x"])
        return []


def sessions(clock: Clock, size: Any = "n", **row_s: float) -> tuple[dict[str, Session], list[str]]:
    runs: list[str] = []
    return {n: Session(clock, s, runs, n, size) for n, s in row_s.items()}, runs


SAMPLES = samples_of({"x": np.arange(10, dtype=np.float32).reshape(5, 2)})


def test_ratios_are_of_the_first_variant() -> None:
    clock = Clock()
    found, _ = sessions(clock, float=0.05, int8=0.02)
    rows = latency(found, SAMPLES, (1, 8), clock=clock)
    table = {(row.variant, row.batch): row for row in rows}
    assert list(table) == [("float", 1), ("int8", 1), ("float", 8), ("int8", 8)]
    assert table["float", 1].median_us == pytest.approx(50_000)
    assert table["int8", 8].median_us == pytest.approx(160_000)
    assert table["int8", 8].low_us == pytest.approx(table["int8", 8].high_us)
    assert table["int8", 1].speedup == pytest.approx(2.5)
    assert table["float", 8].speedup == 1
    assert set(found["int8"].rows) == {1, 8}


def test_variants_take_turns_in_both_orders() -> None:
    clock = Clock()
    found, runs = sessions(clock, a=0.1, b=0.1)
    latency(found, SAMPLES, (1,), clock=clock)
    assert runs[:8] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert runs.count("a") == runs.count("b") == 1 + ROUNDS


def test_slow_models_get_fewer_rounds() -> None:
    clock = Clock()
    found, runs = sessions(clock, a=30.0)
    latency(found, SAMPLES, (1,), clock=clock)
    assert runs.count("a") == 1 + ROUNDS_MIN


def test_models_of_one_batch_size_are_run_with_that() -> None:
    clock = Clock()
    found, _ = sessions(clock, size=4, a=0.1)
    assert [row.batch for row in latency(found, SAMPLES, (1, 8), clock=clock)] == [4]


def test_batches_are_filled_with_samples_over_and_over() -> None:
    feed = filled(SAMPLES, 12)["x"]
    assert feed.shape == (12, 2)
    assert feed.flags.c_contiguous
    np.testing.assert_array_equal(feed[5:10], feed[:5])
    np.testing.assert_array_equal(filled(SAMPLES, 2)["x"], [[0, 1], [2, 3]])
