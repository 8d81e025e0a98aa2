"""Answers in parts: their framing, their ends, and clients that do not read them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.http_seam import EVENTS, Buffer, Responder
from penstock.server.transport.fake import HIGH_WATER, Teller, Wire, parse_replies
from penstock.server.transport.head import Head
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.http1_replies import JOIN_MAX
from penstock.server.transport.listener import Http1Listener

MakeWire = Callable[..., Wire]
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
OLD = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
LAST = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
def teller() -> Teller:
    return Teller()


@pytest.fixture
def wire(make_wire: MakeWire, teller: Teller) -> Wire:
    return make_wire(teller)


def test_the_head_goes_out_at_once_and_every_part_as_it_comes(wire: Wire, teller: Teller) -> None:
    wire.feed(POST)
    sent = bytes(wire.transport.sent)
    assert b"Transfer-Encoding: chunked\r\n" in sent
    assert b"X-Extra: 1\r\n" in sent
    assert f"Content-Type: {EVENTS}\r\n".encode() in sent
    assert b"Content-Length" not in sent
    teller.told[0].chunk((b"one", memoryview(b" two")))
    assert wire.transport.sent.endswith(b"\r\n\r\n7\r\none two\r\n")
    assert parse_replies(bytes(wire.transport.sent))[0] == []
    teller.told[0].chunk([b"!"])
    teller.told[0].end()
    (reply,) = wire.replies()
    assert (reply.status, reply.body) == (200, b"one two!")


def test_nothing_is_no_chunk(wire: Wire, teller: Teller) -> None:
    """It would be the end."""
    wire.feed(GET)
    teller.told[0].chunk(())
    teller.told[0].chunk((b"", b""))
    teller.told[0].chunk((b"x",))
    teller.told[0].end()
    assert wire.replies()[0].body == b"x"


def test_an_answer_without_parts(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    teller.told[0].end()
    assert wire.replies()[0].body == b""


def test_large_parts_are_not_joined(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    teller.told[0].chunk((b"x" * JOIN_MAX,))
    assert wire.transport.gathered == 0
    teller.told[0].chunk((b"y" * (JOIN_MAX + 1),))
    assert wire.transport.gathered == 1
    teller.told[0].end()
    assert wire.replies()[0].body == b"x" * JOIN_MAX + b"y" * (JOIN_MAX + 1)


def test_the_next_request_waits_for_the_end(wire: Wire, teller: Teller) -> None:
    wire.feed(GET + GET)
    assert len(teller.told) == 1
    teller.told[0].chunk((b"1",))
    teller.told[0].end()
    assert len(teller.told) == 2
    teller.told[1].chunk((b"2",))
    teller.told[1].end()
    assert [reply.body for reply in wire.replies()] == [b"1", b"2"]
    assert not wire.ended


def test_whatever_comes_after_the_end_does_nothing(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    responder = teller.told[0]
    responder.reply(500, "text/plain", (b"too late",))
    responder.begin(500, "text/plain")
    responder.end()
    before = bytes(wire.transport.sent)
    responder.chunk((b"x",))
    responder.end()
    responder.reply(200, "text/plain", (b"x",))
    assert bytes(wire.transport.sent) == before


def test_nothing_begins_before_there_is_a_request(wire: Wire) -> None:
    wire.connection.begin(200, EVENTS)
    wire.connection.chunk((b"x",))
    wire.connection.end()
    assert wire.transport.sent == b""


def test_http_1_0_ends_with_the_connection(wire: Wire, teller: Teller) -> None:
    wire.feed(OLD)
    teller.told[0].chunk((b"one",))
    teller.told[0].end()
    (reply,) = wire.replies()
    assert reply.body == b"one"
    assert reply.headers["connection"] == "close"
    assert "transfer-encoding" not in reply.headers
    assert wire.ended


def test_a_client_that_wants_no_more_is_told_so(wire: Wire, teller: Teller) -> None:
    wire.feed(LAST)
    teller.told[0].chunk((b"one",))
    assert not wire.ended
    teller.told[0].end()
    (reply,) = wire.replies()
    assert (reply.body, reply.headers["connection"]) == (b"one", "close")
    assert wire.ended


def test_a_server_that_drains_says_so(wire: Wire, teller: Teller) -> None:
    wire.listener.draining = True
    wire.feed(GET)
    wire.connection.drain()
    teller.told[0].chunk((b"one",))
    assert not wire.ended
    teller.told[0].end()
    assert wire.replies()[0].headers["connection"] == "close"
    assert wire.ended


def test_a_stream_that_began_before_the_drain_is_finished(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    wire.listener.draining = True
    wire.connection.drain()
    teller.told[0].chunk((b"one",))
    teller.told[0].end()
    assert wire.replies()[0].body == b"one"
    wire.connection.drain()
    assert wire.ended


def test_the_head_alone(wire: Wire, teller: Teller) -> None:
    wire.feed(HEAD + GET)
    teller.told[0].chunk((b"one",))
    teller.told[0].end()
    teller.told[1].end()
    head, full = wire.replies(["HEAD", "GET"])
    assert (head.body, full.body) == (b"", b"")
    assert head.headers["transfer-encoding"] == "chunked"


def test_a_client_that_goes_away_cancels_it(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    teller.told[0].chunk((b"one",))
    wire.vanish()
    assert teller.cancelled == 1
    before = bytes(wire.transport.sent)
    teller.told[0].chunk((b"two",))
    teller.told[0].end()
    assert bytes(wire.transport.sent) == before


def test_a_finished_stream_is_not_cancelled(wire: Wire, teller: Teller) -> None:
    wire.feed(GET)
    teller.told[0].end()
    wire.vanish()
    assert teller.cancelled == 0


def test_congestion_and_its_end(wire: Wire, teller: Teller) -> None:
    wire.feed(GET + GET)
    responder = teller.told[0]
    wire.transport.stalled = True
    responder.chunk((b"x" * HIGH_WATER,))
    assert responder.congested
    assert teller.drained == 0
    wire.transport.stalled = False
    wire.take()
    assert not responder.congested
    assert teller.drained == 1
    assert len(teller.told) == 1, "the next request begins with the end, not with the room"
    responder.end()
    assert len(teller.told) == 2


def test_a_congested_end_holds_the_next_request(wire: Wire, teller: Teller) -> None:
    wire.feed(GET + GET)
    wire.transport.stalled = True
    teller.told[0].chunk((b"x" * (HIGH_WATER + 1),))
    teller.told[0].end()
    assert len(teller.told) == 1
    wire.transport.stalled = False
    wire.take()
    assert len(teller.told) == 2
    assert teller.drained == 0, "nobody is left to go on"


def test_unread_parts_are_bounded(make_wire: MakeWire, teller: Teller) -> None:
    wire = make_wire(teller, unsent_bytes_max=4 * HIGH_WATER)
    wire.feed(GET)
    wire.transport.stalled = True
    held = 0
    for _ in range(100):
        teller.told[0].chunk((b"x" * HIGH_WATER,))
        held = max(held, len(wire.transport.held))
    assert wire.transport.aborted
    assert held <= 6 * HIGH_WATER
    wire.pump()
    assert teller.cancelled == 1


def test_a_client_that_reads_nothing_is_given_up(make_wire: MakeWire, teller: Teller) -> None:
    wire = make_wire(teller, write_timeout_s=5)
    wire.feed(GET)
    wire.transport.stalled = True
    teller.told[0].chunk((b"x" * (HIGH_WATER + 1),))
    wire.sweep(20)
    assert wire.lost
    assert teller.cancelled == 1


def test_a_silent_model_is_not_the_clients_fault(make_wire: MakeWire, teller: Teller) -> None:
    wire = make_wire(teller, read_timeout_s=5, idle_timeout_s=5)
    wire.feed(GET)
    wire.sweep(1000)
    teller.told[0].chunk((b"late",))
    teller.told[0].end()
    assert wire.replies()[0].body == b"late"
    wire.sweep(7)
    assert wire.lost


@pytest.mark.parametrize("begun", [False, True])
def test_an_endpoint_that_breaks(
    make_wire: MakeWire, caplog: pytest.LogCaptureFixture, begun: bool
) -> None:
    """Half an answer must not end as a whole one does."""

    def broken(responder: Responder, head: Head, body: Buffer) -> None:
        if begun:
            responder.begin(200, EVENTS)
            responder.chunk((b"half",))
        raise RuntimeError("a bug")

    wire = make_wire(broken)
    with caplog.at_level(logging.CRITICAL):
        wire.feed(GET)
    if begun:
        assert wire.transport.aborted
        assert parse_replies(bytes(wire.transport.sent))[0] == []
    else:
        assert wire.statuses == [500]


def test_the_body_is_accounted_for_until_the_end(make_wire: MakeWire, teller: Teller) -> None:
    wire = make_wire(teller, bodies_bytes_max=100_000)
    body = b"x" * 90_000
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    for number in range(3):
        wire.feed(head + body)
        teller.told[number].end()
    assert wire.statuses == [200] * 3


def test_a_whole_stream_within_the_call(make_wire: MakeWire) -> None:
    def at_once(responder: Responder, head: Head, body: Buffer) -> None:
        responder.begin(201, EVENTS)
        responder.chunk((b"all",))
        responder.end()

    wire = make_wire(at_once)
    wire.feed(GET * 3)
    assert [(r.status, r.body) for r in wire.replies()] == [(201, b"all")] * 3


@given(
    st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_any_parts_read_at_any_pace(parts: list[list[bytes]], pace: list[int]) -> None:
    teller = Teller()
    wire = Wire(Http1Listener(lambda head: teller, Http1Connection))
    wire.feed(GET + POST)
    wire.transport.stalled = True
    for number in range(2):
        for buffers in parts:
            teller.told[number].chunk(buffers)
        teller.told[number].end()
    while wire.transport.held:
        for nbytes in pace:
            wire.take(nbytes)
    whole = b"".join(map(b"".join, parts))
    assert [reply.body for reply in wire.replies()] == [whole, whole]
