"""Rules of HTTP/2 that h2spec does not look at, floods, and a connection's upkeep, in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from penstock.server.transport.grpc.fake import (
    PREFACE,
    EchoMethods,
    Frame,
    GrpcWire,
    message,
    settings,
    window_update,
)
from penstock.server.transport.http2 import control, machine

ECHO, CHAT = "/t.T/Echo", "/t.T/Chat"
PROTOCOL, FLOW, CLOSED, FRAME_SIZE, COMPRESSION, CALM = 1, 3, 5, 6, 9, 11
MakeWire = Callable[..., GrpcWire]


@pytest.fixture
def echo() -> EchoMethods:
    return EchoMethods()


@pytest.fixture
def make_wire(echo: EchoMethods) -> MakeWire:
    def make(preface: bool = True, **limits: Any) -> GrpcWire:
        return GrpcWire(echo.listener(**limits), preface)

    return make


@pytest.fixture
def wire(make_wire: MakeWire) -> GrpcWire:
    return make_wire()


def code(wire: GrpcWire) -> int:
    """Of the one GOAWAY; the connection is over."""
    (goaway,) = wire.goaways
    assert wire.ended
    return goaway[1]


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    return Frame(6, flags, 0, payload).packed()


# ---------------------------------------------------------------------- the beginning


def test_what_we_say_first(wire: GrpcWire) -> None:
    first, window, ack = wire.frames
    told = {
        int.from_bytes(first.payload[at : at + 2], "big"): int.from_bytes(
            first.payload[at + 2 : at + 6], "big"
        )
        for at in range(0, len(first.payload), 6)
    }
    assert (first.kind, first.flags) == (4, 0)
    assert told == {3: 4096, 4: 16 << 20, 5: 4 << 20, 6: 16 << 10}
    assert (window.kind, int.from_bytes(window.payload, "big")) == (8, 2**30 - 65_535)
    assert (ack.kind, ack.flags) == (4, 1)


def test_nothing_is_said_before_the_preface(make_wire: MakeWire) -> None:
    wire = make_wire(preface=False)
    for byte in PREFACE:
        wire.feed(bytes((byte,)))
    assert wire.transport.sent == b""
    wire.feed(settings({}))
    assert [frame.kind for frame in wire.frames] == [4, 8, 4]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD"])
def test_http_1_1_gets_an_answer_that_it_understands(make_wire: MakeWire, method: str) -> None:
    wire = make_wire(preface=False)
    wire.feed(f"{method} /v2/models HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head, _, body = bytes(wire.transport.sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b"gRPC" in body
    assert wire.ended


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30), b"PRI * HTTP/1.1\r\n",
             PREFACE + ping(), PREFACE + Frame(4, 1, 0, b"").packed(), b"\0" * 40]
)  # fmt: skip
def test_no_preface(make_wire: MakeWire, data: bytes) -> None:
    wire = make_wire(preface=False)
    wire.feed(data)
    assert code(wire) == PROTOCOL


# ---------------------------------------------------------------------- header blocks


def test_blocks_mean_what_the_table_says_at_the_time(wire: GrpcWire, echo: EchoMethods) -> None:
    """The same bytes, before and after an entry is added in front of the ones they name."""
    first = wire.head(ECHO, [("key", "one")])
    again = wire.head(ECHO, [("key", "one")])
    assert first != again
    for number, block in ((1, first), (3, again), (5, again)):
        wire.feed(Frame(1, 4, number, block).packed())
        wire.data(number, message(b"x"), end=True)
    wire.feed(Frame(1, 4, 7, wire.head(ECHO, [("key", "two")])).packed())
    wire.data(7, message(b"x"), end=True)
    wire.feed(Frame(1, 4, 9, wire.head(ECHO, [("key", "one")])).packed())
    wire.data(9, message(b"x"), end=True)
    assert [head.metadata["key"] for _, head, _ in echo.calls] == ["one"] * 3 + ["two", "one"]
    # Every index in these bytes counts from the front of the table, which has moved since.
    wire.feed(Frame(1, 4, 11, again).packed())
    assert wire.outcome(11).reset == PROTOCOL


def test_a_table_that_is_resized_forgets(wire: GrpcWire, echo: EchoMethods) -> None:
    for size in (4096, 64, 4096):
        wire.encoder.header_table_size = size
        wire.last = wire.call(ECHO, b"x", [("key", "value"), ("other", "v" * 40)])
        wire.call(ECHO, b"x", [("key", "value"), ("other", "v" * 40)])
    assert [head.metadata["key"] for _, head, _ in echo.calls] == ["value"] * 6


def test_blocks_across_continuations(wire: GrpcWire, echo: EchoMethods) -> None:
    block = wire.head(ECHO, [("key", "v" * 300)])
    parts = [block[at : at + 50] for at in range(0, len(block), 50)]
    wire.send(1, 0, 1, parts[0])
    for part in parts[1:-1]:
        wire.send(9, 0, 1, part)
    wire.send(9, 4, 1, parts[-1])
    wire.data(1, message(b"x"), end=True)
    assert echo.calls[0][1].metadata["key"] == "v" * 300


def test_headers_with_padding_and_priority(wire: GrpcWire, echo: EchoMethods) -> None:
    wire.send(1, 0x2C, 1, b"\x05" + b"\0\0\0\0\x10" + wire.head(ECHO) + bytes(5))
    wire.data(1, message(b"x"), end=True)
    assert wire.outcome(1).messages == [b"x"]


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [(0xC, b"", FRAME_SIZE), (0xC, b"\x05\0", PROTOCOL), (0x24, b"\0\0", PROTOCOL),
     (4, b"\xff\xff\xff\xff\xff", COMPRESSION), (4, b"\x80", COMPRESSION),
     (4, b"\x00\x85\xff", COMPRESSION)],
)  # fmt: skip
def test_broken_headers(wire: GrpcWire, flags: int, payload: bytes, expected: int) -> None:
    wire.send(1, flags, 1, payload)
    assert code(wire) == expected


@pytest.mark.parametrize(
    "fields",
    [
        [("Key", "v")], [("ke y", "v")], [("key", "a\r\nb")], [("key", "a\0")], [("key", " v")],
        [("connection", "close")], [("upgrade", "x")], [("te", "gzip")], [(":path", "/b")],
        [("host", "other")], [("content-length", "x")], [(":status", "200")], [("", "v")],
        [("content-length", "1"), ("content-length", "2")],
    ],
)  # fmt: skip
def test_malformed_requests(wire: GrpcWire, fields: Any, echo: EchoMethods) -> None:
    stream = wire.open(ECHO, fields)
    assert wire.outcome(stream).reset == PROTOCOL
    assert wire.goaways == []
    assert wire.outcome(wire.call(ECHO, b"fine")).messages == [b"fine"]
    assert len(echo.calls) == 1


def test_trailers_of_a_client(wire: GrpcWire) -> None:
    stream = wire.open(ECHO)
    wire.data(stream, message(b"x"))
    wire.send(1, 5, stream, wire.encoder.encode([("sum", "1")]))
    assert wire.outcome(stream).messages == [b"x"]


# ---------------------------------------------------------------------- streams and windows


def test_data_in_flight_when_a_stream_is_reset_is_dropped(wire: GrpcWire) -> None:
    stream = wire.open("/t.T/None")
    before = len(wire.frames)
    for _ in range(2000):
        wire.data(stream, message(b"x"))
    wire.send(1, 5, stream, wire.encoder.encode([("late", "trailers")]))
    assert len(wire.frames) == before
    assert not wire.ended
    assert wire.outcome(wire.call(ECHO, b"fine")).messages == [b"fine"]


def test_more_than_the_window(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.full = True
    stream = wire.open(CHAT)
    for _ in range(17):
        wire.data(stream, message(bytes(1_000_000)))
    assert wire.outcome(stream).reset == FLOW
    assert wire.goaways == []


def test_the_connection_s_window_is_given_back(
    wire: GrpcWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CONNECTION_CREDIT_BYTES", 200_000)
    stream = wire.open("/t.T/None")
    for _ in range(11):
        wire.data(stream, bytes(10_000))
    (given,) = [f for f in wire.frames if f.kind == 8 and not f.stream][1:]
    assert int.from_bytes(given.payload, "big") == 100_000


def test_windows_that_grow_too_large(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    wire.feed(window_update(stream, 2**31 - 1))
    assert wire.outcome(stream).reset == FLOW
    assert wire.goaways == []
    wire.feed(window_update(0, 2**31 - 1))
    assert code(wire) == FLOW


# ---------------------------------------------------------------------- floods


def flood(wire: GrpcWire, data: bytes, count: int) -> int:
    """How many times it could be sent."""
    for number in range(count):
        if wire.ended:
            return number
        wire.feed(data)
    return count


@pytest.mark.parametrize(
    "data",
    [settings({}), settings({1: 0}), Frame(2, 0, 3, b"\0\0\0\0\1").packed(),
     Frame(77, 0, 0, b"x").packed()],
    ids=["settings", "table sizes", "priority", "unknown"],
)  # fmt: skip
def test_floods_of_control_frames(wire: GrpcWire, data: bytes) -> None:
    assert flood(wire, data, 5000) <= control.NUISANCE_MAX + 1
    assert code(wire) == CALM


@pytest.mark.parametrize("payload", [b"", b"\0"], ids=["empty", "padding alone"])
def test_floods_of_empty_data(wire: GrpcWire, payload: bytes) -> None:
    stream = wire.open(CHAT)
    data = Frame(0, 8 if payload else 0, stream, payload).packed()
    assert flood(wire, data, 5000) <= control.NUISANCE_MAX + 1
    assert code(wire) == CALM


def test_a_flood_of_pings(wire: GrpcWire) -> None:
    assert flood(wire, ping(), 100) == 4
    assert wire.goaways[0][1:] == (CALM, b"too_many_pings")


def test_pings_between_replies_are_welcome(wire: GrpcWire) -> None:
    for _ in range(2000):
        wire.call(ECHO)
        wire.feed(ping())
    assert wire.goaways == []
    assert len([f for f in wire.frames if f.kind == 6 and f.flags == 1]) == 2000


def test_pings_that_are_not_too_soon(make_wire: MakeWire) -> None:
    wire = make_wire(ping_interval_s_min=10, ping_strikes_max=0)
    wire.feed(settings({}) + Frame(4, 1, 0, b"").packed() + ping())
    wire.sweep(10)
    wire.feed(ping())
    assert wire.goaways == []
    wire.sweep(9)
    wire.feed(ping())
    assert code(wire) == CALM


def test_rapid_resets(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    for number in range(1, 20_000, 2):
        wire.feed(
            Frame(1, 4, number, wire.head(CHAT)).packed()
            + Frame(3, 0, number, b"\0\0\0\x08").packed()
        )
        if wire.ended:
            break
    assert code(wire) == CALM
    assert len(echo.streams) <= control.RESETS_MAX + 1


def test_resets_that_a_client_makes_us_send(wire: GrpcWire) -> None:
    for number in range(1, 20_000, 2):
        wire.feed(Frame(1, 4, number, wire.head(CHAT)).packed() + window_update(number, 0))
        if wire.ended:
            break
    assert code(wire) == CALM


def test_what_is_forgiven_with_time(wire: GrpcWire) -> None:
    wire.feed(Frame(4, 1, 0, b"").packed())
    for _ in range(30):
        assert flood(wire, settings({}), control.NUISANCE_FORGIVEN_PER_S) == 100
        wire.sweep()
    assert wire.goaways == []


@pytest.mark.parametrize("part", [b"", b"\0" * 2000], ids=["empty", "large"])
def test_floods_of_continuations(wire: GrpcWire, part: bytes) -> None:
    wire.send(1, 0, 1, wire.head(ECHO))
    assert flood(wire, Frame(9, 0, 1, part).packed(), 1000) <= machine.BLOCK_FRAMES_MAX + 1
    assert code(wire) == CALM


def test_a_block_that_unfolds_to_too_much(wire: GrpcWire) -> None:
    """One large field in the table, named a thousand times."""
    wire.feed(Frame(1, 4, 1, wire.head(ECHO, [("a", "b" * 3000)])).packed())
    wire.feed(Frame(1, 4, 3, b"\xbe" * 1000).packed())
    assert code(wire) == CALM


@pytest.mark.parametrize("kind", [1, 4, 7, 99])
def test_frames_that_are_too_large(wire: GrpcWire, kind: int) -> None:
    wire.feed((70_000).to_bytes(3, "big") + bytes((kind, 4, 0, 0, 0, 1)))
    assert code(wire) == FRAME_SIZE


def test_data_frames_that_are_too_large(wire: GrpcWire) -> None:
    stream = wire.open(ECHO)
    size = machine.FRAME_BYTES_MAX + 1
    wire.feed(size.to_bytes(3, "big") + b"\0\0" + stream.to_bytes(4, "big"))
    assert code(wire) == FRAME_SIZE


# ---------------------------------------------------------------------- upkeep


def acknowledged(make_wire: MakeWire, **limits: Any) -> GrpcWire:
    wire = make_wire(**limits)
    wire.feed(Frame(4, 1, 0, b"").packed())
    return wire


def test_keepalive(make_wire: MakeWire, echo: EchoMethods) -> None:
    wire = acknowledged(make_wire, keepalive_time_s=10, keepalive_timeout_s=5)
    wire.sweep(20)
    assert not [f for f in wire.frames if f.kind == 6], "there is no call in progress"
    echo.later = True
    wire.call(ECHO)
    wire.sweep(10)
    (asked,) = [f for f in wire.frames if f.kind == 6]
    wire.feed(ping(asked.payload, 1))
    wire.sweep(9)
    assert len([f for f in wire.frames if f.kind == 6]) == 1
    wire.sweep(1)
    assert len([f for f in wire.frames if f.kind == 6]) == 2
    wire.sweep(5)
    assert not wire.ended
    wire.sweep(2)
    assert wire.transport.aborted
    assert echo.cancelled == 1


def test_keepalive_without_calls(make_wire: MakeWire) -> None:
    wire = acknowledged(
        make_wire, keepalive_time_s=3, keepalive_timeout_s=3, keepalive_without_calls=True
    )
    wire.sweep(8)
    assert wire.transport.aborted


@pytest.mark.parametrize("limit", ["connection_age_s_max", "idle_timeout_s"])
def test_old_and_idle_connections_are_asked_to_go(make_wire: MakeWire, limit: str) -> None:
    wire = acknowledged(make_wire, **{limit: 5})
    wire.sweep(4)
    assert wire.goaways == []
    wire.sweep()
    assert [goaway[0] for goaway in wire.goaways] == [2**31 - 1]
    wire.feed(ping(b"goaway  ", 1))
    assert wire.ended


def test_who_is_busy_is_not_idle(make_wire: MakeWire, echo: EchoMethods) -> None:
    wire = acknowledged(make_wire, idle_timeout_s=5, keepalive_time_s=10_000)
    for _ in range(4):
        wire.call(ECHO)
        wire.sweep(4)
    echo.later = True
    wire.call(ECHO)
    wire.sweep(20)
    assert wire.goaways == []


def test_the_grace_of_old_connections(make_wire: MakeWire, echo: EchoMethods) -> None:
    wire = acknowledged(make_wire, connection_age_s_max=5, connection_grace_s=3)
    echo.later = True
    wire.call(ECHO)
    wire.sweep(8)
    assert len(wire.goaways) == 2, "it was final though the client did not answer"
    assert not wire.ended
    wire.sweep(2)
    assert wire.transport.aborted


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE + settings({}) + b"\0\0\5\1"])
def test_slow_beginnings(make_wire: MakeWire, sent: bytes) -> None:
    wire = make_wire(preface=False, read_timeout_s=5)
    wire.feed(sent)
    wire.sweep(5)
    assert not wire.ended
    wire.sweep(2)
    assert wire.transport.aborted


@pytest.mark.parametrize("path", [ECHO, CHAT])
def test_slow_messages(make_wire: MakeWire, path: str) -> None:
    wire = acknowledged(make_wire, read_timeout_s=5)
    stream = wire.open(path)
    wire.data(stream, message(bytes(1000))[:100])
    wire.sweep(5)
    assert not wire.outcome(stream).ended
    wire.sweep(2)
    assert wire.outcome(stream).status == 4
    assert not wire.ended


def test_a_trickle_is_too_slow_as_well(make_wire: MakeWire) -> None:
    wire = acknowledged(make_wire, read_timeout_s=5)
    stream = wire.open(ECHO)
    wire.data(stream, message(bytes(1000))[:5])
    for _ in range(10):
        wire.data(stream, b"x")
        wire.sweep()
    assert wire.outcome(stream).status == 4


def test_a_silent_stream_may_wait(make_wire: MakeWire) -> None:
    wire = acknowledged(make_wire, read_timeout_s=5)
    stream = wire.open(CHAT)
    wire.data(stream, message(b"x"))
    wire.sweep(100)
    assert not wire.outcome(stream).ended


def test_a_stream_that_was_silent_for_long_has_time_for_its_message(make_wire: MakeWire) -> None:
    wire = acknowledged(make_wire, read_timeout_s=5)
    stream = wire.open(CHAT)
    wire.sweep(100)
    wire.data(stream, message(b"x" * 50)[:10])
    wire.sweep(4)
    wire.data(stream, message(b"x" * 50)[10:])
    assert wire.outcome(stream).messages == [b"x" * 50]
    wire.data(stream, message(b"y")[:2])
    wire.sweep(7)
    assert wire.outcome(stream).status == 4


def test_who_is_not_read_is_not_slow(make_wire: MakeWire, echo: EchoMethods) -> None:
    """Reading stops while replies wait: what is half received then is not the client's fault."""
    wire = acknowledged(make_wire, read_timeout_s=3, write_timeout_s=50)
    wire.feed(settings({4: 1 << 30}) + window_update(0, 1 << 30))
    stream = wire.open(ECHO)
    wire.data(stream, message(bytes(1000))[:100])
    wire.transport.stalled = True
    while wire.transport.reading:
        wire.call(ECHO, bytes(15_000))
    wire.feed(Frame(0, 0, stream, bytes(100)).packed()[:20])
    for _ in range(10):
        wire.sweep()
        wire.take(2000)
    assert not wire.ended
    wire.transport.stalled = False
    wire.take()
    wire.feed(Frame(0, 0, stream, bytes(100)).packed()[20:])
    wire.data(stream, bytes(805), end=True)
    assert wire.outcome(stream).messages == [bytes(1000)]


@pytest.mark.parametrize("window", [65_535, 10])
def test_plain_refusals_do_not_wait_for_ever(make_wire: MakeWire, window: int) -> None:
    wire = acknowledged(make_wire)
    wire.feed(settings({4: window}))
    wire.send(1, 4, 1, wire.head(ECHO, method="GET"))
    wire.sweep(30)
    assert not wire.outcome(1).heads
    wire.sweep(2)
    assert wire.outcome(1).fields[":status"] == "405"
    assert wire.outcome(1).ended is (window > 10)
    wire.sweep(62)
    assert wire.outcome(1).reset == (0 if window > 10 else 8)


def test_a_client_that_leaves_its_window_closed(make_wire: MakeWire, echo: EchoMethods) -> None:
    wire = acknowledged(make_wire, write_timeout_s=5)
    echo.later = True
    stream = wire.call(ECHO)
    echo.calls[0][0].reply((bytes(100_000),))
    wire.sweep(5)
    assert wire.outcome(stream).reset == -1
    wire.sweep(2)
    assert wire.outcome(stream).reset == 8
    assert not wire.ended


def test_a_client_that_reads_nothing(make_wire: MakeWire) -> None:
    wire = acknowledged(make_wire, write_timeout_s=5)
    wire.transport.stalled = True
    wire.call(ECHO, bytes(1000))
    wire.sweep(5)
    assert not wire.transport.aborted
    wire.sweep(2)
    assert wire.transport.aborted


def test_too_many_connections(make_wire: MakeWire) -> None:
    wire = make_wire(connections_max=1)
    other = GrpcWire(wire.listener)
    assert other.ended
    assert other.goaways[0][1] == CALM
    assert wire.outcome(wire.call(ECHO, b"x")).messages == [b"x"]


def test_the_end_lingers_until_the_client_closes(wire: GrpcWire) -> None:
    wire.send(9, 4, 1, b"")
    assert wire.transport.eof_written
    wire.feed(b"whatever still comes" * 1000)
    wire.sweep(2)
    assert not wire.transport.aborted
    wire.sweep(2)
    assert wire.transport.aborted


def test_a_fault_of_ours_ends_one_connection(
    wire: GrpcWire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(type(wire.listener), "make", broken)
    with caplog.at_level(logging.ERROR):
        wire.call(ECHO)
    assert wire.goaways[0][1] == 2
    assert wire.ended
    assert "ours" in caplog.text
