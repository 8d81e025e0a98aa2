"""Records of ranges and of the machine."""

from pathlib import Path

import numpy as np
import pytest

from penstock.backends.quantize.histogram import Histogram
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.records import clipped, machine, notes_of, versions


def test_clipped_is_the_share_outside() -> None:
    values = np.linspace(-10, 10, 20_001, dtype=np.float32)
    seen = Histogram()
    seen.add(values)
    assert clipped(seen, -10.1, 10.1) == 0
    assert clipped(seen, -5, 10) == pytest.approx(0.25, abs=0.001)
    assert clipped(seen, -5, 7.5) == pytest.approx(0.375, abs=0.001)
    assert clipped(Histogram(), -1, 1) == 0


def test_machines_are_told_by_what_makes_int8_fast(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some CPU 3\nflags\t\t: fpu avx2 avx512_vnni sse\n")
    assert machine(info) == "Some CPU 3, avx512_vnni, avx2"
    assert machine(tmp_path / "none")


def test_notes_are_few() -> None:
    ranges = {f"t{n}": Range(-1, 1, "minmax", "odd") for n in range(14)}
    ranges["quiet"] = Range(-1, 1, "minmax")
    notes = notes_of(ranges)
    assert len(notes) == 11
    assert notes[0] == "t0: odd"
    assert notes[-1] == "and 4 more like these"


def test_versions_name_what_computed() -> None:
    assert {"python", "onnx", "onnxruntime", "numpy"} <= dict(versions()).keys()
