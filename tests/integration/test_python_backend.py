"""Users' classes behind a whole server, asked by Triton's own clients."""

from __future__ import annotations

import json
import os
import queue
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.zoo import digits
from tests.zoo import python as zoo
from tritonclient.utils import InferenceServerException

CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { count: 1 } ]
"""
TEMPERAMENTAL = """
import os, time
from penstock.backends.python.model import BadInput

class Model:
    def predict(self, x):
        first = x[:, 0]
        if (first == -1).any():
            os._exit(3)
        if (first == -2).any():
            raise BadInput("-2 is not welcome")
        if (first == -3).any():
            raise RuntimeError("cannot do -3")
        if (first == -4).any():
            time.sleep(600)
        return x + 1
"""
COUNT = """
class Model:
    def predict(self, count):
        for i in range(int(count[0])):
            yield {"number": [i]}
        if count[0] > 100:
            raise ValueError("too many to count")
"""
COUNT_CONFIG = """
backend: "python"
input [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_INT64 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
instance_group [ { count: 1 } ]
"""


def write(repository: Path, name: str, text: str, config: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(text)
    (version.parent / "config.pbtxt").write_text(config)


@pytest.fixture(params=["process", "thread"])
def isolation(request: pytest.FixtureRequest) -> str:
    return f'parameters {{ key: "isolation" value {{ string_value: "{request.param}" }} }}\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def infer(module: Any, url: str, x: Any) -> Any:
    array = np.asarray(x, np.float32)
    given = module.InferInput("x", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    client = module.InferenceServerClient(url)
    try:
        return client.infer("m", [given]).as_numpy("y")
    finally:
        client.close()


def test_digits_in_numpy(start_server: Any, repository: Path, isolation: str) -> None:
    version = repository / "digits" / "1"
    version.mkdir(parents=True)
    config = zoo.write(version)
    (version.parent / "config.pbtxt").write_text(config + isolation)
    server = start_server("--model-repository", repository, "--allow-code", "python")
    pictures = digits.pictures()[:20]
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    given = tritonclient.grpc.InferInput("image", list(pictures.shape), "FP32")
    given.set_data_from_numpy(pictures)
    probabilities = client.infer("digits", [given]).as_numpy("probabilities")
    client.close()
    import onnxruntime

    session = onnxruntime.InferenceSession(digits.MODEL, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"image": pictures})
    np.testing.assert_allclose(probabilities, wanted, atol=zoo.TOLERANCE)
    assert server.stop() == 0


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_only_the_request_at_fault_fails(start_server: Any, repository: Path, module: Any) -> None:
    write(repository, "m", TEMPERAMENTAL, CONFIG)
    server = start_server("--model-repository", repository, "--allow-code", "python")
    url = server.grpc if module is tritonclient.grpc else server.http.removeprefix("http://")
    expected = {-1: "ended with status 3", -2: "-2 is not welcome", -3: "cannot do -3"}
    for first, said in expected.items():
        with pytest.raises(InferenceServerException) as caught:
            infer(module, url, [[first, 0]])
        assert said in str(caught.value)
        np.testing.assert_array_equal(infer(module, url, [[5, 6]]), [[6, 7]])
    assert server.stop() == 0
    assert server.stderr.count("RuntimeError: cannot do -3") == 1


def test_neighbours_of_a_request_that_ends_the_process_are_answered(
    start_server: Any, repository: Path
) -> None:
    write(repository, "m", TEMPERAMENTAL, CONFIG)
    server = start_server("--model-repository", repository, "--allow-code", "python")
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for number in range(16):
        array = np.array([[-1 if number == 5 else number, 0]], np.float32)
        given = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(array)
        client.async_infer(
            "m", [given], lambda result, error, n=number: answers.put((n, result, error))
        )
    for _ in range(16):
        number, result, error = answers.get(timeout=60)
        if number == 5:
            assert "ended with status 3" in str(error)
        else:
            assert error is None, error
            assert result.as_numpy("y")[0, 0] == number + 1
    client.close()


def test_the_server_ends_in_time_whatever_a_model_does(start_server: Any, repository: Path) -> None:
    write(repository, "m", TEMPERAMENTAL, CONFIG)
    server = start_server("--model-repository", repository, "--allow-code", "python")
    workers = children(server.pid)
    assert len(workers) == 1
    with pytest.raises(InferenceServerException):
        hang(server.grpc)
    # The caller's time was over, so the run was interrupted, and its process goes on.
    np.testing.assert_array_equal(infer(tritonclient.grpc, server.grpc, [[5, 6]]), [[6, 7]])
    assert children(server.pid) == workers
    assert server.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def hang(url: str) -> None:
    client = tritonclient.grpc.InferenceServerClient(url)
    given = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[-4, 0]], np.float32))
    try:
        client.infer("m", [given], client_timeout=1.0)
    finally:
        client.close()


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task")
    return {
        int(child)
        for task in os.listdir(tasks)
        for child in (tasks / task / "children").read_text().split()
    }


def streamed(url: str, count: int) -> list[Any]:
    """The numbers of one streamed request, and what ended it if that was an error."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(url)
    given = tritonclient.grpc.InferInput("count", [1], "INT32")
    given.set_data_from_numpy(np.array([count], np.int32))
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("count", [given], enable_empty_final_response=True)
    got: list[Any] = []
    while True:
        result, error = answers.get(timeout=30)
        if error is not None:
            got.append(str(error))
            break
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
        got.append(int(result.as_numpy("number")[0]))
    client.stop_stream()
    client.close()
    return got


def test_a_generator_streams(start_server: Any, repository: Path, isolation: str) -> None:
    write(repository, "count", COUNT, COUNT_CONFIG + isolation)
    server = start_server("--model-repository", repository, "--allow-code", "python")
    for count in (3, 0, 50):
        assert streamed(server.grpc, count) == list(range(count))
    *numbers, error = streamed(server.grpc, 101)
    assert numbers == list(range(101))
    assert "ValueError: too many to count" in error
    request = urllib.request.Request(
        f"{server.http}/v2/models/count/generate_stream",
        json.dumps({"count": 4}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        events = [line[5:] for line in reply.read().decode().splitlines() if line[:5] == "data:"]
    assert [json.loads(event)["number"] for event in events] == [0, 1, 2, 3]
    assert server.stop() == 0


def test_programs_are_served_only_where_that_was_allowed(
    start_server: Callable[..., Any], repository: Path
) -> None:
    write(repository, "m", "raise AssertionError('it was run')\n", CONFIG)
    server = start_server("--model-repository", repository)
    with pytest.raises(InferenceServerException):
        infer(tritonclient.grpc, server.grpc, [[5, 6]])
    server.stop()
    assert "--allow-code" in server.stderr
    assert "it was run" not in server.stderr
