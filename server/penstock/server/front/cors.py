"""Cross-origin requests (the Fetch standard's CORS): which web pages may use this server.

Off unless the operator names origins. Knows headers only. What a browser asks in advance
(``OPTIONS`` with Access-Control-Request-Method) is answered here; other requests go to their
endpoint, and the fields that the browser looks for are added to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from penstock.server.http_seam import (
    TEXT,
    Buffer,
    Cancellable,
    Endpoint,
    RequestHead,
    Responder,
)

_EXPOSED: Final = b"Inference-Header-Content-Length, Penstock-Code, Retry-After"
"""What a page's script may read of an answer beyond the few that it always may."""


@dataclass(frozen=True, slots=True)
class CorsOptions:
    """``origins`` are like ``https://example.org``, or ``*`` for any; empty is off.

    ``headers`` may be ``*``, which means whatever the browser asks for.
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")
    headers: tuple[str, ...] = ("*",)
    max_age_s: int = 600
    """How long a browser may remember what it was told in advance."""


@dataclass(frozen=True, slots=True)
class Cors:
    """The rules of one port."""

    options: CorsOptions = field(default_factory=CorsOptions)

    def around(self, head: RequestHead, endpoint: Endpoint) -> Endpoint:
        """``endpoint`` as a page of the head's origin may use it."""
        origin = head.headers.get(b"origin")
        if origin is None or not self.options.origins:
            return endpoint
        fields = self._origin_fields(origin)
        if head.method == "OPTIONS" and b"access-control-request-method" in head.headers:
            return _answering(fields + self._preflight_fields(head) if fields else _VARY)
        if not fields:
            return _adding(endpoint, _VARY)
        return _adding(endpoint, fields + b"Access-Control-Expose-Headers: %b\r\n" % _EXPOSED)

    def _origin_fields(self, origin: bytes) -> bytes:
        if "*" in self.options.origins:
            return b"Access-Control-Allow-Origin: *\r\n"
        if origin.decode("latin-1") not in self.options.origins:
            return b""
        return b"Access-Control-Allow-Origin: %b\r\n%b" % (origin, _VARY)

    def _preflight_fields(self, head: RequestHead) -> bytes:
        options = self.options
        headers = ", ".join(options.headers).encode()
        if "*" in options.headers:
            headers = head.headers.get(b"access-control-request-headers", b"")
        return (
            b"Access-Control-Allow-Methods: %b\r\n" % ", ".join(options.methods).encode()
            + (b"Access-Control-Allow-Headers: %b\r\n" % headers if headers else b"")
            + b"Access-Control-Max-Age: %d\r\n" % options.max_age_s
        )


_VARY: Final = b"Vary: Origin\r\n"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,;]+")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_origin(text: str) -> str:
    """``text`` if a browser could send it as an Origin, or ``*``; otherwise ValueError."""
    if text not in ("*", "null") and _ORIGIN.fullmatch(text) is None:
        raise ValueError(f"'{text}' is not an origin, such as https://example.org, nor *")
    return text


def check_token(text: str) -> str:
    """``text`` if HTTP takes it for a method or the name of a field; otherwise ValueError."""
    if _TOKEN.fullmatch(text) is None:
        raise ValueError(f"'{text}' is not a word of HTTP")
    return text


def _answering(fields: bytes) -> Endpoint:
    def preflight(responder: Responder, head: RequestHead, body: Buffer) -> None:
        responder.reply(200, TEXT, (), fields)

    return preflight


def _adding(endpoint: Endpoint, fields: bytes) -> Endpoint:
    def with_fields(responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        return endpoint(_Adding(responder, fields), head, body)

    return with_fields


class _Adding:
    """A responder whose answers have ``fields`` as well."""

    __slots__ = ("_fields", "_responder")

    def __init__(self, responder: Responder, fields: bytes) -> None:
        self._responder = responder
        self._fields = fields

    def reply(
        self,
        status: int,
        content_type: str,
        buffers: Sequence[Buffer],
        fields: bytes = b"",
        reason: str = "",
        close: bool = False,
    ) -> None:
        self._responder.reply(status, content_type, buffers, self._fields + fields, reason, close)

    def begin(
        self,
        status: int,
        content_type: str,
        fields: bytes = b"",
        drained: Callable[[], None] | None = None,
    ) -> None:
        self._responder.begin(status, content_type, self._fields + fields, drained)

    def chunk(self, buffers: Sequence[Buffer]) -> None:
        self._responder.chunk(buffers)

    def end(self) -> None:
        self._responder.end()

    @property
    def congested(self) -> bool:
        return self._responder.congested
