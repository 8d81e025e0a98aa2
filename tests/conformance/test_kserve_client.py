"""KServe's own inference clients (PyPI's kserve), REST v1 and v2 and gRPC, work unmodified.

The package brings a server of its own with some eighty dependencies (about 100 MB, downloaded
once), so it has an environment of its own; ``kserve_client.py`` is the program.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def report(
    digits_server: Any, make_venv: Any, heldout: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    venv = make_venv("kserve", ["kserve==0.21.0"])
    images = tmp_path_factory.mktemp("kserve") / "heldout.npy"
    np.save(images, heldout[0])
    script = Path(__file__).with_name("kserve_client.py")
    done = subprocess.run(
        [
            venv / "bin" / "python", script, digits_server.url, f"127.0.0.1:{digits_server.grpc}",
            images,
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc"])
def test_answers(report: dict[str, Any], check_accuracy: Any, protocol: str) -> None:
    check_accuracy(np.array(report[protocol]["predictions"]))


def test_other_forms_say_the_same(report: dict[str, Any]) -> None:
    first = report["v1"]["predictions"][:3]
    np.testing.assert_allclose(report["v1"]["named"], first, atol=1e-5)
    np.testing.assert_allclose(report["v2"]["json"], first, atol=1e-5)


def test_health(report: dict[str, Any]) -> None:
    assert report["v1"]["alive"] is True
    assert report["v1"]["ready"] is True
    for protocol in ("v2", "grpc"):
        told = report[protocol]
        assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
        assert told["unknown_ready"] is False


@pytest.mark.parametrize(
    ("protocol", "case", "status", "text"),
    [
        ("v1", "unknown", 404, "'letters' is not found"),
        ("v1", "unknown_ready", 404, "'letters' is not found"),
        ("v1", "bad", 400, "unexpected shape"),
        ("v1", "explain", 501, "no explainer"),
        ("v2", "unknown", 404, "'letters' is not found"),
        ("grpc", "unknown", "NOT_FOUND", "'letters' is not found"),
    ],
)
def test_errors_surface(
    report: dict[str, Any], protocol: str, case: str, status: int | str, text: str
) -> None:
    told = report[protocol][case]
    assert told["status"] == status
    assert text in told["text"]
