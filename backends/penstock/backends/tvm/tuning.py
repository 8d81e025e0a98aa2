"""Chooses the tile of each kernel by trying candidates on this machine, within a time.

Knows kernels and a clock. Knows nothing of graphs and files. What it measured it keeps, for the
record that lies beside the artefact.

Contract: never longer than ``budget_s`` but for the trial that is running when it ends; layers that
it did not come to get the first candidate, as all do without a budget or for another machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, Final

import numpy as np

from penstock.backends.tvm import size_pool
from penstock.backends.tvm.kernels import Dense, Shape, Tile, kernel, pack, pack_bias, tiles
from penstock.backends.tvm.target import Target

_ROUNDS: Final = 20
_RACE_S_MAX: Final = 2.0
"""After which no further round is run for a layer."""
_MARGIN: Final = 0.97
"""A candidate must be this much faster than the first, or it is only noise."""


@dataclass(slots=True)
class Tuned:
    """The tile of one kind of layer, and how many microseconds each candidate took."""

    tile: Tile
    trials: dict[Tile, float] = field(default_factory=dict)


class Tuner:
    """Tiles by shape and element type. One for each compilation."""

    def __init__(self, tvm: Any, target: Target, rows: int) -> None:
        self._tvm, self._target, self._rows = tvm, target, max(1, rows)
        self.chosen: dict[tuple[Shape, str], Tuned] = {}

    def __call__(self, shape: Shape, dtype: str) -> Tile:
        """The tile for a layer, tuned or not."""
        key = (shape, dtype)
        if key not in self.chosen:
            self.chosen[key] = Tuned(self._candidates(shape, dtype)[0])
        return self.chosen[key].tile

    def tune(
        self,
        layers: list[tuple[Shape, str]],
        budget_s: float,
        trials_max: int,
        progress: Callable[[str, float], None],
    ) -> None:
        """Tries the candidates of every different layer, those with the most work first."""
        size_pool(self._tvm, 1)  # Threads that come and go would be measured, not tiles.
        started, left = monotonic(), trials_max
        different = sorted(set(layers), key=lambda layer: layer[0].multiplies, reverse=True)
        for done, (shape, dtype) in enumerate(different):
            trials: list[_Trial] = []
            for tile in self._candidates(shape, dtype)[:left]:
                passed = monotonic() - started
                if passed >= budget_s:
                    break
                progress(
                    f"trying {tile.rows}x{tile.vectors} for {label(shape)}",
                    max(passed / budget_s, done / len(different)),
                )
                trials.append(_Trial(self._tvm, self._target, shape, dtype, tile, self._rows))
            left -= len(trials)
            if trials:
                self.chosen[shape, dtype] = _race(trials)

    def _candidates(self, shape: Shape, dtype: str) -> list[Tile]:
        vectors = self._target.vectors
        return tiles(shape.columns, vectors.lanes(dtype), vectors.registers)


class _Trial:
    """A kernel by itself, with made-up weights and rows."""

    def __init__(
        self, tvm: Any, target: Target, shape: Shape, dtype: str, tile: Tile, rows: int
    ) -> None:
        self.tile, self.best_s = tile, float("inf")
        lanes = target.vectors.lanes(dtype)
        made = kernel(shape, tile, lanes, dtype, relu=False)
        module = tvm.compile(made.with_attr("global_symbol", "trial"), target=target.engine)
        random = np.random.default_rng(0)
        weights = random.standard_normal((shape.depth, shape.columns)).astype(dtype)
        ends: tuple[tuple[int, ...], tuple[int, ...]]
        if isinstance(shape, Dense):
            ends = (rows, shape.depth), (rows, shape.columns)
        else:
            ends = (rows, *shape.image), (rows, *shape.out, shape.columns)
        arrays = (
            random.standard_normal(ends[0]).astype(dtype),
            pack(weights, tile, lanes),
            pack_bias(None, shape.columns, tile, lanes, dtype),
            np.empty(ends[1], dtype),
        )
        self._tensors = [tvm.runtime.tensor(array) for array in arrays]
        self._run = module["trial"]
        self._run(*self._tensors)

    def measure(self) -> float:
        """Seconds of one run; the best is kept."""
        before = perf_counter()
        self._run(*self._tensors)
        took = perf_counter() - before
        self.best_s = min(self.best_s, took)
        return took


def _race(trials: list[_Trial]) -> Tuned:
    """Each once a round, so that what else the machine does meets all alike."""
    spent = 0.0
    for _ in range(_ROUNDS):
        spent += sum(trial.measure() for trial in trials)
        if spent > _RACE_S_MAX:
            break
    first = trials[0]
    fastest = min(trials, key=lambda trial: trial.best_s)
    winner = fastest if fastest.best_s < first.best_s * _MARGIN else first
    return Tuned(winner.tile, {trial.tile: trial.best_s * 1e6 for trial in trials})


def label(shape: Shape) -> str:
    """A layer in a few words, for people."""
    if isinstance(shape, Dense):
        return f"dense {shape.depth}x{shape.columns}"
    high, wide, channels = shape.image
    window = "x".join(map(str, shape.window))
    return f"conv {window} {high}x{wide}x{channels} to {shape.columns}"


__all__ = ["Tuned", "Tuner", "label"]
