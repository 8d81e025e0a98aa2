"""The search finds the layers that must stay float, no more, and every candidate is measured."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.evaluate import compared, kept, measure
from penstock.backends.quantize.gate import Bounds, judge
from penstock.backends.quantize.prepare import session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.result import Candidate, Measure, Verdict
from penstock.backends.quantize.search import Search, merit
from penstock.backends.quantize.targets import TARGETS


def spiked_search(folder: Path, target: str = "cpu", **more: object) -> tuple[Search, Plan]:
    model = graphs.prepared(graphs.spiked(), folder)
    plan = Plan(model, TARGETS[target])
    x = np.random.default_rng(5).standard_normal((200, 32)).astype(np.float32)
    batches = kept(compared(session(model), samples_of({"x": x}), 64))
    search = Search(
        plan,
        {"minmax": graphs.min_max(plan, {"x": x})},
        lambda m: measure(session(m), batches),
        lambda m: measure(session(m), batches),
        lambda m: judge(m, Bounds(), "outputs"),
        **more,  # type: ignore[arg-type]
    )
    return search, plan


@pytest.mark.parametrize("target", TARGETS)
def test_exactly_the_layer_with_outliers_stays_float(target: str, tmp_path: Path) -> None:
    search, plan = spiked_search(tmp_path, target)
    every = {layer.name for layer in plan.layers}
    found = search.run()
    (bad,) = (layer.name for layer in plan.layers if layer.weight == "dense2.w")
    assert found.passed
    assert found.floats == {bad}
    assert found.chosen == every - {bad}
    assert found.complete
    assert min(found.alone, key=lambda name: found.alone[name] or 0) == bad
    first = found.candidates[0]
    assert not first.passed
    assert first.float_layers == ()
    assert found.measure.row_db is not None
    assert first.measure.row_db is not None
    assert found.measure.row_db > 20 > first.measure.row_db


def test_a_limit_ends_the_search_and_is_told(tmp_path: Path) -> None:
    search, _ = spiked_search(tmp_path, evaluations_max=1)
    found = search.run()
    assert len(found.candidates) == 1
    assert not found.passed
    assert not found.complete


def test_layers_that_shall_stay_float_are_never_quantised(tmp_path: Path) -> None:
    search, plan = spiked_search(tmp_path, always_float=frozenset({"y"}))
    built: list[frozenset[str]] = []
    build = plan.build

    def watched(chosen: frozenset[str], ranges: Mapping[str, Range]) -> object:
        built.append(frozenset(chosen))
        return build(chosen, ranges)

    plan.build = watched  # type: ignore[method-assign, assignment]
    found = search.run()
    assert found.passed
    assert "y" not in found.alone
    assert built
    assert not any("y" in chosen for chosen in built)


def reached(db: float | None) -> Measure:
    return Measure(100, db, 1.0, 0.0, row_db=db)


class Noise:
    """A model without a model: every quantised layer adds its noise, in energy, to the output."""

    def __init__(self, plan: Plan, noise: Mapping[str, float]) -> None:
        self.chosen: frozenset[str] = frozenset()
        self._noise = noise
        plan.build = self._build  # type: ignore[method-assign, assignment]
        self.measured = 0

    def _build(self, chosen: frozenset[str], ranges: object) -> None:
        self.chosen = frozenset(chosen)

    def measure(self, model: object) -> Measure:
        self.measured += 1
        noise = sum(self._noise.get(name, 1e-9) for name in self.chosen)
        return reached(-10 * np.log10(noise) if noise else None)


def many(folder: Path, noise: Mapping[int, float], **more: object) -> tuple[Search, Noise]:
    """40 dense layers, some with noise; 20 dB is the bound."""
    plan = Plan(graphs.prepared(graphs.spiked(40, 1.0, 4), folder), TARGETS["cpu"])
    names = [layer.name for layer in plan.layers]
    fake = Noise(plan, {names[at]: value for at, value in noise.items()})

    def verdict(measure: Measure) -> Verdict:
        return judge(measure, Bounds(), "outputs")

    return Search(plan, {"minmax": {}}, fake.measure, fake.measure, verdict, **more), fake  # type: ignore[arg-type]


def test_of_many_layers_the_fewest_are_found_in_few_tries(tmp_path: Path) -> None:
    search, fake = many(tmp_path, {3: 0.004, 17: 0.005, 25: 0.006, 31: 0.02, 38: 0.003})
    found = search.run()
    # 0.01 is allowed: without the one of 0.02, 0.018 is left; without that of 0.006 too, 0.012;
    # without that of 0.005 too, 0.007.
    names = [layer.name for layer in search.plan.layers]
    assert found.floats == {names[31], names[25], names[17]}
    assert len(found.candidates) <= 1 + 6 + 3
    assert fake.measured == len(found.candidates) + 40


def test_no_kept_layer_could_go_back(tmp_path: Path) -> None:
    """Where the ranking misleads, elimination repairs it."""
    search, fake = many(tmp_path, {5: 0.009, 20: 0.02})
    plain = fake.measure

    def misleading(model: object) -> Measure:
        measure = plain(model)
        # Layer 5 looks the worst alone; together with others it is bearable.
        alone = len(fake.chosen) == 1 and search.plan.layers[5].name in fake.chosen
        return reached(3.0) if alone else measure

    search.sense = misleading
    found = search.run()
    assert found.floats == {search.plan.layers[20].name}
    for name in found.floats:
        fake.chosen = found.chosen | {name}
        assert not search.judge(plain(None)).passed


def test_where_nothing_helps_the_result_says_so(tmp_path: Path) -> None:
    search, fake = many(tmp_path, {})
    search.measure = search.sense = lambda model: reached(5.0 if fake.chosen else None)
    found = search.run()
    assert not found.passed
    assert found.complete


def test_a_model_without_integers_does_not_count_as_good(tmp_path: Path) -> None:
    """The last resort of a search is no resort: the float model under another name."""
    model = graphs.prepared(graphs.residual(), tmp_path)
    search = Search(
        Plan(model, TARGETS["cpu"]),
        {"minmax": graphs.min_max(Plan(model, TARGETS["cpu"]), {"x": graphs.pictures(8)})},
        lambda m: reached(
            5.0 if any("quantize" in n.op_type.lower() for n in m.graph.node) else None
        ),
        lambda m: reached(5.0),
        lambda m: judge(m, Bounds(), "outputs"),
    )
    found = search.run()
    assert not found.passed
    assert {layer.name for layer in search.plan.layers if layer.weight} & found.chosen


def test_of_methods_that_pass_the_one_with_least_noise_is_taken(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    plan = Plan(model, TARGETS["cpu"])
    x = graphs.pictures(32)
    exact = graphs.min_max(plan, {"x": x})
    wide = {name: Range(20 * r.low, 20 * r.high, "wide") for name, r in exact.items()}
    narrow = {name: Range(r.low / 20, r.high / 20, "narrow") for name, r in exact.items()}
    batches = kept(compared(session(model), samples_of({"x": x}), 16))
    search = Search(
        plan,
        {"wide": wide, "exact": exact, "narrow": narrow},
        lambda m: measure(session(m), batches),
        lambda m: measure(session(m), batches),
        lambda m: judge(m, Bounds(), "outputs"),
    )
    found = search.run()
    assert found.method == "exact"
    assert [c.method for c in found.candidates] == ["wide", "exact", "narrow"]
    assert found.measure == found.candidates[1].measure


def test_a_right_answer_more_is_chance_and_noise_is_not() -> None:
    def candidate(passed: bool, drop: float, row_db: float) -> Candidate:
        found = Measure(100, row_db, 1.0, 0.0, 0.9, 0.9, drop, 0.1, 1.0, row_db)
        return Candidate("minmax", (), found, passed)

    assert merit(candidate(True, 0.2, 40)) > merit(candidate(True, 0.0, 30))
    assert merit(candidate(True, 0.2, 10)) > merit(candidate(False, 0.4, 50))
    assert merit(candidate(False, 0.4, 10)) > merit(candidate(False, 0.8, 50))
