"""gRPC calls on a connection in memory: framing, statuses, metadata, compression, flow, the end."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.grpc_seam import Method
from penstock.server.transport.grpc.fake import (
    EchoMethods,
    Frame,
    GrpcWire,
    message,
    settings,
    window_update,
)
from penstock.server.transport.grpc.listener import GrpcLimits, GrpcListener
from penstock.server.transport.http2.stream import CREDIT_BYTES

ECHO, CHAT = "/t.T/Echo", "/t.T/Chat"
CANCEL, NO_ERROR, REFUSED, FLOW = 8, 0, 7, 3
MakeWire = Callable[..., GrpcWire]


def test_a_unary_call(wire: GrpcWire, echo: EchoMethods) -> None:
    outcome = wire.outcome(wire.call(ECHO, b"hello"))
    assert outcome.messages == [b"hello"]
    assert outcome.heads == [
        {":status": "200", "content-type": "application/grpc"},
        {"grpc-status": "0"},
    ]
    assert (outcome.ended, outcome.reset) == (True, -1)


def test_answers_of_one_turn_are_one_write(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    later: list[Callable[[], None]] = []
    wire.listener.soon = later.append
    calls = [wire.call(ECHO, b"%d" % i) for i in range(4)]
    before = bytes(wire.transport.sent)
    for _ in range(3):
        echo.answer()
    assert bytes(wire.transport.sent) == before
    assert len(later) == 1
    later.pop()()
    assert [wire.outcome(call).messages for call in calls[:3]] == [[b"0"], [b"1"], [b"2"]]
    # The last one open waits for nobody.
    echo.answer()
    assert wire.outcome(calls[3]).messages == [b"3"]
    assert not later


def test_answers_held_back_go_out_before_a_large_one_and_before_the_end(
    wire: GrpcWire, echo: EchoMethods
) -> None:
    echo.later = True
    later: list[Callable[[], None]] = []
    wire.listener.soon = later.append
    wire.feed(settings({4: 1 << 20}) + window_update(0, 1 << 20))
    calls = [wire.call(ECHO, payload) for payload in (b"a", b"b" * 100_000, b"c", b"d")]
    for _ in range(3):
        echo.answer()
    wire.connection.drain()
    wire.send(6, 1, 0, b"goaway  ")
    echo.answer()
    later.pop()()
    wire.sweep()
    lengths = [[len(m) for m in wire.outcome(call).messages] for call in calls]
    assert lengths == [[1], [100_000], [1], [1]]
    assert wire.ended


def test_calls_with_equal_fields_share_their_head(wire: GrpcWire, echo: EchoMethods) -> None:
    for timeout in ("1S", "2S", "250m"):
        wire.call(ECHO, b"x", [("grpc-timeout", timeout)])
    heads = {id(head) for _, head, _ in echo.calls}
    deadlines = [call.deadline_ns for call, _, _ in echo.calls]
    assert len(heads) == 1
    assert deadlines[2] < deadlines[0] < deadlines[1]


def test_metadata(wire: GrpcWire, echo: EchoMethods) -> None:
    fields = [
        ("user-agent", "me"), ("key", "a"), ("key", "b"), ("raw-bin", "AAE"), ("pad-bin", "AAE="),
        ("many-bin", "AA,AQ=="), ("grpc-timeout", "1M"),
    ]  # fmt: skip
    wire.call(ECHO, b"", fields)
    head = echo.calls[0][1]
    assert head.path == ECHO
    assert head.metadata == {
        "user-agent": "me", "key": "a,b", "raw-bin": b"\0\1", "pad-bin": b"\0\1",
        "many-bin": b"\0,\1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "status", "text"),
    [
        ("/t.T/None", [], 12, "unknown method /t.T/None"),
        (ECHO, [("grpc-timeout", "1")], 13, "grpc-timeout"),
        (ECHO, [("grpc-timeout", "123456789S")], 13, "grpc-timeout"),
        (ECHO, [("x-bin", "!")], 13, "x-bin"),
        (ECHO, [("grpc-encoding", "snappy")], 12, "'snappy'"),
    ],
)
def test_refused_calls(wire: GrpcWire, path: str, fields: Any, status: int, text: str) -> None:
    stream = wire.open(path, fields)
    outcome = wire.outcome(stream)
    assert outcome.status == status
    assert text in outcome.fields["grpc-message"].replace("%25", "%")
    assert len(outcome.heads) == 1, "in trailers alone"
    assert outcome.reset == NO_ERROR, "the client need not send the rest"
    wire.data(stream, message(b"late"), end=True)
    assert wire.goaways == []
    if status == 12:
        assert outcome.fields["grpc-accept-encoding"] == "identity,deflate,gzip"


@pytest.mark.parametrize(
    ("changed", "fields", "status"),
    [
        ({"method": "GET"}, [], "405"),
        ({"method": "PUT"}, [], "405"),
        ({}, [("content-type", "application/json")], "415"),
        ({}, [("x", "y" * 20_000)], "431"),
    ],
)
def test_what_is_not_grpc_is_answered_in_http(
    wire: GrpcWire, changed: dict[str, str], fields: Any, status: str
) -> None:
    wire.send(1, 5, 1, wire.head(ECHO, fields, **changed))
    outcome = wire.outcome(1)
    assert outcome.fields[":status"] == status
    assert outcome.fields["content-length"] == str(len(outcome.data))
    assert outcome.ended
    assert outcome.data.endswith(b"\n")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "without a message"),
        (message(b"a") * 2, "more than one"),
        (message(b"abc")[:-1], "not complete"),
        (b"\0\0", "not complete"),
        (b"\2" + message(b"abc")[1:], "neither 0 nor 1"),
        (message(b"abc", compressed=True), "no grpc-encoding"),
    ],
)
def test_unary_calls_have_one_message(wire: GrpcWire, payload: bytes, text: str) -> None:
    stream = wire.open(ECHO)
    wire.data(stream, payload, end=True)
    outcome = wire.outcome(stream)
    assert outcome.status == Code.INTERNAL.grpc_status
    assert text in outcome.fields["grpc-message"]


def test_a_unary_call_without_any_data(wire: GrpcWire, echo: EchoMethods) -> None:
    assert wire.outcome(wire.open(ECHO, end=True)).status == 13
    assert echo.calls == []


@pytest.mark.parametrize("size", [0, 1, 16_000, 70_000, 300_000])
def test_messages_in_any_pieces(wire: GrpcWire, size: int) -> None:
    wire.feed(settings({4: 1 << 20}) + window_update(0, 1 << 20))
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for piece in (1, 7, 4096, 1 << 20):
        if size > 1000 and piece < 10:
            continue
        stream = wire.open(ECHO)
        framed = message(payload)
        for at in range(0, len(framed), piece):
            wire.data(stream, framed[at : at + piece])
        wire.data(stream, b"", end=True)
        assert wire.outcome(stream).messages == [payload]


def test_a_large_frame_is_received_in_place(wire: GrpcWire, echo: EchoMethods) -> None:
    wire.feed(settings({4: 1 << 23}) + window_update(0, 1 << 23))
    payload = bytes(range(256)) * 8192
    stream = wire.open(ECHO)
    wire.data(stream, message(payload)[:2_000_000])
    wire.data(stream, message(payload)[2_000_000:], end=True)
    assert wire.outcome(stream).messages == [payload]
    kept = echo.calls[0][2]
    assert isinstance(kept, memoryview)
    assert wire.listener.charge(0)
    assert wire.listener._body_bytes == 0


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_is_nothing(wire: GrpcWire, padding: int) -> None:
    stream = wire.open(ECHO)
    for part, flags in ((message(b"padded")[:6], 8), (message(b"padded")[6:], 9)):
        wire.send(0, flags, stream, bytes((padding,)) + part + bytes(padding))
    assert wire.outcome(stream).messages == [b"padded"]


def test_a_message_beyond_the_limit(make_wire: MakeWire) -> None:
    wire = make_wire(message_bytes_max=100)
    stream = wire.open(ECHO)
    wire.data(stream, message(bytes(101))[:10])
    outcome = wire.outcome(stream)
    assert outcome.status == Code.RESOURCE_EXHAUSTED.grpc_status
    assert "(101 vs. 100)" in outcome.fields["grpc-message"]
    assert outcome.reset == NO_ERROR
    assert wire.outcome(wire.call(ECHO, bytes(100))).messages == [bytes(100)]
    assert wire.outcome(wire.call(ECHO, bytes(101))).status == 8


def test_a_method_has_its_own_limit(echo: EchoMethods) -> None:
    unary = echo.methods[ECHO].unary
    listener = GrpcListener({ECHO: Method(ECHO, unary=unary, request_bytes_max=10)})
    wire = GrpcWire(listener)
    assert wire.outcome(wire.call(ECHO, bytes(11))).status == 8
    assert wire.outcome(wire.call(ECHO, bytes(10))).status == 0


def test_the_bytes_of_all_clients_are_bounded(make_wire: MakeWire) -> None:
    wire = make_wire(bodies_bytes_max=200_000)
    stream = wire.open(ECHO)
    for _ in range(30):
        wire.data(stream, message(bytes(10_000_000))[:10_000])
        if wire.outcome(stream).ended:
            break
    assert wire.outcome(stream).status == 8
    assert wire.listener._body_bytes == 0, "what was received is given back"


# ---------------------------------------------------------------------- compression


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_messages_are_answered_alike(wire: GrpcWire, coding: str) -> None:
    payload = b"compressible " * 1000
    packed = gzip.compress(payload) if coding == "gzip" else zlib.compress(payload)
    stream = wire.open(ECHO, [("grpc-encoding", coding), ("grpc-accept-encoding", f"{coding}, x")])
    wire.data(stream, message(packed, compressed=True), end=True)
    outcome = wire.outcome(stream)
    assert outcome.fields["grpc-encoding"] == coding
    assert outcome.data[0] == 1
    (reply,) = outcome.messages
    assert len(reply) < 1000
    assert zlib.decompress(reply, 47) == payload


@pytest.mark.parametrize("accepted", ["identity", ""])
def test_replies_are_plain_unless_accepted(wire: GrpcWire, accepted: str) -> None:
    stream = wire.open(ECHO, [("grpc-encoding", "gzip"), ("grpc-accept-encoding", accepted)])
    wire.data(stream, message(gzip.compress(bytes(5000)), compressed=True), end=True)
    assert wire.outcome(stream).messages == [bytes(5000)]


def test_small_replies_are_not_compressed(wire: GrpcWire) -> None:
    stream = wire.open(ECHO, [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip")])
    wire.data(stream, message(b"small"), end=True)
    assert wire.outcome(stream).messages == [b"small"]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(bytes(10_001)), 8),
        (gzip.compress(bytes(100))[:-3], 13),
        (b"not gzip", 13),
        (gzip.compress(b"a") + b"tail", 13),
    ],
)
def test_bad_compression(make_wire: MakeWire, packed: bytes, status: int) -> None:
    wire = make_wire(message_bytes_max=10_000)
    stream = wire.open(ECHO, [("grpc-encoding", "gzip")])
    wire.data(stream, message(packed, compressed=True), end=True)
    assert wire.outcome(stream).status == status


# ---------------------------------------------------------------------- replies


def test_errors(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    echo.answer(InferError(Code.NOT_FOUND, "no 100% «ü»\n"))
    outcome = wire.outcome(stream)
    assert outcome.heads == [
        {
            ":status": "200", "content-type": "application/grpc", "grpc-status": "5",
            "grpc-message": "no 100%25 %C2%AB%C3%BC%C2%BB%0A",
        }
    ]  # fmt: skip
    assert echo.cancelled == 0


def test_a_long_error_is_cut(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    echo.answer(InferError(Code.INTERNAL, "x" * 100_000))
    text = wire.outcome(stream).fields["grpc-message"]
    assert text == "x" * 4000 + "..."


def test_trailers(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    echo.calls[0][0].reply((b"a", memoryview(b"b")), [("x-load", "0.5"), ("y" * 200, "z" * 200)])
    outcome = wire.outcome(stream)
    assert outcome.messages == [b"ab"]
    assert outcome.heads[1] == {"grpc-status": "0", "x-load": "0.5", "y" * 200: "z" * 200}


def test_only_the_first_answer_counts(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    call = echo.calls[0][0]
    call.fail(InferError(Code.INTERNAL, "first"))
    call.reply((b"second",))
    call.fail(InferError(Code.INTERNAL, "third"))
    outcome = wire.outcome(stream)
    assert (outcome.data, outcome.fields["grpc-message"]) == (b"", "first")


def test_a_method_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def fails(call: Any, head: Any, payload: Any) -> None:
        raise RuntimeError("a secret")

    failing: Any = fails
    wire = GrpcWire(GrpcListener({ECHO: Method(ECHO, unary=failing)}))
    with caplog.at_level(logging.ERROR):
        outcome = wire.outcome(wire.call(ECHO))
    assert (outcome.status, outcome.fields["grpc-message"]) == (13, "internal error")
    assert "a secret" in caplog.text
    assert wire.goaways == []


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_large_replies_keep_to_the_windows(wire: GrpcWire, echo: EchoMethods, size: int) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    echo.calls[0][0].reply((b"head", memoryview(bytes(size))))
    first = wire.outcome(stream)
    assert len(first.data) == min(65_535, size + 9)
    while not wire.outcome(stream).ended:
        have = len(wire.outcome(stream).data)
        wire.feed(window_update(stream, 400_000))
        wire.feed(window_update(0, 200_000))
        assert len(wire.outcome(stream).data) > have
    assert wire.outcome(stream).messages == [b"head" + bytes(size)]
    assert all(len(f.payload) <= 16_384 for f in wire.frames if f.kind == 0)
    assert wire.transport.gathered, "large replies are not joined"


def test_streams_share_the_connection_s_window(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    wire.feed(settings({4: 1 << 30}))
    streams = [wire.call(ECHO) for _ in range(3)]
    for call, _, _ in echo.calls:
        call.reply((bytes(3_000_000),))
    for _ in range(40):
        wire.feed(window_update(0, 300_000))
    assert all(wire.outcome(stream).messages == [bytes(3_000_000)] for stream in streams)


def test_larger_frames_where_the_client_takes_them(wire: GrpcWire, echo: EchoMethods) -> None:
    wire.feed(settings({4: 1 << 20, 5: 100_000}) + window_update(0, 1 << 20))
    echo.later = True
    wire.call(ECHO)
    echo.calls[0][0].reply((bytes(250_000),))
    sizes = [len(f.payload) for f in wire.frames if f.kind == 0]
    assert sizes == [100_000, 100_000, 50_005]


def test_a_window_that_shrinks_below_nothing(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    echo.calls[0][0].reply((bytes(100_000),))
    sent = len(wire.outcome(stream).data)
    wire.feed(settings({4: 100}) + window_update(0, 1 << 20))
    wire.feed(window_update(stream, 65_435))
    assert len(wire.outcome(stream).data) == sent, "the window is at zero"
    wire.feed(window_update(stream, 200_000))
    assert wire.outcome(stream).messages == [bytes(100_000)]


def test_a_client_that_does_not_read_is_not_read(wire: GrpcWire, echo: EchoMethods) -> None:
    wire.feed(settings({4: 1 << 30}) + window_update(0, 1 << 30))
    wire.transport.stalled = True
    for _ in range(400):
        wire.call(ECHO, bytes(15_000))
    assert not wire.transport.reading
    assert len(echo.calls) < 20
    for _ in range(1000):
        wire.take(50_000)
    assert len(echo.calls) == 400
    assert all(outcome.messages == [bytes(15_000)] for outcome in wire.outcomes.values())


# ---------------------------------------------------------------------- streams


def test_a_stream_of_messages(wire: GrpcWire, echo: EchoMethods) -> None:
    stream = wire.open(CHAT)
    wire.data(stream, message(b"1") + message(b"22") + message(b"")[:3])
    wire.data(stream, message(b"")[3:])
    wire.data(stream, b"", end=True)
    outcome = wire.outcome(stream)
    assert outcome.messages == [b"1", b"22", b""]
    assert outcome.status == 0
    assert echo.streams[0].events == ["half-closed"]


def test_a_stream_that_ends_at_once(wire: GrpcWire, echo: EchoMethods) -> None:
    outcome = wire.outcome(wire.open(CHAT, end=True))
    assert (outcome.status, outcome.reset, outcome.messages) == (0, -1, [])
    assert echo.streams[0].events == ["half-closed"]


def test_a_full_stream_leaves_messages_with_the_client(wire: GrpcWire, echo: EchoMethods) -> None:
    stream = wire.open(CHAT)
    echo.full = True
    size = 1_000_000
    sent = 0
    while sent + size + 5 < CREDIT_BYTES:
        wire.data(stream, message(bytes(size)))
        sent += size + 5
    assert echo.streams[0].got == []
    assert not [f for f in wire.frames if f.kind == 8 and f.stream == stream], "no new window"
    wire.data(stream, bytes(CREDIT_BYTES - sent + 1))
    assert wire.outcome(stream).reset == FLOW
    assert echo.streams[0].events == ["cancelled"]


def test_a_stream_that_is_not_full_any_more(wire: GrpcWire, echo: EchoMethods) -> None:
    stream = wire.open(CHAT)
    echo.full = True
    wire.data(stream, message(b"a") + message(b"b"), end=True)
    assert wire.outcome(stream).messages == []
    echo.full = False
    echo.streams[0].call.resume()
    assert wire.outcome(stream).messages == [b"a", b"b"]
    assert echo.streams[0].events == ["half-closed"]


def test_the_window_is_renewed(wire: GrpcWire, echo: EchoMethods) -> None:
    wire.feed(settings({4: 1 << 30}) + window_update(0, 1 << 30))
    stream = wire.open(CHAT)
    for _ in range(40):
        wire.data(stream, message(bytes(1_000_000)))
    assert len(echo.streams[0].got) == 40
    granted = sum(
        int.from_bytes(f.payload, "big") for f in wire.frames if f.kind == 8 and f.stream == stream
    )
    assert granted >= 40_000_000 - CREDIT_BYTES


def test_a_congested_stream_is_told_when_it_may_go_on(wire: GrpcWire, echo: EchoMethods) -> None:
    stream = wire.open(CHAT)
    call = echo.streams[0].call
    for _ in range(10):
        call.send((bytes(100_000),))
    assert call.congested
    wire.data(stream, message(b"held"))
    assert echo.streams[0].got == []
    wire.feed(window_update(0, 1 << 30))
    wire.feed(window_update(stream, 1 << 30))
    assert not call.congested
    assert echo.streams[0].events == ["drained"]
    assert echo.streams[0].got == [b"held"]


def test_a_stream_that_fails_half_way(wire: GrpcWire, echo: EchoMethods) -> None:
    stream = wire.open(CHAT)
    wire.data(stream, message(b"a"))
    echo.streams[0].call.fail(InferError(Code.UNAVAILABLE, "later"), [("retry", "1")])
    outcome = wire.outcome(stream)
    assert (outcome.messages, outcome.status, outcome.reset) == ([b"a"], 14, NO_ERROR)
    assert outcome.heads[1] == {"grpc-status": "14", "grpc-message": "later", "retry": "1"}
    wire.data(stream, message(b"b"))
    assert echo.streams[0].got == [b"a"]


# ---------------------------------------------------------------------- cancellation, deadlines


@pytest.mark.parametrize("how", ["reset", "vanish", "goaway"])
def test_a_client_that_goes_cancels(wire: GrpcWire, echo: EchoMethods, how: str) -> None:
    echo.later = True
    stream = wire.call(ECHO)
    chat = wire.open(CHAT)
    if how == "reset":
        wire.send(3, 0, stream, CANCEL.to_bytes(4, "big"))
        wire.send(3, 0, chat, CANCEL.to_bytes(4, "big"))
    elif how == "vanish":
        wire.vanish()
    else:
        wire.send(0, 0, 99, b"a stream that never was")
    assert echo.cancelled == 1
    assert echo.streams[0].events == ["cancelled"]
    before = len(wire.frames)
    echo.answer()
    echo.streams[0].call.send((b"x",))
    echo.streams[0].call.finish()
    assert len(wire.frames) == before, "nothing is sent any more"


def test_overdue_calls_end(
    wire: GrpcWire, echo: EchoMethods, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo.later = True
    timed = wire.call(ECHO, fields=[("grpc-timeout", "2S")])
    chat = wire.open(CHAT, [("grpc-timeout", "2S")])
    other = wire.call(ECHO)
    deadline = echo.calls[0][0].deadline_ns
    monkeypatch.setattr(
        "penstock.server.transport.grpc.connection.monotonic_ns", lambda: deadline - 1
    )
    wire.sweep()
    assert echo.cancelled == 0
    monkeypatch.setattr(
        "penstock.server.transport.grpc.connection.monotonic_ns", lambda: deadline + 10**9
    )
    wire.sweep()
    assert echo.cancelled == 1
    assert [wire.outcome(s).status for s in (timed, chat, other)] == [4, 4, -1]
    assert echo.streams[0].events == ["cancelled"]


def test_too_many_streams(make_wire: MakeWire, echo: EchoMethods) -> None:
    echo.later = True
    wire = make_wire(streams_max=2)
    streams = [wire.call(ECHO) for _ in range(3)]
    assert wire.outcome(streams[2]).reset == REFUSED
    echo.answer()
    assert wire.outcome(streams[0]).status == 0
    assert wire.outcome(wire.call(ECHO)).reset == -1


def test_leaving(wire: GrpcWire, echo: EchoMethods) -> None:
    echo.later = True
    first = wire.call(ECHO)
    wire.listener.leave()
    assert wire.goaways == [(2**31 - 1, 0, b"")]
    late = wire.outcome(wire.call(ECHO))
    assert late.status == Code.UNAVAILABLE.grpc_status
    assert late.fields["grpc-message"] == (
        "GRPC server is shutting down and has stopped accepting new requests"
    )
    (ping,) = [f for f in wire.frames if f.kind == 6]
    wire.feed(Frame(6, 1, 0, ping.payload).packed())
    assert wire.goaways[1] == (3, 0, b"")
    assert wire.outcome(wire.call(ECHO)).reset == REFUSED
    assert not wire.ended
    echo.answer()
    assert wire.outcome(first).status == 0
    wire.connection.drain()
    assert wire.ended


def test_limits_have_the_flags_defaults() -> None:
    limits = GrpcLimits()
    assert limits.message_bytes_max == 2 << 30
    assert limits.streams_max == 4096
