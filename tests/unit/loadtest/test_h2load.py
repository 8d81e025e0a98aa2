"""h2load as a gRPC client: its request, and what counts as a result."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc")

from tritonclient.grpc import service_pb2

from penstock.loadtest import h2load

SAID = """\
finished in 1.00s, 200.00 req/s, 2.60MB/s
requests: 200 total, 232 started, 200 done, 200 succeeded, {failed} failed, 0 errored, 0 timeout
status codes: 200 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.60MB (2723263) total, 2.22MB (2326280) headers (space savings 40.00%), 1B ({data}) data
"""


def report(log: Path, failed: int = 0, data: int = 2560) -> h2load.Report:
    log.write_text("".join(f"1\t200\t{spent_us}\n" for spent_us in range(1, 201)))
    return h2load._report(SAID.format(failed=failed, data=data), "", 12, log)


def test_the_message_is_what_protobuf_reads() -> None:
    inputs = [("INPUT0", "FP32", [1, 300], b"abc"), ("B", "INT8", [1], b"")]
    read = service_pb2.ModelInferRequest.FromString(h2load.message("m", inputs))
    assert read.model_name == "m"
    assert [(i.name, i.datatype, list(i.shape)) for i in read.inputs] == [i[:3] for i in inputs]
    assert list(read.raw_input_contents) == [b"abc", b""]


def test_a_report(tmp_path: Path) -> None:
    told = report(tmp_path / "log")
    assert told == h2load.Report(calls_s=200.0, p50_us=100.5, p99_us=199, calls=200)


def test_replies_without_results_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(h2load.Failed, match="not every reply"):
        report(tmp_path / "log", data=200)
    with pytest.raises(h2load.Failed, match="not every reply"):
        report(tmp_path / "log", failed=1)
    with pytest.raises(h2load.Failed, match="no result"):
        h2load._report("what?", "", 12, tmp_path / "log")
