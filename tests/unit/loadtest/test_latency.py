from __future__ import annotations

from penstock.loadtest.latency import Latencies


def test_quantiles_are_exact_below_the_coarse_buckets() -> None:
    found = Latencies()
    for us in range(1, 101):
        found.add(us)
    assert [found.quantile_us(q) for q in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert (found.count, found.max_us) == (100, 100)


def test_long_ones_are_counted_in_milliseconds() -> None:
    found = Latencies()
    for us in (70_499, 80_999, 500_000_000):
        found.add(us)
    assert found.quantile_us(0.3) == 70_000
    assert found.quantile_us(0.6) == 80_000
    assert found.quantile_us(1.0) == 120_000_000
    assert found.max_us == 500_000_000


def test_nothing_is_zero() -> None:
    assert Latencies().quantile_us(0.99) == 0
