"""The GraphPipe client that is deployed, PyPI's graphpipe 1.0.4, gets right answers unmodified.

Its pins are years old, so it runs in an environment of its own with the last combination of
dependencies that works; ``legacy_client.py`` is the program.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def report(
    digits_server: Any, make_venv: Any, heldout: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    venv = make_venv(
        "graphpipe",
        ["graphpipe==1.0.4", "--no-deps"],  # it asks for a requests that today's Python refuses
        ["flatbuffers==1.9.0", "requests", "numpy"],
    )
    images = tmp_path_factory.mktemp("legacy") / "heldout.npy"
    np.save(images, heldout[0])
    script = Path(__file__).with_name("legacy_client.py")
    done = subprocess.run(
        [venv / "bin" / "python", script, digits_server.url, images],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("way", ["root", "model"])
def test_answers(report: dict[str, Any], check_accuracy: Any, way: str) -> None:
    """On ``/``, without names, and on the model's own URL, with names."""
    check_accuracy(np.array(report[way]))


def test_execute_multi(report: dict[str, Any], check_accuracy: Any) -> None:
    (probabilities,) = report["multi"]
    check_accuracy(np.array(probabilities))


def test_a_batch_of_one_is_the_first_row(report: dict[str, Any]) -> None:
    np.testing.assert_allclose(report["one"], report["root"][:1], atol=1e-5)


@pytest.mark.parametrize("config", ["configured", "opaque"])
def test_any_config_string_is_accepted(report: dict[str, Any], config: str) -> None:
    np.testing.assert_allclose(report[config][0], report["root"][:2], atol=1e-5)


def test_metadata(report: dict[str, Any]) -> None:
    assert report["input_names"] == ["image"]
    assert report["output_names"] == ["probabilities"]
    assert report["input_types"] == report["output_types"] == ["float32"]
    assert report["input_shapes"] == [[None, 1, 8, 8]]
    assert report["output_shapes"] == [[None, 10]]
    assert report["server"].startswith("penstock/")


@pytest.mark.parametrize(
    ("case", "status", "named"),
    [
        ("unknown_model", 404, "letters"),
        ("unknown_input", 400, "picture"),
        ("wrong_shape", 400, "image"),
        ("wrong_type", 400, "image"),
    ],
)
def test_errors_surface(report: dict[str, Any], case: str, status: int, named: str) -> None:
    """It shows its user the status and the reason phrase, nothing else: both must tell."""
    told = report[case]
    assert told["status"] == status
    reason = told["text"].partition(" for url")[0]
    assert named in reason
