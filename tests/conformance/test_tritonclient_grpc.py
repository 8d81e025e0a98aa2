"""The stock Triton clients over gRPC, unmodified: every method, sync and aio, both transports."""

from __future__ import annotations

import asyncio
import base64
import queue
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.fake import artefact

pytest.importorskip("tritonclient.grpc")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.grpc.auth import BasicAuth
    from tritonclient.utils import InferenceServerException
    from tritonclient.utils import shared_memory as shm

WAIT_S = 20.0
MODELS = {
    "simple": ({"kind": "add_sub", "shape": "16"}, "max_batch_size: 8"),
    "strings": ({"dtype": "BYTES", "shape": "-1"}, ""),
    "slow": ({"delay_ms": "300", "shape": "1"}, ""),
    "repeat": (
        {"kind": "repeat", "shape": "1", "times": "-1"},
        "model_transaction_policy { decoupled: true }",
    ),
    "spare": ({"shape": "2"}, ""),
}
FLAGS = (
    "--model-control-mode", "explicit", "--load-model", "simple", "--load-model", "strings",
    "--load-model", "slow", "--load-model", "repeat", "--allow-client-shm",
    "--grpc-header-forward-pattern", "^x-",
)  # fmt: skip


@pytest.fixture(scope="module", params=["own", "grpcio"])
def address(
    request: pytest.FixtureRequest,
    model_server: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    root = tmp_path_factory.mktemp("models")
    for name, (options, config) in MODELS.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.fake").write_bytes(artefact(options))
        (root / name / "config.pbtxt").write_text(f'backend: "fake" {config}')
    server = model_server(root, *FLAGS, "--grpc-transport", request.param)
    return f"127.0.0.1:{server.grpc}"


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
async def aio_client(address: str) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(address) as client:
        yield client


class Blocking:
    """The aio client as if it were the sync one: one set of tests for the methods of both."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = self._run(self._made(address))

    async def _made(self, address: str) -> Any:
        return triton_aio.InferenceServerClient(address)

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, WAIT_S))

    def close(self) -> None:
        self._run(self._client.close())
        self._loop.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *given, **named: self._run(method(*given, **named))


@pytest.fixture(params=["sync", "aio"])
def either(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    made = triton.InferenceServerClient(address) if request.param == "sync" else Blocking(address)
    yield made
    made.close()


def simple_inputs(value: int = 1, rows: int = 1) -> list[Any]:
    inputs = []
    for i, name in enumerate(("INPUT0", "INPUT1")):
        array = np.full((rows, 16), value + i, np.int32)
        given = triton.InferInput(name, list(array.shape), "INT32")
        given.set_data_from_numpy(array)
        inputs.append(given)
    return inputs


def one_input(array: Any, datatype: str = "INT32") -> list[Any]:
    given = triton.InferInput("INPUT0", list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return [given]


def number(value: int) -> list[Any]:
    return one_input(np.array([[value]], np.int32))


# --- health, metadata, configuration, statistics


def test_health(either: Any) -> None:
    assert either.is_server_live() is True
    assert either.is_server_ready() is True
    assert either.is_model_ready("simple") is True
    assert either.is_model_ready("simple", "1") is True
    assert either.is_model_ready("simple", "2") is False
    assert either.is_model_ready("nope") is False


def test_metadata(either: Any) -> None:
    server = either.get_server_metadata()
    assert server.name == "triton"
    assert {"statistics", "trace", "system_shared_memory"} <= set(server.extensions)
    assert either.get_server_metadata(as_json=True)["name"] == "triton"
    model = either.get_model_metadata("simple", "1")
    assert [t.name for t in model.inputs] == ["INPUT0", "INPUT1"]
    assert model.inputs[0].datatype == "INT32"
    assert list(model.outputs[0].shape) == [-1, 16]
    config = either.get_model_config("simple").config
    assert (config.name, config.max_batch_size) == ("simple", 8)
    as_json = either.get_model_config("repeat", as_json=True)["config"]
    assert as_json["model_transaction_policy"]["decoupled"] is True
    with pytest.raises(InferenceServerException, match="'nope' is not found") as caught:
        either.get_model_metadata("nope")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_statistics(either: Any) -> None:
    before = either.get_inference_statistics("simple").model_stats[0]
    either.infer("simple", simple_inputs(rows=3))
    after = either.get_inference_statistics("simple", "1").model_stats[0]
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 1
    succeeded = after.inference_stats.success
    assert succeeded.count - before.inference_stats.success.count == 1
    assert succeeded.ns > before.inference_stats.success.ns
    every = either.get_inference_statistics()
    assert {"simple", "slow", "strings", "repeat"} <= {s.name for s in every.model_stats}
    as_json = either.get_inference_statistics("simple", as_json=True)
    assert as_json["model_stats"][0]["name"] == "simple"


def test_trace_settings(either: Any) -> None:
    assert list(either.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    changed = either.update_trace_settings("simple", {"trace_rate": "9", "trace_count": ["4"]})
    assert list(changed.settings["trace_rate"].value) == ["9"]
    assert either.get_trace_settings("simple", as_json=True)["settings"]["trace_count"] == {
        "value": ["4"]
    }
    cleared = either.update_trace_settings("simple", {"trace_rate": None, "trace_count": None})
    assert list(cleared.settings["trace_rate"].value) == ["1000"]
    with pytest.raises(InferenceServerException, match="Request for unknown model : nope"):
        either.get_trace_settings("nope")


def test_log_settings(either: Any) -> None:
    before = either.get_log_settings().settings
    assert before["log_error"].bool_param is True
    changed = either.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601"})
    assert changed.settings["log_verbose_level"].uint32_param == 1
    told = either.update_log_settings({"log_verbose_level": 0, "log_format": "default"})
    assert told.settings["log_format"].string_param == "default"
    assert either.get_log_settings(as_json=True)["settings"]["log_info"]["bool_param"] is True


# --- repository


def states(client: Any) -> dict[str, str]:
    return {m.name: m.state for m in client.get_model_repository_index().models}


def test_model_control(either: Any) -> None:
    assert states(either)["simple"] == "READY"
    assert not either.is_model_ready("spare")
    either.load_model("spare")
    assert either.is_model_ready("spare")
    assert states(either)["spare"] == "READY"
    either.unload_model("spare", unload_dependents=True)
    assert not either.is_model_ready("spare")
    with pytest.raises(InferenceServerException, match="failed to load 'nope'"):
        either.load_model("nope")
    index = either.get_model_repository_index(as_json=True)["models"]
    assert {"simple", "spare"} <= {m["name"] for m in index}


def test_loading_with_a_configuration_and_files(either: Any) -> None:
    either.load_model("spare", config='{"backend": "fake", "max_batch_size": 3}')
    assert either.get_model_config("spare").config.max_batch_size == 3
    model = artefact({"shape": "5"})
    either.load_model(
        "uploaded",
        config='{"backend": "fake", "max_batch_size": 2}',
        files={"file:1/model.fake": model},
    )
    assert list(either.get_model_metadata("uploaded").inputs[0].shape) == [-1, 5]
    for name in ("uploaded", "spare"):
        either.unload_model(name)


# --- shared memory


def test_system_shared_memory(either: Any) -> None:
    region = shm.create_shared_memory_region("area", "/penstock-grpc-test", 256)
    try:
        either.register_system_shared_memory("area", "/penstock-grpc-test", 256)
        told = either.get_system_shared_memory_status().regions["area"]
        assert (told.key, told.byte_size) == ("/penstock-grpc-test", 256)
        rows = np.arange(16, dtype=np.int32).reshape(1, 16)
        shm.set_shared_memory_region(region, [rows, rows])
        inputs = [triton.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in range(2)]
        for i, given in enumerate(inputs):
            given.set_shared_memory("area", 64, offset=64 * i)
        outputs = [triton.InferRequestedOutput("OUTPUT0"), triton.InferRequestedOutput("OUTPUT1")]
        outputs[0].set_shared_memory("area", 64, offset=128)
        result = either.infer("simple", inputs, outputs=outputs)
        assert result.as_numpy("OUTPUT1").tolist() == [[0] * 16]
        got = shm.get_contents_as_numpy(region, np.int32, [1, 16], offset=128)
        assert np.array_equal(got, 2 * rows)
        either.unregister_system_shared_memory("area")
        assert not either.get_system_shared_memory_status(as_json=True).get("regions")
        with pytest.raises(InferenceServerException, match="'area'"):
            either.get_system_shared_memory_status("area")
    finally:
        either.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(region)


def test_cuda_shared_memory(either: Any) -> None:
    assert not either.get_cuda_shared_memory_status().regions
    handle = base64.b64encode(bytes(64))
    with pytest.raises(InferenceServerException, match="failed to register"):
        either.register_cuda_shared_memory("gpu", handle, 0, 64)
    either.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="'gpu'"):
        either.get_cuda_shared_memory_status("gpu")


# --- inference


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_infer(either: Any, coding: str | None) -> None:
    result = either.infer(
        "simple",
        simple_inputs(3, rows=2),
        model_version="1",
        outputs=[triton.InferRequestedOutput("OUTPUT1"), triton.InferRequestedOutput("OUTPUT0")],
        request_id="seven",
        priority=1,
        timeout=5_000_000,
        client_timeout=WAIT_S,
        headers={"x-tenant": "blue"},
        compression_algorithm=coding,
        parameters={"text": "a", "number": 1, "flag": True, "ratio": 0.5},
    )
    assert result.as_numpy("OUTPUT0").tolist() == [[7] * 16] * 2
    assert result.as_numpy("OUTPUT1").tolist() == [[-1] * 16] * 2
    assert result.as_numpy("OUTPUT2") is None
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "simple", "1")
    assert result.get_output("OUTPUT0").datatype == "INT32"
    assert result.get_response(as_json=True)["id"] == "seven"


def test_strings_and_large_tensors(either: Any) -> None:
    words = np.array([["", "Grüße", "x" * 10_000]], object)
    result = either.infer("strings", one_input(words, "BYTES"))
    assert [w.decode() for w in result.as_numpy("OUTPUT0")[0]] == words[0].tolist()


def test_classification(either: Any) -> None:
    wanted = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    result = either.infer("simple", simple_inputs(), outputs=wanted)
    classes = result.as_numpy("OUTPUT0")
    assert classes.shape == (1, 2)
    assert classes[0][0].decode().split(":")[1] == "0"


@pytest.mark.parametrize(
    ("model", "inputs", "text", "status"),
    [
        ("nope", simple_inputs(), "Request for unknown model: 'nope' is not found", "NOT_FOUND"),
        ("simple", simple_inputs()[:1], "expected 2 inputs but got 1 inputs", "INVALID_ARGUMENT"),
        ("simple", simple_inputs(rows=9), "batch-size must be <= 8", "INVALID_ARGUMENT"),
        ("repeat", number(1), "ModelInfer RPC doesn't support models with decoupled transaction "
         "policy", "UNIMPLEMENTED"),
    ],
)  # fmt: skip
def test_errors(either: Any, model: str, inputs: list[Any], text: str, status: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        either.infer(model, inputs)
    assert text in caught.value.message()
    assert caught.value.status() == f"StatusCode.{status}"


def test_a_client_that_does_not_wait(either: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        either.infer("slow", number(1), client_timeout=0.05)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert "Deadline Exceeded" in caught.value.message()
    assert either.infer("slow", number(2)).as_numpy("OUTPUT0") == [[2]]


def test_a_unix_socket(model_server: Any, tmp_path: Path) -> None:
    root = tmp_path / "models" / "one" / "1"
    root.mkdir(parents=True)
    (root / "model.fake").write_bytes(artefact({"shape": "1"}))
    path = tmp_path / "grpc.sock"
    model_server(tmp_path / "models", "--grpc-uds", str(path), "--grpc-port", "off")
    with triton.InferenceServerClient(f"unix:{path}") as client:
        assert client.infer("one", number(7)).as_numpy("OUTPUT0") == [[7]]


def test_async_infer_of_the_sync_client(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for value in range(50):
        client.async_infer(
            "simple", simple_inputs(value), lambda result, error: answers.put((result, error))
        )
    got = [answers.get(timeout=WAIT_S) for _ in range(50)]
    assert [error for _, error in got if error is not None] == []
    sums = sorted(int(result.as_numpy("OUTPUT0")[0][0]) for result, _ in got)
    assert sums == [2 * value + 1 for value in range(50)]


def test_cancelling_reaches_the_scheduler(client: Any) -> None:
    def cancelled() -> int:
        stats = client.get_inference_statistics("slow").model_stats[0]
        return int(stats.inference_stats.fail.count)

    before = cancelled()
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    call = client.async_infer("slow", number(1), lambda result, error: answers.put((result, error)))
    time.sleep(0.1)
    call.cancel()
    _, error = answers.get(timeout=WAIT_S)
    assert error.status() == "StatusCode.CANCELLED"
    end = time.monotonic() + WAIT_S
    while cancelled() == before:
        assert time.monotonic() < end
        time.sleep(0.02)


async def test_cancelling_an_await(aio_client: Any) -> None:
    task = asyncio.ensure_future(aio_client.infer("slow", number(1)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, InferenceServerException)):
        await task
    assert await aio_client.is_server_live()


async def test_many_at_once(aio_client: Any) -> None:
    results = await asyncio.gather(
        *[aio_client.infer("simple", simple_inputs(value)) for value in range(200)]
    )
    for value, result in enumerate(results):
        assert result.as_numpy("OUTPUT0")[0][0] == 2 * value + 1


# --- streams of the sync client


class Streaming:
    """A sync client's one stream: what came back, in order."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client = client
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)), **options)

    def ask(self, model: str, inputs: list[Any], **options: Any) -> None:
        self.client.async_stream_infer(model, inputs, **options)

    def next(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=WAIT_S)


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_stream(client: Any, coding: str | None) -> None:
    stream = Streaming(client, compression_algorithm=coding, stream_timeout=WAIT_S)
    for value in range(40):
        stream.ask("simple", simple_inputs(value), request_id=str(value))
    got = [stream.next() for _ in range(40)]
    for result, error in got:
        assert error is None
        value = int(result.get_response().id)
        assert result.as_numpy("OUTPUT0")[0][0] == 2 * value + 1
    client.stop_stream()


def test_a_stream_of_a_decoupled_model(client: Any) -> None:
    stream = Streaming(client)
    stream.ask("repeat", number(4), request_id="four", enable_empty_final_response=True)
    finals, values = [], []
    while not finals or not finals[-1]:
        result, error = stream.next()
        assert error is None
        response = result.get_response()
        assert response.id == "four"
        finals.append(response.parameters["triton_final_response"].bool_param)
        if not finals[-1]:
            values.append(int(result.as_numpy("OUTPUT0")[0][0]))
    assert finals == [False] * 4 + [True]
    assert values == [4] * 4
    stream.ask("repeat", number(0))  # No response, and none asked for.
    stream.ask("repeat", number(1), request_id="one")
    assert stream.next()[0].get_response().id == "one"
    client.stop_stream()


def test_an_error_in_a_stream_is_a_message(client: Any) -> None:
    stream = Streaming(client)
    stream.ask("nope", simple_inputs(), request_id="lost")
    result, error = stream.next()
    assert result is None
    assert error.message() == "Request for unknown model: 'nope' is not found"
    stream.ask("simple", simple_inputs())
    assert stream.next()[1] is None
    client.stop_stream()


def test_an_error_as_the_status_of_the_stream(client: Any) -> None:
    stream = Streaming(client, headers={"triton_grpc_error": "true"})
    stream.ask("nope", simple_inputs())
    _, error = stream.next()
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_stopping_a_stream_cancels_what_runs(client: Any) -> None:
    stream = Streaming(client)
    stream.ask("repeat", number(1 << 30))
    stream.next()
    client.stop_stream(cancel_requests=True)
    follower = Streaming(client)
    follower.ask("repeat", number(2))
    assert [int(follower.next()[0].as_numpy("OUTPUT0")[0][0]) for _ in range(2)] == [2, 2]
    client.stop_stream()


def test_a_stream_that_runs_out_of_time(client: Any) -> None:
    stream = Streaming(client, stream_timeout=0.2)
    stream.ask("slow", number(1))
    stream.ask("slow", number(1))
    while True:
        _, error = stream.next()
        if error is not None:
            break
    assert "Deadline" in error.message()
    client.stop_stream()


# --- streams of the aio client


async def requests(*given: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for one in given:
        yield one


async def test_stream_infer(aio_client: Any) -> None:
    given = [
        {"model_name": "simple", "inputs": simple_inputs(value), "request_id": str(value)}
        for value in range(30)
    ]
    seen = {}
    async for result, error in aio_client.stream_infer(requests(*given)):
        assert error is None
        seen[int(result.get_response().id)] = int(result.as_numpy("OUTPUT0")[0][0])
    assert seen == {value: 2 * value + 1 for value in range(30)}


async def test_stream_infer_of_a_decoupled_model(aio_client: Any) -> None:
    given = [
        {"model_name": "repeat", "inputs": number(300)},
        {"model_name": "nope", "inputs": number(1)},
    ]
    values, errors = [], []
    async for result, error in aio_client.stream_infer(requests(*given)):
        if error is not None:
            errors.append(error.message())
        else:
            assert not result.get_response().parameters["triton_final_response"].bool_param
            values.append(int(result.as_numpy("OUTPUT0")[0][0]))
    assert values == [300] * 300
    assert errors == ["Request for unknown model: 'nope' is not found"]


async def test_cancelling_stream_infer(aio_client: Any) -> None:
    forever = {"model_name": "repeat", "inputs": number(1 << 30)}
    results = aio_client.stream_infer(requests(forever))
    await anext(aiter(results))
    assert results.cancel()
    with pytest.raises((asyncio.CancelledError, InferenceServerException)):
        async for _ in results:
            pass
    answered = [
        r async for r in aio_client.stream_infer(requests({**forever, "inputs": number(1)}))
    ]
    assert len(answered) == 1


# --- what is around a client


def test_plugins_add_metadata(client: Any) -> None:
    client.register_plugin(BasicAuth("user", "secret"))
    assert client.is_server_live()
    assert client.plugin() is not None
    client.unregister_plugin()


def test_one_channel_for_many_threads(address: str) -> None:
    failures: list[BaseException] = []
    with triton.InferenceServerClient(address) as client:

        def ask() -> None:
            try:
                for value in range(20):
                    result = client.infer("simple", simple_inputs(value))
                    assert result.as_numpy("OUTPUT0")[0][0] == 2 * value + 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert failures == []
