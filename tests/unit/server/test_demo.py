"""The shipped demonstration: its pictures, its model, its files, its drawing and its script.

The first tests need numpy alone; those that run the model need onnxruntime, those that train one
need scikit-learn and onnx too, and say so when they are skipped.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.server import demo

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "demo" / "train_digits.py"
DIGITS = demo.model_repository() / "digits"


def open_session(model: Path) -> Any:
    runtime = pytest.importorskip(
        "onnxruntime", reason="NOT TESTED: running the digits model needs onnxruntime"
    )
    return runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def run_script(*arguments: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    flags = ["-S"] if isolated else []  # -S: without site-packages, so without any dependency
    command = [sys.executable, *flags, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --- the pictures


def test_heldout_is_599_scaled_pictures_of_every_digit() -> None:
    images, labels = demo.heldout()
    assert (images.shape, images.dtype) == ((599, 1, 8, 8), np.dtype(np.float32))
    assert (labels.shape, labels.dtype) == ((599,), np.dtype(np.uint8))
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.array_equal(images * 16, np.round(images * 16))
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() >= 58
    assert counts.max() <= 61


def test_heldout_gives_fresh_arrays() -> None:
    demo.heldout()[0][:] = 0
    assert demo.heldout()[0].max() == 1.0


def test_heldout_is_the_split_that_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="NOT TESTED: remaking the split needs scikit-learn")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    digits_data = importlib.import_module("digits_data")
    training, validation, heldout = digits_data.load_parts()
    images, labels = demo.heldout()
    assert np.array_equal(heldout.images, images)
    assert np.array_equal(heldout.labels, labels)
    seen = {raw.tobytes() for part in (training, validation) for raw in part.raw}
    assert len(training.labels) + len(validation.labels) == 1198
    assert not any(raw.tobytes() in seen for raw in heldout.raw)


# --- the model


@pytest.mark.parametrize("batch_rows", [1, 32])
def test_shipped_model_reads_the_heldout_digits(batch_rows: int) -> None:
    session = open_session(DIGITS / "1" / "model.onnx")
    images, labels = demo.heldout()
    batches = [images[first : first + batch_rows] for first in range(0, len(images), batch_rows)]
    found = np.concatenate(
        [session.run(["probabilities"], {"image": batch})[0] for batch in batches]
    )
    assert (found.shape, found.dtype) == ((599, 10), np.dtype(np.float32))
    assert np.allclose(found.sum(axis=1), 1.0, atol=1e-5)
    assert (found.argmax(axis=1) == labels).mean() >= 0.97


def test_shipped_model_says_what_it_takes_and_gives() -> None:
    session = open_session(DIGITS / "1" / "model.onnx")
    described = [
        [(value.name, value.type, value.shape) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    ]
    assert described == [
        [("image", "tensor(float)", ["batch", 1, 8, 8])],
        [("probabilities", "tensor(float)", ["batch", 10])],
    ]
    assert session.get_modelmeta().producer_name == "penstock"


def test_repository_files_agree() -> None:
    assert sorted(path.name for path in demo.model_repository().iterdir()) == ["digits"]
    assert (DIGITS / "labels.txt").read_text("utf-8").splitlines() == [str(n) for n in range(10)]
    assert (DIGITS / "1" / "model.onnx").stat().st_size < 300_000
    config = (DIGITS / "config.pbtxt").read_text("utf-8")
    names = re.findall(r'\bname: "(\w+)"', config)
    assert names == ["digits", "image", "probabilities"]
    assert re.findall(r"\bdims: \[ (.*?) \]", config) == ["1, 8, 8", "10"]
    assert re.findall(r"\bdata_type: (\w+)", config) == ["TYPE_FP32", "TYPE_FP32"]
    assert 'backend: "onnxruntime"' in config
    assert "max_batch_size: 1024" in config
    assert 'label_filename: "labels.txt"' in config
    assert "dynamic_batching { }" in config


# --- drawing

TINY = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]], dtype=np.float32)


def test_draw_shades() -> None:
    assert demo.draw(TINY) == ["  ░░▒▒", "▓▓██  "]


def test_draw_ascii() -> None:
    assert demo.draw(TINY, ascii_only=True) == ["  ..++", "##@@  "]


def test_draw_color() -> None:
    assert demo.draw(TINY[:, 1:], color=True) == [
        "\x1b[48;5;238m  \x1b[48;5;244m  \x1b[0m",
        "\x1b[48;5;255m  \x1b[48;5;232m  \x1b[0m",
    ]


def test_draw_takes_a_row_of_heldout() -> None:
    lines = demo.draw(demo.heldout()[0][0])
    assert [len(line) for line in lines] == [16] * 8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 8, 8), np.float32), "one picture"),
        (np.zeros(8, np.float32), "one picture"),
        (np.full((8, 8), 16.0), "divide raw pixels by 16"),
        (np.full((8, 8), -0.1), "0 to 1"),
        (np.full((8, 8), np.nan), "0 to 1"),
    ],
    ids=["two pictures", "a line", "raw", "negative", "nan"],
)
def test_draw_refuses(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.draw(image)


# --- the training script


def test_script_help_needs_nothing_installed() -> None:
    done = run_script("--help", isolated=True)
    assert done.returncode == 0, done.stderr
    for word in ("--out", "--epochs", "--seed", "pip install", "examples:"):
        assert word in done.stdout


def test_script_says_what_to_install() -> None:
    done = run_script("--epochs", "1", isolated=True)
    assert done.returncode == 1
    assert "pip install numpy scikit-learn onnx onnxruntime" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_refuses_zero_epochs() -> None:
    done = run_script("--epochs", "0")
    assert done.returncode == 2
    assert "must be at least 1" in done.stderr


def test_script_trains_one_epoch_reproducibly(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="NOT TESTED: training the digits needs scikit-learn")
    onnx = pytest.importorskip("onnx", reason="NOT TESTED: writing the digits model needs onnx")
    for folder in ("a", "b"):
        done = run_script("--epochs", "1", "--seed", "3", "--out", str(tmp_path / folder))
        assert done.returncode == 0, done.stderr
        assert re.search(r"epoch +1/1 .*validation", done.stdout)
        assert "held-out accuracy" in done.stdout
    written = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(written) == 4
    for path in written:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    model = tmp_path / "a" / "models" / "digits" / "1" / "model.onnx"
    onnx.checker.check_model(onnx.load(model), full_check=True)
    images, labels = demo.heldout()
    (found,) = open_session(model).run(["probabilities"], {"image": images})
    assert (found.argmax(axis=1) == labels).mean() > 0.5
