"""NVIDIA's perf_analyzer, an unmodified Triton load generator in C++, runs clean against us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from penstock.loadtest import fetched
from penstock.loadtest.perf_analyzer import Analyzer
from penstock.server import demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Analyze = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def analyzer(cannot_have: Any) -> Analyzer:
    try:
        return Analyzer()
    except fetched.Unobtainable as reason:
        cannot_have(str(reason))


@pytest.fixture
def analyze(analyzer: Analyzer, digits_server: Any, heldout: Any, tmp_path: Path) -> Analyze:
    """Runs it on ``digits`` with held-out images; gives its report's only line."""
    images = heldout[0][:16]
    rows = [{"image": {"content": i.ravel().tolist(), "shape": [1, 8, 8]}} for i in images]
    data = tmp_path / "input.json"
    data.write_text(json.dumps({"data": rows}))

    def run(concurrency: int, *flags: str, server: Any = digits_server) -> dict[str, float]:
        failed = failures(server.url)
        report = analyzer.run_flags([
            "-m", "digits", "-u", server.authority, "-i", "http",
            "--input-data", str(data), "--concurrency-range", str(concurrency),
            "--measurement-mode", "count_windows", "--measurement-request-count", "200",
            "--stability-percentage", "999", "--max-trials", "5", *flags,
        ])  # fmt: skip
        assert failures(server.url) == failed
        return report.columns

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


@pytest.mark.parametrize("flags", [(), ("--streaming",), ("--async",)], ids=" ".join)
def test_grpc(analyze: Analyze, digits_server: Any, flags: tuple[str, ...]) -> None:
    where = f"127.0.0.1:{digits_server.grpc}"
    line = analyze(4, "-i", "grpc", "-u", where, *flags)
    assert line["Inferences/Second"] > 0
    assert line["Server Compute Infer"] > 0


def test_batches(analyze: Analyze) -> None:
    assert analyze(2, "-b", "8")["Inferences/Second"] > 0


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_tensors_in_shared_memory(analyze: Analyze, digits_server: Any, wire: str) -> None:
    """It unregisters all, registers its regions, asks for their status, and lays tensors there."""
    where = digits_server.authority if wire == "http" else f"127.0.0.1:{digits_server.grpc}"
    line = analyze(
        2, "-i", wire, "-u", where,
        "--shared-memory", "system", "--output-shared-memory-size", "40",
    )  # fmt: skip
    assert line["Inferences/Second"] > 0
    assert line["Server Compute Infer"] > 0


@pytest.fixture(scope="module")
def by_the_library(model_server: Any) -> Any:
    """The same model where gRPC is served by grpcio instead of our own transport."""
    return model_server(demo.model_repository(), "--allow-client-shm", "--grpc-transport", "grpcio")


@pytest.mark.parametrize("memory", ["none", "system"])
def test_grpc_by_the_library(analyze: Analyze, by_the_library: Any, memory: str) -> None:
    flags = ["--shared-memory", memory, "--output-shared-memory-size", "40"]
    where = f"127.0.0.1:{by_the_library.grpc}"
    line = analyze(
        2, "-i", "grpc", "-u", where, *flags if memory == "system" else (), server=by_the_library
    )
    assert line["Inferences/Second"] > 0
    assert line["Server Compute Infer"] > 0
