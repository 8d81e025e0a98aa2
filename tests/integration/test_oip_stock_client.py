"""Triton's own HTTP clients, sync and async, unmodified, against a server in this process."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvloop

from penstock.loadtest.models import write_add_sub, write_identity
from penstock.protocol import dtype as dt
from penstock.server.app import App, ServeOptions
from penstock.server.transport.listener import HttpLimits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    http = pytest.importorskip("tritonclient.http")
    aio = pytest.importorskip("tritonclient.http.aio")
    utils = pytest.importorskip("tritonclient.utils")
ml_dtypes = pytest.importorskip("ml_dtypes")  # the client takes BF16 in no other type since r26.06
pytest.importorskip("onnxruntime")

BODY_BYTES_MAX = 1 << 20

VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255]], "u1"),
    "INT8": np.array([[-128, 127]], "i1"),
    "UINT16": np.array([[0, 65535]], "u2"),
    "INT16": np.array([[-32768, 32767]], "i2"),
    "UINT32": np.array([[0, 2**32 - 1]], "u4"),
    "INT32": np.array([[-(2**31), 2**31 - 1]], "i4"),
    "UINT64": np.array([[0, 2**64 - 1]], "u8"),
    "INT64": np.array([[-(2**63), 2**63 - 1]], "i8"),
    "FP16": np.array([[0.1, -2, np.inf]], "f2"),
    "BF16": np.array([[0.5, -3.0, 7.0]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, np.nan, -np.inf]], "f4"),
    "FP64": np.array([[0.1, -1e300]], "f8"),
    "BYTES": np.array([[b"ab", b"", "\u00e9\U0001f600".encode()]], object),
}
IN_JSON = [name for name in VALUES if name not in ("FP16", "BF16")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("models")
    for name in VALUES:
        write_identity(root / f"identity {name}" / "1" / "model.onnx", dt.BY_NAME[name])
    write_add_sub(root / "simple" / "1" / "model.onnx")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    started: Any = threading.Event()
    ending: list[Any] = []

    async def main() -> None:
        limits = HttpLimits(body_bytes_max=BODY_BYTES_MAX)
        app = App(ServeOptions((root,), http_port=0, metrics_port=None, http=limits))
        await app.start()
        end = asyncio.Event()
        ending.extend([asyncio.get_running_loop(), end, app.http_port])
        started.set()
        await end.wait()
        await app.stop()

    thread = threading.Thread(target=uvloop.run, args=(main(),))
    thread.start()
    assert started.wait(60)
    loop, end, port = ending
    yield f"127.0.0.1:{port}"
    loop.call_soon_threadsafe(end.set)
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with http.InferenceServerClient(address) as made:
        yield made


def given(name: str, value: Any, datatype: str, binary: bool = True) -> Any:
    tensor = http.InferInput(name, list(value.shape), datatype)
    tensor.set_data_from_numpy(value, binary_data=binary)
    return tensor


def wanted(*names: str, binary: bool = True) -> list[Any]:
    return [http.InferRequestedOutput(name, binary_data=binary) for name in names]


def same(got: Any, value: Any) -> None:
    assert got.shape == value.shape
    if value.dtype == object:
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in got.ravel()]
        assert texts == list(value.ravel())
    else:
        np.testing.assert_array_equal(got.astype(value.dtype), value)


@pytest.mark.parametrize("datatype", VALUES)
def test_every_type_in_binary(client: Any, datatype: str) -> None:
    value = VALUES[datatype]
    result = client.infer(f"identity {datatype}", [given("INPUT0", value, datatype)])
    same(result.as_numpy("OUTPUT0"), value)


@pytest.mark.parametrize("datatype", [d for d in IN_JSON if d != "FP32"])
def test_every_type_in_json(client: Any, datatype: str) -> None:
    value = VALUES[datatype]
    tensor = given("INPUT0", value, datatype, binary=False)
    result = client.infer(f"identity {datatype}", [tensor], outputs=wanted("OUTPUT0", binary=False))
    same(result.as_numpy("OUTPUT0"), value)
    assert "data" in result.get_output("OUTPUT0")


@pytest.mark.parametrize("datatype", IN_JSON)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_elements(client: Any, datatype: str, shape: tuple[int, int]) -> None:
    value = np.zeros(shape, VALUES[datatype].dtype)
    result = client.infer(f"identity {datatype}", [given("INPUT0", value, datatype)])
    got = result.as_numpy("OUTPUT0")
    assert got is None or got.shape == shape  # the client knows no zero-byte outputs


ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), np.int32)


def simple(first: bool = True, second: bool = True, rows: int = 1) -> list[Any]:
    return [
        given("INPUT0", np.repeat(ROW, rows, 0), "INT32", first),
        given("INPUT1", np.repeat(ONES, rows, 0), "INT32", second),
    ]


def check(result: Any, rows: int = 1) -> None:
    same(result.as_numpy("OUTPUT0"), np.repeat(ROW + ONES, rows, 0))
    same(result.as_numpy("OUTPUT1"), np.repeat(ROW - ONES, rows, 0))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 400])
def test_binary_json_and_mixed(client: Any, first: bool, second: bool, rows: int) -> None:
    inputs = simple(first, second, rows)
    check(client.infer("simple", inputs), rows)
    outputs = [*wanted("OUTPUT1", binary=second), *wanted("OUTPUT0", binary=first)]
    check(client.infer("simple", inputs, outputs=outputs, model_version="1"), rows)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("reply_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 100])
def test_compression(
    client: Any, request_coding: str | None, reply_coding: str | None, binary: bool, rows: int
) -> None:
    result = client.infer(
        "simple",
        simple(binary, binary, rows),
        request_compression_algorithm=request_coding,
        response_compression_algorithm=reply_coding,
    )
    check(result, rows)


def test_everything_else_that_a_request_may_say(client: Any) -> None:
    result = client.infer(
        "simple", simple(), request_id="id 7", priority=3, timeout=5_000_000,
        headers={"X-Any": "1"}, query_params={"a": "b", "c": "d e"},
        parameters={"flag": True, "number": 7, "text": "x"},
    )  # fmt: skip
    check(result)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "id 7", "simple", "1",
    )  # fmt: skip


def test_a_request_made_by_hand(client: Any) -> None:
    body, length = http.InferenceServerClient.generate_request_body(simple())
    headers = {"Inference-Header-Content-Length": str(length)}
    reply = client._post("v2/models/simple/infer", body, headers, None)
    found = http.InferenceServerClient.parse_response_body(
        reply.read(), header_length=int(reply.get("Inference-Header-Content-Length"))
    )
    check(found)


def test_async_infer_of_the_sync_client(address: str) -> None:
    with http.InferenceServerClient(address, concurrency=4) as client:
        for asked in [client.async_infer("simple", simple()) for _ in range(8)]:
            check(asked.get_result())


def test_the_documents(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready(query_params={"a": 1})
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "9")
    assert not client.is_model_ready("broken")
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_metadata("identity BYTES")["inputs"][0]["datatype"] == "BYTES"
    assert client.get_model_config("simple")["backend"] == "onnxruntime"
    states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    assert (states["simple"], states["broken"]) == ("READY", "UNAVAILABLE")
    check(client.infer("simple", simple()))
    (stats,) = client.get_inference_statistics("simple")["model_stats"]
    assert stats["inference_stats"]["success"]["count"] >= 1
    everything = client.get_inference_statistics()["model_stats"]
    assert len(everything) == len(VALUES) + 1


ERRORS: dict[str, tuple[Any, str, str]] = {
    "unknown model": (
        lambda c: c.infer("nope", simple()), "404", "Request for unknown model: 'nope'",
    ),
    "unknown version": (
        lambda c: c.infer("simple", simple(), model_version="9"), "404", "version 9 is not found",
    ),
    "not loaded": (lambda c: c.infer("broken", simple()), "503", "no available versions"),
    "too few inputs": (lambda c: c.infer("simple", simple()[:1]), "400", "INPUT1"),
    "wrong shape": (
        lambda c: c.infer("simple", [given(n, ROW[:, :3], "INT32") for n in ("INPUT0", "INPUT1")]),
        "400", "unexpected shape for input",
    ),
    "too large": (
        lambda c: c.infer("simple", simple(rows=10_000)), "413", "see --http-max-body-bytes",
    ),
    "unknown output": (
        lambda c: c.infer("simple", simple(), outputs=wanted("NOPE")), "400", "NOPE",
    ),
    "metadata": (lambda c: c.get_model_metadata("nope"), "404", "unknown model"),
    "config": (lambda c: c.get_model_config("nope"), "404", "unknown model"),
    "settings": (lambda c: c.get_trace_settings("nope"), "400", "unknown model : nope"),
    "wrong base path": (
        lambda c: http.InferenceServerClient(f"{c._parsed_url.host}:{c._parsed_url.port}/base")
        .get_server_metadata(), "404", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_raise_with_text_and_status(client: Any, name: str) -> None:
    call, status, text = ERRORS[name]
    with pytest.raises(utils.InferenceServerException) as caught:
        call(client)
    assert caught.value.status() == status
    assert text in caught.value.message()
    check(client.infer("simple", simple()))


# ---------------------------------------------------------------------- the async client


def aio_given(name: str, value: Any, datatype: str, binary: bool) -> Any:
    tensor = aio.InferInput(name, list(value.shape), datatype)
    tensor.set_data_from_numpy(value, binary_data=binary)
    return tensor


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
async def test_the_async_client(address: str, coding: str | None, binary: bool) -> None:
    async with aio.InferenceServerClient(address) as client:
        inputs = [
            aio_given("INPUT0", ROW, "INT32", binary), aio_given("INPUT1", ONES, "INT32", binary)
        ]  # fmt: skip
        codings = {
            "request_compression_algorithm": coding,
            "response_compression_algorithm": coding,
        }
        results = await asyncio.gather(
            *[client.infer("simple", inputs, **codings, query_params={"n": i}) for i in range(20)]
        )
        for result in results:
            check(result)
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple")
        assert len(await client.get_model_repository_index()) == len(VALUES) + 2
        with pytest.raises(utils.InferenceServerException, match="unknown model") as caught:
            await client.infer("nope", inputs)
        assert caught.value.status() == "404"


@pytest.mark.parametrize("datatype", VALUES)
async def test_every_type_by_the_async_client(address: str, datatype: str) -> None:
    value = VALUES[datatype]
    async with aio.InferenceServerClient(address) as client:
        tensor = aio_given("INPUT0", value, datatype, True)
        result = await client.infer(f"identity {datatype}", [tensor])
        same(result.as_numpy("OUTPUT0"), value)


def test_values_are_all_types() -> None:
    assert set(VALUES) == set(dt.BY_NAME)
