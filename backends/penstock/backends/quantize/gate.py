"""Whether a quantised model is as good as the float one: what is measured, and the bounds.

Knows arrays of outputs and labels. Knows no model, engine or file. Pure.

``Meter`` takes outputs batch by batch and keeps sums and two numbers a row, so that any amount of
data passes. Outputs without labels are judged by what nine rows of ten reach: sums over all rows
are those of the few largest ones, and a handful of spoilt samples would decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.backends.quantize.errors import DataError
from penstock.backends.quantize.result import Criterion, Measure, Verdict

Array = NDArray[Any]

FLOOR_DB: Final = -100.0
"""The SQNR of outputs that are no numbers any more."""
ROWS_KEPT_MAX: Final = 1 << 20
"""Rows whose own figures are remembered."""
ROW_VALUES_MIN: Final = 4
"""Rows with fewer values have no figures of their own: a single number near zero is all noise."""
REACHED_BY: Final = 0.9
"""The share of rows that reach ``row_db`` and ``row_cosine``."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model may lose. ``drop_points_max``: percentage points of right answers.

    ``sqnr_db_min`` and ``cosine_min`` are for outputs without labels, and nine rows of ten must
    reach them; ``relative_error_max`` is for regression, as a share of the outputs' spread. 20 dB
    is noise of a tenth of the signal.
    """

    drop_points_max: float = 0.3
    sqnr_db_min: float = 20.0
    cosine_min: float = 0.995
    relative_error_max: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number")
        if not 0 <= self.cosine_min <= 1:
            raise ValueError("cosine_min must be from 0 to 1")
        if self.drop_points_max < 0 or self.relative_error_max < 0:
            raise ValueError("drop_points_max and relative_error_max cannot be negative")


def criterion_of(labels: Array | None) -> Criterion:
    """What the data allow to be judged: answers where there are classes, else outputs.

    Raises:
        DataError: labels that are no class numbers and no real numbers.
    """
    if labels is None:
        return "outputs"
    if labels.dtype.kind in "iub":
        if labels.ndim == 1 or labels.shape[1:] == (1,):
            return "top1"
        raise DataError(f"labels have shape {list(labels.shape)}; one class number a row is needed")
    if labels.dtype.kind == "f":
        return "relative"
    raise DataError(f"labels are {labels.dtype}; class numbers or real numbers are needed")


def tellable(labels: Array | None) -> bool:
    """Whether counting right answers tells a good model from one that always says the same."""
    return labels is None or labels.dtype.kind not in "iub" or bool((labels != labels[:1]).any())


class _Sums:
    """Of one output: energies of the signal, of the noise and between both."""

    def __init__(self) -> None:
        self.count = 0
        self.spoilt = self.spoilt_before = False
        self.total = self.signal = self.noise = self.other = self.product = 0.0
        self._rows: list[NDArray[np.float64]] = []

    def add(self, real: Array, found: Array) -> None:
        if not real.size:
            return
        a, b = (x.reshape(len(x) if x.ndim else 1, -1).astype(np.float64) for x in (real, found))
        masked = np.isinf(a) & (a == b)  # as attention's masks are
        a[masked] = b[masked] = 0.0
        self.spoilt_before |= not np.isfinite(a).all()
        self.spoilt |= not np.isfinite(b).all()
        self.count += a.size
        self.total += float(a.sum())
        energies = np.stack(
            [(x * y).sum(axis=1) for x, y in ((a, a), (a - b, a - b), (b, b), (a, b))]
        )
        signal, noise, other, product = map(float, energies.sum(axis=1))
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self.other, self.product = self.other + other, self.product + product
        if a.shape[1] >= ROW_VALUES_MIN and sum(r.shape[1] for r in self._rows) < ROWS_KEPT_MAX:
            self._rows.append(_of_rows(*energies))

    def sqnr_db(self) -> float | None:
        return decibels(self.signal, self.noise)

    def reached(self) -> tuple[float | None, float]:
        """(SQNR, cosine) that nine rows of ten reach; of all together where rows have no own."""
        if not self._rows:
            return self.sqnr_db(), self.cosine()
        noise, cosine = np.concatenate(self._rows, axis=1)
        worst = float(np.quantile(noise, REACHED_BY, method="lower"))
        return decibels(1.0, worst), float(np.quantile(cosine, 1 - REACHED_BY, method="higher"))

    def cosine(self) -> float:
        length = math.sqrt(self.signal) * math.sqrt(self.other)
        if length == 0:
            return 1.0 if self.noise == 0 else 0.0
        value = self.product / length
        return max(-1.0, min(1.0, value)) if math.isfinite(value) else 0.0

    def relative_error(self) -> float:
        spread = max(0.0, self.signal - self.total**2 / max(1, self.count))
        if not math.isfinite(self.noise):
            return math.inf
        if self.noise == 0:
            return 0.0
        # Constant outputs have no spread; then it is relative to the outputs themselves.
        base = spread if spread > 1e-12 * self.signal else self.signal
        return math.sqrt(self.noise / base) if base else math.inf


def _of_rows(signal: Array, noise: Array, other: Array, product: Array) -> Array:
    """Each row's noise relative to its signal, and its cosine."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise == 0, 0.0, noise / signal)
        cosine = np.where(noise == 0, 1.0, product / np.sqrt(signal * other))
    return np.stack((np.nan_to_num(ratio, nan=1e10, posinf=1e10), np.nan_to_num(cosine, nan=0.0)))


def decibels(signal: float, noise: float) -> float | None:
    """The ratio of two energies; None where there is no noise at all."""
    if noise == 0:
        return None
    if not (math.isfinite(noise) and math.isfinite(signal)) or signal <= 0:
        return FLOOR_DB
    return max(FLOOR_DB, 10 * (math.log10(signal) - math.log10(noise)))


class Meter:
    """Adds up how a variant's outputs differ from the float model's; ``measure`` tells.

    Answers are read from the first output that can have them: the index of the largest of each
    row, or class numbers as they are.
    """

    def __init__(self) -> None:
        self._sums: dict[int, _Sums] = {}
        self._equal: dict[int, tuple[int, int]] = {}
        self._outputs = self._classes = 0
        self._rows = self._agreed = self._right = self._right_float = self._lost = self._won = 0
        self._answering = self._labelled = False

    def add(
        self,
        real: Sequence[Array],
        found: Sequence[Array],
        labels: Array | None,
        rows: int | None = None,
    ) -> None:
        """A batch: the float model's outputs, the variant's, and the right answers if known.

        ``rows`` is how many samples went in, if the first output does not say so.

        Raises:
            DataError: outputs are of another size than the float model's, or a label is no class.
        """
        rows = len(real[0]) if rows is None else rows
        self._rows, self._outputs = self._rows + rows, len(real)
        for place, (a, b) in enumerate(zip(real, found, strict=True)):
            if a.shape != b.shape:
                raise DataError(
                    f"output {place} has shape {list(a.shape)} in float and {list(b.shape)} in "
                    "INT8: its size depends on values, so that the two cannot be compared"
                )
            if a.dtype.kind == "f":
                self._sums.setdefault(place, _Sums()).add(a, b)
            else:
                equal, count = self._equal.get(place, (0, 0))
                self._equal[place] = equal + int((a == b).sum()), count + a.size
        both = ((_answers(a, rows), _answers(b, rows)) for a, b in zip(real, found, strict=True))
        answers = next(((a, b) for a, b in both if a is not None and b is not None), None)
        if answers is not None:
            (theirs, self._classes), (mine, _) = answers
            self._count(theirs, mine, labels)

    def _count(self, theirs: Array, mine: Array, labels: Array | None) -> None:
        self._answering = True
        self._agreed += int((mine == theirs).sum())
        if labels is not None and labels.dtype.kind in "iub":
            self._labelled = True
            wanted = labels.reshape(-1)
            last = self._classes - 1 if self._classes else None
            if wanted.min() < 0 or (last is not None and wanted.max() > last):
                odd = min(int(wanted.min()), 0) or int(wanted.max())
                raise DataError(f"label {odd} is no class of the model: they are 0 to {last}")
            right, right_float = mine == wanted, theirs == wanted
            self._right += int(right.sum())
            self._right_float += int(right_float.sum())
            self._lost += int((right_float & ~right).sum())
            self._won += int((right & ~right_float).sum())

    def measure(self) -> Measure:
        """Everything so far; of several outputs the worst.

        Raises:
            DataError: nothing was added, or no output is of real numbers or answers.
        """
        rows = self._rows
        if not rows or not (self._sums or self._equal):
            raise DataError("there is nothing to judge by: no rows, or no outputs of numbers")
        sums = list(self._sums.values())
        reached = [s.reached() for s in sums]
        measure = Measure(
            rows,
            _worst([s.sqnr_db() for s in sums]),
            min((s.cosine() for s in sums), default=1.0),
            max((s.relative_error() for s in sums), default=0.0),
            agreement=self._agreed / rows if self._answering else None,
            row_db=_worst([db for db, _ in reached]),
            row_cosine=min((cosine for _, cosine in reached), default=1.0),
            equal=min((e / max(1, n) for e, n in self._equal.values()), default=None),
            outputs=self._outputs,
            classes=self._classes,
            fault=self._fault(),
        )
        if not self._labelled:
            return measure
        lost = self._lost - self._won
        spread = self._lost + self._won - lost * lost / rows
        return replace(
            measure,
            top1=self._right / rows,
            top1_float=self._right_float / rows,
            drop_points=100 * lost / rows,
            drop_error_points=100 * math.sqrt(max(0.0, spread)) / rows,
        )

    def _fault(self) -> str:
        sums = self._sums.values()
        if any(s.spoilt_before for s in sums):
            return "outputs of the float model itself are no numbers"
        if any(s.spoilt for s in sums):
            return "outputs are no numbers any more"
        if sums and not self._equal and not any(s.signal for s in sums):
            return "outputs of the float model are all zero, which shows nothing"
        return ""


def judge(measure: Measure, bounds: Bounds, criterion: Criterion) -> Verdict:
    """Whether ``measure`` keeps ``bounds``, and in words why.

    Raises:
        DataError: right answers are to be counted and there were none.
    """
    if measure.fault:
        return Verdict(False, criterion, (measure.fault,))
    checks = {"top1": _top1, "outputs": _outputs, "relative": _relative}[criterion](measure, bounds)
    return Verdict(all(kept for kept, _ in checks), criterion, tuple(text for _, text in checks))


def _top1(measure: Measure, bounds: Bounds) -> list[tuple[bool, str]]:
    if measure.drop_points is None or measure.top1 is None or measure.top1_float is None:
        raise DataError("right answers cannot be counted: the model has no output of classes")
    # A drop of exactly the bound is kept, whatever floating point makes of the quotient.
    kept = measure.drop_points <= bounds.drop_points_max + 1e-9
    text = (
        f"top-1 {measure.top1:.2%} beside {measure.top1_float:.2%} in float: "
        f"{measure.drop_points:+.2f} points lost (± {measure.drop_error_points:.2f} by chance), "
        f"{bounds.drop_points_max:g} allowed"
    )
    checks = [(kept, text)]
    guessed = 1 / measure.classes if measure.classes else 0.0
    if measure.top1_float <= guessed:
        checks.append(
            (
                False,
                "the float model's own answers are no better than guessed: are these its labels?",
            )
        )
    # One answer lost is too many already, or other outputs are not looked at: then noise counts.
    single = 100 / measure.rows
    if single > bounds.drop_points_max or measure.outputs > 1:
        if single > bounds.drop_points_max:
            text += f"; of {measure.rows} rows one is already {single:.2f} points"
            checks[0] = kept, text
        checks += _outputs(measure, bounds)
    return checks


def _outputs(measure: Measure, bounds: Bounds) -> list[tuple[bool, str]]:
    sqnr, cosine = measure.row_db, measure.row_cosine
    checks: list[tuple[bool, str]] = []
    if measure.equal is not None:
        changed = 100 * (1 - measure.equal)
        checks.append(
            (
                changed <= bounds.drop_points_max + 1e-9,
                f"{changed:.2f} % of the values of an output without real numbers are others, "
                f"{bounds.drop_points_max:g} % allowed",
            )
        )
    if measure.sqnr_db is None:
        return checks or [(True, "outputs are equal to the float model's")]
    return [
        *checks,
        (
            sqnr is None or sqnr >= bounds.sqnr_db_min,
            f"nine rows of ten have an SQNR of {math.inf if sqnr is None else sqnr:.1f} dB, "
            f"at least {bounds.sqnr_db_min:g} wanted",
        ),
        (
            cosine >= bounds.cosine_min,
            f"nine rows of ten have a cosine of {cosine:.5f}, "
            f"at least {bounds.cosine_min:g} wanted",
        ),
    ]


def _relative(measure: Measure, bounds: Bounds) -> list[tuple[bool, str]]:
    return [
        (
            measure.relative_error <= bounds.relative_error_max,
            f"error {measure.relative_error:.2%} of the outputs' spread, "
            f"{bounds.relative_error_max:.2%} allowed",
        )
    ]


def _answers(array: Array, rows: int) -> tuple[Array, int] | None:
    """The class of each row and how many there are, 0 if unknown; None if these are no classes."""
    if array.shape[:1] != (rows,):
        return None
    if array.dtype.kind in "iu" and array.size == rows:
        return array.reshape(-1), 0
    # Convolutional heads leave dimensions of one behind the classes.
    classes = array.shape[1] if array.ndim > 1 else 0
    if array.dtype.kind == "f" and classes > 1 and array.size == rows * classes:
        return array.reshape(rows, classes).argmax(axis=1), classes
    return None


def _worst(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None
