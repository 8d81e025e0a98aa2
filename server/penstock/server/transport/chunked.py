"""Decodes a chunked body (RFC 9112 §7.1). Sans-IO: bytes in, bytes out, strict.

Chunk extensions and trailers are read and dropped; both are bounded, as are the number of chunks
and the size of the whole.
"""

from __future__ import annotations

import re
from typing import Final

from penstock.server.transport.status import BadRequest

_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\Z")
_LINE_MAX: Final = 4096
_TRAILER_BYTES_MAX: Final = 8192
_CHUNKS_MAX: Final = 65_536
"""As in Triton; a body of one-byte chunks costs a hundred times its size to read."""


class ChunkedBody:
    """Feed it what arrives until ``feed`` returns the bytes that follow the body.

    ``body`` holds what was decoded. More than ``bytes_max`` raises BadRequest 413, a broken coding
    BadRequest 400.
    """

    def __init__(self, bytes_max: int) -> None:
        self.body = bytearray()
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._remaining = 0
        """Bytes of the current chunk still to come; -1 when its final CRLF is due."""
        self._in_trailers = False
        self._trailer_bytes = 0
        self._chunks = 0

    def feed(self, data: bytes) -> bytes | None:
        """None while the body goes on; the bytes after it once it has ended."""
        self._buffer += data
        while True:
            if self._remaining > 0:
                if not self._take_data():
                    return None
            elif self._remaining < 0:
                if len(self._buffer) < 2:
                    return None
                if self._buffer[:2] != b"\r\n":
                    raise BadRequest(400, "a chunk is not followed by CRLF")
                del self._buffer[:2]
                self._remaining = 0
            else:
                line = self._line()
                if line is None:
                    return None
                if self._in_trailers:
                    if not line:
                        return bytes(self._buffer)
                    self._trailer(line)
                else:
                    self._chunk(line)

    def _take_data(self) -> bool:
        part = self._buffer[: self._remaining]
        if not part:
            return False
        self.body += part
        del self._buffer[: len(part)]
        self._remaining -= len(part)
        if self._remaining:
            return False
        self._remaining = -1
        return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, _LINE_MAX + 2)
        if end < 0:
            if len(self._buffer) > _LINE_MAX + 1:
                raise BadRequest(400, "a line of the chunked coding is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _chunk(self, line: bytes) -> None:
        match = _SIZE.match(line)
        if match is None:
            raise BadRequest(400, "a chunk size is not a hexadecimal number")
        size = int(match[1], 16)
        if not size:
            self._in_trailers = True
            return
        self._chunks += 1
        if self._chunks > _CHUNKS_MAX:
            raise BadRequest(400, f"more than {_CHUNKS_MAX} chunks")
        if len(self.body) + size > self._bytes_max:
            raise BadRequest(413, f"the body is larger than {self._bytes_max} bytes")
        self._remaining = size

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > _TRAILER_BYTES_MAX or b":" not in line:
            raise BadRequest(400, "malformed trailer")
