"""Message compression: gzip and deflate (the zlib format), both ways and bounded. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.server.http_seam import Buffer

CODINGS: Final = ("gzip", "deflate")
ACCEPTED: Final = b"identity,deflate,gzip"
COMPRESS_MIN: Final = 1024
"""Smaller replies gain nothing by it."""
_LEVEL: Final = 1  # Tensors compress little; anything beyond the fastest level is wasted time.
_WBITS: Final = {"gzip": 31, "deflate": 15}


def decompress(message: Buffer, coding: str, bytes_max: int) -> bytes:
    """The message that a client compressed.

    Raises:
        InferError: INTERNAL for data that are not in the coding, or without one;
            RESOURCE_EXHAUSTED for more than ``bytes_max`` bytes.
    """
    if not coding:
        raise InferError(Code.INTERNAL, "a compressed message, but no grpc-encoding")
    decoder = zlib.decompressobj(_WBITS[coding])
    try:
        plain = decoder.decompress(message, bytes_max + 1)
    except zlib.error as error:
        raise InferError(Code.INTERNAL, f"the message is not valid {coding}: {error}") from error
    except (MemoryError, OverflowError):
        raise InferError(Code.RESOURCE_EXHAUSTED, "no memory for the message") from None
    if len(plain) > bytes_max:
        raise InferError(
            Code.RESOURCE_EXHAUSTED,
            f"Received message larger than max (decompressed, more than {bytes_max})",
        )
    if not decoder.eof or decoder.unused_data:
        raise InferError(Code.INTERNAL, f"the message is not one whole piece of {coding}")
    return plain


def compress(buffers: Sequence[Buffer], size: int, coding: str) -> bytes | None:
    """The buffers as one compressed message; None if that is not worth it."""
    if size < COMPRESS_MIN:
        return None
    encoder = zlib.compressobj(_LEVEL, wbits=_WBITS[coding])
    parts = [encoder.compress(buffer) for buffer in buffers]
    parts.append(encoder.flush())
    packed = b"".join(parts)
    return packed if len(packed) < size else None
