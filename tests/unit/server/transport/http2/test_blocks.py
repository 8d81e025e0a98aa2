"""Header blocks: as hpack alone decodes them, whatever is remembered and whatever is quick."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.transport.http2.blocks import LIST_BYTES_LARGEST, Blocks, Fields
from penstock.server.transport.http2.frames import ConnectionFault

NAMES = st.sampled_from([b":path", b"te", b"grpc-timeout", b"a", b"b" * 40, b"x-" + b"y" * 200])
VALUES = st.one_of(
    st.sampled_from([b"trailers", b"", b"/a/b", b"\xff\x00", b"z" * 126, b"z" * 127, b"z" * 300]),
    st.binary(max_size=20),
)


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAMES, VALUES), max_size=8), st.sampled_from([0, 0, 0, 64, 4096])
        ),
        max_size=12,
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_blocks_say_what_was_encoded(lists: list[tuple[Fields, int]], huffman: bool) -> None:
    encoder, blocks = Encoder(), Blocks(list)
    for fields, resize in lists:
        if resize:
            encoder.header_table_size = resize
        block = encoder.encode(fields, huffman=huffman)
        known = blocks.known.get(block)
        assert (blocks.decode(block) if known is None else known) == fields
        again = encoder.encode(fields, huffman=huffman)
        known = blocks.known.get(again)
        assert (blocks.decode(again) if known is None else known) == fields


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
@settings(max_examples=500, deadline=None)
def test_noise_is_what_hpack_says_it_is(noises: list[bytes]) -> None:
    plain, blocks = Decoder(LIST_BYTES_LARGEST), Blocks(list)
    for noise in noises:
        try:
            expected = [(name, value) for name, value in plain.decode(noise, raw=True)]
        except HPACKError:
            with pytest.raises(ConnectionFault):
                blocks.fields(noise)
            return
        assert blocks.fields(noise) == expected
        assert blocks._table.dynamic_entries == plain.header_table.dynamic_entries


def test_the_table_is_resized_at_the_start_alone() -> None:
    assert Blocks(list).fields(b"\x20\x82") == [(b":method", b"GET")]
    with pytest.raises(ConnectionFault, match="resized"):
        Blocks(list).fields(b"\x82\x20")


def test_a_memo_that_is_bounded() -> None:
    blocks = Blocks(list)
    for number in range(1000):
        blocks.decode(b"\x00\x01a\x04%04d" % number)
    assert 0 < len(blocks.known) <= 128
    large = b"\x00\x01a\x7f\xff\x07" + bytes(b"x" * 1150)
    assert blocks.decode(large) == [(b"a", b"x" * 1150)]
    assert large not in blocks.known


def test_what_changes_the_table_is_not_remembered() -> None:
    blocks = Blocks(list)
    blocks.decode(b"\x82")
    assert b"\x82" in blocks.known
    adding = b"\x40\x01a\x01b"
    assert blocks.decode(adding) == [(b"a", b"b")]
    assert blocks.known == {}
    assert blocks.decode(b"\xbe") == [(b"a", b"b")]
    assert blocks.decode(b"\x20") == []
    assert blocks.known == {}
    with pytest.raises(ConnectionFault):
        blocks.decode(b"\xbe")
