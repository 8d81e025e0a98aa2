"""HTTP content codings gzip and deflate (the zlib format), in both directions and bounded."""

from __future__ import annotations

import gzip
import zlib
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.server.http_seam import Buffer

DECOMPRESSED_BYTES_MAX: Final = 64 * 1024**2
"""As Triton's default: a small body may not become an unbounded one."""
COMPRESSED_BYTES_MIN: Final = 1024
"""Smaller replies fit a packet as they are. Many clients accept gzip without asking anybody, and
compressing a few numbers costs as much time as inferring them."""
COMPRESSED_BYTES_MAX: Final = 1024**2
"""Larger ones would hold up the event loop: tens of milliseconds for each MiB."""
_LEVEL = 1  # Tensors compress little; anything beyond the fastest level is wasted time.


def decompress(body: Buffer, coding: bytes, bytes_max: int) -> bytes:
    """The body behind a Content-Encoding.

    Raises:
        InferError: UNIMPLEMENTED for another coding, INVALID_ARGUMENT for data that are not in it,
            OUT_OF_RANGE for more than ``bytes_max`` bytes.
    """
    if coding == b"gzip":
        decoder = zlib.decompressobj(wbits=31)
    elif coding == b"deflate":
        decoder = zlib.decompressobj()
    else:
        raise InferError(Code.UNIMPLEMENTED, "Unsupported compression type")
    try:
        plain = decoder.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise InferError(
            Code.INVALID_ARGUMENT, f"the body is not valid {coding.decode()}: {error}"
        ) from error
    if len(plain) > bytes_max:
        raise InferError(
            Code.OUT_OF_RANGE, f"the decompressed body is larger than the limit of {bytes_max}"
        )
    if not decoder.eof:
        raise InferError(Code.INVALID_ARGUMENT, f"the {coding.decode()} body is truncated")
    if decoder.unused_data:
        raise InferError(Code.INVALID_ARGUMENT, f"bytes follow the {coding.decode()} data")
    return plain


def accepted(header: bytes) -> bytes:
    """The coding to answer in for an Accept-Encoding value: b"" for none."""
    offered = {part.split(b";")[0].strip().lower() for part in header.split(b",")}
    for coding in (b"gzip", b"deflate"):
        if coding in offered and not _forbidden(header, coding):
            return coding
    return b""


def _forbidden(header: bytes, coding: bytes) -> bool:
    for part in header.lower().split(b","):
        name, _, quality = part.partition(b";")
        if name.strip() == coding:
            return quality.replace(b" ", b"") in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False


def compress(buffers: list[Buffer], coding: bytes) -> bytes:
    """The buffers, joined and encoded."""
    joined = b"".join(buffers)
    return gzip.compress(joined, _LEVEL) if coding == b"gzip" else zlib.compress(joined, _LEVEL)
