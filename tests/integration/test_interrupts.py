"""A client that goes away in the middle of a long run gives the server its core back."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from onnx import TensorProto, helper

from penstock.server.grpc_schema import message

pytest.importorskip("onnxruntime")

FOR_EVER = 1 << 40
"""Turns of the loop: days. A test that sees the server idle again has seen the run ended."""
ALWAYS = 20_000
"""Turns that the model makes for nothing: a model that is quick would run on the event loop."""
PATIENCE_S = 30.0


def write_counter(path: Path) -> None:
    """Counts to ``n``, an INT64 [1], in a loop of two small nodes, and says how far it came: from
    -``ALWAYS``."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["so_far", "one"], ["counted"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("so_far", TensorProto.INT64, [1]),
        ],
        [value("goes_on", TensorProto.BOOL, []), value("counted", TensorProto.INT64, [1])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["n", "always"], ["turns"]),
            helper.make_node("Loop", ["turns", "true", "first"], ["count"], body=body),
        ],
        "counter",
        [value("n", TensorProto.INT64, [1])],
        [value("count", TensorProto.INT64, [1])],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("always", TensorProto.INT64, [1], [ALWAYS]),
            helper.make_tensor("first", TensorProto.INT64, [1], [-ALWAYS]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.parent.mkdir(parents=True)
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )


@pytest.fixture
def server(tmp_path, start_server):
    write_counter(tmp_path / "models" / "counter" / "1" / "model.onnx")
    config = "instance_group [{ kind: KIND_CPU, count: 1 }]"
    (tmp_path / "models" / "counter" / "config.pbtxt").write_text(config)
    return start_server("-m", tmp_path / "models")


def body(n: int) -> bytes:
    tensor = {"name": "n", "shape": [1], "datatype": "INT64", "data": [n]}
    return json.dumps({"inputs": [tensor]}).encode()


def count_to(server, n: int) -> int:
    path = "/v2/models/counter/infer"
    with urlopen(Request(server.http + path, body(n)), timeout=PATIENCE_S) as reply:
        return json.load(reply)["outputs"][0]["data"][0]


def stats(server) -> dict[str, int]:
    with urlopen(f"{server.http}/v2/models/counter/stats", timeout=PATIENCE_S) as reply:
        told = json.load(reply)["model_stats"][0]["inference_stats"]
    return {"success": int(told["success"]["count"]), "fail": int(told["fail"]["count"])}


def canceled(server) -> int:
    with urlopen(f"{server.metrics}/metrics", timeout=PATIENCE_S) as reply:
        lines = reply.read().decode().splitlines()
    found = [line for line in lines if "request_failure" in line and 'reason="CANCELED"' in line]
    assert len(found) == 1
    return int(float(found[0].rsplit(" ", 1)[1]))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy(pid: int) -> bool:
    """Whether the process used more than half of a core just now."""
    before, at = cpu_s(pid), time.monotonic()
    time.sleep(0.3)
    return cpu_s(pid) - before > 0.5 * (time.monotonic() - at)


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def leave_http(server) -> None:
    """Begins a run that never ends, and hangs up once it is under way."""
    host, _, port = server.http.removeprefix("http://").partition(":")
    content = body(FOR_EVER)
    head = f"POST /v2/models/counter/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + content)
        until(lambda: busy(server.pid))


def leave_grpc(server, deadline_s: float | None = None) -> grpc.StatusCode:
    """The same by gRPC: cancels once the run is under way, or waits for the deadline."""
    request = message("ModelInferRequest")(model_name="counter")
    tensor = request.inputs.add(name="n", datatype="INT64", shape=[1])
    tensor.contents.int64_contents.append(FOR_EVER)
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request.SerializeToString(), timeout=deadline_s
        )
        if deadline_s is None:
            until(lambda: busy(server.pid))
            call.cancel()
        until(call.done)
        return call.code()


def is_whole_again(server, so_far: int) -> None:
    until(lambda: canceled(server) == so_far)
    until(lambda: not busy(server.pid))
    assert count_to(server, 7) == 7


def test_who_hangs_up_ends_the_run(server):
    assert count_to(server, 5) == 5
    leave_http(server)
    is_whole_again(server, 1)
    assert stats(server) == {"success": 2, "fail": 1}


def test_who_cancels_a_call_or_lets_it_run_out_of_time_ends_the_run(server):
    assert leave_grpc(server) is grpc.StatusCode.CANCELLED
    is_whole_again(server, 1)
    assert leave_grpc(server, deadline_s=0.5) is grpc.StatusCode.DEADLINE_EXCEEDED
    is_whole_again(server, 2)
