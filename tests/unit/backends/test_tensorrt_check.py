"""The check for machines with a GPU: it says when there is none, and measures when there is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.backends.fake_cuda import FakeDriver
from tests.unit.backends.fake_tensorrt import FakeTrt, of_onnx
from tests.unit.backends.tensorrt_real import real_library

from penstock.backends import tensorrt
from penstock.backends.base import RunError
from penstock.backends.tensorrt import Machine, TensorRtBackend
from penstock.backends.tensorrt.cuda import driver_missing
from penstock.backends.tensorrt.facade import Library

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "checks" / "tensorrt_check.py"


@pytest.fixture
def check() -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIDE, module.WIDE = 32, 18_000  # the latter beyond the pinned memory still
    return module


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
    """A real builder; what it builds is computed by ONNX Runtime, on the fake of a GPU."""
    library, driver = real_library(), FakeDriver()
    trt = FakeTrt(driver, library.version, real=library.trt)
    made = Library("tensorrt_rtx", trt)
    real_build = tensorrt.build

    def build(given: Any, order: Any) -> Any:
        built = real_build(given, order)
        trt.built[built.blob] = of_onnx(order.onnx, order.rows_max)
        return built

    monkeypatch.setattr(tensorrt, "build", build)
    return TensorRtBackend(
        Machine(
            missing=lambda: "",
            devices=lambda: ("cuda:0 (Fake H200)",),
            driver=lambda: driver,
            installed=lambda: {"tensorrt_rtx": library.version},
            library=lambda _kind: made,
        )
    )


def test_without_a_gpu_it_says_so() -> None:
    if not driver_missing():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nothing was checked: ")
    assert done.stderr.count("\n") == 1


def test_the_report(check: Any, backend: TensorRtBackend, tmp_path: Path, capsys: Any) -> None:
    check.BATCHES, check.WORKERS = (1, 8), (1, 2)
    output = tmp_path / "report.json"
    assert check.main(["--output", str(output), "--seconds", "0.02"], backend) == 0
    report = json.loads(output.read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert (report["right"], report["failed"]) == (True, [])
    assert report["devices"] == ["cuda:0 (Fake H200)"]
    steps = report["steps"]
    for name in ("digits FP32", "digits INT8"):
        assert (steps[name]["agreement"], steps[name]["difference_max"]) == (1.0, 0.0)
        assert steps[name]["accuracy"] == steps[name]["accuracy_cpu"] > 0.9
        speed = steps[f"speed of {name}"]
        assert set(speed["latency"]) == {"1", "8"}
        assert all(rate > 0 for rate in speed["rows_per_s_by_workers"].values())
    for name in ("large tensors", "large inputs"):
        assert steps[name]["difference_max_by_rows"] == dict.fromkeys(("1", "3", "64", "2"), 0.0)
    assert "NonZero" in steps["size told by the run"]["skipped"]
    assert "not [65, " in steps["refusals"]["said"]["too many rows"]
    assert "there is no cuda:99" in steps["refusals"]["said"]["no such GPU"]
    assert steps["overlap"]["ratio_by_workers"]["1"] == 1.0
    assert steps["overlap"]["input_bytes"] == 64 * 3 * 32 * 32 * 4


def test_wrong_results_and_refused_models_are_found_and_the_rest_is_checked(
    check: Any, backend: TensorRtBackend, tmp_path: Path, capsys: Any
) -> None:
    check.BATCHES, check.WORKERS = (1,), (1, 2)
    computed = check.cpu

    def other(path: Path) -> Any:
        session = computed(path)
        if path.stem == "wide":
            right = session.run
            session.run = lambda inputs: [array + 0.001 for array in right(inputs)]
        return session

    check.cpu = other
    (tmp_path / "no.onnx").write_bytes(b"no model")
    given = ["--int8", str(tmp_path / "no.onnx"), "--seconds", "0.01"]
    assert check.main(given, backend) == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["right"] is False
    assert report["failed"] == ["digits INT8", "large tensors", "speed of digits INT8"]
    assert "it is no ONNX model" in report["steps"]["digits INT8"]["error"]
    assert "FAILED: large tensors" in said.err
    assert report["steps"]["speed of MLP"]["rows_per_s_by_workers"]["2"] > 0


def test_workers_that_fail_are_told_and_not_waited_for(check: Any) -> None:
    class Broken:
        inputs = ()
        clones = 0

        def run(self, inputs: Any) -> list[Any]:
            if self.clones < 0:
                raise RunError("the GPU failed")
            return []

        def clone(self) -> Broken:
            self.clones += 1
            made = Broken()
            made.clones = -1 if self.clones == 2 else 0
            return made

        def close(self) -> None:
            pass

    with pytest.raises(RunError, match="the GPU failed"):
        check.batches_per_s(Broken(), 3, 0.01)


def test_differences_that_are_no_numbers_are_wrong(check: Any) -> None:
    one = [np.array([1.0], np.float32)]
    assert check.difference_of(one, one) == 0.0
    assert check.difference_of(one, [np.array([np.nan], np.float32)]) == float("inf")
    assert check.difference_of(one, [np.array([1.0, 1.0], np.float32)]) == float("inf")
