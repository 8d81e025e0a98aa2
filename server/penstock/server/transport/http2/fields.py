"""Which header fields are a request, and which are trailers (RFC 9113 §8.2, §8.3). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from penstock.server.transport.http2.blocks import ENTRY_BYTES, Fields
from penstock.server.transport.http2.frames import PROTOCOL_ERROR, StreamFault

_NAME: Final = re.compile(rb"[!-9;-@\[-~]+")
"""Visible ASCII without capitals and colons."""
_VALUE: Final = re.compile(rb"(?:[^\x00\r\n \t](?:[^\x00\r\n]*[^\x00\r\n \t])?)?")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request head. ``fields`` are the regular ones, in order.

    ``list_bytes`` is its size as MAX_HEADER_LIST_SIZE counts; ``content_length`` -1 if not told.
    """

    method: bytes
    scheme: bytes
    path: bytes
    authority: bytes
    fields: Fields
    content_length: int
    list_bytes: int


def _malformed(text: str) -> StreamFault:
    return StreamFault(PROTOCOL_ERROR, f"malformed request: {text}")


def request_of(fields: Fields) -> Request:
    """The request that ``fields`` are.

    Raises:
        StreamFault: they are none.
    """
    pseudo: dict[bytes, bytes] = {}
    regular: Fields = []
    list_bytes = 0
    for name, value in fields:
        list_bytes += len(name) + len(value) + ENTRY_BYTES
        if name[:1] == b":":
            if regular:
                raise _malformed("a pseudo-header field follows regular ones")
            if name not in _PSEUDO or name in pseudo:
                raise _malformed("an unknown or repeated pseudo-header field")
            if not _VALUE.fullmatch(value):
                raise _malformed("a character that no field value may have")
            pseudo[name] = value
        else:
            _check_regular(name, value)
            regular.append((name, value))
    method, scheme, path = (pseudo.get(name, b"") for name in (b":method", b":scheme", b":path"))
    authority = pseudo.get(b":authority", b"")
    if method == b"CONNECT":
        if scheme or path or not authority:
            raise _malformed("a CONNECT has an authority and neither scheme nor path")
    elif not (method and scheme and path):
        raise _malformed("method, scheme and path are needed")
    hosts = {value for name, value in regular if name == b"host"}
    if len(hosts) > 1 or (authority and hosts and hosts != {authority}):
        raise _malformed("host and authority disagree")
    return Request(method, scheme, path, authority, regular, _content_length(regular), list_bytes)


def check_trailers(fields: Fields) -> None:
    """Raises StreamFault unless ``fields`` may end a request."""
    for name, value in fields:
        _check_regular(name, value)


def _check_regular(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise _malformed("a field name with capitals or other characters that none may have")
    if not _VALUE.fullmatch(value):
        raise _malformed("a character that no field value may have")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise _malformed(f"the field {name.decode('ascii')} has no place in HTTP/2")


def _content_length(fields: Fields) -> int:
    told = {value for name, value in fields if name == b"content-length"}
    if not told:
        return -1
    value = told.pop()
    if told or not value.isdigit() or len(value) > 18:
        raise _malformed("content-length is not one number")
    return int(value)
