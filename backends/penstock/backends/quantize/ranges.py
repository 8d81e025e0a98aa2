"""The result of calibration: the range of each tensor, how it was found, and its file.

Knows the histogram's outline, not how a range is chosen (``thresholds``) nor any model. The file is
JSON with a version, sorted by name, so that equal results are equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.backends.quantize.affine import Affine, s8, u8
from penstock.backends.quantize.durable import write_whole
from penstock.backends.quantize.errors import CacheError
from penstock.backends.quantize.histogram import Histogram

VERSION: Final = 1
FORMAT: Final = "penstock-ranges"


@dataclass(frozen=True, slots=True)
class Observed:
    """What a tensor was seen to hold. Minimum and maximum are exact and 0 where ``count`` is.

    ``edges`` and ``counts`` are the outline of its histogram, for a picture.
    """

    minimum: float
    maximum: float
    count: int
    zeros: int
    nans: int
    infinities: int
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, histogram: Histogram, bars: int = 128) -> Observed:
        """The summary of ``histogram``."""
        state = histogram.state()
        numbers = {key: value for key, value in state.items() if key != "exponent"}
        edges, counts = histogram.outline(bars)
        return cls(**numbers, edges=edges, counts=counts)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Range:
    """Where a tensor's values are kept apart; beyond it they are clipped.

    ``low <= 0 <= high`` and ``low < high``, always finite. ``method`` is the one that chose it;
    ``note`` says in words what is unusual, and is empty otherwise.
    """

    low: float
    high: float
    method: str
    note: str = ""
    observed: Observed | None = None

    @property
    def magnitude(self) -> float:
        """The larger of both sides."""
        return max(-self.low, self.high)

    def u8(self) -> Affine:
        """Scale and zero point of unsigned, asymmetric integers."""
        return u8(self.low, self.high)

    def s8(self) -> Affine:
        """Scale of signed, symmetric integers."""
        return s8(self.magnitude)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges by tensor name, with what they hold for.

    ``model`` and ``data`` are fingerprints (SHA-256, hex); ``rows`` the samples seen.
    """

    by_name: Mapping[str, Range]
    model: str = ""
    data: str = ""
    rows: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Range:
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "data": self.data,
            "rows": self.rows,
            "settings": dict(self.settings),
            "ranges": {name: asdict(self.by_name[name]) for name in sorted(self.by_name)},
        }
        text = json.dumps(body, indent=1, allow_nan=False) + "\n"
        write_whole(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Reads what ``save`` wrote.

        Raises:
            CacheError: it is missing, damaged, or of another format or version.
        """
        try:
            body = json.loads(path.read_bytes())
        except OSError as error:
            raise CacheError(f"cannot read ranges from {path}: {error.strerror}") from error
        except ValueError as error:
            raise CacheError(f"{path} is not a file of ranges: {error}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise CacheError(f"{path} is not a file of ranges")
        if body.get("version") != VERSION:
            raise CacheError(
                f"{path} has version {body.get('version')} of ranges, this program reads {VERSION}"
            )
        try:
            by_name = {name: _range(name, item) for name, item in body["ranges"].items()}
            rest = {key: body[key] for key in ("model", "data", "rows", "settings")}
            return cls(by_name, **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheError(f"{path} is damaged: {error!r}") from error

    def overrides(self, *, symmetric: bool) -> dict[str, list[dict[str, Any]]]:
        """As the ``TensorQuantOverrides`` of ONNX Runtime's ``quantize_static``."""
        return {
            name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
            for name, (low, high) in self._bounds(symmetric)
        }

    def onnxruntime_cache(self, *, symmetric: bool) -> dict[str, Any]:
        """As the JSON that ONNX Runtime's ``calibration_cache_path`` (1.31 and later) reads."""
        data = {
            name: {"lowest": _float32(low), "highest": _float32(high), "CLS": "TensorData"}
            for name, (low, high) in self._bounds(symmetric)
        }
        method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
        return {
            "CLS": "TensorsData",
            "data": data,
            "calibration_method": method,
            "smooth_quant": False,
        }

    def _bounds(self, symmetric: bool) -> Iterator[tuple[str, tuple[float, float]]]:
        for name, found in self.by_name.items():
            top = found.magnitude
            yield name, (-top, top) if symmetric else (found.low, found.high)


def _float32(value: float) -> dict[str, Any]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}


def _range(name: str, item: Any) -> Range:
    seen = item.pop("observed")
    if seen is not None:
        edges, counts = tuple(seen.pop("edges")), tuple(seen.pop("counts"))
        seen = Observed(**seen, edges=edges, counts=counts)
    found = Range(**item, observed=seen)
    finite = math.isfinite(found.low) and math.isfinite(found.high)
    if not (finite and found.low <= 0 <= found.high and found.low < found.high):
        raise ValueError(f"the range of {name!r} is [{found.low}, {found.high}]")
    return found
