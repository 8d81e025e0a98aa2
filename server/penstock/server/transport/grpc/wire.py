"""gRPC's way of writing things into HTTP/2 header fields: time limits, binary values, statuses.

Pure, both ways. Our own header blocks need no encoder's state: fields are literals without
indexing, so a block is a constant but for the stream's number in front of it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

from penstock.server.grpc_seam import Trailers

PREFIX_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length."""
MESSAGE_BYTES_MAX: Final = 4000
"""Of an error's text, encoded: clients refuse trailers beyond 8 KiB."""

_UNIT_NS: Final = {
    b"H": 3600 * 10**9, b"M": 60 * 10**9, b"S": 10**9, b"m": 10**6, b"u": 10**3, b"n": 1,
}  # fmt: skip
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = 8
_CONTENT_TYPE_NAME: Final = 31


def timeout_ns(value: bytes) -> int:
    """A ``grpc-timeout``; at least 1.

    Raises:
        ValueError: it is none.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise ValueError("grpc-timeout is not up to eight digits and one of H, M, S, m, u, n")
    return max(1, int(match[1]) * _UNIT_NS[match[2]])


def binary_value(value: bytes) -> bytes:
    """A ``-bin`` value, with or without padding; several, joined by commas, are put together so.

    Raises:
        ValueError: it is not base64.
    """
    try:
        parts = [
            base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)
            for part in (part.strip().rstrip(b"=") for part in value.split(b","))
        ]
    except binascii.Error as error:
        raise ValueError(f"a -bin value that is not base64: {error}") from error
    return b",".join(parts)


def percent_encoded(text: str) -> bytes:
    """``grpc-message``: printable ASCII but ``%`` as it is, other bytes of UTF-8 as ``%XX``."""
    out = bytearray()
    for byte in text.encode("utf-8", "replace"):
        piece = b"%c" % byte if 32 <= byte < 127 and byte != 37 else b"%%%02X" % byte
        if len(out) + len(piece) > MESSAGE_BYTES_MAX:
            return bytes(out) + b"..."
        out += piece
    return bytes(out)


def _length(value: bytes) -> bytes:
    """HPACK's string without Huffman coding: its length, seven bits first, and itself."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    head = bytearray((127,))
    while size >= 128:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + value


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _length(name) + _length(value)


def _status(status: int) -> bytes:
    if status == 200:
        return _STATUS_200
    return bytes((_STATUS_NAME,)) + _length(b"%d" % status)


def _content_type(value: bytes) -> bytes:
    return bytes((15, _CONTENT_TYPE_NAME - 15)) + _length(value)


HEAD_BLOCK: Final = _STATUS_200 + _content_type(b"application/grpc")
OK_BLOCK: Final = literal(b"grpc-status", b"0")


def head_block(coding: str) -> bytes:
    """The fields before the first message; ``coding`` of compressed ones or nothing."""
    return HEAD_BLOCK + (literal(b"grpc-encoding", coding.encode()) if coding else b"")


def trailer_block(status: int, message: str = "", trailers: Trailers = ()) -> bytes:
    """The fields after the last message."""
    parts = [literal(b"grpc-status", b"%d" % status)]
    if message:
        parts.append(literal(b"grpc-message", percent_encoded(message)))
    parts += [literal(name.encode("ascii"), value.encode("ascii")) for name, value in trailers]
    return b"".join(parts)


def plain_block(status: int, content_type: bytes, size: int, more: bytes = b"") -> bytes:
    """The head of a reply that is not gRPC's."""
    told = literal(b"content-length", b"%d" % size)
    return _status(status) + _content_type(content_type) + told + more


def size_of(buffers: Sequence[bytes | memoryview]) -> int:
    size = 0
    for buffer in buffers:
        size += len(buffer)
    return size
