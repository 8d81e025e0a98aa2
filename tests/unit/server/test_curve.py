"""What is learned about the size of batches."""

from __future__ import annotations

import pytest

from penstock.server.curve import BatchCurve


def fed(rows_max: int, row_ns: dict[int, int], times: int = 16) -> BatchCurve:
    curve = BatchCurve(rows_max)
    for _ in range(times):
        for rows, cost in row_ns.items():
            curve.observe(rows, rows * cost)
    return curve


@pytest.mark.parametrize(
    ("row_ns", "goal"),
    [
        ({}, 512),
        ({1: 100}, 512),  # Nothing larger was seen: larger may be better.
        ({1: 400, 8: 150, 32: 120}, 512),  # The largest is the best so far.
        ({1: 400, 8: 150, 32: 120, 64: 119}, 32),
        ({1: 400, 8: 150, 32: 120, 64: 100}, 512),
        ({33: 36, 264: 36}, 64),  # Flat: the first step will do.
        ({33: 45, 264: 36}, 512),
        ({1: 10, 2: 20, 4: 40}, 1),  # Batching only harms.
    ],
)
def test_goal(row_ns: dict[int, int], goal: int) -> None:
    assert fed(512, row_ns).goal == goal


def test_goal_is_within_rows_max() -> None:
    assert fed(48, {33: 10, 48: 10}).goal == 48


def test_a_few_samples_decide_nothing() -> None:
    curve = BatchCurve(64)
    for _ in range(3):
        curve.observe(1, 10)
        curve.observe(64, 64 * 10)
    for _ in range(10):
        curve.observe(32, 32 * 10)
    assert curve.goal == 64


def test_what_was_learned_can_be_unlearned() -> None:
    curve = fed(512, {8: 100, 64: 100})
    assert curve.goal == 8
    limits = [curve.limit() for _ in range(128)]
    assert limits.count(512) == 2
    assert set(limits) == {8, 512}
    for _ in range(64):
        curve.observe(64, 64 * 20)
    assert curve.goal == 512


@pytest.mark.parametrize("rows_max", [1, 2, 3, 64])
def test_any_size_is_taken(rows_max: int) -> None:
    curve = BatchCurve(rows_max)
    for rows in range(rows_max + 1):
        for _ in range(20):
            curve.observe(rows, 1000)
    assert 1 <= curve.goal <= rows_max
