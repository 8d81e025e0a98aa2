"""INT8 of the digits networks, the shipped one and the larger one: what the tables say holds."""

import importlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize import speed
from penstock.backends.quantize.compare import made
from penstock.backends.quantize.data import Samples, samples_of
from penstock.backends.quantize.evaluate import compared, measure
from penstock.backends.quantize.pipeline import Task, quantize
from penstock.backends.quantize.prepare import session
from penstock.server import demo

DEPLOY = Path(__file__).resolve().parents[4] / "deploy" / "demo"
SHIPPED = demo.model_repository() / "digits" / "1" / "model.onnx"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEPLOY))
    return importlib.import_module("digits_data").load_parts()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEPLOY))
    return importlib.import_module("digits_large")


def task(path: Path, folder: Path, samples: Samples, evaluation: Samples, **more: Any) -> Task:
    return Task(
        path, folder / "int8.onnx", samples, evaluation=evaluation, batches=(), threads=2, **more
    )


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_the_shipped_network_loses_nothing(target: Any, tmp_path: Path, parts: Any) -> None:
    training, _, heldout = parts
    result = quantize(
        task(
            SHIPPED,
            tmp_path,
            samples_of({"image": training.images}, training.labels),
            samples_of({"image": heldout.images}, heldout.labels),
            target=target,
            comparisons=target == "cpu",
        )
    )
    assert result.passed
    assert result.kept_float == ()
    assert result.measure.drop_points is not None
    assert result.measure.drop_points <= 0.3
    assert result.int8_bytes < result.float_bytes / 3
    measures = {row.variant: row.measure for row in result.accuracy}
    for name in ("ORT static MinMax", "ORT static MinMax, U8, per channel", "ORT static Entropy"):
        if target == "cpu":
            stock = measures[name]
            assert stock is not None
            assert stock.sqnr_db is not None
            assert result.measure.sqnr_db is not None
            assert result.measure.sqnr_db > stock.sqnr_db + 3


def test_the_larger_network_keeps_its_accuracy_in_integers_alone(
    tmp_path: Path, parts: Any, large: Any
) -> None:
    training, _, heldout = parts
    path = tmp_path / "float.onnx"
    onnx.save(large.build(large.parameters()), path)
    result = quantize(
        task(
            path,
            tmp_path,
            samples_of({"image": large.upscaled(training.raw[:120])}, training.labels[:120]),
            samples_of({"image": large.upscaled(heldout.raw)}, heldout.labels),
            methods=("entropy",),
            comparisons=False,
        )
    )
    assert result.passed
    assert result.measure.top1_float is not None
    assert result.measure.top1_float > 0.97
    assert result.measure.drop_points is not None
    assert result.measure.drop_points <= 0.3
    found = graphs.kernels(onnx.load(tmp_path / "int8.onnx"))
    assert found["QLinearConv"] == 9
    assert found["QLinearAdd"] == 3
    assert not {"Conv", "FusedConv", "Add", "Gemm", "DequantizeLinear"} & found.keys()


def test_spoilt_calibration_pictures_do_not_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture in a hundred is 30 times too bright; to the stock quantiser it is the scale."""
    monkeypatch.syspath_prepend(str(DEPLOY))
    subject = importlib.import_module("int8_models").overexposed()
    path = tmp_path / "float.onnx"
    onnx.save(subject.model, path)
    samples = samples_of({"image": subject.calibration[:300]})
    assert 2 <= int((subject.calibration[:300].max(axis=(1, 2, 3)) > 1).sum()) <= 4
    evaluation = samples_of({"image": subject.evaluation}, subject.evaluation_labels)
    more = {"methods": ("minmax", "percentile"), "comparisons": False}
    result = quantize(task(path, tmp_path, samples, evaluation, **more))
    blob, _ = made("ORT static Entropy", path, samples, 30)
    assert blob is not None
    stock = measure(session(blob), compared(session(subject.model), evaluation, 64))
    assert result.passed
    assert result.method.startswith("percentile")
    assert result.measure.top1 is not None
    assert stock.top1 is not None
    assert result.measure.top1 > stock.top1 + 0.01


def test_upscaling_is_linear_between_the_pixels(large: Any) -> None:
    raw = np.tile(2 * np.arange(8, dtype=np.uint8), (1, 8, 1))
    found = large.upscaled(raw)
    assert (found.shape, found.dtype) == ((1, 1, 32, 32), np.dtype(np.float32))
    ramp = (np.arange(32) + 0.5) / 4 - 0.5
    expected = np.tile(ramp.clip(0, 7) / 8, (32, 1))
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)
    np.testing.assert_allclose(large.upscaled(raw.transpose(0, 2, 1))[0, 0], expected.T, atol=1e-6)


def test_the_larger_network_is_built_from_its_file(large: Any) -> None:
    values = large.parameters()
    assert {name: value.shape for name, value in values.items()} == large.shapes()
    (logits,) = session(large.build(values)).run(
        None, {"image": large.upscaled(np.zeros((2, 8, 8), np.uint8))}
    )
    assert logits.shape == (2, 10)
    assert large.PARAMETERS.stat().st_size < 2_000_000


def test_the_table_refuses_a_model_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(DEPLOY))
    table = runpy.run_path(str(DEPLOY / "int8_table.py"))
    with pytest.raises(SystemExit):
        table["main"](["digitz"])
    assert "no model is called digitz" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_variant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(speed, "ROUND_S", 0.0)
    monkeypatch.syspath_prepend(str(DEPLOY))
    table = runpy.run_path(str(DEPLOY / "int8_table.py"))
    assert table["main"](["digits", "--batches", "1", "--json", str(tmp_path / "t.json")]) == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 7
    assert "**Penstock, passed**" in shown
    assert "592 of 599 (98.83%)" in shown
    assert (tmp_path / "t.json").stat().st_size > 1000
