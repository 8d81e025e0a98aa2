"""NVIDIA's perf_analyzer, an unmodified Triton load generator in C++, runs clean against us.

Its binary is inside an old tritonclient wheel; it is linked against CUDA's runtime (taken from
PyPI) and Debian's libb64.
"""

from __future__ import annotations

import csv
import ctypes.util
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Analyze = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def analyzer(make_venv: Any, cannot_have: Any) -> tuple[Path, dict[str, str]]:
    """The program and the environment variables that it needs."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("perf_analyzer exists for x86-64 Linux only")
    if ctypes.util.find_library("b64") is None and not any(Path("/usr/lib").rglob("libb64.so.0d")):
        cannot_have("perf_analyzer needs libb64: apt install libb64-0d")
    wheels = ["tritonclient==2.41.0", "nvidia-cuda-runtime-cu12>=12.2,<13"]
    venv: Path = make_venv("perf-analyzer", ["--no-deps", *wheels])
    (cudart,) = venv.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12")
    return venv / "bin" / "perf_analyzer", {**os.environ, "LD_LIBRARY_PATH": str(cudart.parent)}


@pytest.fixture
def analyze(
    analyzer: tuple[Path, dict[str, str]], digits_server: Any, heldout: Any, tmp_path: Path
) -> Analyze:
    """Runs it on ``digits`` with held-out images; gives its report's only line."""
    images = heldout[0][:16]
    rows = [{"image": {"content": i.ravel().tolist(), "shape": [1, 8, 8]}} for i in images]
    data = tmp_path / "input.json"
    data.write_text(json.dumps({"data": rows}))

    def run(concurrency: int, *flags: str) -> dict[str, float]:
        program, environment = analyzer
        failed = failures(digits_server.url)
        out = tmp_path / "report.csv"
        done = subprocess.run(
            [
                program, "-m", "digits", "-u", digits_server.authority, "-i", "http",
                "--input-data", data, "--concurrency-range", str(concurrency),
                "--measurement-mode", "count_windows", "--measurement-request-count", "200",
                "--stability-percentage", "50", "--max-trials", "5", "-f", out, *flags,
            ],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert not re.search("fail|error|warn", done.stdout + done.stderr, re.IGNORECASE)
        assert failures(digits_server.url) == failed
        (line,) = csv.DictReader(out.read_text().splitlines())
        return {name: float(value) for name, value in line.items() if value}

    return run


def failures(url: str) -> int:
    """Requests for digits that the server counts as failed."""
    with urlopen(f"{url}/v2/models/digits/stats", timeout=10) as reply:
        (stats,) = json.load(reply)["model_stats"]
    count: int = stats["inference_stats"]["fail"]["count"]
    return count


@pytest.mark.parametrize("concurrency", [1, 4])
def test_single_images(analyze: Analyze, concurrency: int) -> None:
    line = analyze(concurrency)
    assert line["Concurrency"] == concurrency
    assert line["Inferences/Second"] > 0
    assert line["p99 latency"] > 0
    # From our statistics, which it reads before and after.
    assert line["Server Compute Infer"] > 0


def test_batches(analyze: Analyze) -> None:
    assert analyze(2, "-b", "8")["Inferences/Second"] > 0
