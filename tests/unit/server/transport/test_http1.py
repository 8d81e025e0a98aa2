"""One connection, driven in memory: framing, order, backpressure, limits, endings."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from penstock.server.transport import http1 as module
from penstock.server.transport.fake import HIGH_WATER, Echo, Reply, Wire, parse_replies
from penstock.server.transport.head import HEAD_BYTES_MAX
from penstock.server.transport.http1_replies import JOIN_MAX

MakeWire = Callable[..., Wire]
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def request(
    method: str = "GET", path: str = "/", body: bytes = b"", fields: str = "", version: str = "1.1"
) -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body or method in ("POST", "PUT") else ""
    head = f"{method} {path} HTTP/{version}\r\nHost: h\r\n{length}{fields}\r\n"
    return head.encode() + body


def chunked(path: str, *chunks: bytes, end: bytes = b"0\r\n\r\n", fields: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n{fields}\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + end


GET = request(path="/next")
BIG = bytes(range(256)) * 100


# ---------------------------------------------------------------------- tables of streams


@dataclass(frozen=True)
class Case:
    """What a client sends, and what comes of it. ``ends``: the connection is over thereafter."""

    sent: bytes
    bodies: tuple[bytes, ...] = ()
    statuses: tuple[int, ...] = ()
    ends: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    every_split: bool = True


def answered(sent: bytes, *bodies: bytes, **kwargs: Any) -> Case:
    return Case(sent, bodies, (200,) * len(bodies), **kwargs)


def refused(sent: bytes, status: int, **limits: int) -> Case:
    return Case(sent, (), (status,), True, limits)


FORM = "Content-Type: application/x-www-form-urlencoded\r\n"

CASES: dict[str, Case] = {
    "get": answered(request(), b"GET / "),
    "get with body": answered(request(body=b"ab"), b"GET / ab"),
    "post": answered(request("POST", "/a", b"body"), b"POST /a body"),
    "empty post": answered(request("POST", "/a"), b"POST /a "),
    "post without a length": answered(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n", b"POST / "),
    "put": answered(request("PUT", "/a", b"x"), b"PUT /a x"),
    "body of CRLF": answered(request("POST", "/", b"\r\n\r\n\r\n"), b"POST / \r\n\r\n\r\n"),
    "body like a request": answered(request("POST", "/", GET), b"POST / " + GET),
    "form": answered(request("POST", "/", b"a=1&b=%41+", FORM), b"POST / a=1&b=%41+"),
    "multipart": answered(
        request("POST", "/", b"--b\r\n\r\n", "Content-Type: multipart/form-data; boundary=b\r\n"),
        b"POST / --b\r\n\r\n",
    ),
    "bad content type": answered(request("POST", "/", b"x", "Content-Type: ;;=/\r\n"), b"POST / x"),
    "gzip is the endpoint's": answered(
        request("POST", "/", b"x", "Content-Encoding: gzip\r\n"), b"POST / x"
    ),
    "head": answered(request("HEAD", "/a"), b"", methods=("HEAD",)),
    "head and get": answered(request("HEAD") + request(), b"", b"GET / ", methods=("HEAD", "GET")),
    "absolute form": answered(request(path="http://h/a?b"), b"GET /a "),
    "asterisk": answered(request("OPTIONS", "*"), b"OPTIONS * "),
    "upgrade declined": answered(
        request("POST", "/", b"x", "Connection: Upgrade\r\nUpgrade: websocket\r\n"), b"POST / x"
    ),
    "pipelined": answered(
        request(path="/1") + request("POST", "/2", b"two") + request(path="/3"),
        b"GET /1 ", b"POST /2 two", b"GET /3 ",
    ),
    "20 pipelined": answered(request() * 20, *[b"GET / "] * 20),
    "chunked": answered(chunked("/c", b"ab", b"c"), b"POST /c abc"),
    "chunked, empty": answered(chunked("/c"), b"POST /c "),
    "chunked, extension": answered(chunked("/c", end=b"1;x=y\r\na\r\n0;z\r\n\r\n"), b"POST /c a"),
    "chunked, trailers": answered(
        chunked("/c", b"ab", end=b"0\r\nA: 1\r\nContent-Length: 9\r\n\r\n"), b"POST /c ab"
    ),
    "chunked, many": answered(
        chunked("/c", *[b"x"] * 50) + chunked("/d", b"y"), b"POST /c " + b"x" * 50, b"POST /d y",
    ),
    "large body": answered(
        request("POST", "/", BIG) + GET, b"POST / " + BIG, b"GET /next ", every_split=False
    ),
    "large chunks": answered(
        chunked("/", BIG, BIG) + GET, b"POST / " + BIG * 2, b"GET /next ", every_split=False
    ),
    "empty lines first": answered(b"\r\n\r\n\r\n" + request(), b"GET / "),
    "empty line between": answered(request() + b"\r\n" + request(), b"GET / ", b"GET / "),
    "empty lines alone": answered(b"\r\n\r\n\r\n\r\n"),
    "half a head": answered(b"GET / HTTP/1.1\r\nHost: h\r\n"),
    "half a body": answered(request("POST", "/", b"abc")[:-1]),
    "half a chunk": answered(chunked("/", b"abc")[:-4]),
    "1.0": answered(request(version="1.0") + GET, b"GET / ", ends=True),
    "1.0 with keep-alive": answered(
        request(version="1.0", fields="Connection: keep-alive\r\n") * 2, b"GET / ", b"GET / "
    ),
    "1.0 without Host": answered(b"GET / HTTP/1.0\r\n\r\n", b"GET / ", ends=True),
    "1.0 never continues": answered(
        request("POST", "/", b"x", "Expect: 100-continue\r\n", "1.0"), b"POST / x", ends=True
    ),
    "close": answered(request(fields="Connection: close\r\n") + GET, b"GET / ", ends=True),
    "close after some": answered(
        request() + request("POST", "/", b"x", "Connection: Close\r\n") + GET,
        b"GET / ", b"POST / x", ends=True,
    ),
    # Refused: always an answer, and the end, for nobody knows where the next request begins.
    "both lengths": refused(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n" + GET, 400,
    ),
    "good and bad": Case(request() + b"BAD\r\n\r\n" + GET, (b"GET / ",), (200, 400), True),
    "TLS": refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "LF LF": refused(b"GET / HTTP/1.1\nHost: h\n\n", 400),
    "folded": refused(b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n" + GET, 400),
    "NUL": refused(b"GET / HTTP/1.1\r\nHost: h\r\nX: \0\r\n\r\n", 400),
    "http 2": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "connect": refused(b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    "coding": refused(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501
    ),
    "expectation": refused(request("POST", "/", b"x", "Expect: tea\r\n"), 417),
    "endless line": refused(b"GET /" + b"a" * HEAD_BYTES_MAX, 431),
    "large head": refused(request(fields="X: " + "a" * HEAD_BYTES_MAX + "\r\n"), 431),
    "many fields": refused(request(fields="A: b\r\n" * 3000), 431),
    "body over the limit": refused(request("POST", "/", b"x" * 101), 413, body_bytes_max=100),
    "body at the limit": answered(
        request("POST", "/", b"x" * 100), b"POST / " + b"x" * 100, limits={"body_bytes_max": 100}
    ),
    "over the limit, expecting": refused(
        request("POST", "/", b"x" * 101, "Expect: 100-continue\r\n"), 413, body_bytes_max=100
    ),
    "claims a terabyte": refused(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1099511627776\r\n\r\n", 413
    ),
    "chunks over the limit": refused(chunked("/", b"x" * 60, b"x" * 60), 413, body_bytes_max=100),
    "chunk claims 2^59": refused(chunked("/", end=b"800000000000000\r\n"), 413),
    "broken chunk": refused(chunked("/", end=b"zz\r\n") + GET, 400),
    "chunk without CRLF": refused(chunked("/", end=b"1\r\nab\r\n0\r\n\r\n") + GET, 400),
    "broken trailer": refused(chunked("/", end=b"0\r\nabc\r\n\r\n") + GET, 400),
    "budget": refused(
        request("POST", "/", b"x" * 600_000), 503, bodies_bytes_max=1000
    ),
}  # fmt: skip


def splits(case: Case) -> Iterator[list[bytes]]:
    data = case.sent
    yield [data]
    if len(data) < 100_000:
        yield [data[i : i + 1] for i in range(len(data))]
    step = 1 if case.every_split and len(data) < 800 else max(1, len(data) // 40)
    for cut in range(1, len(data), step):
        yield [data[:cut], data[cut:]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_streams_however_they_arrive(case: Case, make_wire: MakeWire, echo: Echo) -> None:
    for pieces in splits(case):
        wire = make_wire(**case.limits)
        echo.calls.clear()
        for piece in pieces:
            wire.feed(piece)
        replies = [r for r in wire.replies(case.methods) if r.status != 100]
        assert tuple(reply.status for reply in replies) == case.statuses
        assert tuple(r.body for r in replies if r.status == 200) == case.bodies
        assert len(echo.calls) == len(case.bodies)
        assert wire.ended is case.ends
        assert wire.transport.reading
        for reply in replies[:-1]:
            assert reply.headers.get("connection") in (None, "keep-alive")
        assert not case.ends or replies[-1].headers["connection"] == "close"


ANSWERED = {name: c for name, c in CASES.items() if c.bodies and not c.ends}


@pytest.mark.parametrize("case", ANSWERED.values(), ids=ANSWERED)
def test_streams_answered_later(case: Case, make_wire: MakeWire) -> None:
    for pieces in splits(case):
        echo = Echo(later=True)
        wire = make_wire(echo, **case.limits)
        for piece in pieces:
            wire.feed(piece)
            assert len(echo.waiting) <= 1, "two requests of one connection at a time"
        while echo.waiting:
            assert len(echo.waiting) == 1
            echo.answer()
            wire.pump()
        replies = [r for r in wire.replies(case.methods) if r.status != 100]
        assert tuple(r.body for r in replies) == case.bodies


# ---------------------------------------------------------------------- keep-alive


def only(wire: Wire) -> Reply:
    (reply,) = wire.replies()
    return reply


def test_the_reply_of_http_1_1(wire: Wire) -> None:
    wire.listener.ticked()
    wire.feed(request("POST", "/a", b"x"))
    reply = only(wire)
    assert (reply.status, reply.reason, reply.body) == (200, "OK", b"POST /a x")
    assert set(reply.headers) == {"content-type", "content-length", "date"}
    assert reply.headers["content-length"] == "9"
    assert reply.headers["date"].endswith(" GMT")
    assert not wire.ended


def test_http_1_0_is_told_that_the_connection_stays(wire: Wire) -> None:
    wire.feed(request(version="1.0", fields="Connection: keep-alive\r\n"))
    assert only(wire).headers["connection"] == "keep-alive"


def test_head_has_the_length_but_no_body(wire: Wire) -> None:
    wire.feed(request("HEAD", "/abc"))
    (reply,) = wire.replies(["HEAD"])
    assert reply.headers["content-length"] == str(len("HEAD /abc "))
    assert reply.body == b""


def test_a_draining_listener_ends_connections_after_the_reply(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(GET + GET)
    wire.listener.draining = True
    wire.connection.drain()
    assert not wire.ended
    echo.answer()
    assert only(wire).headers["connection"] == "close"
    assert wire.ended
    assert echo.waiting == []


@pytest.mark.parametrize("sent", [b"", GET], ids=["new", "used"])
def test_draining_closes_an_idle_connection(wire: Wire, sent: bytes) -> None:
    wire.feed(sent)
    wire.connection.drain()
    wire.pump()
    assert wire.lost


@pytest.mark.parametrize("sent", [GET[:10], request("POST", "/", b"abc")[:-1]])
def test_draining_waits_for_a_request_that_is_arriving(wire: Wire, sent: bytes) -> None:
    wire.feed(sent)
    wire.connection.drain()
    assert not wire.ended


# ---------------------------------------------------------------------- Expect: 100-continue

EXPECTING = request("POST", "/", b"body", "Expect: 100-continue\r\n")


def test_continue_is_said_when_the_body_is_awaited(wire: Wire) -> None:
    head, body = EXPECTING[:-4], EXPECTING[-4:]
    wire.feed(head)
    assert wire.transport.sent == CONTINUE
    wire.feed(body)
    assert wire.statuses == [100, 200]


@pytest.mark.parametrize("came", [1, 3, 4])
def test_continue_is_not_said_when_the_body_is_coming(wire: Wire, came: int) -> None:
    wire.feed(EXPECTING[: len(EXPECTING) - 4 + came])
    wire.feed(EXPECTING[len(EXPECTING) - 4 + came :])
    assert wire.statuses == [200]


def test_continue_is_not_said_without_a_body(wire: Wire) -> None:
    wire.feed(request("POST", "/", b"", "Expect: 100-continue\r\n"))
    assert wire.statuses == [200]


def test_continue_with_chunks(wire: Wire) -> None:
    sent = chunked("/", b"ab", fields="Expect: 100-continue\r\n")
    at = sent.index(b"\r\n\r\n") + 4
    wire.feed(sent[:at])
    assert wire.transport.sent == CONTINUE
    wire.feed(sent[at:])
    assert [r.body for r in wire.replies()] == [b"", b"POST / ab"]


def test_continue_comes_after_the_reply_to_the_request_before(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(GET + EXPECTING[:-4])
    assert wire.transport.sent == b""
    echo.answer()
    assert wire.statuses == [200, 100]


@pytest.mark.parametrize("fields", ["Expect: 100-continue\r\n", ""])
def test_too_large_is_refused_before_the_body(make_wire: MakeWire, fields: str) -> None:
    wire = make_wire(body_bytes_max=3)
    wire.feed(request("POST", "/", b"body", fields)[:-4])
    assert wire.statuses == [413]
    assert b"larger than the limit of 3" in only(wire).body
    assert wire.ended


# ---------------------------------------------------------------------- backpressure


def test_reading_pauses_while_much_waits_behind_a_request(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    waiting = request("POST", "/w", b"x" * 10_000)
    wire.feed(request(path="/busy"))
    wire.feed(waiting * 6)
    assert wire.transport.reading
    wire.feed(waiting * 200)
    assert not wire.transport.reading
    assert wire.inbox, "everything was read"
    most = 0
    while echo.waiting:
        echo.answer()
        wire.pump()
        most = max(most, len(wire.connection._carry))
    assert wire.transport.reading
    assert most <= module._CARRY_MAX + len(wire.listener.scratch)
    assert [r.body for r in wire.replies()] == [
        b"GET /busy ", *[b"POST /w " + b"x" * 10_000] * 206
    ]  # fmt: skip


def test_nothing_starts_while_the_client_does_not_read(make_wire: MakeWire) -> None:
    echo = Echo()
    wire = make_wire(echo)
    wire.transport.stalled = True
    ask = request("POST", "/", b"x" * 30_000)
    wire.feed(ask * 20)
    started = len(echo.calls)
    assert started < 20
    assert len(wire.transport.held) <= HIGH_WATER + 31_000
    wire.feed(ask * 20)
    assert len(echo.calls) == started
    assert not wire.transport.reading
    while wire.transport.held or wire.inbox:
        wire.take(10_000)
    assert len(echo.calls) == 40
    assert wire.statuses == [200] * 40
    assert wire.transport.reading


def test_a_request_whose_body_is_awaited_may_finish_while_writing_is_paused(
    make_wire: MakeWire,
) -> None:
    wire = make_wire()
    wire.feed(request("POST", "/", b"ab")[:-1])
    wire.connection.pause_writing()
    wire.feed(b"b" + GET)
    assert wire.statuses == [200]
    wire.connection.resume_writing()
    assert wire.statuses == [200, 200]


# ---------------------------------------------------------------------- bodies in memory


@pytest.mark.parametrize("first", [0, 1, 700, 64 * 1024])
@pytest.mark.parametrize("prefix", [None, 0, 1, 137, 64, 16_383])
def test_large_bodies_are_received_aligned_and_not_copied(
    wire: Wire, echo: Echo, prefix: int | None, first: int
) -> None:
    body = bytes(range(256)) * 1200
    said = "" if prefix is None else f"Inference-Header-Content-Length: {prefix}\r\n"
    sent = request("POST", "/", body, said)
    at = len(sent) - len(body) + first
    wire.feed(sent[:at])
    receiving = np.frombuffer(wire.connection.get_buffer(-1), np.uint8)
    wire.feed(sent[at:])
    ((_, got),) = echo.calls
    assert got == body
    tensor = np.frombuffer(got, np.uint8)[prefix or 0 :]
    assert tensor.ctypes.data % 64 == 0
    assert np.shares_memory(receiving, tensor)
    assert not np.shares_memory(np.frombuffer(wire.connection.get_buffer(-1), np.uint8), tensor)


@pytest.mark.parametrize("prefix", ["x", "-1", "1e3", "99999999999", "9" * 400, ""])
def test_a_wrong_prefix_only_costs_the_alignment(wire: Wire, echo: Echo, prefix: str) -> None:
    sent = request("POST", "/", BIG, f"Inference-Header-Content-Length: {prefix}\r\n")
    wire.feed(sent[:-1])
    wire.feed(sent[-1:])
    assert echo.calls[0][1] == BIG


def test_a_body_stays_as_it_was_when_more_is_received(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    for size in (10, 20_000, 100_000):
        first = request("POST", "/", b"a" * size)
        wire.feed(first + request("POST", "/", b"b" * size))
        ((_, _, body),) = echo.waiting
        wire.feed(b"c" * 100)
        assert body == b"a" * size
        echo.answer()
        wire.pump()
        assert echo.waiting[0][2] == b"b" * size
        wire = make_wire(echo := Echo(later=True))


def test_the_budget_counts_what_was_received_and_is_given_back(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo, bodies_bytes_max=250_000)
    listener, body = wire.listener, b"x" * 200_000
    sent = request("POST", "/", body)
    wire.feed(sent[:-100_000])
    wire.feed(sent[-100_000:])
    other = Wire(listener)
    other.feed(sent[:-150_000])
    other.feed(sent[-150_000:-50_000])
    assert other.statuses == [503]
    assert other.ended
    echo.answer()
    assert wire.statuses == [200]
    third = Wire(listener)
    third.feed(sent[:-150_000])
    third.feed(sent[-150_000:])
    assert len(echo.waiting) == 1
    third.vanish()
    other.end()
    assert listener._body_bytes == 0


@pytest.mark.parametrize("kind", ["length", "chunks"])
@pytest.mark.parametrize("end", ["vanish", "end", "sweep"])
def test_the_budget_is_given_back_when_the_body_never_ends(
    make_wire: MakeWire, kind: str, end: str
) -> None:
    wire = make_wire(read_timeout_s=5)
    sent = request("POST", "/", BIG) if kind == "length" else chunked("/", BIG)
    wire.feed(sent[:200])
    wire.feed(sent[200:-10])
    assert wire.listener._body_bytes > 0
    if end == "sweep":
        wire.sweep(20)
        assert wire.statuses == [408]
    else:
        getattr(wire, end)()
    assert wire.listener._body_bytes == 0
    assert wire.connection._body is None


def test_no_memory_for_a_body(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("penstock.protocol.aligned.np.empty", refuse)
    wire.feed(request("POST", "/", BIG)[:-1])
    assert wire.statuses == [503]
    assert b"no memory" in only(wire).body
    assert wire.ended


# ---------------------------------------------------------------------- the client goes away


@pytest.mark.parametrize("end", ["vanish", "end"])
def test_the_request_of_a_client_that_is_gone_is_cancelled_once(
    make_wire: MakeWire, end: str
) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(GET + GET)
    assert wire.listener.connections == 1
    getattr(wire, end)()
    assert wire.lost
    assert echo.cancelled == 1
    assert wire.listener.connections == 0
    echo.answer()
    assert wire.transport.sent == b""
    assert len(echo.calls) == 1
    wire.sweep(1000)


@pytest.mark.parametrize("sent", [b"", GET, GET[:9], BIG[:9], EXPECTING[:-2], chunked("/", b"a")])
@pytest.mark.parametrize("end", ["vanish", "end"])
def test_nothing_is_cancelled_when_no_request_runs(
    make_wire: MakeWire, echo: Echo, sent: bytes, end: str
) -> None:
    wire = make_wire()
    wire.feed(sent)
    getattr(wire, end)()
    assert wire.lost
    assert echo.cancelled == 0
    assert wire.listener.connections == 0


def test_a_request_answered_at_once_is_not_cancelled_later(wire: Wire, echo: Echo) -> None:
    wire.feed(GET)
    wire.vanish()
    assert echo.cancelled == 0


def test_half_close_after_pipelined_requests_still_gets_the_replies(wire: Wire) -> None:
    wire.feed(GET * 3)
    wire.end()
    assert wire.statuses == [200] * 3
    assert wire.lost


def test_half_close_while_the_reply_is_on_its_way(wire: Wire) -> None:
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000))
    wire.end()
    assert not wire.lost
    wire.take()
    assert wire.statuses == [200]
    assert wire.lost


def test_the_client_is_gone_in_the_middle_of_the_reply(wire: Wire) -> None:
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000) + GET)
    wire.take(100)
    wire.vanish()
    assert wire.lost
    assert wire.listener.connections == 0
    assert wire.listener._body_bytes == 0


class Alternating:
    """Answers every path but /later at once."""

    def __init__(self) -> None:
        self.later = Echo(later=True)
        self.calls: list[str] = []

    def __call__(self, responder: Any, head: Any, body: Any) -> Any:
        self.calls.append(head.path)
        if head.path == "/later":
            return self.later(responder, head, body)
        responder.reply(200, "", (b"at once",))
        if head.path == "/raises":
            raise RuntimeError
        return None


FIRSTS = {
    "no body": request(path="/a"),
    "body": request("POST", "/a", BIG),
    "chunks": chunked("/a", b"abc", b"d"),
    "large chunks": chunked("/a", BIG, BIG),
    "raises": chunked("/raises", b"abc"),
}


@pytest.mark.parametrize("first", FIRSTS.values(), ids=FIRSTS)
def test_the_next_request_is_not_taken_for_the_one_answered_at_once(
    make_wire: MakeWire, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    sent = first + request(path="/later")
    step = max(1, len(sent) // 200)
    for cut in (*range(1, len(sent), step), len(sent) - 1):
        endpoint = Alternating()
        wire = make_wire(endpoint)
        wire.feed(sent[:cut])
        wire.feed(sent[cut:])
        assert wire.statuses == [200]
        assert len(endpoint.later.waiting) == 1
        wire.vanish()
        assert endpoint.later.cancelled == 1


# ---------------------------------------------------------------------- time


def test_an_idle_connection_is_closed(make_wire: MakeWire) -> None:
    wire = make_wire(idle_timeout_s=10)
    wire.sweep(9)
    wire.feed(GET)
    wire.sweep(10)
    assert not wire.lost
    wire.sweep()
    assert wire.lost
    assert wire.statuses == [200]


def test_an_idle_connection_that_leaves_its_reply_unread_is_closed(make_wire: MakeWire) -> None:
    wire = make_wire(idle_timeout_s=10)
    wire.transport.stalled = True
    wire.feed(GET)
    wire.sweep(11)
    assert wire.transport.closing
    assert not wire.lost
    wire.sweep()
    assert wire.transport.aborted
    assert wire.lost


def test_a_busy_connection_is_never_swept(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(GET + GET[:10])
    wire.sweep(10_000)
    assert not wire.ended
    echo.answer()
    assert wire.statuses == [200]


@pytest.mark.parametrize("begun", [b"", GET[:10]], ids=["idle", "next head begun"])
def test_the_time_that_a_request_takes_is_not_its_clients(
    make_wire: MakeWire, begun: bytes
) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo, idle_timeout_s=5, read_timeout_s=5)
    wire.feed(GET + begun)
    wire.sweep(1000)
    echo.answer()
    wire.sweep(5)
    assert not wire.ended
    wire.sweep()
    assert wire.ended


@pytest.mark.parametrize("before", [b"", GET], ids=["first request", "later request"])
@pytest.mark.parametrize("head", [GET, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 500])
def test_a_head_that_drips_is_given_up(make_wire: MakeWire, head: bytes, before: bytes) -> None:
    wire = make_wire(read_timeout_s=5)
    wire.feed(before)
    wire.sweep(3)
    for byte in head[: len(GET) - 1]:
        wire.feed(bytes([byte]))
        wire.sweep()
        if wire.ended:
            break
    assert wire.statuses == [200] * bool(before) + [408]
    assert wire.listener.tick == 3 + 6


@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_a_body_that_stops_is_given_up(make_wire: MakeWire, kind: str) -> None:
    wire = make_wire(read_timeout_s=5)
    sent = request("POST", "/", BIG) if kind == "length" else chunked("/", BIG)
    wire.feed(sent[:-10])
    wire.sweep(5)
    assert not wire.ended
    wire.sweep()
    assert wire.statuses == [408]
    assert wire.ended


@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_a_body_that_drips_is_given_up(make_wire: MakeWire, kind: str) -> None:
    wire = make_wire(read_timeout_s=5)
    sent = request("POST", "/", BIG) if kind == "length" else chunked("/", *[b"x"] * 5000)
    for at in range(0, len(sent) - 20, 20):
        wire.feed(sent[at : at + 20])
        wire.sweep()
        if wire.ended:
            break
    assert wire.statuses == [408]
    assert wire.listener.tick <= 7


def test_a_slow_body_above_the_least_rate_is_served(make_wire: MakeWire) -> None:
    wire = make_wire(read_timeout_s=5)
    sent = request("POST", "/", BIG)
    for at in range(0, len(sent), 1100):
        wire.feed(sent[at : at + 1100])
        wire.sweep()
    assert wire.statuses == [200]


def test_the_clock_of_a_request_starts_with_its_first_byte(make_wire: MakeWire) -> None:
    wire = make_wire(read_timeout_s=5, idle_timeout_s=10_000)
    wire.sweep(1000)
    wire.feed(request("POST", "/", BIG)[:-1])
    wire.sweep(4)
    wire.feed(BIG[-1:])
    wire.sweep(1000)
    wire.feed(GET[:5])
    wire.sweep(4)
    wire.feed(GET[5:])
    assert wire.statuses == [200, 200]


def test_a_client_that_never_reads_is_aborted(make_wire: MakeWire) -> None:
    wire = make_wire(write_timeout_s=5)
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000))
    wire.sweep(6)
    assert not wire.lost
    wire.sweep()
    assert wire.transport.aborted
    assert wire.lost


@pytest.mark.parametrize("fields", ["", "Connection: close\r\n"])
def test_a_client_that_reads_slowly_gets_it_all(make_wire: MakeWire, fields: str) -> None:
    wire = make_wire(write_timeout_s=5)
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000, fields))
    while wire.transport.held:
        wire.sweep(4)
        wire.take(20_000)
    assert wire.statuses == [200]
    assert not wire.transport.aborted
    assert wire.transport.eof_written is bool(fields)


@pytest.mark.parametrize(("a_second", "aborted"), [(1023, True), (1024, False)])
def test_a_client_that_hardly_reads_is_aborted(
    make_wire: MakeWire, a_second: int, aborted: bool
) -> None:
    wire = make_wire(write_timeout_s=5)
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000))
    for _ in range(20):
        wire.sweep()
        wire.take(a_second)
    assert wire.transport.aborted is aborted


def test_a_client_that_stops_reading_the_last_reply_is_aborted(make_wire: MakeWire) -> None:
    wire = make_wire(write_timeout_s=5)
    wire.transport.stalled = True
    wire.feed(request("POST", "/", b"x" * 200_000, "Connection: close\r\n"))
    wire.take(1000)
    wire.sweep(7)
    assert wire.transport.aborted


# ---------------------------------------------------------------------- the end of a connection


def test_after_an_error_the_rest_is_read_and_dropped(make_wire: MakeWire, echo: Echo) -> None:
    wire = make_wire(body_bytes_max=1000, linger_s=2)
    wire.feed(request("POST", "/", b"x" * 5_000_000))
    assert wire.statuses == [413]
    assert wire.transport.eof_written
    assert not wire.transport.closing
    wire.feed(GET * 100)
    assert wire.inbox == b""
    assert wire.statuses == [413]
    wire.end()
    assert wire.lost
    assert not wire.transport.aborted
    assert echo.calls == []


def test_a_client_that_goes_on_sending_is_aborted(make_wire: MakeWire) -> None:
    wire = make_wire(linger_s=2)
    wire.feed(b"BAD\r\n\r\n")
    for _ in range(3):
        wire.feed(b"x" * 1000)
        wire.sweep()
    assert wire.transport.aborted
    assert wire.listener.connections == 0


def test_reading_goes_on_to_the_end_when_it_was_paused(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(request(fields="Connection: close\r\n") + b"x" * 500_000)
    assert not wire.transport.reading
    echo.answer()
    wire.pump()
    assert wire.inbox == b""
    assert wire.ended


def test_without_half_close_the_connection_is_closed(make_wire: MakeWire) -> None:
    wire = make_wire(half_close=False)
    wire.feed(request(fields="Connection: close\r\n"))
    assert wire.statuses == [200]
    assert wire.lost


def test_too_many_connections(make_wire: MakeWire, echo: Echo) -> None:
    wire = make_wire(connections_max=2)
    second, third = Wire(wire.listener), Wire(wire.listener)
    third.feed(GET)
    assert third.statuses == [503]
    assert only(third).body == b"too many connections\n"
    assert third.ended
    third.end()
    wire.vanish()
    fourth = Wire(wire.listener)
    fourth.feed(GET)
    second.feed(GET)
    assert fourth.statuses == second.statuses == [200]


# ---------------------------------------------------------------------- endpoints


def test_an_endpoint_that_raises(make_wire: MakeWire, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def endpoint(responder: Any, head: Any, body: Any) -> None:
        calls.append(head.path)
        if head.path == "/bad":
            raise RuntimeError("secret")
        responder.reply(200, "", (b"fine",))

    wire = make_wire(endpoint)
    with caplog.at_level(logging.CRITICAL, "penstock"):
        wire.feed(request(path="/bad") + GET)
    bad, good = wire.replies()
    assert (bad.status, good.status) == (500, 200)
    assert b"secret" not in bad.body
    assert "content-type" not in good.headers
    assert not wire.ended


def test_an_endpoint_that_raises_after_its_reply(make_wire: MakeWire) -> None:
    def endpoint(responder: Any, head: Any, body: Any) -> None:
        responder.reply(200, "", (b"done",))
        raise RuntimeError

    wire = make_wire(endpoint)
    logging.disable(logging.CRITICAL)
    try:
        wire.feed(GET)
    finally:
        logging.disable(logging.NOTSET)
    assert [r.body for r in wire.replies()] == [b"done"]


def test_a_second_reply_is_ignored(make_wire: MakeWire) -> None:
    echo = Echo(later=True)
    wire = make_wire(echo)
    wire.feed(GET)
    responder, _, _ = echo.waiting[0]
    responder.reply(200, "", (b"one",))
    responder.reply(200, "", (b"two",))
    assert [r.body for r in wire.replies()] == [b"one"]


SIZES = [0, 1, JOIN_MAX - 1, JOIN_MAX, JOIN_MAX + 1, 1_000_000]


@pytest.mark.parametrize("parts", [1, 2, 3000], ids="{} buffers".format)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_replies_are_sent_to_the_byte(
    make_wire: MakeWire, size: int, parts: int, method: str
) -> None:
    array = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    cuts = [round(i * size / parts) for i in range(parts + 1)]
    buffers = [memoryview(array)[a:b] for a, b in itertools.pairwise(cuts)]

    def endpoint(responder: Any, head: Any, body: Any) -> None:
        responder.reply(201, "a/b", buffers, b"X-One: 1\r\nX-Two: 2\r\n", "Made")

    wire = make_wire(endpoint)
    wire.feed(request(method) + GET)
    first, second = wire.replies([method, "GET"])
    assert first.body == (b"" if method == "HEAD" else array.tobytes())
    assert second.body == array.tobytes()
    assert (first.status, first.reason) == (201, "Made")
    assert first.headers["content-length"] == str(size)
    copied = size <= JOIN_MAX
    assert wire.transport.gathered == (0 if copied else 1 if method == "HEAD" else 2)
    assert (first.headers["x-one"], first.headers["x-two"]) == ("1", "2")


@pytest.mark.parametrize("text", ["one\r\nX-Injected: 1", "\r\n\r\nHTTP/1.1 200 OK", "é\0"])
def test_a_reason_phrase_injects_nothing(make_wire: MakeWire, text: str) -> None:
    wire = make_wire(lambda responder, head, body: responder.reply(400, "", (), b"", text))
    wire.feed(GET)
    reply = only(wire)
    assert reply.status == 400
    assert set(reply.headers) == {"content-length"}


def test_reasons_do_not_pile_up(make_wire: MakeWire) -> None:
    number = iter(range(5000))
    wire = make_wire(lambda r, head, body: r.reply(400, "", (), b"", f"error {next(number)}"))
    wire.feed(GET * 2000)
    assert [r.reason for r in wire.replies()] == [f"error {i}" for i in range(2000)]
    assert len(wire.listener._reply_heads) <= 256


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/"])
def test_what_http_refuses_is_worded_by_the_listener(make_wire: MakeWire, path: str) -> None:
    def word(head: Any, text: str) -> tuple[str, bytes]:
        return "a/b", f"{head and head.path}: {text}".encode()

    wire = make_wire(body_bytes_max=3)
    wire.listener.refusal = word
    wire.feed(request("POST", path, b"abcd"))
    reply = only(wire)
    assert (reply.status, reply.headers["content-type"]) == (413, "a/b")
    assert reply.body.startswith(f"{path}: the body of 4 bytes".encode())
    wire = Wire(wire.listener)
    wire.feed(b"BAD\r\n\r\n")
    assert only(wire).body.startswith(b"None: malformed")
    wire = Wire(wire.listener)
    wire.feed(request(path=path) + b"BAD\r\n\r\n")
    assert wire.replies()[1].body.startswith(f"{path}: malformed".encode())


# ---------------------------------------------------------------------- the memo of heads


def test_a_remembered_head_serves_as_a_fresh_one(make_wire: MakeWire) -> None:
    echo = Echo()
    wire = make_wire(echo)
    one, two = request("POST", "/a", b"x", "X: 1\r\n"), request("POST", "/a", b"y", "X: 2\r\n")
    wire.feed(one + two + one)
    first, second, third = [head for head, _ in echo.calls]
    assert first is third
    assert second is not first
    assert (first.headers[b"x"], second.headers[b"x"]) == (b"1", b"2")
    assert [r.body for r in wire.replies()] == [b"POST /a x", b"POST /a y", b"POST /a x"]


def test_empty_lines_before_a_head_do_not_change_what_is_remembered(
    make_wire: MakeWire,
) -> None:
    echo = Echo()
    wire = make_wire(echo)
    wire.feed(b"\r\n\r\n" + GET + b"\r\n" + GET + GET)
    assert len({id(head) for head, _ in echo.calls}) == 1
    assert list(wire.listener.heads._heads) == [GET]


def test_refused_heads_are_not_remembered(make_wire: MakeWire) -> None:
    wire = make_wire(body_bytes_max=3)
    listener = wire.listener
    for sent in (request("POST", "/", b"body"), b"BAD\r\n\r\n"):
        for _ in range(2):
            client = Wire(listener)
            client.feed(sent)
            assert client.statuses in ([413], [400])
    assert not listener.heads._heads


def test_replies_are_parsed_strictly() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    assert parse_replies(whole + b"HTTP") == ([Reply(200, "OK", {"content-length": "2"}, b"ab")],
                                              b"HTTP")  # fmt: skip
    assert parse_replies(whole[:-1]) == ([], whole[:-1])
