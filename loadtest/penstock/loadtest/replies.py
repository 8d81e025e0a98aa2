"""Splits a byte stream from a server into HTTP/1.1 replies. Sans-IO.

Knows what a well-formed reply with a Content-Length is, strictly: the robustness proof counts on
it. Must not know sockets, loops or what the bodies mean. Chunked replies are refused: no data-plane
reply of the servers under test is chunked, and one that appeared should be noticed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEAD_BYTES_MAX = 65_536
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f]*)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f]*)")
_NO_BODY = frozenset((204, 304))


class Reply(NamedTuple):
    """One final reply. ``close``: the server said that it will close the connection."""

    status: int
    body: bytes
    close: bool


class MalformedReply(Exception):
    """The server sent bytes that are not an HTTP reply."""


class ReplyParser:
    """Feed what arrives, get the replies that are complete; 1xx replies are skipped.

    Holds at most one incomplete reply. Heads are parsed once and recognised by their bytes after
    that, since a server under load sends the same head again and again.
    """

    __slots__ = ("_close", "_head", "_held", "_length", "_need", "_status")

    def __init__(self) -> None:
        self._held = bytearray()
        self._need = 0
        self._head = b""
        self._status = 0
        self._length = 0
        self._close = False

    @property
    def idle(self) -> bool:
        """Nothing of an unfinished reply is held."""
        return not self._held

    def feed(self, data: bytes) -> list[Reply]:
        """Take the next bytes.

        Raises:
            MalformedReply: they cannot be part of a reply; the parser is of no more use.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = bytes(self._held)
            self._held.clear()
        self._need = 0
        replies: list[Reply] = []
        start, size = 0, len(data)
        while start < size:
            head_end = data.find(b"\r\n\r\n", start)
            if head_end < 0:
                _check_unfinished(data[start : start + HEAD_BYTES_MAX + 1])
                break
            head = data[start:head_end]
            if head != self._head:
                self._learn(head)
            end = head_end + 4 + self._length
            if end > size:
                self._need = end - start
                break
            if self._status >= 200:
                replies.append(Reply(self._status, data[head_end + 4 : end], self._close))
            start = end
        if start < size:
            self._held += data[start:] if start else data
        return replies

    def _learn(self, head: bytes) -> None:
        self._head = b""
        self._status, self._length, self._close = _parse_head(head)
        self._head = head


def _check_unfinished(head: bytes) -> None:
    """Refuse early what cannot become a reply, so that a reader does not wait for its end."""
    if not head.startswith(b"HTTP/1."[: len(head)]):
        raise MalformedReply(f"not a status line: {head[:40]!r}")
    if len(head) > HEAD_BYTES_MAX:
        raise MalformedReply(f"head longer than {HEAD_BYTES_MAX} bytes")


def _parse_head(head: bytes) -> tuple[int, int, bool]:
    """(status, body length, close announced)"""
    status_line, *lines = head.split(b"\r\n")
    matched = _STATUS_LINE.fullmatch(status_line)
    if matched is None:
        raise MalformedReply(f"not a status line: {status_line[:40]!r}")
    status = int(matched[1])
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise MalformedReply(f"not a header field: {line[:40]!r}")
        name = field[1].lower()
        if name == b"content-length" and name in fields:
            raise MalformedReply("two Content-Length fields")
        fields[name] = field[2].strip()
    return status, _body_length(status, fields), fields.get(b"connection", b"").lower() == b"close"


def _body_length(status: int, fields: dict[bytes, bytes]) -> int:
    if b"transfer-encoding" in fields:
        raise MalformedReply("a chunked reply")
    if status < 200 or status in _NO_BODY:
        return 0
    length = fields.get(b"content-length")
    if length is None:
        raise MalformedReply("a reply without Content-Length")
    if not length.isdigit():
        raise MalformedReply(f"Content-Length {length[:40]!r}")
    return int(length)
