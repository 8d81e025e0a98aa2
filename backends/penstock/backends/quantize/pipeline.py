"""From a float model and samples to an INT8 model that keeps its accuracy, or to a refusal.

The stages: prepare, calibrate, choose (a method for the ranges and the layers that stay float),
judge, compare, write. Choices are made on samples that calibration did not see, and the verdict on
samples that no choice saw, if they are given. A model that does not keep the bounds is not written.

Knows the order of the stages only; each is a module of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import onnx

from penstock.backends.quantize.calibrator import CalibrationSettings, Collected, collect
from penstock.backends.quantize.compare import VARIANTS, made
from penstock.backends.quantize.data import Samples
from penstock.backends.quantize.durable import write_whole
from penstock.backends.quantize.errors import DataError, ModelError, QuantizeError
from penstock.backends.quantize.evaluate import (
    Compared,
    compared,
    fixed_rows,
    kept,
    parted,
    tensor_db,
)
from penstock.backends.quantize.evaluate import measure as measure_of
from penstock.backends.quantize.gate import Bounds, criterion_of, judge, tellable
from penstock.backends.quantize.prepare import file_bytes, prepare, session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.records import (
    layer_records,
    machine,
    notes_of,
    range_records,
    versions,
)
from penstock.backends.quantize.result import (
    AccuracyRow,
    Criterion,
    LatencyRow,
    Layer,
    Result,
    Timings,
)
from penstock.backends.quantize.search import Found, Search
from penstock.backends.quantize.smooth import smoothable, smoothed
from penstock.backends.quantize.speed import latency
from penstock.backends.quantize.targets import TARGETS
from penstock.backends.quantize.thresholds import METHODS, Method, MethodName

TargetName = Literal["cpu", "tensorrt"]

OWN: Final = ("float", "INT8")
"""The variants of which a failure is ours."""
SELECTION_ROWS_ADVISED: Final = 100
SENSITIVITY_ROWS_MAX: Final = 256
"""Of the samples that choose, as many rank the layers: there is a model to run for each."""
ERROR_ROWS_MAX: Final = 64
"""As many show the errors of single layers, which are all computed in full, twice."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to quantise, and how far to go.

    ``samples`` calibrate and choose: every ``selection_every``-th of them is kept from calibration
    and decides between candidates; some hundred are enough for ranges, while right answers are only
    told apart by many. ``evaluation`` is for the gate alone; None judges by the samples kept back.
    ``criterion`` None follows from the labels. ``methods`` are the ways to choose ranges that are
    tried, percentile with each of ``percents``; ``float_layers`` stay float in any case.
    ``evaluations_max`` bounds how many candidates are measured. ``batches`` are those whose speed
    is measured, none if empty; ``comparisons`` adds ONNX Runtime's own quantisers and FP16 to the
    tables. ``smooth`` is the alpha of SmoothQuant, applied to the float model first; None leaves it
    as it is. ``reduce_range`` makes weights of 7 bits, for x86 without VNNI in other servers than
    this one: products of 8 bits would saturate there.

    ``progress`` is told of every step: what is done, and the share of the stage behind it, from 0
    to 1; it may raise to break off. ``cache`` keeps the calibration of a run that was broken off.
    """

    model: Path
    output: Path
    samples: Samples
    target: TargetName = "cpu"
    evaluation: Samples | None = None
    bounds: Bounds = field(default_factory=Bounds)
    criterion: Criterion | None = None
    methods: tuple[MethodName, ...] = METHODS
    float_layers: tuple[str, ...] = ()
    percents: tuple[float, ...] = (99.99, 99.9)
    selection_every: int = 2
    evaluations_max: int = 64
    rows: int = 32
    threads: int = 1
    batches: tuple[int, ...] = (1, 8, 32)
    comparisons: bool = True
    smooth: float | None = None
    reduce_range: bool = False
    cache: Path | None = None
    progress: Callable[[str, float], None] = lambda _step, _share: None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target {self.target!r} is not one of {', '.join(TARGETS)}")
        if not self.methods or not self.percents:
            raise ValueError("at least one method and one percentage are needed")
        if self.selection_every < 2:
            raise ValueError("selection_every must be at least 2: some samples have to calibrate")
        if min(self.rows, self.evaluations_max, *self.batches) < 1 or self.threads < 0:
            raise ValueError("rows, batches and evaluations_max must be at least 1, threads 0")


def quantize(task: Task) -> Result:
    """Makes, chooses, judges and writes the INT8 model; see ``Task``.

    Raises:
        QuantizeError: the model, the samples or the task cannot be worked with. That the accuracy
            is not kept is no error but a ``Result`` with ``passed`` false and ``written`` None.
        OSError: ``output`` cannot be written.
    """
    return _Run(task).result()


class _Run:
    """One call of ``quantize``: what its stages share."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seconds: dict[str, float] = {}
        self._notes: list[str] = []
        with self._stage("prepare_s"):
            self._calibration, self._selection = parted(task.samples, task.selection_every)
            self._model = prepare(task.model)
            if task.smooth is not None:
                self._smooth(task.smooth)
            target = TARGETS[task.target]
            self._plan = Plan(self._model, target, reduce_range=task.reduce_range)
            self._asked = self._checked(task.float_layers)
            self._criterion = task.criterion or criterion_of(self._judges.labels)
            self._searching = task.criterion or criterion_of(self._selection.labels)
            if self._criterion == "top1" and self._judges.labels is None:
                raise DataError("right answers are to be counted, but the samples have no labels")
            if self._criterion == "top1" and not tellable(self._judges.labels):
                raise DataError(
                    "all labels are equal, so that a model which always says the same would pass: "
                    "give samples of several classes, or no labels"
                )
            labels = self._selection.labels
            if self._searching == "top1" and (labels is None or not tellable(labels)):
                self._searching = "outputs"
            # As it was given: what preparing did to it is judged too.
            self._float = session(task.model, task.threads)

    @property
    def _judges(self) -> Samples:
        return self._task.evaluation or self._selection

    def result(self) -> Result:
        task, plan = self._task, self._plan
        with self._stage("calibrate_s"):
            collected, ranges = self._calibrated()
        with self._stage("search_s"):
            batches = kept(compared(self._float, self._selection, task.rows))
            found = self._searched(ranges, batches)
            int8 = plan.build(found.chosen, ranges[found.method])
        with self._stage("sensitivity_s"):
            layers = self._layers(found, int8, batches)
        blob = int8.SerializeToString(deterministic=True)
        variants: dict[str, bytes | Path] = {"float": task.model, "INT8": blob}
        with self._stage("gate_s"):
            accuracy = self._accuracy(variants)
            measure = accuracy[1].measure
            assert measure is not None  # ours cannot be had without
            verdict = judge(measure, task.bounds, self._criterion)
        with self._stage("speed_s"):
            latency = self._latency(variants)
        if verdict.passed:
            write_whole(task.output, lambda file: file.write(blob))
        return Result(
            model=str(task.model),
            target=task.target,
            written=str(task.output) if verdict.passed else None,
            verdict=verdict,
            measure=measure,
            evaluated_on=self._evaluated_on(),
            method=found.method,
            layers=layers,
            ranges=range_records(plan, found, ranges[found.method], collected.histograms),
            candidates=found.candidates,
            accuracy=accuracy,
            latency=latency,
            notes=tuple(self._notes),
            calibration_rows=len(self._calibration),
            selection_rows=sum(batch.rows for batch in batches),
            float_bytes=file_bytes(task.model),
            int8_bytes=len(blob),
            timings=Timings(**self._seconds),
            versions=versions(),
            machine=machine(),
        )

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began_s = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - began_s

    def _checked(self, names: tuple[str, ...]) -> frozenset[str]:
        known = self._plan.by_name
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else "see the report's layers"
                raise ModelError(f"there is no layer {name!r} to keep in float; {hint}")
        if all(layer.name in names for layer in self._plan.layers if layer.weight):
            raise ModelError("every layer is to stay float, so there is nothing to quantise")
        return frozenset(names)

    def _smooth(self, alpha: float) -> None:
        """Moves outliers from activations to weights; the float model computes the same."""
        maxima = self._collected((), smoothable(self._model)).channel_maxima
        self._model, done = smoothed(self._model, maxima, alpha=alpha)
        factor = max((s.factor_max for s in done), default=1.0)
        self._notes.append(
            f"SmoothQuant with alpha {alpha:g} on {len(done)} tensors, channels divided by up to "
            f"{factor:.3g}"
        )

    def _collected(self, tensors: tuple[str, ...], channels: Mapping[str, int]) -> Collected:
        """Histograms and channel maxima of the model as it is now."""
        task = self._task
        settings = CalibrationSettings(
            rows=task.rows, threads=max(1, task.threads), tensors=tensors, channels=channels
        )
        return collect(
            self._model,
            self._calibration,
            settings,
            cache=None if channels else task.cache,
            progress=lambda p: task.progress("calibration", p.rows_done / max(1, p.rows_total)),
        )

    def _calibrated(self) -> tuple[Collected, dict[str, Mapping[str, Range]]]:
        """Histograms of the activations, and from them ranges by each method."""
        task = self._task
        collected = self._collected(self._plan.tensors, {})
        symmetric = self._plan.target.symmetric
        ranges: dict[str, Mapping[str, Range]] = {}
        methods = [*_methods(task)]
        for place, (name, method) in enumerate(methods):
            task.progress(f"ranges by {name}", place / len(methods))
            ranges[name] = collected.ranges(method, symmetric=symmetric).by_name
        self._notes += notes_of(next(iter(ranges.values())))
        return collected, ranges

    def _searched(
        self, ranges: Mapping[str, Mapping[str, Range]], batches: Sequence[Compared]
    ) -> Found:
        task = self._task
        few = kept(batches, rows_max=SENSITIVITY_ROWS_MAX)
        search = Search(
            self._plan,
            ranges,
            lambda model: measure_of(session(model, task.threads), batches),
            lambda model: measure_of(session(model, task.threads), few),
            lambda measure: judge(measure, task.bounds, self._searching),
            self._asked,
            task.evaluations_max,
            task.progress,
        )
        found = search.run()
        if not found.complete:
            self._notes.append(
                f"the search ended at its limit of {task.evaluations_max} candidates; with more, "
                "fewer layers may have stayed in float"
            )
        if sum(batch.rows for batch in batches) < SELECTION_ROWS_ADVISED:
            self._notes.append(
                f"only {sum(batch.rows for batch in batches)} samples decided between candidates; "
                f"{SELECTION_ROWS_ADVISED * task.selection_every} or more samples choose better"
            )
        return found

    def _layers(
        self, found: Found, int8: onnx.ModelProto, batches: Sequence[Compared]
    ) -> tuple[Layer, ...]:
        plan, task = self._plan, self._task
        shown = [layer for layer in plan.layers if layer.name in found.alone]
        own = tensor_db(
            self._model,
            int8,
            [layer.result for layer in shown],
            kept(batches, rows_max=ERROR_ROWS_MAX),
            task.threads,
            lambda share: task.progress("error of each layer", share),
        )
        return layer_records(plan, found, own, self._asked)

    def _accuracy(self, variants: dict[str, bytes | Path]) -> tuple[AccuracyRow, ...]:
        """The gate's rows: float, ours, and what others make of the model; adds the latter."""
        task, notes = self._task, {}
        if task.comparisons:
            for place, name in enumerate(VARIANTS):
                task.progress(f"for comparison: {name}", place / len(VARIANTS))
                blob, notes[name] = made(name, task.model, task.samples, task.rows)
                if blob is not None:
                    variants[name] = blob
        rows = []
        # The float model runs once for all of them, unless its outputs do not fit in memory.
        batches = kept(compared(self._float, self._judges, task.rows))
        left = len(self._judges) - sum(batch.rows for batch in batches)
        known = batches if left < (fixed_rows(self._float) or 1) else None
        for place, name in enumerate(("float", "INT8", *notes)):
            task.progress(f"accuracy of {name}", place / (2 + len(notes)))
            rows.append(self._row(name, variants.get(name), notes.get(name, ""), known))
        return tuple(rows)

    def _row(
        self,
        name: str,
        blob: bytes | Path | None,
        note: str,
        known: Sequence[Compared] | None,
    ) -> AccuracyRow:
        if blob is None:
            return AccuracyRow(name, None, note)
        size = file_bytes(blob) if isinstance(blob, Path) else len(blob)
        try:
            variant = self._float if name == "float" else session(blob, self._task.threads)
            batches = known or compared(self._float, self._judges, self._task.rows)
            return AccuracyRow(name, measure_of(variant, batches), note, size)
        except QuantizeError as error:
            if name in OWN:
                raise
            return AccuracyRow(name, None, str(error), size)

    def _latency(self, variants: Mapping[str, bytes | Path]) -> tuple[LatencyRow, ...]:
        task = self._task
        if task.target != "cpu":
            self._notes.append("speed was not measured: this target runs on another processor")
            return ()
        if not task.batches:
            return ()
        sessions = {}
        for name, blob in variants.items():
            with contextlib.suppress(ModelError):  # told in its row of accuracy
                sessions[name] = session(blob, task.threads)
        return latency(
            sessions,
            self._judges,
            task.batches,
            progress=lambda share: task.progress("speed", share),
        )

    def _evaluated_on(self) -> str:
        if self._task.evaluation is not None:
            return f"{len(self._judges)} evaluation samples, which nothing else saw"
        return (
            f"{len(self._judges)} samples kept from calibration, which also chose: judge with "
            "evaluation samples of their own before you rely on it"
        )


def _methods(task: Task) -> Iterator[tuple[str, Method]]:
    """Every way to choose ranges that is tried, by its name in tables."""
    for name in task.methods:
        if name == "percentile":
            yield from ((f"percentile {p:g}", Method(name, p)) for p in task.percents)
        else:
            yield name, Method(name)
