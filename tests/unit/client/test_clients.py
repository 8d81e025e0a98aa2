"""Both clients, in both protocols, against a server that does well and badly on command."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from penstock.client import (
    BadReply,
    ClientClosed,
    Code,
    ConnectError,
    InferError,
    Unavailable,
)
from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe, oip_json
from penstock.protocol.message import ModelMetadata, TensorSpec

IMAGE = np.arange(128, dtype=np.float32).reshape(2, 64)


def infer(client: Any, **options: Any) -> Any:
    return client.infer("digits", {"image": IMAGE}, **options)


@pytest.mark.parametrize(
    "manner", ["good", "bytewise", "chunked", "until_close", "interim", "last"]
)
def test_a_reply_is_read_however_it_comes(
    manner: str, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(getattr(wire, manner))
    client = connect(server.url, protocol=protocol)
    for _ in range(3):
        result = infer(client)
        assert list(result) == ["probabilities", "label"]
        np.testing.assert_array_equal(result["probabilities"], wire.probabilities)
        np.testing.assert_array_equal(result["label"], wire.labels)
        assert not result["label"].flags.writeable
    if manner in ("good", "bytewise", "chunked", "interim"):
        assert server.connections == 1


def test_the_request_says_what_the_caller_said(
    serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(wire.good)
    client = connect(server.url, protocol=protocol, headers={"X-Tenant": "a b"})
    infer(client, outputs=("label",), version="7", id="q", timeout=1.5, priority=2,
          parameters={"threshold": 0.5})  # fmt: skip
    (asked,) = server.requests
    assert asked.method == "POST"
    assert asked.headers["x-tenant"] == "a b"
    assert asked.headers["user-agent"] == "penstock-python"
    assert asked.headers["host"] == server.url.removeprefix("http://")
    assert "accept-encoding" not in asked.headers or asked.headers["accept-encoding"] == "identity"
    if protocol == "graphpipe":
        assert asked.target == "/graphpipe/digits/7"
        request = graphpipe.decode_request(asked.body)
        assert not isinstance(request, graphpipe.MetadataRequest)
        assert request.signature.form.extended
        assert request.signature.form.error_frames
    else:
        assert asked.target == "/v2/models/digits/versions/7/infer"
        length = int(asked.headers["inference-header-content-length"])
        request = oip_json.RequestDecoder().decode(asked.body, length)
    assert [output.name for output in request.signature.outputs] == ["label"]
    assert request.signature.tensors == (TensorSpec("image", dt.FP32, (2, 64)),)
    assert (request.id, request.timeout_us, request.priority) == ("q", 1_500_000, 2)
    assert request.parameters["threshold"] == 0.5
    np.testing.assert_array_equal(request.arrays[0], IMAGE)


def test_names_are_quoted_into_paths(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good)
    client = connect(server.url + "/base/", protocol=protocol)
    client.infer("a/b ü?", {"image": IMAGE}, outputs=("label",))
    stem = "/base/graphpipe/" if protocol == "graphpipe" else "/base/v2/models/"
    assert server.requests[0].target.removesuffix("/infer") == stem + "a%2Fb%20%C3%BC%3F"
    for name in (".", ".."):
        with pytest.raises(ValueError, match="path"):
            client.infer(name, {"image": IMAGE}, outputs=("label",))


def test_one_array_without_a_name(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good)
    client = connect(server.url, protocol=protocol)
    for _ in range(2):
        result = client.infer("digits", IMAGE)
        np.testing.assert_array_equal(result["label"], wire.labels)
    # Either protocol needs the metadata for something, and asks for it once.
    assert len(server.requests) == 3


def test_lists_and_types(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good)
    client = connect(server.url, protocol=protocol)
    client.infer(
        "m",
        {"a": [1, 2], "b": ["x", b"y"], "c": [1.5], "d": np.ones((2, 3), np.float64).T, "e": 1.0},
        outputs=("label",),
        dtypes={"a": "FP32", "c": "BF16", "d": "FP32"},
    )
    asked = server.requests[0]
    if protocol == "graphpipe":
        request = graphpipe.decode_request(asked.body)
        assert not isinstance(request, graphpipe.MetadataRequest)
    else:
        length = int(asked.headers["inference-header-content-length"])
        request = oip_json.RequestDecoder().decode(asked.body, length)
    assert [(s.dtype, s.shape) for s in request.signature.tensors] == [
        (dt.FP32, (2,)), (dt.BYTES, (2,)), (dt.BF16, (1,)), (dt.FP32, (3, 2)), (dt.FP64, ()),
    ]  # fmt: skip
    assert request.arrays[1].tolist() == [b"x", b"y"]


def test_a_large_request_and_reply(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good)
    client = connect(server.url, protocol=protocol)
    image = np.random.default_rng(1).random((4 << 20,), dtype=np.float32)
    client.infer("digits", {"image": image, "empty": image[:0]}, outputs=("label",))
    assert image.tobytes() in server.requests[0].body


def test_unix_sockets(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good, unix=True)
    for url in (server.url, server.url.replace("unix:", "unix://")):
        client = connect(url, protocol=protocol)
        np.testing.assert_array_equal(infer(client)["label"], wire.labels)


def test_metadata(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good)
    found = connect(server.url, protocol=protocol).metadata("digits")
    assert isinstance(found, ModelMetadata)
    assert (found.name, found.inputs, found.outputs) == (
        "digits", wire.metadata.inputs, wire.metadata.outputs,
    )  # fmt: skip


def test_models(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    body = b'[{"name":"a","version":"1","state":"READY","reason":"","new":1},{"name":"b"}]'
    server = serve(wire.status(200, body), wire.status(200, b"{}"))
    client = connect(server.url, protocol=protocol)
    first, second = client.models()
    assert (first.name, first.version, first.state) == ("a", "1", "READY")
    assert (second.name, second.state) == ("b", "")
    assert (server.requests[0].method, server.requests[0].target) == (
        "POST", "/v2/repository/index",
    )  # fmt: skip
    with pytest.raises(BadReply):
        client.models()


def test_load_and_unload(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    refusal = wire.status(503, b'{"error":"not under explicit control"}')
    server = serve(wire.status(200), wire.status(200), wire.status(200), refusal)
    client = connect(server.url, protocol=protocol)
    assert client.load("a b") is None
    client.load("m", config="{}", files={"1/model.onnx": b"\x00\xff\xff"})
    client.unload("m")
    bodies = [json.loads(request.body) for request in server.requests]
    assert [request.target for request in server.requests] == [
        "/v2/repository/models/a%20b/load",
        "/v2/repository/models/m/load",
        "/v2/repository/models/m/unload",
    ]
    assert bodies == [
        {"parameters": {}},
        {"parameters": {"config": "{}", "file:1/model.onnx": "AP//"}},
        {"parameters": {"unload_dependents": False}},
    ]
    with pytest.raises(Unavailable, match="explicit control"):
        client.load("m")
    assert len(server.requests) == 4  # never tried again


@pytest.mark.parametrize(
    ("status", "server_ready", "model_ready"),
    [(200, True, True), (400, False, False), (503, False, False), (404, None, False),
     (403, None, None)],
)  # fmt: skip
def test_health(
    status: int,
    server_ready: bool | None,
    model_ready: bool | None,
    serve: Any,
    wire: Any,
    connect: Any,
) -> None:
    server = serve(wire.status(status))
    client = connect(server.url)
    for ask, expected in (
        (client.is_live, server_ready),
        (client.is_ready, server_ready),
        (lambda: client.is_ready("digits"), model_ready),
    ):
        if expected is None:
            with pytest.raises(InferError):
                ask()
        else:
            assert ask() is expected
    targets = [request.target for request in server.requests]
    assert targets == ["/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"]


def test_nobody_there_is_not_live(connect: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = connect(f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert client.is_live() is False
        with pytest.raises(ConnectError, match="connect") as caught:
            infer(client)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.__notes__ == ["after 3 attempts"]


def test_a_missing_unix_socket(connect: Any, tmp_path: Any) -> None:
    with pytest.raises(ConnectError):
        infer(connect(f"unix:{tmp_path}/none"))


# --- life and death ---


def test_after_close(serve: Any, wire: Any, connect: Any) -> None:
    server = serve(wire.good)
    client = connect(server.url)
    infer(client)
    client.close()
    client.close()
    with pytest.raises(ClientClosed, match="closed"):
        infer(client)


def test_bad_arguments(connect: Any) -> None:
    for url in ("ftp://x", "http://", "http://a b", "http://u:p@h", "http://h?q=1", "unix:rel"):
        with pytest.raises(ValueError):
            connect(url)
    for name, value in (("a b", "c"), ("Host", "h"), ("content-length", "1"), ("X", "a\r\nb")):
        with pytest.raises(ValueError, match="header"):
            connect("http://h", headers={name: value})
    with pytest.raises(ValueError, match="protocol"):
        connect("http://h", protocol="grpc")
    with pytest.raises(ValueError, match="connections_max"):
        connect("http://h", connections_max=0)
    client = connect("http://127.0.0.1:1")
    with pytest.raises(TypeError, match="input 'x'"):
        client.infer("m", {"x": 1j})
    with pytest.raises(TypeError, match=r"input 'x': .*Cannot cast"):
        client.infer("m", {"x": np.array([1.5])}, dtypes={"x": "INT32"})
    with pytest.raises(ValueError, match="FP99"):
        client.infer("m", {"x": [1]}, dtypes={"x": "FP99"})
    with pytest.raises(ValueError, match="no such inputs"):
        client.infer("m", {"x": [1]}, dtypes={"y": "FP32"})
    with pytest.raises(ValueError, match="no such inputs; name the input"):
        client.infer("m", [1], dtypes={"x": "FP32"})
    with pytest.raises(ValueError, match=r"input 'x': .*inhomogeneous"):
        client.infer("m", {"x": [[1], [2, 3]]})
    with pytest.raises(TypeError, match="the input: None is no tensor"):
        client.infer("m", None)
    with pytest.raises(TypeError, match="version 1: both are text"):
        client.infer("m", {"x": [1]}, version=1)
    with pytest.raises(ValueError, match="timeout is None"):
        connect("http://h", timeout=None)
    with pytest.raises(ValueError, match="'http://h:99999': Port out of range"):
        connect("http://h:99999")
    with pytest.raises(TypeError, match="sequence"):
        client.infer("m", {"x": [1]}, outputs="y")
    with pytest.raises(ValueError, match="priority"):
        client.infer("m", {"x": [1]}, priority=-1)
    with pytest.raises(ValueError, match="version"):
        client.infer("", {"x": [1]}, version="1", outputs=())
    with pytest.raises(ValueError, match="default model"):
        connect("http://127.0.0.1:1", protocol="v2").infer("", {"x": [1]})


def test_many_threads_share_a_client(serve: Any, wire: Any, protocol: str) -> None:
    from penstock.client import Client

    server = serve(wire.good)
    barrier = threading.Barrier(8)
    with Client(server.url, protocol=protocol, connections_max=3) as client:

        def work(_: int) -> None:
            barrier.wait()
            for _ in range(20):
                np.testing.assert_array_equal(infer(client)["label"], wire.labels)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))
    assert server.connections <= 3
