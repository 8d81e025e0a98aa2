"""Schemathesis, an unmodified API fuzzer, against a live server over its own description.

It reads /openapi.json and sends what the description allows and what it forbids: every answer must
be one that is described, in the form that is described, and the server must be well thereafter.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from penstock.loadtest.models import write_add_sub, write_identity
from penstock.protocol import dtype as dt

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
CHECKS = (
    "no_fault_of_the_server", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip
CASES_MIN = 1000
VERBS = r":(predict|classify|regress|explain)$"
"""Their paths match another route too, whose methods are then named in Allow."""


@pytest.fixture(scope="module")
def schemathesis(make_venv: Callable[..., Path]) -> Path:
    venv = make_venv("schemathesis", ["schemathesis>=4.32,<5"])
    return venv / "bin" / "st"


@pytest.fixture(scope="module")
def url(model_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("models")
    write_add_sub(root / "simple" / "1" / "model.onnx")
    write_identity(root / "text" / "1" / "model.onnx", dt.BYTES)
    write_identity(root / "floats" / "1" / "model.onnx", dt.FP32)
    served: str = model_server(root, "--allow-client-shm").url
    return served


def probe(url: str) -> None:
    """A request whose answer is known."""
    data = list(range(16))
    tensor = {"shape": [1, 16], "datatype": "INT32", "data": data}
    body = {"inputs": [{"name": "INPUT0", **tensor}, {"name": "INPUT1", **tensor}]}
    request = Request(f"{url}/v2/models/simple/infer", json.dumps(body).encode())
    with urlopen(request, timeout=10) as reply:
        outputs = {o["name"]: o["data"] for o in json.load(reply)["outputs"]}
    assert outputs == {"OUTPUT0": [2 * n for n in data], "OUTPUT1": [0] * 16}


def run(program: Path, url: str, folder: Path, *flags: str) -> int:
    """How many cases it made; all must have passed."""
    (folder / "schemathesis.toml").touch()
    done = subprocess.run(
        [
            program, "run", f"{url}/openapi.json", "--seed", "1", "--continue-on-failure",
            "--warnings", "off", "--no-color", *flags,
        ],
        env={"SCHEMATHESIS_HOOKS": str(HOOKS), "PATH": "/usr/bin:/bin"},
        cwd=folder, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-12_000:]
    generated = re.search(r"(\d+) generated", report)
    assert generated, report[-2_000:]
    return int(generated[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_answer_is_as_described(schemathesis: Path, url: str, tmp_path: Path) -> None:
    probe(url)
    checks = ",".join(CHECKS)
    common = ("--phases", "coverage,fuzzing", "--max-examples", "10", "--checks")
    count = run(schemathesis, url, tmp_path, *common, checks, "--exclude-path-regex", VERBS)
    assert count > CASES_MIN
    loose = checks.replace(",allow_header_conformance", "")
    run(schemathesis, url, tmp_path, *common, loose, "--include-path-regex", VERBS)
    probe(url)
