"""Heads: what is accepted, what is refused and how, and that remembering changes nothing."""

from __future__ import annotations

import pytest

from penstock.server.transport import head as module
from penstock.server.transport.head import Head, HeadMemo, parse_head
from penstock.server.transport.status import BadRequest, reason_of

HOST = b"Host: h\r\n"


def get(fields: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + fields + b"\r\n"


def post(fields: bytes) -> bytes:
    return get(fields, b"POST / HTTP/1.1")


@pytest.mark.parametrize(
    ("line", "path", "query"),
    [
        (b"GET / HTTP/1.1", "/", b""),
        (b"GET /a/b HTTP/1.1", "/a/b", b""),
        (b"GET //a//b/ HTTP/1.1", "//a//b/", b""),
        (b"GET /a%2Fb%20c HTTP/1.1", "/a%2Fb%20c", b""),
        (b"GET /%zz%00 HTTP/1.1", "/%zz%00", b""),
        (b"GET /a?b=c&d HTTP/1.1", "/a", b"b=c&d"),
        (b"GET /a?b?c HTTP/1.1", "/a", b"b?c"),
        (b"GET /a? HTTP/1.1", "/a", b""),
        (b"GET /a#b HTTP/1.1", "/a", b""),
        (b"GET /../a HTTP/1.1", "/../a", b""),
        (b"GET http://h/a?q HTTP/1.1", "/a", b"q"),
        (b"GET http://h:80 HTTP/1.1", "/", b""),
        (b"OPTIONS * HTTP/1.1", "*", b""),
    ],
)
def test_targets(line: bytes, path: str, query: bytes) -> None:
    head = parse_head(get(line=line))
    assert (head.path, head.query) == (path, query)
    assert head.method == line.split()[0].decode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_methods(method: str) -> None:
    assert parse_head(get(line=f"{method} / HTTP/1.1".encode())).method == method


@pytest.mark.parametrize(
    ("version", "fields", "keep_alive"),
    [
        ("1.1", b"", True),
        ("1.1", b"Connection: keep-alive\r\n", True),
        ("1.1", b"Connection: close\r\n", False),
        ("1.1", b"Connection: CLOSE\r\n", False),
        ("1.1", b"Connection: close \t\r\n", False),
        ("1.1", b"Connection: keep-alive, close\r\n", False),
        ("1.1", b"Connection: TE\r\nConnection: Close\r\n", False),
        ("1.1", b"Connection: closed\r\n", True),
        ("1.1", b"Connection: x-close-y\r\n", True),
        ("1.1", b"Connection: Upgrade\r\nUpgrade: websocket\r\n", True),
        ("1.0", b"", False),
        ("1.0", b"Connection: Keep-Alive\r\n", True),
        ("1.0", b"Connection: x , keep-alive\r\n", True),
        ("1.0", b"Connection: keep-alive, close\r\n", False),
        ("1.0", b"Connection: not-keep-alive\r\n", False),
    ],
)
def test_keep_alive(version: str, fields: bytes, keep_alive: bool) -> None:
    head = parse_head(get(fields, f"GET / HTTP/{version}".encode()))
    assert head.keep_alive is keep_alive
    assert head.version == version


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"Content-Length: 5\r\n", 5),
        (b"content-length:5\r\n", 5),
        (b"Content-Length: \t 5\r\n", 5),
        (b"Content-Length: 5 \t \r\n", 5),
        (b"Content-Length: 0005\r\n", 5),
        (b"Content-Length: 999999999999999999\r\n", 10**18 - 1),
        (b"Transfer-Encoding: chunked\r\n", -1),
        (b"transfer-encoding: CHUNKED\r\n", -1),
        (b"Transfer-Encoding: chunked  \r\n", -1),
        (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n", 4),
    ],
)
def test_body_lengths(fields: bytes, length: int) -> None:
    assert parse_head(post(fields)).content_length == length


def test_headers() -> None:
    head = parse_head(get(b"X-A: 1\r\nx-a:2\r\nX-B:\t v w \t\r\nX-Empty:\r\nX-High: \xff\xfe\r\n"))
    assert head.headers == {
        b"host": b"h",
        b"x-a": b"1, 2",
        b"x-b": b"v w",
        b"x-empty": b"",
        b"x-high": b"\xff\xfe",
    }


@pytest.mark.parametrize(
    ("version", "expects"), [("1.1", True), ("1.0", False)], ids=["1.1", "1.0: ignored"]
)
@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue", b"100-continue "])
def test_expectations(version: str, expects: bool, value: bytes) -> None:
    raw = get(b"Expect: " + value + b"\r\n", f"POST / HTTP/{version}".encode())
    assert parse_head(raw).expects_continue is expects


REFUSED: dict[str, tuple[int, bytes]] = {
    # Who ends where: the ways to smuggle a request past a proxy.
    "length and coding": (400, post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
    "coding and length": (400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n")),
    "coding and length 0": (400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n")),
    "two lengths": (400, post(b"Content-Length: 5\r\nContent-Length: 6\r\n")),
    "the same length twice": (400, post(b"Content-Length: 5\r\nContent-Length: 5\r\n")),
    "list of lengths": (400, post(b"Content-Length: 5, 5\r\n")),
    "length +5": (400, post(b"Content-Length: +5\r\n")),
    "length -5": (400, post(b"Content-Length: -5\r\n")),
    "length 0x5": (400, post(b"Content-Length: 0x5\r\n")),
    "length 5 5": (400, post(b"Content-Length: 5 5\r\n")),
    "length 5.0": (400, post(b"Content-Length: 5.0\r\n")),
    "length 1_0": (400, post(b"Content-Length: 1_0\r\n")),
    "length, Arabic digits": (400, post("Content-Length: ٥\r\n".encode())),
    "no length": (400, post(b"Content-Length:\r\n")),
    "length of 19 digits": (400, post(b"Content-Length: 1000000000000000000\r\n")),
    "length of 2^64": (400, post(b"Content-Length: 18446744073709551616\r\n")),
    "length of 500 digits": (400, post(b"Content-Length: " + b"9" * 500 + b"\r\n")),
    "space before colon": (400, post(b"Content-Length : 5\r\n")),
    "tab before colon": (400, post(b"Content-Length\t: 5\r\n")),
    "chunked twice": (
        400,
        post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ),
    "chunked is not last": (400, post(b"Transfer-Encoding: chunked, identity\r\n")),
    "identity": (400, post(b"Transfer-Encoding: identity\r\n")),
    "xchunked": (400, post(b"Transfer-Encoding: xchunked\r\n")),
    "quoted chunked": (400, post(b'Transfer-Encoding: "chunked"\r\n')),
    "vertical tab": (400, post(b"Transfer-Encoding:\x0bchunked\r\n")),
    "empty coding": (400, post(b"Transfer-Encoding:\r\n")),
    "gzip, chunked": (501, post(b"Transfer-Encoding: gzip, chunked\r\n")),
    "folded coding": (400, post(b"Transfer-Encoding:\r\n chunked\r\n")),
    "coding in 1.0": (
        400,
        get(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.0"),
    ),
    # Lines and characters.
    "folded line": (400, get(b"X: a\r\n b\r\n")),
    "folded by tab": (400, get(b"X: a\r\n\tb\r\n")),
    "space first": (400, b"GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
    "LF after request line": (400, b"GET / HTTP/1.1\nHost: h\r\n\r\n"),
    "LF after field": (400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
    "LF LF inside": (400, b"GET / HTTP/1.1\r\nHost: h\n\nGET /b HTTP/1.1\r\n\r\n"),
    "CR in field": (400, get(b"X: a\rY: b\r\n")),
    "NUL in value": (400, get(b"X: a\0b\r\n")),
    "NUL in name": (400, get(b"X\0: a\r\n")),
    "NUL in target": (400, get(line=b"GET /\0 HTTP/1.1")),
    "DEL in value": (400, get(b"X: \x7f\r\n")),
    "control in value": (400, get(b"X: \x01\r\n")),
    "no name": (400, get(b": a\r\n")),
    "no colon": (400, get(b"abc\r\n")),
    "name with space": (400, get(b"a b: c\r\n")),
    "name in parentheses": (400, get(b"(a): c\r\n")),
    # The request line.
    "no such method": (400, get(line=b"BREW / HTTP/1.1")),
    "bad method": (400, get(line=b"G@T / HTTP/1.1")),
    "lower case method": (400, get(line=b"get / HTTP/1.1")),
    "CONNECT": (501, get(line=b"CONNECT h:80 HTTP/1.1")),
    "relative target": (400, get(line=b"GET foo HTTP/1.1")),
    "target with space": (400, get(line=b"GET /a b HTTP/1.1")),
    "target beyond ASCII": (400, get(line=b"GET /\xff HTTP/1.1")),
    "target with control": (400, get(line=b"GET /\x01 HTTP/1.1")),
    "empty target": (400, get(line=b"GET  HTTP/1.1")),
    "query alone": (400, get(line=b"GET ?a HTTP/1.1")),
    "space at the end": (400, get(line=b"GET / HTTP/1.1 ")),
    "tab": (400, get(line=b"GET\t/ HTTP/1.1")),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2.0": (505, get(line=b"GET / HTTP/2.0")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\n"),
    "HTTP/1.2": (400, get(line=b"GET / HTTP/1.2")),
    "HTTP/11": (400, get(line=b"GET / HTTP/11")),
    "http/1.1": (400, get(line=b"GET / http/1.1")),
    "RTSP/1.0": (505, get(line=b"DESCRIBE rtsp://h/a RTSP/1.0")),
    "TLS hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    # Fields that must be there, or once, or known.
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, get(b"Host: h\r\n")),
    "other expectation": (417, post(b"Expect: 200-ok\r\nContent-Length: 1\r\n")),
    "two expectations": (417, post(b"Expect: 100-continue\r\nExpect: 100-continue\r\n")),
}


@pytest.mark.parametrize(("status", "raw"), REFUSED.values(), ids=REFUSED)
def test_refused(status: int, raw: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_head(raw)
    assert caught.value.status == status
    assert caught.value.message == str(caught.value) != ""


def test_an_http_1_0_request_needs_no_host() -> None:
    assert parse_head(b"GET / HTTP/1.0\r\n\r\n").headers == {}


# ---------------------------------------------------------------------- the memo


def test_memo_gives_only_what_was_put_under_the_same_bytes() -> None:
    memo = HeadMemo()
    first, second = get(b"X: 1\r\n"), get(b"X: 2\r\n")
    head = parse_head(first)
    memo.put(first, head)
    assert memo.get(first) is head
    assert memo.get(second) is None
    assert memo.get(first + b" ") is None
    assert memo.get(first[:-1]) is None


def test_memo_is_bounded_and_keeps_the_newest() -> None:
    memo = HeadMemo()
    raws = [get(b"X: %d\r\n" % i) for i in range(3 * module._MEMO_MAX)]
    for raw in raws:
        memo.put(raw, Head())
        assert len(memo._heads) <= module._MEMO_MAX
    assert memo.get(raws[-1]) is not None
    assert memo.get(raws[0]) is None


def test_memo_does_not_keep_large_heads() -> None:
    memo = HeadMemo()
    raw = get(b"X: " + b"a" * module._MEMO_HEAD_BYTES_MAX + b"\r\n")
    memo.put(raw, Head())
    assert memo.get(raw) is None


# ---------------------------------------------------------------------- reason phrases


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "Not Found"),
        ("  ", "Not Found"),
        ("no model 'a'", "no model 'a'"),
        ("one\r\nX-Injected: 1", "one?"),
        ("one\nSet-Cookie: x", "one"),
        ("caf\u00e9 \u2028 \x7f\x00", "caf? ? ??"),
        ("a" * 300, "a" * 197 + "..."),
    ],
)
def test_reason_phrases_are_one_short_line_of_ascii(text: str, phrase: str) -> None:
    assert reason_of(404, text) == phrase


def test_reason_of_a_status_without_a_name() -> None:
    assert reason_of(499) == "Client Closed Request"
    assert reason_of(299) == "Unknown"
