"""A model compiled by the command line is taken up by a server that polls, and answers rightly."""

import json
import subprocess
import sys
import time
from urllib.request import urlopen

import numpy as np
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.client import Client
from penstock.server import demo

PATIENCE_S = 30


def compile_digits(repository, *flags):
    done = subprocess.run(
        [
            sys.executable, "-m", "penstock.server.cli", "compile", str(digits.MODEL),
            "--backend", "tvm", "--repository", str(repository), "--name", "compiled",
            "--max-batch", "16", "--json", *flags,
        ],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def ready(server, version):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            with urlopen(f"{server.http}/v2/models/compiled/versions/{version}/ready"):
                return True
        except OSError:
            time.sleep(0.1)
    return False


@pytest.mark.slow
def test_versions_come_from_the_command_line_into_a_running_server(start_server, tmp_path):
    engine_or_skip("tvm")
    repository = tmp_path / "models"
    repository.mkdir()
    server = start_server(
        "--model-repository", repository, "--allow-code", "tvm",
        "--model-control-mode", "poll", "--repository-poll-secs", "1",
    )  # fmt: skip
    told, progress = compile_digits(repository, "--budget", "5", "--option", "trials=2")
    assert told["version"] == 1
    assert "trying" in progress
    assert ready(server, 1), server.stderr
    pictures, labels = demo.heldout()
    with Client(server.http, protocol="v2", timeout=60) as client:
        first = client.infer("compiled", pictures[:16]).array
        told, _ = compile_digits(repository, "--budget", "0", "--quiet")
        assert told["version"] == 2
        assert ready(server, 2), server.stderr
        second = client.infer("compiled", pictures[:16]).array
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (first.argmax(1) == labels[:16]).mean() > 0.9
