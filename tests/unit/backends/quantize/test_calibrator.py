"""Runs over samples: what is seen, in how much memory, and how a broken run goes on."""

import itertools
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.unit.backends.quantize import networks

from penstock.backends.quantize.calibrator import (
    CalibrationSettings,
    Collected,
    Progress,
    collect,
)
from penstock.backends.quantize.data import open_samples, samples_of
from penstock.backends.quantize.errors import CacheError, DataError, ModelError
from penstock.backends.quantize.histogram import Histogram
from penstock.backends.quantize.model_file import read_model
from penstock.backends.quantize.thresholds import METHODS, Method


class BreaksOff(Exception):
    """Stands for a kill between two batches."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return networks.mlp(tmp_path / "model.onnx")


def run(
    model: Path, count: int = 50, cache: Path | None = None, **settings: object
) -> tuple[Collected, list[Progress]]:
    told: list[Progress] = []
    samples = samples_of({"x": networks.rows(count)})
    chosen = CalibrationSettings(**settings)  # type: ignore[arg-type]
    return collect(model, samples, chosen, cache=cache, progress=told.append), told


def test_every_float_activation_is_seen(model: Path) -> None:
    found, told = run(model, rows=16)
    assert set(found.histograms) == {"x", "hidden", "relu", "y"}, "but not the integers"
    x = networks.rows(50)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    expected = Histogram()
    expected.add(x)
    assert found.histograms["x"] == expected
    hidden = x @ tensors["w1"]
    assert found.histograms["hidden"].minimum == pytest.approx(hidden.min())
    assert found.histograms["relu"].minimum == 0
    assert found.histograms["relu"].count == 50 * 8
    assert [p.rows_done for p in told] == [16, 32, 48, 50]
    assert told[-1] == Progress(tensors=4, passes=1, rows_done=50, rows_total=50)
    assert (found.rows, len(found.model), len(found.data)) == (50, 64, 64)


def test_batches_and_passes_make_no_difference(model: Path) -> None:
    whole, _ = run(model, rows=50)
    for rows, room in ((1, 1), (7, 300), (50, 500), (1000, 1 << 30)):
        parts, told = run(model, rows=rows, activation_bytes_max=room)
        assert told[-1].rows_done == told[-1].rows_total == 50 * told[-1].passes
        assert (told[-1].passes > 1) == (room < 1 << 20)
        for name, histogram in whole.histograms.items():
            # the engine adds in another order for other batch sizes
            other = parts.histograms[name]
            assert other.count == histogram.count
            assert np.abs(other.signed() - histogram.signed()).sum() <= 8


def test_one_run_serves_all_methods(model: Path) -> None:
    found, _ = run(model)
    for name, symmetric in itertools.product(METHODS, (True, False)):
        ranges = found.ranges(Method(name), symmetric=symmetric)
        assert set(ranges) == set(found.histograms)
        assert (ranges.model, ranges.data, ranges.rows) == (found.model, found.data, 50)
        assert ranges.settings["method"] == name
        assert ranges["relu"].low == (-ranges["relu"].high if symmetric else 0)
    assert found.ranges(symmetric=True).settings["method"] == "entropy"


def test_a_model_in_memory(model: Path) -> None:
    proto = onnx.load(model)
    outputs = len(proto.graph.output)
    samples = samples_of({"x": networks.rows(50)})
    found = collect(proto, samples)
    assert found.histograms == collect(model, samples).histograms
    assert len(proto.graph.output) == outputs, "it is as it was"


def test_samples_of_a_file(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=networks.rows(50))
    samples = open_samples(tmp_path / "data.npz", read_model(model).inputs)
    assert collect(model, samples).histograms == run(model)[0].histograms


def test_only_what_was_asked_for(model: Path) -> None:
    found, _ = run(model, tensors=("y", "x"))
    assert set(found.histograms) == {"x", "y"}
    with pytest.raises(ModelError, match=r"no tensor 'hiden'; did you mean hidden\?"):
        run(model, tensors=("hiden",))
    with pytest.raises(ModelError, match="'w1' is a constant"):
        run(model, tensors=("w1",))


def test_channel_maxima(model: Path) -> None:
    found, _ = run(model, rows=8, tensors=("y",), channels={"x": -1, "relu": 1})
    assert set(found.histograms) == {"y"}
    assert np.array_equal(found.channel_maxima["x"], np.abs(networks.rows(50)).max(axis=0))
    assert found.channel_maxima["relu"].shape == (8,)


def test_memory_does_not_grow_with_the_samples(model: Path) -> None:
    def peak(count: int) -> int:
        data = samples_of({"x": networks.rows(count)})
        assert data.fingerprint
        tracemalloc.start()
        collect(model, data, CalibrationSettings(rows=64))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(64)
    few, many = peak(256), peak(256 * 20)
    assert many < 1.2 * few


def test_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    model = networks.mlp(tmp_path / "fixed.onnx", batch=4)
    found, _ = run(model, count=10, rows=32)
    assert found.histograms["x"].count == 8 * networks.FEATURES, "two batches; the rest is left out"
    with pytest.raises(DataError, match="batches of 4, there are 3 samples"):
        run(model, count=3)


def test_nan_of_a_model_is_counted_and_said(tmp_path: Path) -> None:
    model = networks.save(
        tmp_path / "log.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [networks.value("x")],
        [networks.value("y")],
    )
    found, _ = run(model)
    assert found.histograms["y"].nans == (networks.rows(50) < 0).sum()
    note = found.ranges(symmetric=False)["y"].note
    assert "NaN and 0 infinite values left out" in note


def test_half_precision_is_watched_too(tmp_path: Path) -> None:
    model = networks.save(
        tmp_path / "half.onnx",
        [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Relu", ["half"], ["y"]),
        ],
        [networks.value("x")],
        [networks.value("y", TensorProto.FLOAT16)],
    )
    found, _ = run(model)
    assert set(found.histograms) == {"x", "half", "y"}


def test_weights_in_other_files(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(
        onnx.load(model),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    found, _ = run(folder / "model.onnx")
    assert found.histograms == run(model)[0].histograms
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(2)
        file.write(b"\x01")
    assert run(folder / "model.onnx")[0].model != found.model, "they are part of the model"
    (folder / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*weights\.bin"):
        run(folder / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x07"])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx is no ONNX model") as refused:
        run(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match="cannot read"):
        run(tmp_path / "missing.onnx")


def test_a_model_that_fails_says_so(tmp_path: Path) -> None:
    model = networks.save(
        tmp_path / "fails.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [networks.value("x")],
        [networks.value("y", TensorProto.FLOAT, 5, 5)],
        {"shape": np.array([5, 5])},
    )
    with pytest.raises(ModelError, match=r"fails\.onnx failed on a batch: .*Reshape"):
        run(model)


@pytest.mark.parametrize("room", [300, 1 << 20])
@pytest.mark.parametrize("killed_after", [1, 3, 6])
def test_a_broken_run_goes_on_where_it_was(
    model: Path, tmp_path: Path, room: int, killed_after: int
) -> None:
    cache = tmp_path / "state"
    samples = samples_of({"x": networks.rows(50)})
    chosen = CalibrationSettings(
        rows=8, activation_bytes_max=room, checkpoint_s=0, channels={"x": 1}
    )
    expected = collect(model, samples, chosen)
    told: list[Progress] = []

    def kill(progress: Progress) -> None:
        told.append(progress)
        if len(told) == killed_after:
            raise BreaksOff

    with pytest.raises(BreaksOff):
        collect(model, samples, chosen, cache=cache, progress=kill)
    found = collect(model, samples, chosen, cache=cache, progress=told.append)
    assert found.histograms == expected.histograms
    assert np.array_equal(found.channel_maxima["x"], expected.channel_maxima["x"])
    done = [progress.rows_done for progress in told]
    assert done == sorted(set(done)), "no batch was run twice"
    assert told[-1].rows_done == told[-1].rows_total

    told.clear()
    again = collect(model, samples, chosen, cache=cache, progress=told.append)
    assert again.histograms == expected.histograms
    assert not told, "a finished run is only read"


def test_a_killed_process_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=networks.rows(400))
    cache = tmp_path / "state"
    child = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path), str(model)])
    try:
        while not cache.exists() and child.poll() is None:
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait(timeout=30)
    assert child.returncode == -signal.SIGKILL, "it was in the middle of its run"

    samples = open_samples(tmp_path / "data.npz", read_model(model).inputs)
    chosen = CalibrationSettings(rows=1)
    told: list[Progress] = []
    found = collect(model, samples, chosen, cache=cache, progress=told.append)
    assert found.histograms == collect(model, samples, chosen).histograms
    assert told[0].rows_done > 1
    assert told[-1].rows_done == 400


SLOW_RUN = """
import sys, time
from pathlib import Path
from penstock.backends.quantize.calibrator import CalibrationSettings, collect
from penstock.backends.quantize.data import open_samples
from penstock.backends.quantize.model_file import read_model

folder, model = map(Path, sys.argv[1:])
samples = open_samples(folder / "data.npz", read_model(model).inputs)
settings = CalibrationSettings(rows=1, checkpoint_s=0)
collect(model, samples, settings, cache=folder / "state", progress=lambda _: time.sleep(0.2))
"""


def test_the_cache_is_written_now_and_then(model: Path, tmp_path: Path) -> None:
    cache, now = tmp_path / "state", itertools.count()
    samples = samples_of({"x": networks.rows(50)})
    written: list[bool] = []
    collect(
        model,
        samples,
        CalibrationSettings(rows=10, checkpoint_s=3),
        cache=cache,
        progress=lambda _: written.append(cache.exists()),
        clock=lambda: float(next(now)),
    )
    assert written == [False, False, True, True, True]
    assert cache.exists()


def test_a_cache_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "state"
    run(model, cache=cache)
    with pytest.raises(CacheError, match="made with other data"):
        run(model, count=49, cache=cache)
    with pytest.raises(CacheError, match="made with other settings"):
        run(model, cache=cache, rows=3)
    changed = onnx.load(model)
    changed.doc_string = "changed"
    onnx.save(changed, model)
    with pytest.raises(CacheError, match="made with another model: remove it"):
        run(model, cache=cache)


@pytest.mark.parametrize("keep", [0, 10, 500, -100])
def test_a_damaged_cache_is_refused(model: Path, tmp_path: Path, keep: int) -> None:
    cache = tmp_path / "state"
    run(model, cache=cache)
    cache.write_bytes(cache.read_bytes()[:keep])
    with pytest.raises(CacheError, match="damaged: remove it"):
        run(model, cache=cache)


def test_a_cache_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot write"):
        run(model, cache=tmp_path / "file" / "state")


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"threads": 0}, {"activation_bytes_max": 0}])
def test_settings_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CalibrationSettings(**wrong)  # type: ignore[arg-type]
