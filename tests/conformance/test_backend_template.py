"""The template for backends of other packages: installs, keeps the contract, and serves.

It is built by pip into a folder of its own, so that the entry point is the real one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.client import Client

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deploy" / "backend-template"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the template as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--target", str(folder), str(TEMPLATE),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return folder


def ran(site, *command):
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_shows_the_template_as_it_is():
    page = (ROOT / "docs" / "backends" / "your-own.md").read_text()
    shown = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] == (TEMPLATE / "src" / "penstock_linear.py").read_text()


def test_its_own_test_passes(site):
    said = ran(site, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(TEMPLATE / "tests"))
    assert "3 passed" in said
    assert "held:" in said


def test_it_is_listed_and_needs_no_permission(site):
    listed = json.loads(ran(site, "-m", "penstock.server.cli", "backends", "--json"))
    linear = next(entry for entry in listed if entry["name"] == "linear")
    assert linear["default_filename"] == "model.npz"
    assert not linear["missing"]
    assert not linear["runs_code"]


def test_it_serves_batches(site, tmp_path, model_server, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(site))
    version = tmp_path / "double" / "1"
    version.mkdir(parents=True)
    np.savez(version / "model.npz", weights=2 * np.eye(3), bias=np.zeros(3))
    (tmp_path / "double" / "config.pbtxt").write_text('backend: "linear"')
    served = model_server(tmp_path)
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    with Client(served.url, protocol="v2") as client:
        scores = client.infer("double", features)["scores"]
    np.testing.assert_array_equal(scores, 2 * features)
