"""The chunked coding: every case whole, byte by byte, split everywhere, and with bytes behind."""

from __future__ import annotations

import pytest

from penstock.server.transport import chunked as module
from penstock.server.transport.chunked import ChunkedBody
from penstock.server.transport.status import BadRequest

MAX = 1000

GOOD: dict[str, tuple[bytes, bytes]] = {
    "empty": (b"0\r\n\r\n", b""),
    "zeros": (b"000\r\n\r\n", b""),
    "one": (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "two": (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
    "hexadecimal": (b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", b"0123456789" * 2 + b"a"),
    "leading zeros": (b"0000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    "CRLF in data": (b"6\r\n\r\n\r\n0\r\r\n0\r\n\r\n", b"\r\n\r\n0\r"),
    "extension": (b"5;a=b\r\nhello\r\n0;x\r\n\r\n", b"hello"),
    "quoted extension": (b'5;a="b;c d"\r\nhello\r\n0\r\n\r\n', b"hello"),
    "space before extension": (b"5 \t;a\r\nhello\r\n0\r\n\r\n", b"hello"),
    "space after size": (b"5  \r\nhello\r\n0\r\n\r\n", b"hello"),
    "trailer": (b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n", b"a"),
    "trailers": (b"0\r\nA: 1\r\nB:\r\nContent-Length: 7\r\n\r\n", b""),
    "all that fits": (b"3e8\r\n" + b"x" * MAX + b"\r\n0\r\n\r\n", b"x" * MAX),
}

BAD: dict[str, tuple[int, bytes]] = {
    "no size": (400, b"\r\nhello\r\n"),
    "not a number": (400, b"xyz\r\n"),
    "negative": (400, b"-5\r\nhello\r\n"),
    "plus": (400, b"+5\r\nhello\r\n"),
    "0x": (400, b"0x5\r\nhello\r\n"),
    "underscore": (400, b"1_0\r\n"),
    "space first": (400, b" 5\r\nhello\r\n"),
    "16 digits": (400, b"0000000000000005\r\nhello\r\n"),
    "2^64": (400, b"10000000000000000\r\n"),
    "2^63": (400, b"8000000000000000\r\n"),
    "2^60 - 1": (413, b"fffffffffffffff\r\n"),
    "too long": (413, b"3e9\r\n"),
    "too long in all": (413, b"3e8\r\n" + b"x" * MAX + b"\r\n1\r\n"),
    "data longer than size": (400, b"3\r\nhello\r\n0\r\n\r\n"),
    "data shorter than size": (400, b"6\r\nhello\r\n0\r\n\r\n"),
    "LF after size": (400, b"5\nhello\r\n0\r\n\r\n"),
    "LF in extension": (400, b"5;a\nb\r\nhello\r\n"),
    "CR in extension": (400, b"5;a\rb\r\nhello\r\n"),
    "LF after data": (400, b"5\r\nhello\n\r0\r\n\r\n"),
    "endless size": (400, b"0" * (module._LINE_MAX + 2)),
    "endless extension": (400, b"5;" + b"x" * module._LINE_MAX),
    "trailer without a colon": (400, b"0\r\nabc\r\n\r\n"),
    "endless trailer": (400, b"0\r\nA:" + b"x" * module._LINE_MAX),
    "endless trailers": (400, b"0\r\n" + b"A: 1\r\n" * 2000),
}


def pieces_of(data: bytes) -> list[list[bytes]]:
    """``data`` whole, byte by byte, and in two at every (long data: at some) position."""
    step = max(1, len(data) // 60)
    cuts = [[data[:i], data[i:]] for i in range(1, len(data), step)]
    return [[data], [data[i : i + 1] for i in range(len(data))], *cuts]


@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n", b"\r\n"], ids=["", "next", "CRLF"])
@pytest.mark.parametrize(("data", "body"), GOOD.values(), ids=GOOD)
def test_good(data: bytes, body: bytes, behind: bytes) -> None:
    for pieces in pieces_of(data):
        decoder = ChunkedBody(MAX)
        assert all(decoder.feed(piece) is None for piece in pieces[:-1])
        assert decoder.feed(pieces[-1] + behind) == behind
        assert decoder.body == body


@pytest.mark.parametrize(("status", "data"), BAD.values(), ids=BAD)
def test_bad(status: int, data: bytes) -> None:
    for pieces in pieces_of(data):
        decoder = ChunkedBody(MAX)
        with pytest.raises(BadRequest) as caught:
            list(map(decoder.feed, pieces))
        assert caught.value.status == status


@pytest.mark.parametrize("data", [data for data, _ in GOOD.values()], ids=GOOD)
def test_a_part_is_never_taken_for_the_whole(data: bytes) -> None:
    for end in range(len(data)):
        assert ChunkedBody(MAX).feed(data[:end]) is None


def test_the_longest_line_is_taken_however_it_arrives() -> None:
    data = b"1;" + b"x" * (module._LINE_MAX - 2) + b"\r\na\r\n0\r\n\r\n"
    for cut in range(module._LINE_MAX - 2, module._LINE_MAX + 6):
        decoder = ChunkedBody(MAX)
        assert decoder.feed(data[:cut]) is None
        assert decoder.feed(data[cut:]) == b""
        assert decoder.body == b"a"


def test_as_many_chunks_as_triton_takes() -> None:
    chunks = b"1\r\na\r\n" * module._CHUNKS_MAX
    decoder = ChunkedBody(1 << 20)
    assert decoder.feed(chunks + b"0\r\n\r\n") == b""
    assert len(decoder.body) == module._CHUNKS_MAX
    with pytest.raises(BadRequest, match="more than 65536 chunks"):
        ChunkedBody(1 << 20).feed(chunks + b"1\r\na\r\n0\r\n\r\n")


def test_what_was_read_is_not_kept() -> None:
    decoder = ChunkedBody(1 << 20)
    for _ in range(1000):
        assert decoder.feed(b"10;" + b"x" * 1000 + b"\r\n" + b"a" * 16 + b"\r\n") is None
    assert len(decoder.body) == 16_000
    assert len(decoder._buffer) == 0
