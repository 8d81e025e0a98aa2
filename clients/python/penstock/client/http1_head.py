"""The head of an HTTP/1.1 reply, read strictly.

Pure. Knows: RFC 9112 status lines, header fields and how they frame the body. What the RFC lets a
client forgive (bare LF, folded lines, two ways of framing at once) is refused: on a reused
connection, a misread frame gives one caller another caller's result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from penstock.client.errors import BadReply
from penstock.client.exchange import json_length_of

CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_LENGTH_DIGITS_MAX: Final = 18


class Head:
    """A parsed head. ``length`` is the body's in bytes, ``CHUNKED`` or ``UNTIL_CLOSE``.

    ``keep`` tells whether the connection may be used again; ``lead`` is the length of the JSON
    before binary tensors (0 without).
    """

    __slots__ = ("headers", "keep", "lead", "length", "status")

    def __init__(self, raw: bytes) -> None:
        """Parse ``raw``: from the status line to the last field, without the empty line.

        Raises:
            BadReply
        """
        lines = raw.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise BadReply(f"not an HTTP/1.1 status line: {lines[0][:64]!r}")
        minor, status = match.groups()
        self.status: Final = int(status)
        self.headers: Final = _fields(lines[1:])
        self.length: Final = _body_length(self.status, self.headers)
        options = {o.strip().lower() for o in self.headers.get("connection", "").split(",")}
        persistent = "close" not in options if minor == b"1" else "keep-alive" in options
        self.keep: Final = persistent and self.length != UNTIL_CLOSE
        self.lead: Final = json_length_of(self.headers) or 0


def _fields(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise BadReply(f"not a header field: {line[:64]!r}")
        name = match[1].decode("ascii").lower()
        value = match[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _body_length(status: int, headers: Mapping[str, str]) -> int:
    if status < 200 or status in (204, 304):
        return 0
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadReply("the body has a content encoding that was not asked for")
    coding = headers.get("transfer-encoding")
    declared = headers.get("content-length")
    if coding is not None:
        if declared is not None:
            raise BadReply("both Transfer-Encoding and Content-Length")
        if coding.lower() != "chunked":
            raise BadReply(f"transfer encoding {coding[:32]!r}; only chunked is understood")
        return CHUNKED
    if declared is None:
        return UNTIL_CLOSE
    values = {value.strip() for value in declared.split(",")}
    value = values.pop()
    if values or not (value.isascii() and value.isdigit() and len(value) <= _LENGTH_DIGITS_MAX):
        raise BadReply(f"Content-Length {declared[:32]!r} is not a length")
    return int(value)
