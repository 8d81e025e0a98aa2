"""The stock Triton client over HTTP, unmodified: answers, and every method that we serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.http")

import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

AT_ONCE = 16


@pytest.fixture
def client(digits_server: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(digits_server.authority) as client:
        yield client


@pytest.fixture
async def aio_client(digits_server: Any) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(digits_server.authority) as client:
        yield client


def arguments(images: Any, binary: bool) -> dict[str, Any]:
    given = triton.InferInput("image", list(images.shape), "FP32")
    given.set_data_from_numpy(images, binary_data=binary)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary)
    return {"model_name": "digits", "inputs": [given], "outputs": [wanted]}


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_sync_answers(
    client: Any, batches: Any, check_accuracy: Any, binary: bool, size: int
) -> None:
    check_accuracy(
        np.concatenate(
            [
                client.infer(**arguments(images, binary)).as_numpy("probabilities")
                for images in batches(size)
            ]
        )
    )


@pytest.mark.parametrize("size", [1, 32])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_async_answers(
    aio_client: Any, batches: Any, check_accuracy: Any, binary: bool, size: int
) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def ask(images: Any) -> Any:
        async with limit:
            result = await aio_client.infer(**arguments(images, binary))
        return result.as_numpy("probabilities")

    check_accuracy(np.concatenate(await asyncio.gather(*[ask(part) for part in batches(size)])))


def test_async_infer_of_the_sync_client(client: Any, batches: Any, check_accuracy: Any) -> None:
    waiting = [client.async_infer(**arguments(images, True)) for images in batches(32)]
    check_accuracy(np.concatenate([w.get_result().as_numpy("probabilities") for w in waiting]))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(
    client: Any, batches: Any, check_accuracy: Any, algorithm: str
) -> None:
    coded = {
        "request_compression_algorithm": algorithm,
        "response_compression_algorithm": algorithm,
    }
    check_accuracy(
        np.concatenate(
            [
                client.infer(**arguments(images, True), **coded).as_numpy("probabilities")
                for images in batches(32)
            ]
        )
    )


def test_a_reply_without_asked_outputs_has_them_all(client: Any, batches: Any) -> None:
    images = next(batches(32))
    asked = arguments(images, True)
    del asked["outputs"]
    result = client.infer(**asked, request_id="7")
    assert result.as_numpy("probabilities").shape == (32, 10)
    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "1"


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    assert not client.is_model_ready("letters")


def test_metadata(client: Any) -> None:
    server = client.get_server_metadata()
    assert server["name"]
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("digits", "1")
    assert model.pop("platform")
    assert model == {
        "name": "digits",
        "versions": ["1"],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
    }


def test_config(client: Any) -> None:
    config = client.get_model_config("digits")
    assert config["name"] == "digits"
    assert config["max_batch_size"] >= 32
    assert [(i["name"], i["data_type"]) for i in config["input"]] == [("image", "TYPE_FP32")]
    assert [o["name"] for o in config["output"]] == ["probabilities"]


def test_statistics_grow_by_what_was_asked(client: Any, batches: Any) -> None:
    def count() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("digits")["model_stats"]
        return stats["inference_stats"]["success"]["count"], stats["inference_count"]

    requests, rows = count()
    client.infer(**arguments(next(batches(32)), True))
    assert count() == (requests + 1, rows + 32)
    everything = client.get_inference_statistics()["model_stats"]
    assert [stats["name"] for stats in everything] == ["digits"]


def test_repository_index(client: Any) -> None:
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == ("digits", "1", "READY")


async def test_the_async_client_has_the_same_methods(aio_client: Any) -> None:
    assert await aio_client.is_server_live()
    assert await aio_client.is_server_ready()
    assert await aio_client.is_model_ready("digits")
    assert (await aio_client.get_model_metadata("digits"))["name"] == "digits"
    assert (await aio_client.get_model_config("digits"))["name"] == "digits"
    assert (await aio_client.get_model_repository_index())[0]["state"] == "READY"
    assert (await aio_client.get_inference_statistics("digits"))["model_stats"]


def test_errors_say_what_is_wrong(client: Any, batches: Any) -> None:
    asked = arguments(next(batches(1)), True)
    asked["model_name"] = "letters"
    with pytest.raises(InferenceServerException, match="letters"):
        client.infer(**asked)
    wrong = triton.InferInput("image", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(InferenceServerException, match="image"):
        client.infer("digits", [wrong])
