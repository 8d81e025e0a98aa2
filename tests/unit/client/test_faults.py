"""Both clients, in both protocols, when the server refuses, fails, is late or talks nonsense."""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
import pytest

from penstock.client import (
    BadReply,
    Code,
    ConnectError,
    DeadlineExceeded,
    InferError,
    RetryPolicy,
    Unavailable,
)

IMAGE = np.arange(128, dtype=np.float32).reshape(2, 64)


def infer(client: Any, **options: Any) -> Any:
    return client.infer("digits", {"image": IMAGE}, **options)


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
        while thread.is_alive():  # lets the event loop run: it flushes before it closes
            assert client.is_live(timeout=0.05) is False
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


def test_the_budget_stops_the_retries(serve: Any, wire: Any, connect: Any) -> None:
    server = serve(wire.status(503, b"busy"))
    policy = RetryPolicy(attempts_max=5, backoff_s_first=0.0, budget_tokens=3, budget_refill=0)
    client = connect(server.url, retry=policy)
    for _ in range(4):
        with pytest.raises(Unavailable):
            infer(client, outputs=("label",))
    assert len(server.requests) == 4 + 3
