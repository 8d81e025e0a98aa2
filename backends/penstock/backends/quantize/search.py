"""Chooses how ranges are found and which layers stay float: the fewest that keep the bounds.

Knows plans and measures; how a model is run and judged it is told. Every candidate is really built
and measured; their number is bounded.

The search. All layers in INT8 by each method: the best one goes on. If it keeps the bounds that is
all. Otherwise every layer is quantised alone, which ranks them by the noise they cause; the
shortest prefix of that ranking that must stay float is found by halving, and then each layer of it
is put back to INT8 unless that breaks the bounds. What remains cannot lose a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from penstock.backends.quantize.gate import FLOOR_DB, decibels
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.result import Candidate, Measure, Verdict

Measuring = Callable[[onnx.ModelProto], Measure]
Judging = Callable[[Measure], Verdict]
Telling = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The choice. ``alone`` has each layer's SQNR when it alone is quantised, by name."""

    method: str
    chosen: frozenset[str]
    floats: frozenset[str]
    measure: Measure
    passed: bool
    candidates: tuple[Candidate, ...]
    alone: Mapping[str, float | None]
    complete: bool


@dataclass
class Search:
    """One search. ``ranges`` by method; ``measure`` is of candidates, ``sense`` of single layers
    and may take fewer samples; ``always_float`` are layers nobody may quantise.

    ``evaluations_max`` bounds the candidates. When it is reached the best so far is the result, and
    ``Found.complete`` is false. Ranking the layers costs one measure a layer besides.
    """

    plan: Plan
    ranges: Mapping[str, Mapping[str, Range]]
    measure: Measuring
    sense: Measuring
    judge: Judging
    always_float: frozenset[str] = frozenset()
    evaluations_max: int = 64
    tell: Telling = lambda _step, _share: None
    candidates: list[Candidate] = field(default_factory=list)

    def run(self) -> Found:
        """The best model that was found; it may not keep the bounds, see ``passed``."""
        every = frozenset(layer.name for layer in self.plan.layers) - self.always_float
        methods = list(self.ranges)[: self.evaluations_max]
        best = max((self._all_integer(method, every) for method in methods), key=merit)
        alone = self._alone(best.method, self.plan.worth(every))
        if not best.passed:
            order = sorted(alone, key=lambda name: _db(alone[name]))
            best = self._eliminate(self._prefix(best, every, order), every, order)
        floats = frozenset(best.float_layers)
        return Found(
            best.method,
            self._chosen(every, floats),
            floats,
            best.measure,
            best.passed,
            tuple(self.candidates),
            alone,
            best.passed or self._may_go_on,
        )

    def _all_integer(self, method: str, every: frozenset[str]) -> Candidate:
        done = len(self.candidates) / len(self.ranges)
        self.tell(f"all layers in INT8, ranges by {method}", done)
        return self._try(method, every, frozenset())

    def _alone(self, method: str, names: frozenset[str]) -> dict[str, float | None]:
        """The SQNR that nine rows of ten have at the outputs, each layer alone being INT8."""
        found: dict[str, float | None] = {}
        ordered = [layer.name for layer in self.plan.layers if layer.name in names]
        for done, name in enumerate(ordered):
            self.tell(f"sensitivity of {name}", done / len(ordered))
            found[name] = noise_db(self.sense(self.plan.build({name}, self.ranges[method])))
        return found

    def _prefix(self, start: Candidate, every: frozenset[str], order: Sequence[str]) -> Candidate:
        """The shortest beginning of ``order`` that, in float, keeps the bounds."""
        low, high, best = 0, len(order), start  # ``low`` is known to fail
        while high - low > 1 and self._may_go_on:
            middle = (low + high) // 2
            self.tell(f"{middle} of {len(order)} layers in float", 1 - (high - low) / len(order))
            tried = self._try(start.method, every, frozenset(order[:middle]))
            if tried.passed:
                high, best = middle, tried
            else:
                low, best = middle, best if best.passed else max(best, tried, key=merit)
        return best

    def _eliminate(self, best: Candidate, every: frozenset[str], order: Sequence[str]) -> Candidate:
        """Puts layers back to INT8, the least sensitive first, while the bounds are kept."""
        if not best.passed:
            return best
        kept = [name for name in order if name in best.float_layers]
        for done, name in enumerate(reversed(kept)):
            # The most sensitive alone cannot be spared: without any the model has failed before.
            if len(best.float_layers) == 1 or not self._may_go_on:
                break
            self.tell(f"{name} back to INT8", done / len(kept))
            tried = self._try(best.method, every, frozenset(best.float_layers) - {name})
            if tried.passed:
                best = tried
        return best

    @property
    def _may_go_on(self) -> bool:
        return len(self.candidates) < self.evaluations_max

    def _chosen(self, every: frozenset[str], floats: frozenset[str]) -> frozenset[str]:
        return self.plan.worth(every - floats)

    def _try(self, method: str, every: frozenset[str], floats: frozenset[str]) -> Candidate:
        chosen = self._chosen(every, floats)
        measure = self.measure(self.plan.build(chosen, self.ranges[method]))
        ordered = tuple(layer.name for layer in self.plan.layers if layer.name in floats)
        # A model without any product in INT8 is the float model; that it is as good says nothing.
        integer = any(layer.weight for layer in self.plan.layers if layer.name in chosen)
        candidate = Candidate(method, ordered, measure, integer and self.judge(measure).passed)
        self.candidates.append(candidate)
        return candidate


def merit(candidate: Candidate) -> tuple[bool, float, float]:
    """What makes one candidate better than another: the bounds, then answers lost, then noise.

    Among those that keep the bounds only noise decides: a right answer more or less is chance.
    """
    measure = candidate.measure
    noise = _db(noise_db(measure))
    lost = 0.0 if candidate.passed or measure.drop_points is None else measure.drop_points
    return candidate.passed, -lost, noise


def noise_db(measure: Measure) -> float | None:
    """The SQNR of nine rows of ten; of outputs without real numbers, the share that changed."""
    if measure.row_db is not None or measure.equal is None:
        return measure.row_db
    return decibels(1.0, 1.0 - measure.equal)


def _db(value: float | None) -> float:
    return float("inf") if value is None else max(value, FLOOR_DB)
