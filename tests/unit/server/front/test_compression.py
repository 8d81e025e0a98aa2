"""Content codings: both ways, bounded, and strict about what is not in them."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.front.compression import accepted, compress, decompress

TEXT = b"tensor " * 1000
CODED = {b"gzip": gzip.compress(TEXT), b"deflate": zlib.compress(TEXT)}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("wrap", [bytes, memoryview])
def test_decompress(coding: bytes, wrap: type) -> None:
    assert decompress(wrap(CODED[coding]), coding, len(TEXT)) == TEXT


@pytest.mark.parametrize("coding", CODED)
def test_round_trip(coding: bytes) -> None:
    parts = [b"ab", memoryview(b"cd"), b""]
    assert decompress(compress(parts, coding), coding, 100) == b"abcd"
    assert decompress(compress([], coding), coding, 100) == b""


def code_of(coding: bytes, data: bytes, bytes_max: int = 1 << 20) -> Code:
    with pytest.raises(InferError) as caught:
        decompress(data, coding, bytes_max)
    return caught.value.code


@pytest.mark.parametrize("coding", CODED)
def test_one_byte_too_many(coding: bytes) -> None:
    assert code_of(coding, CODED[coding], len(TEXT) - 1) is Code.OUT_OF_RANGE


@pytest.mark.parametrize("coding", CODED)
def test_a_bomb_stays_small(coding: bytes) -> None:
    bomb = compress([bytes(1 << 26)], coding)
    assert len(bomb) < 1 << 19
    tracemalloc.start()
    try:
        assert code_of(coding, bomb, 1000) is Code.OUT_OF_RANGE
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODED)
def test_damage(coding: bytes) -> None:
    good = CODED[coding]
    for data in (b"", b"\0", good[1:], TEXT, good + b"x", good + good):
        assert code_of(coding, data) is Code.INVALID_ARGUMENT
    for end in range(len(good)):
        assert code_of(coding, good[:end]) is Code.INVALID_ARGUMENT
    assert code_of(coding, good[:-3] + b"abc") is Code.INVALID_ARGUMENT


def test_deflate_is_the_zlib_format() -> None:
    bare = zlib.compressobj(wbits=-15)
    assert code_of(b"deflate", bare.compress(TEXT) + bare.flush()) is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"x", b"gzip, deflate", b"compress"])
def test_other_codings(coding: bytes) -> None:
    assert code_of(coding, b"abc") is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"", b""),
        (b"gzip", b"gzip"),
        (b"GZIP", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br", b"gzip"),
        (b"deflate, gzip;q=0.5", b"gzip"),
        (b"br, deflate", b"deflate"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip; q=0.000 ,deflate;q=0", b""),
        (b"identity", b""),
        (b"*", b""),
        (b"gzipped", b""),
        (b",,;q=", b""),
    ],
)
def test_accepted(header: bytes, coding: bytes) -> None:
    assert accepted(header) == coding
