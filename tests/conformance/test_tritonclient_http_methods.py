"""Every method of the stock Triton client over HTTP, sync and asyncio, and what Triton's public
example programs do with it: models in, tensors of every type, control, settings, plugins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from inspect import isawaitable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("tritonclient.http")

import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

from .oracle import repository

LEFT = np.arange(16, dtype=np.int32).reshape(1, 16)
RIGHT = np.full((1, 16), 3, np.int32)
WORDS = np.array([["a", "", "\u00fc\u4e2d"]], dtype=object)


@pytest.fixture(scope="module")
def server(model_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    repository.write(folder, repository.MODELS["explicit"], triton=False)
    loads = [word for m in repository.LOADED for word in ("--load-model", m.name)]
    return model_server(folder, "--model-control-mode", "explicit", *loads)


class Awaited:
    """The asyncio client with methods that wait for themselves, as the sync client's do."""

    def __init__(self, authority: str) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(authority))

    async def _make(self, authority: str) -> Any:
        return triton_aio.InferenceServerClient(authority)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*given: Any, **named: Any) -> Any:
            async def wait() -> Any:
                result = method(*given, **named)
                return await result if isawaitable(result) else result

            return self._runner.run(wait())

        return call

    def end(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, server: Any) -> Iterator[Any]:
    if request.param == "sync":
        with triton.InferenceServerClient(server.authority) as made:
            yield made
    else:
        awaited = Awaited(server.authority)
        yield awaited
        awaited.end()


def tensor(name: str, datatype: str, array: Any, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def pair(binary: bool = True) -> list[Any]:
    return [tensor("INPUT0", "INT32", LEFT, binary), tensor("INPUT1", "INT32", RIGHT, binary)]


def spare(client: Any) -> Any:
    ones = tensor("INPUT0", "FP32", np.ones((1, 2), np.float32))
    return client.infer("spare", [ones]).as_numpy("OUTPUT0")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_sums_and_differences(client: Any, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(f"OUTPUT{i}", binary_data=binary) for i in (0, 1)]
    result = client.infer("simple", pair(binary), outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)
    assert result.as_numpy("OUTPUT2") is None


def test_one_input_in_json_and_one_output_binary(client: Any) -> None:
    inputs = [tensor("INPUT0", "INT32", LEFT, False), tensor("INPUT1", "INT32", RIGHT, True)]
    outputs = [
        triton.InferRequestedOutput("OUTPUT0", binary_data=True),
        triton.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]
    result = client.infer("simple", inputs, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_inputs_are_used_again_and_refilled(client: Any) -> None:
    inputs = pair()
    for factor in (1, 2, 3):
        inputs[0].set_data_from_numpy(LEFT * factor)
        result = client.infer("simple", inputs)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT * factor + RIGHT)


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("BOOL", np.bool_), ("UINT8", np.uint8), ("UINT16", np.uint16), ("UINT32", np.uint32),
        ("UINT64", np.uint64), ("INT8", np.int8), ("INT16", np.int16), ("INT32", np.int32),
        ("INT64", np.int64), ("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64),
        ("BF16", ml_dtypes.bfloat16),
    ],
)  # fmt: skip
def test_every_type(client: Any, datatype: str, dtype: Any) -> None:
    values = np.array([[0, 1], [1, 100]]).astype(dtype)
    result = client.infer(f"identity_{datatype.lower()}", [tensor("INPUT0", datatype, values)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)
    assert result.get_output("OUTPUT0")["datatype"] == datatype


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_strings(client: Any, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("OUTPUT0", binary_data=binary)]
    given = tensor("INPUT0", "BYTES", WORDS, binary)
    got = client.infer("identity_bytes", [given], outputs=wanted).as_numpy("OUTPUT0")
    read = [w.decode() if isinstance(w, bytes) else w for w in got.ravel()]
    assert read == WORDS.ravel().tolist()


def test_no_elements(client: Any) -> None:
    none = np.zeros((1, 0), np.float32)
    result = client.infer("identity_fp32", [tensor("INPUT0", "FP32", none)])
    assert result.as_numpy("OUTPUT0").shape == (1, 0)


def test_classes_as_the_image_example_prints_them(client: Any) -> None:
    scores = np.array([[0.1, 0.7, 0.05, 0.15], [4, 3, 2, 1]], np.float32)
    wanted = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    result = client.infer("classes", [tensor("INPUT0", "FP32", scores)], outputs=wanted)
    rows = result.as_numpy("OUTPUT0")
    told = [[(word.decode() if isinstance(word, bytes) else word).split(":") for word in row]
            for row in rows]  # fmt: skip
    assert [[word[1:] for word in row] for row in told] == [
        [["1", "dog"], ["3"]],
        [["0", "cat"], ["1", "dog"]],
    ]
    assert float(told[0][0][0]) == pytest.approx(0.7)


def test_everything_that_infer_takes(client: Any) -> None:
    result = client.infer(
        "simple", pair(), model_version="1", request_id="seven", priority=2, timeout=20_000_000,
        sequence_id=5, sequence_start=True, sequence_end=True, headers={"X-Colour": "red"},
        query_params={"a": 1, "b": [2, 3]}, parameters={"colour": "red", "shade": 3, "dim": True},
        request_compression_algorithm="gzip", response_compression_algorithm="deflate",
    )  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("seven", "1")


def test_bodies_made_and_read_by_hand(client: Any, server: Any) -> None:
    """``generate_request_body`` and ``parse_response_body``, for other HTTP libraries."""
    body, json_size = triton.InferenceServerClient.generate_request_body(pair())
    headers = {"Inference-Header-Content-Length": str(json_size)} if json_size else {}
    request = Request(f"{server.url}/v2/models/simple/infer", data=body, headers=headers)
    with urlopen(request, timeout=10) as reply:
        got, told = reply.read(), reply.headers.get("Inference-Header-Content-Length")
    result = triton.InferenceServerClient.parse_response_body(
        got, header_length=None if told is None else int(told)
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_health_and_metadata_as_the_example_asks(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_metadata("simple")["name"] == "simple"
    assert client.get_model_config("simple")["max_batch_size"] == 8
    with pytest.raises(InferenceServerException) as raised:
        client.get_model_metadata("wrong_model_name")
    assert "Request for unknown model: 'wrong_model_name' is not found" in str(raised.value)
    assert raised.value.status() == "404"


def test_versions(client: Any) -> None:
    assert client.get_model_metadata("versions")["versions"] == ["1", "3"]
    assert client.is_model_ready("versions", "3")
    assert not client.is_model_ready("versions", "2")
    stats = client.get_inference_statistics("versions")["model_stats"]
    assert [each["version"] for each in stats] == ["1", "3"]


def test_models_come_and_go(client: Any) -> None:
    client.load_model("spare")
    assert client.is_model_ready("spare")
    assert spare(client).tolist() == [[1, 1]]
    client.unload_model("spare")
    assert not client.is_model_ready("spare")
    states = {e["name"]: e.get("state") for e in client.get_model_repository_index()}
    assert states["spare"] != "READY"
    assert states["simple"] == "READY"
    with pytest.raises(InferenceServerException, match="failed to load 'wrong_model_name'"):
        client.load_model("wrong_model_name")
    client.unload_model("wrong_model_name", unload_dependents=True)


def test_models_come_with_configuration_and_files(client: Any, tmp_path: Path) -> None:
    config = {
        "backend": "onnxruntime",
        "max_batch_size": 2,
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}],
    }
    client.load_model("spare", config=json.dumps(config))
    assert client.get_model_config("spare")["max_batch_size"] == 2
    code = repository.onnx_bytes(repository.SPARE[0])
    files = {"file:5/model.onnx": code}
    client.load_model("spare", config=json.dumps(config), files=files)
    assert client.get_model_metadata("spare")["versions"] == ["5"]
    assert spare(client).tolist() == [[1, 1]]
    with pytest.raises(InferenceServerException):
        client.load_model("spare", config="{", files=files)
    assert spare(client).tolist() == [[1, 1]]
    client.unload_model("spare")


def test_trace_settings(client: Any) -> None:
    changed = client.update_trace_settings(settings={"trace_rate": "7", "trace_level": ["OFF"]})
    assert changed["trace_rate"] == "7"
    own = client.update_trace_settings("simple", {"trace_rate": "9"})
    assert own["trace_rate"] == client.get_trace_settings("simple")["trace_rate"] == "9"
    assert client.get_trace_settings()["trace_rate"] == "7"
    client.update_trace_settings("simple", {"trace_rate": None})
    assert client.get_trace_settings("simple")["trace_rate"] == "7"
    assert client.update_trace_settings(settings={"trace_rate": None})["trace_rate"] == "1000"


def test_log_settings(client: Any) -> None:
    before = client.get_log_settings()
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    again = client.update_log_settings({"log_verbose_level": before["log_verbose_level"]})
    assert again == client.get_log_settings() == before


def test_shared_memory_is_refused_where_it_is_not_allowed(client: Any) -> None:
    """How it works where it is allowed: ``test_tritonclient_shared_memory``."""
    with pytest.raises(InferenceServerException, match="--allow-client-shm=true"):
        client.register_system_shared_memory("box", "/box", 64)
    given = triton.InferInput("INPUT0", [1, 1], "FP32")
    given.set_shared_memory("box", 4)
    with pytest.raises(InferenceServerException, match="--allow-client-shm=true"):
        client.infer("identity_fp32", [given])


def test_plugins_add_headers(client: Any) -> None:
    client.register_plugin(BasicAuth("user", "secret"))
    assert client.is_server_live()
    assert client.infer("simple", pair()).as_numpy("OUTPUT0").shape == (1, 16)
    client.unregister_plugin()


def test_a_base_path_is_not_found(server: Any) -> None:
    with triton.InferenceServerClient(f"{server.authority}/base") as client:
        assert not client.is_server_live()
        with pytest.raises(InferenceServerException, match="Not Found"):
            client.get_server_metadata()


def test_many_at_once_by_the_sync_client(server: Any) -> None:
    with triton.InferenceServerClient(server.authority, concurrency=4) as client:
        waiting = [client.async_infer("simple", pair()) for _ in range(16)]
        for each in waiting:
            np.testing.assert_array_equal(each.get_result().as_numpy("OUTPUT0"), LEFT + RIGHT)
        bad = client.async_infer("wrong_model_name", pair())
        with pytest.raises(InferenceServerException, match="is not found"):
            bad.get_result()
