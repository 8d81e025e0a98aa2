"""The head of an HTTP/1.1 request: parsed once per distinct head, then remembered.

A client on a keep-alive connection sends the same head again and again, so the parse (by httptools,
that is llhttp in its strict mode) is kept under the head's own bytes. A head is a pure function of
its bytes; what endpoints derive from one (a model's name, header values) may be kept on it too.
"""

from __future__ import annotations

from typing import Any, Final

import httptools

from penstock.server.transport.status import BadRequest

HEAD_BYTES_MAX: Final = 16 * 1024
_MEMO_HEAD_BYTES_MAX: Final = 2048
_MEMO_MAX: Final = 1024


class Head:
    """What a request's head says. Immutable; shared by every request that has the same head.

    ``headers`` has lower-case names; values of repeated fields are joined by a comma.
    ``content_length`` is 0 where there is no body and -1 for a chunked one. ``memo`` belongs to the
    endpoint that serves the target: anything that follows from the head alone.
    """

    __slots__ = (
        "content_length", "endpoint", "expects_continue", "headers", "keep_alive", "memo",
        "method", "path", "query", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = b""
        self.version = ""
        self.headers: dict[bytes, bytes] = {}
        self.content_length = 0
        self.keep_alive = True
        self.expects_continue = False
        self.endpoint: Any = None
        self.memo: Any = None


class _Collector:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves the white space after a value on it (RFC 9112 §5.1).
        self.fields.append((name.lower(), value.rstrip(b" \t")))


def parse_head(raw: bytes) -> Head:
    """Parses a whole head, from the request line to the empty line inclusive.

    Raises:
        BadRequest: with the status to answer.
    """
    seen = _Collector()
    parser = httptools.HttpRequestParser(seen)
    head = Head()
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # An offer that we are free to decline; the request itself stands.
    except httptools.HttpParserError as error:
        raise BadRequest(400, f"malformed request: {error}") from error
    head.method = parser.get_method().decode("ascii")
    head.version = parser.get_http_version()
    # The request line is looked at as well: llhttp takes RTSP/1.0 for a version of HTTP.
    version = b" HTTP/%b" % head.version.encode("ascii")
    if head.version not in ("1.1", "1.0") or not raw.partition(b"\r")[0].endswith(version):
        raise BadRequest(505, f"HTTP version {head.version} is not supported")
    if head.method == "CONNECT":
        raise BadRequest(501, "this is not a proxy")
    try:
        url = httptools.parse_url(seen.url) if seen.url != b"*" else None
    except httptools.HttpParserError as error:
        raise BadRequest(400, "malformed request target") from error
    head.path = (url.path or b"/").decode("latin-1") if url else "*"
    head.query = (url.query or b"") if url else b""
    for name, value in seen.fields:
        known = head.headers.get(name)
        if known is not None and name == b"host":
            raise BadRequest(400, "more than one Host header")
        head.headers[name] = value if known is None else known + b", " + value
    if head.version == "1.1" and b"host" not in head.headers:
        raise BadRequest(400, "a HTTP/1.1 request needs a Host header")
    options = head.headers.get(b"connection", b"").lower().replace(b" ", b"").split(b",")
    head.keep_alive = b"close" not in options and (
        head.version == "1.1" or b"keep-alive" in options
    )
    head.content_length = _body_length(head)
    expect = head.headers.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise BadRequest(417, "only 'Expect: 100-continue' is understood")
        head.expects_continue = head.version == "1.1"
    return head


def _body_length(head: Head) -> int:
    coding = head.headers.get(b"transfer-encoding")
    length = head.headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise BadRequest(400, "both Content-Length and Transfer-Encoding are given")
        if coding.strip().lower() != b"chunked":
            raise BadRequest(501, "the only transfer coding understood is chunked")
        if head.version == "1.0":
            raise BadRequest(400, "HTTP/1.0 has no transfer codings")
        return -1
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise BadRequest(400, "Content-Length is not a number")
    return int(length)


class HeadMemo:
    """Heads by their bytes, bounded in number and in size."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def get(self, raw: bytes) -> Head | None:
        return self._heads.get(raw)

    def put(self, raw: bytes, head: Head) -> None:
        if len(raw) > _MEMO_HEAD_BYTES_MAX:
            return
        if len(self._heads) >= _MEMO_MAX:
            # The oldest half goes: one pass a thousand heads, and steady clients come right back.
            for key in list(self._heads)[: _MEMO_MAX // 2]:
                del self._heads[key]
        self._heads[raw] = head
