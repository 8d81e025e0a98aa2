"""Other people's quantisers: what they make runs, and what they cannot make is told."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize.compare import VARIANTS, made
from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.prepare import session


@pytest.mark.parametrize("name", VARIANTS)
def test_what_they_make_runs(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(graphs.residual(), path)
    x = graphs.pictures(20)
    # 20 is no multiple of 8: ONNX Runtime's histograms cannot take the rest.
    blob, note = made(name, path, samples_of({"x": x}), 8)
    assert note == ""
    assert blob is not None
    real, found = (session(m).run(None, {"x": x})[0] for m in (graphs.residual(), blob))
    assert graphs.sqnr_db(real, found) > 10
    assert capfd.readouterr().out == ""
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET
    assert [p.name for p in tmp_path.iterdir()] == ["float.onnx"]


def test_onnxruntimes_entropy_is_its_min_max(tmp_path: Path) -> None:
    """Why the rows of both are alike: of the thresholds only one is tried, the largest value."""
    path = tmp_path / "float.onnx"
    onnx.save(graphs.residual(), path)
    x = graphs.pictures(24)
    x[0] *= 40
    samples = samples_of({"x": x})
    outputs = []
    for name in ("ORT static MinMax", "ORT static Entropy"):
        blob, _ = made(name, path, samples, 8)
        assert blob is not None
        outputs.append(session(blob).run(None, {"x": x})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_they_cannot_make_is_a_note(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    blob, note = made(name, path, samples_of({"x": graphs.pictures(2)}), 8)
    assert blob is None
    assert note
    assert "\n" not in note
