"""The digits network as a library by ``penstock compile``, in a process of its own: this one may
have TVM's runtime without its compiler already."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.zoo import digits

TOLERANCE = 1e-5
"""FP32 throughout; only the order of the sums differs."""


def write(version: Path) -> str:
    compile_onnx(digits.MODEL, version)
    return digits.config("tvm")


def compile_onnx(model: Path, into: Path, *more: str, budget: float = 0) -> None:
    """``model.so`` and ``model.json`` in ``into``."""
    done = subprocess.run(
        [
            sys.executable, "-m", "penstock.server.cli", "compile", str(model),
            "--backend", "tvm", "--output", str(into), "--budget", str(budget), *more,
        ],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"model.so", "model.json"} <= {path.name for path in into.iterdir()}


def copied(artefact: Path, into: Path) -> Path:
    """The library and its sidecar once more, for a test that spoils them."""
    shutil.copy(artefact.with_suffix(".json"), into / "model.json")
    return Path(shutil.copy(artefact, into / "model.so"))
