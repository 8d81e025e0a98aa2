"""The codecs of large messages, for threads beside the event loop.

Knows that a decoder and an encoder serve one thread each, and that the clients' shared memory is
the event loop's alone: a message that refers to it is given back undecoded.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NoReturn

from penstock.protocol import oip_json
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferReply, InferRequest, RegionRef
from penstock.server.front.compression import (
    COMPRESSED_BYTES_MAX,
    COMPRESSED_BYTES_MIN,
    compress,
    decompress,
)
from penstock.server.front.target import Target
from penstock.server.http_seam import Buffer

INLINE_JSON_BYTES_MAX: Final = 64 * 1024
"""Decoding so much JSON takes half a millisecond; handing it over and back a fifth of one."""
INLINE_CODED_BYTES_MAX: Final = 1024
"""Deflate packs up to a thousand to one: beyond this the loop could be held up by the result."""
INLINE_ELEMENTS_MAX: Final = 8192
"""Of an array that is written as JSON, or perhaps compressed: half a millisecond."""
COMPRESSED_ASIDE_BYTES_MAX: Final = 64 * 1024**2
"""Half a second of a thread; beyond it replies go as they are."""

Encoded = tuple[list[Buffer], int | None, bytes]
"""The buffers of a reply, the length of its JSON if there are bytes behind it, header fields."""


class _LoopOnly(Exception):
    """The message needs what only the event loop may touch."""


class _NoRegions:
    def resolve(self, ref: RegionRef) -> NoReturn:
        raise _LoopOnly

    def target(self, ref: RegionRef) -> NoReturn:
        raise _LoopOnly


class LargeCodecs(threading.local):
    """One decoder and one encoder for each thread that asks."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._decoder = oip_json.RequestDecoder(limits, _NoRegions())
        self._encoder = oip_json.ReplyEncoder()

    def decode(self, target: Target, body: Buffer) -> InferRequest | Buffer:
        """The request; or the body without its content coding, where decoding it needs the loop."""
        if target.coding:
            body = decompress(body, target.coding, self._limits.json_bytes_max)
        if target.json_length == 0:
            return body
        try:
            return self._decoder.decode(body, target.json_length, target.model)
        except _LoopOnly:
            return body

    def encode(self, reply: InferReply, form: Any, coding: bytes) -> Encoded:
        buffers, length = self._encoder.encode(reply, form)
        return packed(buffers, length, coding, aside=True)


def packed(
    buffers: list[Buffer],
    length: int | None,
    coding: bytes,
    *,
    aside: bool = False,
) -> Encoded:
    """An encoded reply in a content coding, where that is worth it."""
    bytes_max = COMPRESSED_ASIDE_BYTES_MAX if aside else COMPRESSED_BYTES_MAX
    if coding and COMPRESSED_BYTES_MIN <= sum(map(len, buffers)) <= bytes_max:
        return [compress(buffers, coding)], length, b"Content-Encoding: %b\r\n" % coding
    return buffers, length, b""


def is_large(reply: InferReply) -> bool:
    """Whether writing ``reply`` as JSON, or compressing it, would hold up the loop."""
    for array in reply.arrays:  # a generator costs more than all of this
        if array.size > INLINE_ELEMENTS_MAX:
            break
    else:
        return False
    return True
