"""Whatever a client sends and however it is cut: the same replies, an end, bounded memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.server.transport.chunked import ChunkedBody
from penstock.server.transport.fake import HIGH_WATER, Echo, Wire, parse_replies
from penstock.server.transport.head import HEAD_BYTES_MAX
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener, HttpLimits
from penstock.server.transport.status import BadRequest

LIMITS = HttpLimits(
    body_bytes_max=200_000, bodies_bytes_max=1_000_000, idle_timeout_s=20, read_timeout_s=5,
    write_timeout_s=6,
)  # fmt: skip


def wire_to(endpoint: Any) -> Wire:
    return Wire(Http1Listener(lambda head: endpoint, Http1Connection, LIMITS))


# ---------------------------------------------------------------------- requests

BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"]),
    st.integers(0, 100_000).map(bytes),
)


@st.composite
def chunked_body(draw: st.DrawFn, body: bytes) -> bytes:
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
    extension = draw(st.sampled_from([b"", b";a", b' ; b="c"']))
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in parts)
    return chunks + b"0\r\n" + trailer + b"\r\n"


@st.composite
def one_request(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid request on a connection that stays, and the body of its reply."""
    method = draw(st.sampled_from(["GET", "POST", "PUT"]))
    path = draw(st.sampled_from(["/", "/a", "/a%20b", "/" + "x" * 300]))
    body = draw(BODIES) if method != "GET" else b""
    fields = draw(st.sampled_from(["", "X-A: 1\r\n", f"X-B: {'y' * 3000}\r\n"]))
    if method != "GET" and draw(st.booleans()):
        fields += "Transfer-Encoding: chunked\r\n"
        sent = draw(chunked_body(body))
    else:
        fields += f"Content-Length: {len(body)}\r\n"
        sent = body
    version = "1.1"
    if "chunked" not in fields and draw(st.booleans()):
        version = "1.0"
        fields += "Connection: keep-alive\r\n"
    lead = draw(st.sampled_from(["", "", "\r\n", "\r\n\r\n"]))
    head = f"{lead}{method} {path} HTTP/{version}\r\nHost: h\r\n{fields}\r\n"
    return head.encode() + sent, f"{method} {path} ".encode() + body


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` in pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
        turn += 1
    return pieces


SIZES = st.lists(st.one_of(st.integers(1, 40), st.integers(500, 70_000)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(one_request(), min_size=1, max_size=6), SIZES, st.data())
def test_any_segmentation_gives_the_same_replies(
    requests: list[tuple[bytes, bytes]], sizes: list[int], data: st.DataObject
) -> None:
    sent = b"".join(request for request, _ in requests)
    if len(sent) > 20_000:
        sizes = [*sizes, 30_000]
    echo = Echo(later=data.draw(st.booleans()))
    wire = wire_to(echo)
    wire.transport.stalled = data.draw(st.booleans())
    for turn, piece in enumerate(cut(sent, sizes)):
        wire.feed(piece)
        assert len(echo.waiting) <= 1
        if turn % 3 == 2:
            if echo.waiting:
                echo.answer()
            wire.take(50_000)
    while len(echo.calls) < len(requests) or echo.waiting or wire.transport.held:
        if echo.waiting:
            echo.answer()
        wire.take()
    assert [reply.body for reply in wire.replies()] == [body for _, body in requests]
    assert not wire.ended
    assert wire.transport.reading
    assert wire.listener._body_bytes == 0


# ---------------------------------------------------------------------- garbage

TOKENS = [
    b"GET ", b"POST ", b"/", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0",
    b"Host: h", b"Content-Length: ", b"5", b"99999999999", b"Transfer-Encoding: chunked", b": ",
    b"Connection: close", b"Expect: 100-continue", b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n", b";x",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"X" * 9000, b"POST / HTTP/1.1\r\nHost: h\r\n",
    b"Content-Length: 150000\r\n\r\n", b"Content-Length: 30000\r\n\r\n", b"z" * 70_000,
]  # fmt: skip
GARBAGE = st.lists(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=20)), max_size=12)


def held_by(wire: Wire) -> int:
    """Bytes that a connection keeps of what it was sent."""
    connection = wire.connection
    chunked = connection._chunked
    inside = len(chunked.body) + len(chunked._buffer) if chunked is not None else 0
    return len(connection._carry) + connection._have * (connection._body is not None) + inside


BOUND = 64 * 1024 + 256 * 1024 + LIMITS.body_bytes_max
"""What may wait, one read beyond it, and a body."""


@settings(max_examples=400, deadline=None)
@given(GARBAGE, SIZES, st.booleans())
def test_garbage_is_answered_or_ends(garbage: list[bytes], sizes: list[int], later: bool) -> None:
    echo = Echo(later)
    wire = wire_to(echo)
    for piece in cut(b"".join(garbage), [*sizes, 5000]):
        wire.feed(piece)
        assert held_by(wire) <= BOUND
    for _ in range(200):
        while echo.waiting:
            echo.answer()
            wire.pump()
        wire.sweep()
        if wire.lost:
            break
    assert wire.lost, "no sweep ends this connection"
    assert wire.listener.connections == 0
    assert wire.listener._body_bytes == 0
    assert held_by(wire) == 0
    _, rest = parse_replies(bytes(wire.transport.sent))
    assert rest == b""


@given(st.binary(max_size=200), st.integers(1, 20))
def test_chunked_garbage(data: bytes, size: int) -> None:
    def outcome(pieces: list[bytes]) -> Any:
        decoder = ChunkedBody(50)
        try:
            for i, piece in enumerate(pieces):
                rest = decoder.feed(piece)
                if rest is not None:
                    return bytes(decoder.body), rest + b"".join(pieces[i + 1 :])
        except BadRequest as error:
            return error.status
        return None

    assert outcome([data]) == outcome(cut(data, [size]))


# ---------------------------------------------------------------------- any order of events


class Connections(RuleBasedStateMachine):
    """One client doing anything at any time, beside an endpoint that answers when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.echo = Echo(later=True)
        self.wire = wire_to(self.echo)
        self.answered = 0
        self.calls_at_stall = -1

    alive = precondition(lambda self: not self.wire.lost)

    @alive
    @rule(data=st.one_of(one_request().map(lambda pair: pair[0]), st.sampled_from(TOKENS)))
    def send(self, data: bytes) -> None:
        self.wire.feed(data)

    @precondition(lambda self: self.echo.waiting)
    @rule()
    def answer(self) -> None:
        self.echo.answer()
        self.wire.pump()

    @precondition(lambda self: self.echo.calls)
    @rule()
    def answer_again(self) -> None:
        if not self.echo.waiting:
            self.wire.connection.reply(200, "", (b"a second reply",))

    @rule()
    def stall(self) -> None:
        self.wire.transport.stalled = True

    @alive
    @rule(nbytes=st.integers(1, 200_000))
    def take(self, nbytes: int) -> None:
        self.wire.take(nbytes)

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.wire.sweep(seconds)

    @alive
    @rule(how=st.sampled_from(["end", "vanish"]))
    def leave(self, how: str) -> None:
        getattr(self.wire, how)()

    @alive
    @rule()
    def drain(self) -> None:
        self.wire.listener.draining = True
        self.wire.connection.drain()
        self.wire.pump()

    @invariant()
    def one_request_at_a_time(self) -> None:
        cancelled = self.echo.cancelled
        assert cancelled <= 1
        assert len(self.echo.waiting) - cancelled <= 1

    @invariant()
    def memory_is_bounded(self) -> None:
        assert held_by(self.wire) <= BOUND
        assert len(self.wire.transport.held) <= HIGH_WATER + 2 * LIMITS.body_bytes_max
        assert 0 <= self.wire.listener._body_bytes <= LIMITS.bodies_bytes_max

    @invariant()
    def no_second_reply(self) -> None:
        assert b"a second reply" not in self.wire.transport.sent

    def teardown(self) -> None:
        wire = self.wire
        for _ in range(200):
            while self.echo.waiting:
                self.echo.answer()
                wire.pump()
            if wire.lost:
                break
            wire.sweep()
        assert wire.lost
        assert (wire.listener.connections, wire.listener._body_bytes) == (0, 0)
        assert len(wire.listener.heads._heads) <= 1024


Connections.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestConnections = Connections.TestCase


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3 * HEAD_BYTES_MAX), st.booleans())
def test_the_head_limit_does_not_depend_on_the_cut(size: int, split: bool) -> None:
    sent = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * size + b"\r\n\r\n"
    wire = wire_to(Echo())
    for piece in cut(sent, [1000] if split else [len(sent)]):
        wire.feed(piece)
    assert wire.statuses == ([200] if len(sent) <= HEAD_BYTES_MAX else [431])


@pytest.mark.parametrize("raising", [ValueError, MemoryError, RecursionError, KeyError])
def test_an_endpoint_may_raise_anything(
    raising: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def endpoint(*_: object) -> None:
        raise raising

    wire = wire_to(endpoint)
    with caplog.at_level(logging.CRITICAL):
        wire.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
    assert wire.statuses == [500] * 3
