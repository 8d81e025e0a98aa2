"""Both clients, in both protocols, against a server that does well and badly on command."""

from __future__ import annotations

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
    DeadlineExceeded,
    InferError,
    RetryPolicy,
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
        {"a": [1, 2], "b": ["x", b"y"], "c": [1.5], "d": np.ones((2, 3), np.float32).T, "e": 1.0},
        outputs=("label",),
        dtypes={"a": "FP32", "c": "BF16"},
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


# --- errors that the server answers with ---


@pytest.mark.parametrize(
    ("status", "named", "code"),
    [
        (400, "", Code.INVALID_ARGUMENT),
        (404, "", Code.NOT_FOUND),
        (413, "", Code.OUT_OF_RANGE),
        (500, "", Code.INTERNAL),
        (501, "", Code.UNIMPLEMENTED),
        (503, "", Code.UNAVAILABLE),
        (504, "", Code.DEADLINE_EXCEEDED),
        (429, "", Code.RESOURCE_EXHAUSTED),
        (418, "", Code.UNKNOWN),
        (503, "RESOURCE_EXHAUSTED", Code.RESOURCE_EXHAUSTED),
        (400, "FAILED_PRECONDITION", Code.FAILED_PRECONDITION),
        (404, "NEW_CODE", Code.NOT_FOUND),
    ],
)
def test_statuses_become_codes(
    status: int, named: str, code: Code, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    body = b'{"error":"no such luck"}' if protocol == "v2" else b"no such luck\n"
    headers = {"Penstock-Code": named} if named else {}
    server = serve(wire.status(status, body, headers))
    with pytest.raises(InferError, match=r"^no such luck$") as caught:
        infer(connect(server.url, protocol=protocol, retry=False), outputs=("label",))
    assert caught.value.code is code
    assert isinstance(caught.value, Unavailable) is code.retryable
    assert isinstance(caught.value, TimeoutError) is (code is Code.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED])
def test_errors_in_frames(code: Code, serve: Any, wire: Any, connect: Any) -> None:
    server = serve(wire.error_frame(InferError(code, "not now")))
    with pytest.raises(InferError, match=r"^not now$") as caught:
        infer(connect(server.url, retry=False), outputs=("label",))
    assert caught.value.code is code
    assert isinstance(caught.value, Unavailable) is code.retryable


@pytest.mark.parametrize("body", [b"", b"<html>bad gateway</html>", b"\xff\xfe", b'{"error":1}'])
def test_errors_of_others_on_the_way(
    body: bytes, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(wire.status(502, body))
    with pytest.raises(Unavailable) as caught:
        infer(connect(server.url, protocol=protocol, retry=False), outputs=("label",))
    assert caught.value.message


def test_redirects_are_not_followed(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.status(307, b"", {"Location": "http://elsewhere/"}))
    with pytest.raises(InferError, match="elsewhere"):
        infer(connect(server.url, protocol=protocol), outputs=("label",))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "first",
    [
        lambda wire: wire.status(503, b"busy", {"Retry-After": "0"}),
        lambda wire: wire.status(429, b"busy"),
        lambda wire: wire.hang_up,
        lambda wire: wire.break_off,
        lambda wire: wire.break_head,
    ],
)
def test_what_may_be_tried_again_is(
    first: Any, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(first(wire), first(wire), wire.good)
    client = connect(server.url, protocol=protocol)
    result = infer(client, outputs=("probabilities", "label"))
    np.testing.assert_array_equal(result["label"], wire.labels)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 500, 504])
def test_what_may_not_be_tried_again_is_not(
    status: int, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(wire.status(status, b"no"), wire.good)
    with pytest.raises(InferError):
        infer(connect(server.url, protocol=protocol), outputs=("label",))
    assert len(server.requests) == 1


def test_a_connection_that_went_stale_is_replaced_without_a_retry(
    serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(wire.good, wire.hang_up, wire.good)
    client = connect(server.url, protocol=protocol, retry=False)
    infer(client, outputs=("label",))
    np.testing.assert_array_equal(infer(client, outputs=("label",))["label"], wire.labels)
    assert server.connections == 2


def test_but_only_once(serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.good, wire.hang_up)
    client = connect(server.url, protocol=protocol, retry=False)
    infer(client, outputs=("label",))
    with pytest.raises(ConnectError):
        infer(client, outputs=("label",))
    assert len(server.requests) == 3


# --- time ---


@pytest.mark.parametrize("manner", ["silence", "stall"])
def test_a_server_that_never_answers(
    manner: str, serve: Any, wire: Any, connect: Any, protocol: str
) -> None:
    server = serve(getattr(wire, manner))
    client = connect(server.url, protocol=protocol)
    with pytest.raises(DeadlineExceeded) as caught:
        infer(client, outputs=("label",), timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert len(server.requests) == 1
    assert client.is_live(timeout=0.2) is False


def test_a_server_that_reads_nothing(connect: Any, protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = connect(f"http://127.0.0.1:{deaf.getsockname()[1]}", protocol=protocol)
        big = np.zeros(16 << 20, np.uint8)
        with pytest.raises(DeadlineExceeded):
            client.infer("m", {"x": big}, outputs=("label",), timeout=0.2)


def test_a_refusal_that_comes_before_the_request_is_read(connect: Any, wire: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10)
                connection.sendall(wire.http(413, b"too large", {"Connection": "close"}))
                while connection.recv(1 << 16):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}")
        big = np.zeros(64 << 20, np.uint8)
        with pytest.raises(InferError, match="too large") as caught:
            client.infer("m", {"x": big}, outputs=("label",))
        assert caught.value.code is Code.OUT_OF_RANGE
        client.close()
        thread.join()


def test_waiting_for_a_connection_ends_too(serve: Any, wire: Any, connect: Any) -> None:
    server = serve(wire.silence)
    client = connect(server.url, timeout=0.2, connections_max=1)
    with pytest.raises(DeadlineExceeded):
        infer(client, outputs=("label",))


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_every_call_has_an_end(timeout: float, connect: Any) -> None:
    client = connect("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="timeout"):
        infer(client, timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        connect("http://127.0.0.1:1", timeout=timeout)


# --- replies that are none ---

OK = b"HTTP/1.1 200 OK\r\n"
BAD = {
    "garbage": b"\x00\x01garbage that never ends a line\xff\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n",
    "a head without end": OK + b"X: " + b"a" * (1 << 20),
    "too many headers": OK + b"X-Header-Number: 1\r\n" * 8000,
    "a bad length": OK + b"Content-Length: 1x\r\n\r\n",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a long chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
    "a large body": OK + b"Content-Length: 1000000\r\n\r\n",
    "a large chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + bytes(0xFFFFF),
    "no end": OK + b"\r\n" + bytes(1 << 20),
    "an encoding": OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "not a frame": OK + b"Content-Length: 3\r\n\r\nabc",
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "a bad JSON length": OK + b"Inference-Header-Content-Length: 9999\r\n"
    b"Content-Length: 2\r\n\r\n{}",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_replies(kind: str, serve: Any, wire: Any, connect: Any, protocol: str) -> None:
    server = serve(wire.raw(BAD[kind]))
    client = connect(server.url, protocol=protocol, reply_bytes_max=100_000)
    with pytest.raises(BadReply) as caught:
        infer(client, outputs=("label",))
    assert caught.value.code in (Code.INTERNAL, Code.OUT_OF_RANGE)
    assert len(server.requests) == 1


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
    with pytest.raises(ValueError, match="FP99"):
        client.infer("m", {"x": [1]}, dtypes={"x": "FP99"})
    with pytest.raises(ValueError, match="no such inputs"):
        client.infer("m", {"x": [1]}, dtypes={"y": "FP32"})
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


def test_the_budget_stops_the_retries(serve: Any, wire: Any, connect: Any) -> None:
    server = serve(wire.status(503, b"busy"))
    policy = RetryPolicy(attempts_max=5, backoff_s_first=0.0, budget_tokens=3, budget_refill=0)
    client = connect(server.url, retry=policy)
    for _ in range(4):
        with pytest.raises(Unavailable):
            infer(client, outputs=("label",))
    assert len(server.requests) == 4 + 3
