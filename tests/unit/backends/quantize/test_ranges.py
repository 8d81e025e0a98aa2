import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.quantize.errors import CacheError
from penstock.backends.quantize.histogram import Histogram
from penstock.backends.quantize.ranges import Range, Ranges
from penstock.backends.quantize.thresholds import Method, find


def found() -> Ranges:
    histogram = Histogram()
    histogram.add(np.float32([-1, 0, 0.5, 3, np.nan]))
    by_name = {
        "b": find(histogram, Method("minmax"), symmetric=False),
        "a": Range(-2.0, 2.0, "entropy", "a note"),
    }
    return Ranges(by_name, "model", "data", 5, {"method": "minmax"})


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ranges.json"
    ranges = found()
    ranges.save(path)
    assert Ranges.load(path) == ranges
    first = path.read_bytes()
    Ranges.load(path).save(path)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path], "nothing else is left behind"


def test_it_is_a_mapping_by_tensor() -> None:
    ranges = found()
    assert (len(ranges), "a" in ranges, "c" in ranges, set(ranges)) == (2, True, False, {"a", "b"})
    observed = ranges["b"].observed
    assert observed is not None
    assert (observed.minimum, observed.maximum, observed.count) == (-1, 3, 4)
    assert (observed.zeros, observed.nans, sum(observed.counts)) == (1, 1, 4)


def test_ranges_give_scales() -> None:
    assert found()["b"].u8().scale == pytest.approx(4 / 255)
    assert found()["b"].s8().scale == pytest.approx(3 / 127)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "is not a file of ranges"),
        ({"version": 2}, "has version 2 of ranges, this program reads 1"),
        ({"ranges": {"a": {"low": 0}}}, "is damaged"),
        ({"ranges": [1]}, "is damaged"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    found().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CacheError, match=said):
        Ranges.load(path)


@pytest.mark.parametrize("bounds", [(1, 2), (0, 0), (float("-inf"), 1), (0, float("nan"))])
def test_a_range_that_cannot_be_is_refused(bounds: tuple[float, float], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    found().save(path)
    body = json.loads(path.read_text())
    body["ranges"]["a"].update(low=bounds[0], high=bounds[1])
    path.write_text(json.dumps(body))
    with pytest.raises(CacheError, match="the range of 'a' is"):
        Ranges.load(path)


def test_damage_and_absence(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot read"):
        Ranges.load(tmp_path / "missing")
    (tmp_path / "r.json").write_bytes(b"\xff{")
    with pytest.raises(CacheError, match="not a file of ranges"):
        Ranges.load(tmp_path / "r.json")


def test_the_engine_reads_both_exports(tmp_path: Path) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    if not hasattr(calibrate, "load_tensors_data"):
        pytest.skip("this onnxruntime has no cache of calibrations")
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(found().onnxruntime_cache(symmetric=False)))
    loaded = calibrate.load_tensors_data(path)
    read = {name: tuple(map(float, data.range_value)) for name, data in loaded.items()}
    assert read == {"a": (-2, 2), "b": (-1, 3)}
    overrides = found().overrides(symmetric=True)
    assert overrides["b"] == [{"rmin": np.float32(-3), "rmax": np.float32(3)}]
