"""What a quantisation found out and decided, as frozen records that become JSON.

Knows no ONNX, no engine and no page: the pipeline fills these, the report and the command read
them. Figures that were not measured are None, never a number that looks like one.

Decibels: 20 dB is noise of a tenth of the signal's amplitude, 40 dB of a hundredth.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Criterion = Literal["top1", "outputs", "relative"]
"""What accuracy means: the share of right answers, SQNR and cosine of the outputs beside the float
model's, or the error relative to the outputs' spread."""

SCHEMA: Final = 1
"""Of the JSON; grows when a reader of it must know."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One variant's outputs beside the float model's, over ``rows`` rows of one data set.

    ``top1`` is a share from 0 to 1; ``drop_points`` is how many percentage points of it the variant
    lost, negative if it won; ``drop_error_points`` is the standard error of that, from the rows on
    which the two disagree. ``relative_error`` is the noise's amplitude over that of the float
    outputs about their mean. ``agreement`` is the share of rows with the float model's answer,
    ``row_db`` and ``row_cosine`` are the SQNR and cosine that nine rows of ten reach. SQNRs are
    None where there is no noise at all. ``equal`` is the share of equal values in the output
    without real numbers that has the fewest, ``outputs`` is how many outputs there are, ``classes``
    how many answers are possible, 0 if unknown; ``fault`` is why nothing can be judged by them.
    """

    rows: int
    sqnr_db: float | None
    cosine: float
    relative_error: float
    top1: float | None = None
    top1_float: float | None = None
    drop_points: float | None = None
    drop_error_points: float | None = None
    agreement: float | None = None
    row_db: float | None = None
    row_cosine: float = 1.0
    equal: float | None = None
    outputs: int = 1
    classes: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a measure keeps the bounds; ``reasons`` has a sentence for each one looked at."""

    passed: bool
    criterion: Criterion
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How an activation's values were spread: ``counts`` in equal bins, ``low`` to ``high``."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorRange:
    """The range chosen for one activation. ``low`` .. ``high`` is what the integers can express,
    ``seen_low`` .. ``seen_high`` what the calibration data had; ``clipped`` is the share of values
    outside the range."""

    tensor: str
    method: str
    low: float
    high: float
    scale: float
    zero_point: int
    seen_low: float
    seen_high: float
    clipped: float
    histogram: Histogram | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One quantisable layer, in the order of the graph.

    ``alone_db`` is the SQNR that nine rows of ten of the model's outputs reach with this layer
    alone quantised (its sensitivity; lower is worse, None is no noise at all). ``sqnr_db`` is that
    of the layer's own result in the final model.
    """

    name: str
    op_type: str
    tensor: str
    parameters: int
    kept_float: bool
    alone_db: float | None = None
    sqnr_db: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that the search measured, on data that calibration did not see."""

    method: str
    float_layers: tuple[str, ...]
    measure: Measure
    passed: bool


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """A variant on the evaluation data. ``note`` says why there are no figures, if so."""

    variant: str
    measure: Measure | None
    note: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """Time of one run. ``low_us`` and ``high_us`` are the quartiles of the interleaved rounds;
    ``speedup`` is the median over rounds of the float model's time over this one's."""

    variant: str
    batch: int
    median_us: float
    low_us: float
    high_us: float
    speedup: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that each stage took."""

    prepare_s: float = 0.0
    calibrate_s: float = 0.0
    search_s: float = 0.0
    sensitivity_s: float = 0.0
    gate_s: float = 0.0
    speed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Everything. ``written`` is the quantised model's file, None if it was refused.

    ``measure`` and ``verdict`` are of the gate, on the evaluation data; ``evaluated_on`` says
    which data that was.
    """

    model: str
    target: str
    written: str | None
    verdict: Verdict
    measure: Measure
    evaluated_on: str
    method: str
    layers: tuple[Layer, ...]
    ranges: tuple[TensorRange, ...]
    candidates: tuple[Candidate, ...]
    accuracy: tuple[AccuracyRow, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    notes: tuple[str, ...] = ()
    calibration_rows: int = 0
    selection_rows: int = 0
    float_bytes: int = 0
    int8_bytes: int = 0
    timings: Timings = field(default_factory=Timings)
    versions: tuple[tuple[str, str], ...] = ()
    machine: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def kept_float(self) -> tuple[str, ...]:
        """The layers that were left in float, in the order of the graph."""
        return tuple(layer.name for layer in self.layers if layer.kept_float)

    def to_json(self) -> str:
        """Strict JSON (no NaN, no Infinity: they become null)."""
        tree = {
            "schema": SCHEMA,
            "passed": self.passed,
            "kept_float": list(self.kept_float),
            **_finite(dataclasses.asdict(self)),
        }
        return json.dumps(tree, indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
