"""Stateful sequences end to end: an ONNX model that sums, asked by Triton's own clients."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

_CORRID = """
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
"""
CONFIG = (
    """
max_batch_size: 8
input [ { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },"""
    + _CORRID
    + """  ]
  state [
    { input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_INT32 dims: [ 1 ] }
  ]
  oldest { max_candidate_sequences: 4 }
}
"""
)


def write_sum(path: Path) -> None:
    """OUTPUT = INPUT + SUM_IN (the state) + 1000 * START; CORRID is added as 0."""
    tensors = {
        name: helper.make_tensor_value_info(name, kind, ["N", 1])
        for name, kind in {
            "INPUT": TensorProto.INT32,
            "START": TensorProto.INT32,
            "CORRID": TensorProto.UINT64,
            "SUM_IN": TensorProto.INT32,
            "SUM_OUT": TensorProto.INT32,
            "OUTPUT": TensorProto.INT32,
        }.items()
    }
    nodes = [
        helper.make_node("Cast", ["CORRID"], ["ID"], to=TensorProto.INT32),
        helper.make_node("Mul", ["ID", "ZERO"], ["NOTHING"]),
        helper.make_node("Add", ["INPUT", "SUM_IN"], ["RAW"]),
        helper.make_node("Add", ["RAW", "NOTHING"], ["SUM_OUT"]),
        helper.make_node("Mul", ["START", "THOUSAND"], ["MARK"]),
        helper.make_node("Add", ["SUM_OUT", "MARK"], ["OUTPUT"]),
    ]
    constants = [
        helper.make_tensor("ZERO", TensorProto.INT32, [1], [0]),
        helper.make_tensor("THOUSAND", TensorProto.INT32, [1], [1000]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [tensors[n] for n in ("INPUT", "CORRID", "SUM_IN", "START")],
        [tensors[n] for n in ("SUM_OUT", "OUTPUT")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


Ask = Callable[..., int]


def _asker(module: Any, client: Any) -> Ask:
    """``ask(value, sequence, **flags)`` by one of Triton's clients."""

    def ask(value: int, sequence: int | str, **flags: Any) -> int:
        reply = client.infer("sum", inputs(module, value), sequence_id=sequence, **flags)
        assert reply.as_numpy("SUM_OUT") is None
        return int(reply.as_numpy("OUTPUT")[0, 0])

    return ask


def inputs(module: Any, value: int) -> list[Any]:
    given = module.InferInput("INPUT", [1, 1], "INT32")
    given.set_data_from_numpy(np.array([[value]], np.int32))
    return [given]


@pytest.fixture
def server(tmp_path: Path, start_server: Callable[..., Any]) -> Any:
    write_sum(tmp_path / "sum" / "1" / "model.onnx")
    (tmp_path / "sum" / "config.pbtxt").write_text(CONFIG)
    return start_server(
        "--model-repository", str(tmp_path), "--model-control-mode", "explicit",
        "--load-model", "sum",
    )  # fmt: skip


@pytest.fixture
def clients(server: Any) -> Iterator[dict[str, tuple[Any, Any]]]:
    """By protocol: the module, and a client of ``server``."""
    address = server.http.removeprefix("http://")
    with (
        tritonclient.http.InferenceServerClient(address) as http,
        tritonclient.grpc.InferenceServerClient(server.grpc) as grpc,
    ):
        yield {"http": (tritonclient.http, http), "grpc": (tritonclient.grpc, grpc)}


def test_two_sequences_interleaved(clients: Any) -> None:
    metadata = clients["http"][1].get_model_metadata("sum")
    assert [t["name"] for t in metadata["inputs"] + metadata["outputs"]] == ["INPUT", "OUTPUT"]
    for module, client in clients.values():
        ask, first, second = _asker(module, client), [], []
        for i, value in enumerate([11, 7, 5, 3, 2, 0, 1]):
            flags = {"sequence_start": i == 0, "sequence_end": i == 6}
            first.append(ask(value, 1007, **flags))
            second.append(ask(-value, 1008, **flags))
        assert first == [1011, 18, 23, 26, 28, 28, 29]
        assert second == [989, -18, -23, -26, -28, -28, -29]
        with pytest.raises(InferenceServerException, match="must specify the START flag"):
            ask(1, 1007)


def test_one_sequence_over_both_protocols(clients: Any) -> None:
    http, grpc = _asker(*clients["http"]), _asker(*clients["grpc"])
    assert http(1, 7, sequence_start=True) == 1001
    assert grpc(2, 7) == 3
    assert http(3, 7, priority=1, timeout=1_000_000) == 6
    # From 2**63 on, by a client of another language: two's complement.
    assert http(1, (1 << 64) - 2, sequence_start=True) == 1001
    assert grpc(1, -2) == 2


def test_what_is_refused(clients: Any) -> None:
    for module, client in clients.values():
        ask = _asker(module, client)
        none = "non-zero or non-empty correlation ID"
        for sequence, text in ((0, none), ("", none), ("a", "not the string 'a'")):
            with pytest.raises(InferenceServerException, match=text):
                ask(1, sequence, sequence_start=True)
        assert ask(1, 5, sequence_start=True, sequence_end=True) == 1001
        outputs = [module.InferRequestedOutput("OUTPUT", class_count=1)]
        reply = client.infer(
            "sum", inputs(module, 4), outputs=outputs, sequence_id=6, sequence_start=True
        )
        assert reply.as_numpy("OUTPUT").reshape(-1).tolist() == [b"1004:0"]
        wrong = [module.InferRequestedOutput("SUM_OUT")]
        with pytest.raises(InferenceServerException, match="SUM_OUT"):
            client.infer("sum", inputs(module, 4), outputs=wrong, sequence_id=6)


def test_statistics_count_each_request_once(clients: Any) -> None:
    module, client = clients["http"]
    ask = _asker(module, client)
    for i in range(5):
        ask(i, 9, sequence_start=i == 0, sequence_end=i == 4)
    with pytest.raises(InferenceServerException):
        ask(1, 9)
    (told,) = client.get_inference_statistics("sum")["model_stats"]
    assert (told["inference_count"], told["execution_count"]) == (5, 5)
    assert told["inference_stats"]["success"]["count"] == 5
    assert told["inference_stats"]["fail"]["count"] == 1
    metadata = client.get_server_metadata()
    assert {"sequence", "sequence(string_id)"} <= set(metadata["extensions"])


def test_streams_of_a_sequence_each(clients: Any, server: Any) -> None:
    """As in the example of Triton's client: all is sent before anything is read."""
    module, client = clients["grpc"]
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    values = list(range(200))
    for i, value in enumerate(values):
        for sequence, sign in ((1, 1), (2, -1)):
            client.async_stream_infer(
                "sum", inputs(module, sign * value), sequence_id=sequence,
                request_id=f"{sequence}_{i}",
                sequence_start=i == 0, sequence_end=i == len(values) - 1,
            )  # fmt: skip
    client.async_stream_infer("sum", inputs(module, 1), sequence_id=1, request_id="late")
    sums: dict[str, list[int]] = {"1": [], "2": []}
    errors = []
    for _ in range(2 * len(values) + 1):
        result, error = got.get(timeout=30)
        if error is not None:
            errors.append(str(error))
            continue
        response = result.get_response()
        assert response.parameters["triton_final_response"].bool_param
        name, _, place = response.id.partition("_")
        assert int(place) == len(sums[name])
        sums[name].append(int(result.as_numpy("OUTPUT")[0, 0]))
    client.stop_stream()
    totals = np.cumsum(values)
    assert sums["1"] == [1000, *totals[1:].tolist()]
    assert sums["2"] == [1000, *(-totals[1:]).tolist()]
    (error,) = errors
    assert "must specify the START flag" in error


def test_a_stream_that_is_given_up_leaves_the_sequence_to_others(clients: Any) -> None:
    module, client = clients["grpc"]
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put(error))
    for i in range(300):
        client.async_stream_infer("sum", inputs(module, 1), sequence_id=3, sequence_start=i == 0)
    assert got.get(timeout=30) is None
    client.stop_stream(cancel_requests=True)
    ask = _asker(*clients["http"])
    assert ask(5, 3, sequence_start=True) == 1005
    assert ask(5, 3, sequence_end=True) == 10


def test_reloading_forgets_and_unloading_ends(clients: Any) -> None:
    module, client = clients["http"]
    ask = _asker(module, client)
    assert ask(1, 4, sequence_start=True) == 1001
    client.unload_model("sum")
    client.load_model("sum")
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        ask(1, 4)
    assert ask(1, 4, sequence_start=True) == 1001


def test_what_was_accepted_is_answered_when_the_server_stops(clients: Any, server: Any) -> None:
    module, client = clients["grpc"]
    got: list[Any] = []
    done = threading.Event()

    def received(result: Any, error: Any) -> None:
        got.append(error)
        if len(got) == 100:
            done.set()

    _asker(module, client)(0, 8, sequence_start=True)
    for _ in range(100):
        client.async_infer("sum", inputs(module, 1), received, sequence_id=8)
    server.process.send_signal(signal.SIGTERM)
    assert done.wait(30)
    refused = [str(error) for error in got if error is not None]
    # Those that came too late are refused; none of the others was lost behind another.
    assert all("UNAVAILABLE" in text and "scheduler" not in text for text in refused), refused
    assert server.process.wait(30) == 0


def test_ids_that_are_strings(tmp_path: Path, start_server: Callable[..., Any]) -> None:
    write_sum(tmp_path / "sum" / "1" / "model.onnx")
    plain = CONFIG.replace("," + _CORRID, "")
    corrid = '{ name: "CORRID" data_type: TYPE_UINT64 dims: [ 1 ] }'
    config = plain.replace("input [", f"input [ {corrid},", 1)
    (tmp_path / "sum" / "config.pbtxt").write_text(config)
    server = start_server("--model-repository", str(tmp_path))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        module, given = tritonclient.grpc, tritonclient.grpc.InferInput("CORRID", [1, 1], "UINT64")
        given.set_data_from_numpy(np.zeros((1, 1), np.uint64))
        totals = []
        for name, start in (("a", 1), ("b", 1), ("a", 0), ("a", 0), ("b", 0)):
            reply = client.infer(
                "sum", [given, *inputs(module, 3)], sequence_id=name, sequence_start=bool(start)
            )
            totals.append(int(reply.as_numpy("OUTPUT")[0, 0]))
    assert totals == [1003, 1003, 6, 9, 6]
