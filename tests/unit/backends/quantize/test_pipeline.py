"""From a float model to an INT8 file, or to a refusal that leaves no file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize import speed
from penstock.backends.quantize.data import Samples, samples_of
from penstock.backends.quantize.errors import DataError, ModelError
from penstock.backends.quantize.gate import Bounds
from penstock.backends.quantize.pipeline import Task, quantize
from penstock.backends.quantize.prepare import session


def residual_task(folder: Path, **more: Any) -> Task:
    """With labels that are the float model's own answers, and one that is wrong."""
    path = folder / "float.onnx"
    model = graphs.residual()
    onnx.save(model, path)

    def labelled(rows: int, seed: int) -> Samples:
        x = graphs.pictures(rows, seed)
        (y,) = session(model).run(None, {"x": x})
        labels = y.argmax(axis=1)
        labels[0] = (labels[0] + 1) % 10
        return samples_of({"x": x}, labels)

    given: dict[str, Any] = {
        "model": path,
        "output": folder / "int8.onnx",
        "samples": labelled(200, 0),
        "evaluation": labelled(100, 1),
        "bounds": Bounds(drop_points_max=2),
        "batches": (),
        "comparisons": False,
        **more,
    }
    return Task(**given)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_good_model_is_written_and_told_of(target: str, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    task = residual_task(tmp_path, target=target, progress=lambda *step: told.append(step))
    result = quantize(task)
    assert result.passed
    assert result.written == str(tmp_path / "int8.onnx")
    assert result.verdict.criterion == "top1"
    assert result.kept_float == ()
    assert result.calibration_rows == 100
    assert result.selection_rows == 100
    assert "100 evaluation samples, which nothing else saw" in result.evaluated_on
    assert [c.method for c in result.candidates] == [
        "minmax", "percentile 99.99", "percentile 99.9", "mse", "entropy",
    ]  # fmt: skip
    assert result.method in {c.method for c in result.candidates}
    for layer in result.layers:
        assert layer.alone_db is not None
        assert layer.alone_db > 20
        assert layer.sqnr_db is not None
        assert layer.sqnr_db > 15
    for found in result.ranges:
        assert found.low <= 0 <= found.high
        assert found.histogram is not None
        assert sum(found.histogram.counts) > 0
        assert found.clipped < 0.05
        assert (found.zero_point == 0) or target == "cpu"
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert result.int8_bytes == (tmp_path / "int8.onnx").stat().st_size
    assert {step for step, _ in told} >= {"calibration", "sensitivity of stem", "accuracy of INT8"}
    assert all(0 <= share <= 1 for _, share in told)


def test_what_loses_too_much_is_not_written(tmp_path: Path) -> None:
    # Pictures far brighter than those that it is calibrated for: everything is clipped.
    bright = samples_of({"x": 50 * graphs.pictures(100, 1)})
    result = quantize(residual_task(tmp_path, evaluation=bright))
    assert not result.passed
    assert result.written is None
    assert not list(tmp_path.glob("*int8*"))
    assert result.verdict.criterion == "outputs"
    assert "dB, at least 20 wanted" in result.verdict.reasons[0]
    # What chose had labels and none of this to see, and was content.
    assert result.candidates[-1].passed
    assert json.loads(result.to_json())["passed"] is False


def test_a_refusal_leaves_an_older_file_alone(tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    output.write_bytes(b"older")
    bounds = Bounds(sqnr_db_min=90)
    task = residual_task(tmp_path, bounds=bounds, criterion="outputs", evaluations_max=4)
    assert not quantize(task).passed
    assert output.read_bytes() == b"older"


def test_the_layer_with_outliers_stays_float_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(graphs.spiked(), path)
    x = np.random.default_rng(5).standard_normal((150, 32)).astype(np.float32)
    task = Task(path, tmp_path / "int8.onnx", samples_of({"x": x}), comparisons=False, batches=())
    result = quantize(task)
    assert result.passed
    (kept,) = (layer for layer in result.layers if layer.kept_float)
    assert kept.why == "costs too much accuracy"
    assert kept.tensor == "dense2.relu"
    assert result.kept_float == (kept.name,)
    found = graphs.kernels(onnx.load(tmp_path / "int8.onnx"))
    assert found["QGemm"] == 3
    assert found["Gemm"] + found["FusedGemm"] == 1
    assert "also chose" in result.evaluated_on
    assert any("samples decided between" in note for note in result.notes)


def test_smoothing_spares_the_float_layer(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(graphs.spiked(), path)
    x = np.random.default_rng(5).standard_normal((300, 32)).astype(np.float32)
    task = Task(
        path,
        tmp_path / "int8.onnx",
        samples_of({"x": x}),
        comparisons=False,
        batches=(),
        smooth=0.5,
    )
    result = quantize(task)
    assert result.passed
    assert result.kept_float == ()
    assert any(note.startswith("SmoothQuant with alpha 0.5 on") for note in result.notes)


def test_equal_tasks_equal_results(tmp_path: Path) -> None:
    files, results = [], []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(quantize(residual_task(folder)))
        files.append((folder / "int8.onnx").read_bytes())
    assert files[0] == files[1]
    one, two = results
    assert (one.measure, one.layers, one.ranges, one.candidates) == (
        two.measure, two.layers, two.ranges, two.candidates,
    )  # fmt: skip


def test_other_quantisers_and_speed_stand_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "ROUND_S", 0.0)
    result = quantize(residual_task(tmp_path, comparisons=True, batches=(1, 4)))
    rows = {row.variant: row for row in result.accuracy}
    assert list(rows) == [
        "float", "INT8", "ORT static MinMax", "ORT static MinMax, U8, per channel",
        "ORT static Entropy", "ORT dynamic", "FP16",
    ]  # fmt: skip
    for row in rows.values():
        assert row.measure is not None, row
        assert row.measure.rows == 100
        assert not row.note
    assert rows["float"].measure.top1 == 0.99  # type: ignore[union-attr]
    ours, stock = rows["INT8"].measure, rows["ORT static MinMax"].measure
    assert ours is not None
    assert stock is not None
    assert (ours.sqnr_db or 0) > (stock.sqnr_db or 0)
    timed = {(row.variant, row.batch) for row in result.latency}
    assert timed == {(name, batch) for name in rows for batch in (1, 4)}
    assert all(row.low_us <= row.median_us <= row.high_us for row in result.latency)
    assert {row.speedup for row in result.latency if row.variant == "float"} == {1.0}


def test_json_is_whole_and_strict(tmp_path: Path) -> None:
    result = quantize(residual_task(tmp_path))

    def refuse(text: str) -> None:
        raise AssertionError(text)

    tree = json.loads(result.to_json(), parse_constant=refuse)
    assert tree["schema"] == 1
    assert tree["passed"] is True
    assert tree["kept_float"] == []
    assert [layer["name"] for layer in tree["layers"]] == [x.name for x in result.layers]
    assert tree["measure"]["rows"] == 100
    assert tree["timings"]["search_s"] > 0
    assert dict(tree["versions"])["onnx"] == onnx.__version__


def test_models_of_one_batch_size_are_judged_by_whole_batches(tmp_path: Path) -> None:
    g = graphs.Graph()
    g.weight("w", 8, 16)
    g.op("Gemm", "x w", "y", transB=1)
    path = tmp_path / "fixed.onnx"
    onnx.save(g.model({"x": [4, 16]}, {"y": [4, 8]}), path)
    x = np.random.default_rng(0).random((103, 16), np.float32)
    task = Task(
        path, tmp_path / "int8.onnx", samples_of({"x": x}), comparisons=False, batches=(1, 8)
    )
    result = quantize(task)
    assert result.passed
    assert result.measure.rows == 48
    assert [row.batch for row in result.latency] == [4, 4]


def test_an_unknown_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no layer 'stam' .*did you mean stem\?"):
        quantize(residual_task(tmp_path, float_layers=("stam",)))


def test_a_model_that_is_to_stay_float_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing to quantise"):
        quantize(residual_task(tmp_path, float_layers=("stem", "first", "second", "y")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "tpu"},
        {"methods": ()},
        {"selection_every": 1},
        {"rows": 0},
        {"batches": (0,)},
        {"evaluations_max": 0},
        {"threads": -1},
    ],
)
def test_a_task_that_cannot_be_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be at least|needed|not one of"):
        residual_task(tmp_path, **wrong)


def test_asked_for_float_layers_are_float(tmp_path: Path) -> None:
    result = quantize(residual_task(tmp_path, float_layers=("first",)))
    kept = {layer.name: layer.why for layer in result.layers if layer.kept_float}
    assert kept == {"first": "asked for"}


def test_right_answers_cannot_be_counted_without_labels(tmp_path: Path) -> None:
    unlabelled = samples_of({"x": graphs.pictures(10)})
    with pytest.raises(DataError, match="the samples have no labels"):
        quantize(residual_task(tmp_path, evaluation=unlabelled, criterion="top1"))
    # Those that choose may do without.
    assert quantize(residual_task(tmp_path, samples=unlabelled, criterion="top1")).passed


def test_one_sample_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one sample"):
        quantize(residual_task(tmp_path, samples=samples_of({"x": graphs.pictures(1)})))


def test_breaking_off_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: str, share: float) -> None:
        if step == "accuracy of INT8":
            raise Stop

    with pytest.raises(Stop):
        quantize(residual_task(tmp_path, progress=stop))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx"]
