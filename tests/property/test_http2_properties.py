"""However a conversation is cut and whatever is broken in it: the same replies, an end, no leak."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.transport.grpc.fake import (
    PREFACE,
    EchoMethods,
    Frame,
    GrpcWire,
    message,
    window_update,
)
from penstock.server.transport.grpc.fake import settings as settings_frame

ECHO, CHAT = "/t.T/Echo", "/t.T/Chat"
LIMITS = {"message_bytes_max": 200_000, "bodies_bytes_max": 1_000_000, "streams_max": 20}


class Script:
    """Writes a conversation down instead of having it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.wire = GrpcWire(EchoMethods().listener(), preface=False)
        self.frames = [Frame(4, 0, 0, b""), Frame(8, 0, 0, (1 << 20).to_bytes(4, "big"))]
        self.next = 1

    def head(self, path: str, end: bool = False) -> int:
        number, self.next = self.next, self.next + 2
        fields = [("key", self.rng.choice(["a", "b", "c" * 400]))]
        if self.rng.random() < 0.3:
            fields.append(("grpc-timeout", f"{self.rng.randint(1, 99)}S"))
        block = self.wire.head(path, fields)
        flags = 4 | end
        if self.rng.random() < 0.3:
            at = self.rng.randrange(len(block))
            self.frames += [
                Frame(1, flags & 1, number, block[:at]), Frame(9, 4, number, block[at:])
            ]  # fmt: skip
        else:
            self.frames.append(Frame(1, flags, number, block))
        return number

    def data(self, number: int, payload: bytes, end: bool) -> None:
        pad = self.rng.choice([None, None, None, 0, 9])
        if pad is not None:
            payload = bytes((pad,)) + payload + bytes(pad)
        self.frames.append(Frame(0, end | (8 if pad is not None else 0), number, payload))

    def call(self) -> None:
        rng = self.rng
        path = rng.choice([ECHO, ECHO, CHAT, "/t.T/None"])
        number = self.head(path)
        count = 1 if path == ECHO else rng.randint(0, 3)
        size = rng.choice([0, 1, 50, 5000, 40_000])
        framed = b"".join(message(bytes([i + 1]) * size) for i in range(count))
        cuts = sorted(rng.randrange(len(framed) + 1) for _ in range(rng.randint(0, 3)))
        edges = [0, *cuts, len(framed)]
        parts = [framed[a:b] for a, b in pairwise(edges) if b > a]
        for part in parts:
            self.data(number, part, end=False)
            if rng.random() < 0.1:
                self.frames.append(Frame(6, 1, 0, b"whatever"))
        if rng.random() < 0.1:
            self.frames.append(Frame(3, 0, number, b"\0\0\0\x08"))
        else:
            self.data(number, b"", end=True)


@cache
def conversation(seed: int) -> tuple[Frame, ...]:
    script = Script(random.Random(seed))
    for _ in range(6):
        script.call()
    return tuple(script.frames)


def bytes_of(frames: Any) -> bytes:
    return PREFACE + b"".join(frame.packed() for frame in frames)


def replies(data: bytes, cuts: list[int]) -> dict[int, Any]:
    """What comes back when ``data`` is sent in pieces of these sizes, over and over."""
    wire = GrpcWire(EchoMethods().listener(**LIMITS), preface=False)
    at = turn = 0
    while at < len(data) and not wire.lost:
        size = cuts[turn % len(cuts)]
        wire.feed(data[at : at + size])
        at += size
        turn += 1
    found = {}
    for number, outcome in wire.outcomes.items():
        # Whether a reset overtakes a reply depends on the cut, and nothing else does.
        found[number] = (outcome.heads, outcome.data, outcome.ended, outcome.reset)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_every_cut_gives_the_same_replies(seed: int) -> None:
    data = bytes_of(conversation(seed))
    whole = replies(data, [len(data)])
    assert len(whole) > 3
    pieces = [[3], [16_384], [1000, 1, 9], [24, 9, 5, 70_000]]
    if len(data) < 60_000:
        pieces.append([1])
    for cuts in pieces:
        assert replies(data, cuts) == whole


@given(st.integers(0, 200), st.lists(st.integers(1, 30_000), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_random_cuts_give_the_same_replies(seed: int, cuts: list[int]) -> None:
    data = bytes_of(conversation(seed))
    assert replies(data, cuts) == replies(data, [len(data)])


def damaged(frames: tuple[Frame, ...], rng: random.Random) -> bytes:
    """Some frames changed, dropped, doubled or swapped; some bytes changed."""
    list_ = list(frames)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(list_))
        frame = list_[at]
        what = rng.randrange(8)
        if what == 0:
            list_[at] = frame._replace(flags=rng.randrange(256))
        elif what == 1:
            list_[at] = frame._replace(kind=rng.choice([*range(10), 200]))
        elif what == 2:
            list_[at] = frame._replace(stream=rng.choice([0, 1, 2, 3, 99, 2**31 - 1]))
        elif what == 3:
            list_[at] = frame._replace(payload=frame.payload[: rng.randrange(12)])
        elif what == 4:
            list_.insert(at, rng.choice(list_))
        elif what == 5:
            del list_[at]
            list_ = list_ or [frame]
        elif what == 6:
            pair = rng.choice([1, 4, 5, 99]).to_bytes(2, "big") + rng.randbytes(4)
            list_.insert(at, Frame(4, 0, 0, pair))
        else:
            payload = bytearray(frame.payload or b"\0")
            payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
            list_[at] = frame._replace(payload=bytes(payload))
    data = bytearray(bytes_of(list_))
    if rng.random() < 0.3:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@given(st.integers(0, 10**9))
@settings(max_examples=400, deadline=None)
def test_damage_ends_in_order(number: int) -> None:
    """Nothing raises, what is sent is well-formed, others are served, everything is given back."""
    rng = random.Random(number)
    echo = EchoMethods()
    listener = echo.listener(**LIMITS)
    wire = GrpcWire(listener, preface=False)
    beside = GrpcWire(listener)
    data = damaged(conversation(rng.randrange(50)), rng)
    while data and not wire.lost:
        size = rng.choice([1, 20, 5000, 100_000])
        wire.feed(data[:size])
        data = data[size:]
    assert all(goaway[1] != 2 for goaway in wire.goaways), "a fault of ours"
    assert len(wire.frames) < 2000
    assert beside.outcome(beside.call(ECHO, b"fine")).messages == [b"fine"]
    wire.vanish()
    assert listener.connections == 1
    assert listener._body_bytes == 0
    assert all(stream.events for stream in echo.streams), "each was told of its end"


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_noise_ends_in_order(noise: bytes, preface: bool) -> None:
    wire = GrpcWire(EchoMethods().listener(), preface)
    wire.feed(noise)
    assert all(goaway[1] != 2 for goaway in wire.goaways)


@given(st.binary(min_size=1, max_size=120))
@settings(max_examples=300, deadline=None)
def test_noise_for_a_header_block_ends_in_order(noise: bytes) -> None:
    wire = GrpcWire(EchoMethods().listener())
    wire.send(1, 5, 1, noise)
    assert all(goaway[1] in (1, 9, 11) for goaway in wire.goaways)
    if not wire.goaways:
        assert wire.outcome(1).ended or wire.outcome(1).reset == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 70_000)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_replies_keep_to_whatever_windows(steps: list[tuple[int, int]]) -> None:
    """Never more than the client allowed, and everything once it allows it."""
    echo = EchoMethods(later=True)
    wire = GrpcWire(echo.listener())
    first, second = wire.call(ECHO), wire.call(ECHO)
    for call, _, _ in echo.calls:
        call.reply((b"x" * 150_000,))
    allowed = {0: 65_535, first: 65_535, second: 65_535}
    for who, increment in steps:
        number = (0, first, second)[who]
        allowed[number] += increment
        wire.feed(window_update(number, increment))
        sizes = {number: len(wire.outcome(number).data) for number in (first, second)}
        assert sum(sizes.values()) <= allowed[0]
        for number, size in sizes.items():
            assert size <= allowed[number]
            assert size == 150_005 or min(allowed[number], allowed[0]) > 0
    wire.feed(settings_frame({4: 1 << 24}) + window_update(0, 1 << 24))
    assert [wire.outcome(n).messages for n in (first, second)] == [[b"x" * 150_000]] * 2
