"""Ways to damage a valid request. Pure: a seed and a number give the same attack for ever.

Knows HTTP/1.1, and of the payloads only where their parts are. Must not know sockets or time; what
a server owes to each attack is told by ``Owed``, checking it is the work of ``corrupt``.

To replay the attack that found something: ``attack(payloads, seed, number)``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from penstock.loadtest.payload import Payload, build_request


class Owed(enum.Enum):
    """What a server owes after the bytes of an attack."""

    ANSWER = "a reply, or the end of the connection, though the peer just waits"
    AT_EOF = "the same, at the latest when the peer has half-closed"
    RIGHT_ANSWER = "the right answer, and the connection stays usable"
    NOTHING = "the peer vanishes; the server must only live on"


@dataclass(frozen=True, slots=True)
class Attack:
    """``pieces`` are sent one by one, ``pause_s`` apart.

    ``reusable``: framing is intact, the connection may carry the next request after the reply.
    """

    kind: str
    pieces: tuple[bytes, ...]
    owed: Owed
    reusable: bool = False
    pause_s: float = 0.0
    contains: tuple[bytes, ...] = ()


def attack(payloads: Sequence[Payload], seed: int, number: int) -> Attack:
    """The attack of this number."""
    rng = Random(seed * 1_000_003 + number)
    (make,) = rng.choices(_MAKERS, _WEIGHTS)
    return make(rng, rng.choice(payloads))


_EXTREMES = (0, 1, 2, 4, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFC, 0x0001_0000)
_LENGTHS = (
    2**31, 2**32, 2**40, 10**12, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 8, 10**30,
    10**200,
)  # fmt: skip
_JSON_VALUES = (
    b"-1", b"0", b"99999999999999999999", b"1e999", b"-0.0", b"null", b"true", b"[]", b"{}",
    b'"\\u0000"', b'"\\ud800"', b'"' + b"A" * 9000 + b'"', b"[" * 3000, b"\xff\xfe", b"NaN",
)  # fmt: skip
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+|true|false|null')


def _framed(kind: str, payload: Payload, body: bytes, headers: dict[str, str]) -> Attack:
    """An attack on the decoder: HTTP is right, the content is not."""
    request = build_request(payload.path, body or b"\0", {**payload.headers, **headers})
    return Attack(kind, (request,), Owed.ANSWER, reusable=True)


def _flip(rng: Random, payload: Payload) -> Attack:
    body = bytearray(payload.body)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return _framed("flip", payload, bytes(body), {})


def _words(rng: Random, payload: Payload) -> Attack:
    """Overwrite aligned 32-bit words: FlatBuffers offsets, counts, element types."""
    body = bytearray(payload.body)
    for _ in range(rng.randint(1, 3)):
        at = 4 * rng.randrange(len(body) // 4)
        value = rng.choice((*_EXTREMES, len(body), len(body) - at, rng.getrandbits(32)))
        body[at : at + 4] = value.to_bytes(4, "little")
    return _framed("words", payload, bytes(body), {})


def _resize(rng: Random, payload: Payload) -> Attack:
    cut = payload.body[: rng.randrange(1, len(payload.body))]
    longer = payload.body + rng.randbytes(rng.randint(1, 64))
    return _framed("resize", payload, rng.choice((cut, longer)), {})


def _json_token(rng: Random, payload: Payload) -> Attack:
    """Replace one token of the JSON part; the length header follows the new length."""
    if not payload.json_bytes:
        return _words(rng, payload)
    text, tail = payload.body[: payload.json_bytes], payload.body[payload.json_bytes :]
    token = rng.choice(list(_JSON_TOKEN.finditer(text)))
    text = text[: token.start()] + rng.choice(_JSON_VALUES) + text[token.end() :]
    length = {"Inference-Header-Content-Length": str(len(text))}
    return _framed("json token", payload, text + tail, length)


def _json_length(rng: Random, payload: Payload) -> Attack:
    size = len(payload.body)
    wrong = (0, -1, 1, size - 1, size, size + 1, *_LENGTHS, payload.json_bytes + 1, "x", "", "1 2")
    length = {"Inference-Header-Content-Length": str(rng.choice(wrong))}
    return _framed("json length", payload, payload.body, length)


def _random_body(rng: Random, payload: Payload) -> Attack:
    return _framed("random body", payload, rng.randbytes(rng.choice((1, 3, 64, 700, 5000))), {})


def _truncated(rng: Random, payload: Payload) -> Attack:
    request = payload.http()
    return Attack("truncated", (request[: rng.randrange(1, len(request))],), Owed.AT_EOF)


def _early_close(rng: Random, payload: Payload) -> Attack:
    request = payload.http()
    size = rng.randrange(1, len(request) + 1)  # sometimes whole: the answer finds nobody
    return Attack("early close", (request[:size],), Owed.NOTHING)


def _wrong_length(rng: Random, payload: Payload) -> Attack:
    size = len(payload.body)
    length = rng.choice((rng.randrange(size), size + rng.randint(1, 1000)))
    return _with_length("wrong length", payload, str(length), Owed.AT_EOF)


def _huge_length(rng: Random, payload: Payload) -> Attack:
    length = rng.choice(_LENGTHS)
    # What no machine holds must be refused at once; about 2 GiB a server may wait for.
    owed = Owed.ANSWER if length >= 2**40 else Owed.AT_EOF
    return _with_length("huge length", payload, str(length), owed)


def _odd_length(rng: Random, payload: Payload) -> Attack:
    odd = ("+5", "-1", "0x10", "5,5", "5 5", "", "1e3", "\x00", "5\x00", "NaN", "\xb2", "00000005")
    return _with_length("odd length", payload, rng.choice(odd), Owed.AT_EOF)


def _with_length(kind: str, payload: Payload, length: str, owed: Owed) -> Attack:
    head = build_request(payload.path, b"", {**payload.headers, "Content-Length": length})
    return Attack(kind, (head.replace(b"GET ", b"POST ", 1) + payload.body,), owed)


def _fields(rng: Random, payload: Payload) -> Attack:
    """A head with one bad or contradictory field."""
    size = len(payload.body)
    lines = (
        b"NoColonHere", b"Space : x", b": empty", b"X: \x00\x01", b"X: a\r\n folded", b"X\x80: y",
        b"X: " + b"v" * 70_000, b"\r\n".join(b"X-%d: y" % i for i in range(3000)),
        b"Content-Length: %d" % (size + 1), b"Content-Length: %d" % size,
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Connection: \xff",
        b"Transfer-Encoding: identity", b"Content-Encoding: gzip", b"Content-Encoding: deflate",
        b"Expect: 100-continue", b"Expect: nonsense", b"X: a\nY: b", b"X: a\rY: b",
        b"Content-Type: " + rng.randbytes(20), b"Accept-Encoding: gzip;q=x", b"Host: \xff\xff",
    )  # fmt: skip
    head, _, body = payload.http().partition(b"\r\n\r\n")
    bad = head + b"\r\n" + rng.choice(lines) + b"\r\n\r\n" + body
    return Attack("fields", (bad,), Owed.AT_EOF)


def _request_line(rng: Random, payload: Payload) -> Attack:
    path = payload.path.encode()
    lines = (
        b"POST %s HTTP/9.9", b"POST %s", b"POST  HTTP/1.1", b"\x00OST %s HTTP/1.1", b"%s",
        b"post %s HTTP/1.1", b"DELETE %s HTTP/1.1", b"BREW %s HTTP/1.1", b"POST %s HTTP/1.0",
        b"POST %s%%zz%%00%%ff HTTP/1.1", b"POST %s/../../etc/passwd HTTP/1.1", b"POST * HTTP/1.1",
        b"POST %s?a=b&&=%%%% HTTP/1.1", b"POST %s\xff\xfe HTTP/1.1", b"POST http://x%s HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1", b"GET " + b"/a" * 50_000 + b" HTTP/1.1", b"POST /%s// HTTP/1.1",
    )  # fmt: skip
    line = rng.choice(lines).replace(b"%s", path).replace(b"%%", b"%")
    request = line + b"\r\n" + payload.http().partition(b"\r\n")[2]
    return Attack("request line", (request,), Owed.AT_EOF)


def _chunked(rng: Random, payload: Payload) -> Attack:
    headers = {**payload.headers, "Transfer-Encoding": "chunked"}
    head = build_request(payload.path, b"", headers).replace(b"GET ", b"POST ", 1)
    size = b"%x" % len(payload.body)
    good = size + b"\r\n" + payload.body + b"\r\n"
    bodies = (
        b"zz\r\n" + good, b"-1\r\n" + good, b"FFFFFFFFFFFFFFFF\r\n" + good, b"\r\n" + good,
        b"FFFFFFFFFFFFFFFFFFFFF\r\n" + good, good[:-2] + b"0\r\n\r\n", good + b"0\r\nX: y\r\n\r\n",
        size + b";ext=" + b"e" * 20_000 + good[len(size) :] + b"0\r\n\r\n", good + b"0\r\n\r\n",
        good, good + b"0\r\n", good[: rng.randrange(len(good))], b"0\r\n\r\n",
        b"".join(b"1\r\n%c\r\n" % byte for byte in payload.body) + b"0\r\n\r\n",
        size + b"\n" + payload.body + b"\n0\n\n", b"0x5\r\nabcde\r\n0\r\n\r\n",
    )  # fmt: skip
    return Attack("chunked", (head + rng.choice(bodies),), Owed.AT_EOF)


def _noise(rng: Random, payload: Payload) -> Attack:
    noise = rng.randbytes(rng.choice((1, 16, 400, 4000)))
    line_ends = (noise, noise + b"\r\n\r\n", noise.replace(b"\x0a", b"\r\n") + b"\r\n\r\n")
    return Attack("noise", (rng.choice(line_ends),), Owed.AT_EOF)


def _slow(rng: Random, payload: Payload) -> Attack:
    """Nothing wrong but the pace: the request comes in pieces, whole in the end."""
    request = payload.http()
    cuts = sorted(rng.sample(range(1, len(request)), rng.randint(1, 5)))
    pieces = tuple(request[a:b] for a, b in zip([0, *cuts], [*cuts, len(request)], strict=True))
    slow = Attack("slow", pieces, Owed.RIGHT_ANSWER, reusable=True, contains=payload.contains)
    return replace(slow, pause_s=rng.choice((0.005, 0.05, 0.2)))


_TABLE: tuple[tuple[Callable[[Random, Payload], Attack], float], ...] = (
    (_flip, 24), (_words, 14), (_resize, 6), (_json_token, 10), (_json_length, 5), (_chunked, 6),
    (_random_body, 4), (_truncated, 6), (_early_close, 6), (_wrong_length, 4), (_huge_length, 3),
    (_odd_length, 3), (_fields, 4), (_request_line, 4), (_noise, 4), (_slow, 0.5),
)  # fmt: skip
_MAKERS = [make for make, _ in _TABLE]
_WEIGHTS = [weight for _, weight in _TABLE]
