"""Fills the records of ``result`` from what the stages found.

Knows the plan, the histograms and the machine. Runs nothing.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np

from penstock.backends.quantize import result
from penstock.backends.quantize.affine import Affine
from penstock.backends.quantize.histogram import BINS, Histogram
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.result import Layer, TensorRange
from penstock.backends.quantize.search import Found

_PACKAGES: Final = ("penstock", "onnxruntime", "onnx", "numpy")


def layer_records(
    plan: Plan, found: Found, own: Mapping[str, float | None], asked: frozenset[str]
) -> tuple[Layer, ...]:
    """What became of each layer. ``own`` is the SQNR of results by tensor."""
    records = []
    for layer in plan.layers:
        if layer.name not in found.alone and layer.name not in asked:
            continue  # not worth INT8 in any case
        kept = layer.name not in found.chosen
        reason = "" if not kept else "asked for" if layer.name in asked else _why(found, layer.name)
        records.append(
            Layer(
                layer.name,
                layer.op_type,
                layer.result,
                layer.parameters,
                kept,
                found.alone.get(layer.name),
                own.get(layer.result),
                reason,
            )
        )
    return tuple(records)


def _why(found: Found, name: str) -> str:
    return "costs too much accuracy" if name in found.floats else "no integers reach it"


def range_records(
    plan: Plan, found: Found, ranges: Mapping[str, Range], histograms: Mapping[str, Histogram]
) -> tuple[TensorRange, ...]:
    """The ranges that are in the model, in the graph's order."""
    affines = plan.affines(found.chosen, ranges)
    return tuple(
        _range(name, affines[name], ranges[name], histograms[name])
        for name in plan.tensors
        if name in affines
    )


def _range(name: str, affine: Affine, chosen: Range, seen: Histogram) -> TensorRange:
    edges, counts = seen.outline()
    state = seen.state()
    return TensorRange(
        name,
        chosen.method,
        affine.low,
        affine.high,
        affine.scale,
        affine.zero_point,
        float(state["minimum"]),
        float(state["maximum"]),
        clipped(seen, affine.low - affine.scale / 2, affine.high + affine.scale / 2),
        result.Histogram(edges[0], edges[-1], counts),
    )


def clipped(histogram: Histogram, low: float, high: float) -> float:
    """The share of values outside ``low`` .. ``high``, of bins that lie outside in whole."""
    if not histogram.count:
        return 0.0
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    outside = (edges[1:] <= low) | (edges[:-1] >= high)
    return float(histogram.signed()[outside].sum() / histogram.count)


def notes_of(ranges: Mapping[str, Range]) -> list[str]:
    """What was unusual in the calibration data, a line each; the first few."""
    notes = [f"{name}: {found.note}" for name, found in ranges.items() if found.note]
    more = [f"and {len(notes) - 10} more like these"] if len(notes) > 10 else []
    return notes[:10] + more


def versions() -> tuple[tuple[str, str], ...]:
    """Of whatever has a part in the figures."""
    found = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor in words, with what decides how fast and how exact INT8 is on it."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    integer = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2") if flag in known]
    words = [name[1] if name else platform.processor() or platform.machine()]
    return ", ".join((*words, *integer))
