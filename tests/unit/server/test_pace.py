"""Inline or threads, learned from run times."""

import pytest

from penstock.server.pace import INLINE_BELOW_NS, STALL_NS, THREADS_ABOVE_NS, Pace


@pytest.mark.parametrize(
    ("run_ns", "inline"),
    [(0, True), (INLINE_BELOW_NS - 1, True), (INLINE_BELOW_NS, False), (1 << 40, False)],
)
def test_a_measurement_decides_at_the_start(run_ns, inline):
    assert Pace().seed(run_ns) is inline


def test_the_mean_leaves_the_loop_and_comes_back():
    pace = Pace()
    pace.seed(0)
    run_ns = 2 * THREADS_ABOVE_NS
    left = next(i for i in range(100) if pace.leaves_loop(run_ns))
    assert 3 <= left <= 10
    assert not pace.joins_loop(run_ns)
    joined = next(i for i in range(100) if pace.joins_loop(0))
    assert 3 <= joined <= 20


def test_between_the_borders_nothing_changes():
    between = (INLINE_BELOW_NS + THREADS_ABOVE_NS) // 2
    pace = Pace()
    pace.seed(between)
    assert not any(pace.leaves_loop(between) for _ in range(100))
    assert not any(pace.joins_loop(between) for _ in range(100))


def test_a_stall_sends_it_away_for_longer_each_time():
    pace = Pace()
    pace.seed(0)
    for stays in (1024, 2048, 4096):
        assert pace.leaves_loop(STALL_NS + 1)
        assert next(i for i in range(10_000) if pace.joins_loop(0)) == stays


def test_what_must_stay_off_the_loop_does_however_fast_it_is():
    pace = Pace(off_loop=True)
    assert not pace.seed(0)
    assert not any(pace.joins_loop(0) for _ in range(100))
