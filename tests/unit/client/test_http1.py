"""The synchronous client's HTTP: heads, bodies, memory; over a stream that is a script."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.client import endpoint
from penstock.client.errors import BadReply, ConnectError, StaleConnection
from penstock.client.exchange import PROTOCOLS, Call
from penstock.client.http1 import Connection
from penstock.client.http1_head import CHUNKED, UNTIL_CLOSE, Head
from penstock.client.memory import Growing
from penstock.client.request import RequestBuilder
from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe
from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.errors import Code
from penstock.protocol.limits import DEFAULT
from penstock.protocol.message import InferReply, Signature, TensorSpec

OK = b"HTTP/1.1 200 OK\r\n"


class Script:
    """A stream that keeps what is sent and gives ``data``, at most ``step`` bytes at a time."""

    def __init__(self, data: bytes, step: int = 1 << 30, breaks: OSError | None = None) -> None:
        self.data = data
        self.step = step
        self.breaks = breaks
        self.sent: list[Any] = []
        self.memory: list[memoryview] = []

    def send(self, buffers: Any, length: int, deadline: float) -> bool:
        self.sent += buffers
        assert sum(memoryview(b).nbytes for b in buffers) == length
        if self.breaks:
            raise self.breaks
        return True

    def await_reply(self, deadline: float) -> None:
        pass

    def recv_into(self, view: memoryview, deadline: float) -> int:
        assert len(view)
        count = min(self.step, len(view), len(self.data))
        view[:count] = self.data[:count]
        self.data = self.data[count:]
        self.memory.append(view)
        return count

    def is_quiet(self) -> bool:
        return not self.data

    def close(self) -> None:
        pass


def connection(stream: Script, body_bytes_max: int = 1 << 20) -> Connection:
    return Connection(stream, body_bytes_max)  # type: ignore[arg-type]


def call() -> Call[Any]:
    return PROTOCOLS["v2"](endpoint.parse("http://h"), {}, DEFAULT).models()


REPLIES = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
    "close": (OK + b"Connection: Close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "empty": (b"HTTP/1.1 204 \r\n\r\n", b"", True),
    "no reason": (b"HTTP/1.1 200\r\ncontent-LENGTH:5  \r\n\r\nhello", b"hello", True),
    "same length twice": (OK + b"Content-Length: 5, 5\r\n\r\nhello", b"hello", True),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    "old but kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        b"hello",
        True,
    ),
    "chunked": (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n4;a=b\r\nhell\r\n001 \r\no\r\n0\r\nT: x\r\n\r\n",
        b"hello",
        True,
    ),
    "interim": (b"HTTP/1.1 100 \r\n\r\n" * 3 + OK + b"Content-Length: 2\r\n\r\nhi", b"hi", True),
}


@pytest.mark.parametrize("step", [1 << 30, 1, 3])
@pytest.mark.parametrize("kind", REPLIES)
def test_replies_whole_and_in_pieces(kind: str, step: int) -> None:
    data, body, reusable = REPLIES[kind]
    link = connection(Script(data, step))
    reply = link.exchange(call(), 0)
    assert bytes(reply.body) == body
    assert reply.body.readonly
    assert link.reusable is reusable


@pytest.mark.parametrize("kind", REPLIES)
def test_replies_cut_short(kind: str) -> None:
    data, _, _ = REPLIES[kind]
    for length in range(len(data)):
        link = connection(Script(data[:length]))
        with pytest.raises(ConnectError) as caught:
            link.exchange(call(), 0)
        assert isinstance(caught.value, StaleConnection) is (length == 0)
        assert not link.reusable


@pytest.mark.parametrize("kind", REPLIES)
def test_bytes_after_a_reply_end_the_connection(kind: str) -> None:
    data, body, _ = REPLIES[kind]
    link = connection(Script(data + OK))
    assert bytes(link.exchange(call(), 0).body) == body
    assert not link.reusable


def test_a_body_until_close() -> None:
    link = connection(Script(OK + b"\r\n" + b"ab" * 100_000, 1000))
    assert bytes(link.exchange(call(), 0).body) == b"ab" * 100_000
    assert not link.reusable


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n",
        b"HTTP/2 200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        OK + b"Content-Length : 0\r\n",
        OK + b"X: a\r\n b\r\nContent-Length: 0\r\n",
        OK + b"X: a\0b\r\nContent-Length: 0\r\n",
        OK + b": b\r\nContent-Length: 0\r\n",
        OK + b"X\r\nContent-Length: 0\r\n",
        OK + b"Content-Length: +5\r\n",
        OK + b"Content-Length: \r\n",
        OK + b"Content-Length: 5, 6\r\n",
        OK + b"Content-Length: 9999999999999999999\r\n",
        OK + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n",
        OK + b"Content-Length: 0\r\nInference-Header-Content-Length: x\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/1.1 100 Go on\r\n\r\n" * 17 + OK + b"Content-Length: 0\r\n",
    ],
)
def test_heads_that_are_refused(head: bytes) -> None:
    for step in (1 << 30, 1):
        with pytest.raises(BadReply):
            connection(Script(head + b"\r\n", step)).exchange(call(), 0)


@pytest.mark.parametrize(
    "body",
    [b"\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1_0\r\n", b"1 1\r\n", b"f" * 16 + b"\r\n",
     b"1;" + b"e" * 5000, b"1\r\nab\r\n", b"0\r\n" + b"T: x\r\n" * 200, b"fffff\r\n"],
)  # fmt: skip
def test_chunks_that_are_refused(body: bytes) -> None:
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + bytes(9000)
    for step in (1 << 30, 1):
        with pytest.raises(BadReply):
            connection(Script(data, step), 1 << 16).exchange(call(), 0)


def test_limits_are_exact() -> None:
    for size, good in ((100, True), (101, False)):
        for data in (
            OK + b"Content-Length: %d\r\n\r\n" % size,
            OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size,
            OK + b"\r\n",
        ):
            tail = b"\r\n0\r\n\r\n" if b"chunked" in data else b""
            link = connection(Script(data + b"x" * size + tail), 100)
            if good:
                assert len(link.exchange(call(), 0).body) == size
            else:
                with pytest.raises(BadReply) as caught:
                    link.exchange(call(), 0)
                assert caught.value.code is Code.OUT_OF_RANGE


def test_a_reply_to_a_request_that_could_not_be_sent_whole() -> None:
    data = OK.replace(b"200", b"413") + b"Content-Length: 0\r\n\r\n"
    link = connection(Script(data, breaks=BrokenPipeError()))
    assert link.exchange(call(), 0).status == 413
    assert not link.reusable
    with pytest.raises(StaleConnection):
        connection(Script(b"", breaks=ConnectionResetError())).exchange(call(), 0)


def test_equal_heads_are_parsed_once_and_others_are_not_confused() -> None:
    first = OK + b"X-N: 1\r\nContent-Length: 1\r\n\r\n"
    second = OK + b"X-N: 2\r\nContent-Length: 1\r\n\r\n"
    stream = Script(b"")
    link = connection(stream)
    seen = []
    for data in (first + b"a", first + b"b", second + b"c"):
        stream.data = data
        reply = link.exchange(call(), 0)
        seen.append((reply.headers["x-n"], bytes(reply.body)))
    assert seen == [("1", b"a"), ("1", b"b"), ("2", b"c")]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    for raw in (data, OK + data, b"HTTP/1.1 200 " + data):
        try:
            head = Head(raw)
        except BadReply:
            continue
        assert 100 <= head.status <= 999
        assert head.length >= 0 or head.length in (CHUNKED, UNTIL_CLOSE)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_a_reply_or_refused(data: bytes, step: int) -> None:
    for raw in (data, OK + data, OK + b"Transfer-Encoding: chunked\r\n\r\n" + data):
        try:
            connection(Script(raw, step), 1000).exchange(call(), 0)
        except (BadReply, ConnectError):
            continue


# --- memory ---


def address(view: Any) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("lead", [0, 1, 63, 100])
def test_memory_is_aligned(lead: int) -> None:
    view = aligned_bytes(1000, lead)
    assert len(view) == 1000
    assert (address(view) + lead) % 64 == 0
    assert len(aligned_bytes(0)) == 0


def test_growing_memory_keeps_what_it_has() -> None:
    memory = Growing(10)
    expected = b""
    for i in range(100):
        memory.append(bytes((i,)) * i)
        expected += bytes((i,)) * i
    assert bytes(memory.done()) == expected
    assert address(memory.done()) % 64 == 0


@pytest.mark.parametrize("size", [4, 1_000_000])
def test_nothing_is_copied(size: int) -> None:
    """The socket gets the caller's memory; the result is the memory that was received into."""
    given_array = np.arange(size, dtype=np.float32)
    exchange = PROTOCOLS["graphpipe"](endpoint.parse("http://h"), {}, DEFAULT)
    answer = InferReply(Signature([TensorSpec("y", dt.FP32, (size,))]), [given_array])
    body = b"".join(graphpipe.ReplyEncoder().encode(answer))
    builder = RequestBuilder()
    for _ in range(2):  # encoded the first time, recognised the second
        stream = Script(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body, 1 << 16)
        link = connection(stream, 1 << 30)
        request = builder.build("m", {"x": given_array}, timeout_s=1.0)
        assert request.arrays[0] is given_array
        asked = exchange.infer(request)
        reply = link.exchange(asked, 0)
        assert any(
            len(buffer) and np.shares_memory(np.frombuffer(buffer, np.uint8), given_array)
            for buffer in stream.sent
        )
        result = asked.read(reply).arrays[0]
        np.testing.assert_array_equal(result, given_array)
        assert np.shares_memory(result, np.frombuffer(reply.body, np.uint8))
        assert result.__array_interface__["data"][0] % 64 == 0
        if size > 100_000:
            received = np.frombuffer(stream.memory[-1], np.uint8)
            assert np.shares_memory(result, received)
