"""How long one run of each variant of a model takes, measured in turns so that none has luck.

Knows sessions and clocks; nothing of accuracy. Sessions have the options that the server would give
them, the threads too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from penstock.backends.quantize.data import Batch, Samples
from penstock.backends.quantize.evaluate import fixed_rows, run
from penstock.backends.quantize.result import LatencyRow

ROUNDS: Final = 15
ROUND_S: Final = 0.03
"""A turn runs a variant again and again for at least that long, and at least once."""
BUDGET_S: Final = 20.0
"""For one size of batch. Slow models get fewer rounds, never fewer than three."""
ROUNDS_MIN: Final = 3


def latency(
    sessions: Mapping[str, Any],
    samples: Samples,
    batches: Sequence[int],
    *,
    progress: Callable[[float], None] = lambda _share: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[LatencyRow, ...]:
    """A row for each variant and batch. The first variant is the one that others are held against.

    A model that takes one size of batch only is measured with that one.
    """
    first = next(iter(sessions.values()))
    fixed = fixed_rows(first)
    rows: list[LatencyRow] = []
    sizes = (fixed,) if fixed else tuple(dict.fromkeys(batches))
    for place, batch in enumerate(sizes):
        feed = filled(samples, batch)
        progress(place / len(sizes))
        times = _rounds(sessions, feed, clock)
        base = np.array(next(iter(times.values())))
        for name, taken_s in times.items():
            low, middle, high = (1e6 * float(q) for q in np.percentile(taken_s, (25, 50, 75)))
            speedup = float(np.median(base / np.array(taken_s)))
            rows.append(LatencyRow(name, batch, middle, low, high, speedup))
    return tuple(rows)


def filled(samples: Samples, rows: int) -> Batch:
    """A batch of exactly ``rows`` of the samples, over and over if there are fewer."""
    feed = next(samples.batches(min(rows, len(samples))))
    return {
        name: np.ascontiguousarray(np.resize(array, (rows, *array.shape[1:])))
        for name, array in feed.items()
    }


def _rounds(
    sessions: Mapping[str, Any],
    feed: Batch,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Seconds a run, for each variant and round; the order is turned around every other round."""
    began_s = clock()
    for session in sessions.values():
        run(session, feed)  # memory is planned at the first run of a shape
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(ROUNDS):
        if number >= ROUNDS_MIN and clock() - began_s > BUDGET_S:
            break
        order = list(sessions.items())
        for name, session in reversed(order) if number % 2 else order:
            times[name].append(_turn(session, feed, clock))
    return times


def _turn(session: Any, feed: Batch, clock: Callable[[], float]) -> float:
    began_s, runs = clock(), 0
    while not runs or clock() - began_s < ROUND_S:
        run(session, feed)
        runs += 1
    return (clock() - began_s) / runs
