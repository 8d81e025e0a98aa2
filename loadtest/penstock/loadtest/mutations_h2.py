"""Ways to damage a gRPC conversation over HTTP/2. Pure: a seed and a number give one attack.

Knows frames, and HPACK and protobuf as far as calls of add_sub need them. Must not know sockets;
``corrupt_h2`` sends what is made here and holds the server to what it owes.

To replay the attack that found something: ``attack(seed, number)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/inference.GRPCInferenceService/"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_SIZES = (0, 1, 5, 9, 16_384, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    def packed(self) -> bytes:
        size = len(self.payload).to_bytes(3, "big")
        return size + bytes((self.kind, self.flags)) + self.stream.to_bytes(4, "big") + self.payload


@dataclass(frozen=True, slots=True)
class Attack:
    """``pieces`` are sent one by one; then the peer half-closes."""

    kind: str
    pieces: tuple[bytes, ...]


def block(path: str, indexed: bool = False, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A header block of literals; ``indexed``: they go into the table."""
    fields = (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a"),
        ("content-type", "application/grpc"), ("te", "trailers"), *more,
    )  # fmt: skip
    kind = b"\x40" if indexed else b"\x00"
    return b"".join(
        kind + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields
    )


def _field(number: int, value: bytes) -> bytes:
    size, head = len(value), bytearray((number << 3 | 2,))
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes((size,)) + value


def infer_request(model: str = "add_sub") -> bytes:
    """ModelInfer of two INT32 tensors of one row."""
    parts = [_field(1, model.encode()), _field(3, b"id")]
    for name in ("INPUT0", "INPUT1"):
        tensor = _field(1, name.encode()) + _field(2, b"INT32") + _field(3, b"\x01\x10")
        parts.append(_field(5, tensor))
    parts += [_field(7, bytes(64))] * 2
    return b"".join(parts)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def call(number: int, path: str, message: bytes) -> bytes:
    """A whole call, as clients send it."""
    head = Frame(HEADERS, _END_HEADERS, number, block(path))
    return head.packed() + Frame(DATA, _END_STREAM, number, framed(message)).packed()


def attack(seed: int, number: int) -> Attack:
    """The attack of this number."""
    rng = Random(seed * 1_000_003 + number)
    make = rng.choice((_frames, _frames, _bytes, _message, _truncated, _noise, _flood))
    kind, data = make(rng)
    pieces = []
    while data:
        size = rng.choice((len(data), 1000, 17))
        pieces.append(data[:size])
        data = data[size:]
        if len(pieces) == 8:
            pieces.append(data)
            break
    return Attack(kind, tuple(piece for piece in pieces if piece))


def _conversation(rng: Random, message: bytes | None = None) -> list[Frame]:
    frames = [Frame(SETTINGS, 0, 0, b""), Frame(WINDOW_UPDATE, 0, 0, b"\0\1\0\0")]
    for number in range(1, 2 * rng.randint(1, 5), 2):
        method = rng.choice(("ModelInfer", "ModelInfer", "ModelStreamInfer", "ServerLive"))
        body = b"" if method == "ServerLive" else infer_request()
        more = (("grpc-timeout", f"{rng.randint(1, 9)}S"),) if rng.random() < 0.3 else ()
        head = block(SERVICE + method, rng.random() < 0.5, more)
        if rng.random() < 0.3:
            at = rng.randrange(len(head))
            frames.append(Frame(HEADERS, 0, number, head[:at]))
            frames.append(Frame(CONTINUATION, _END_HEADERS, number, head[at:]))
        else:
            frames.append(Frame(HEADERS, _END_HEADERS, number, head))
        data = framed(body if message is None else message)
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.2:
            frames.append(Frame(DATA, _PADDED, number, b"\3" + data[:at] + bytes(3)))
        else:
            frames.append(Frame(DATA, 0, number, data[:at]))
        if rng.random() < 0.1:
            frames.append(Frame(RST_STREAM, 0, number, b"\0\0\0\x08"))
        else:
            frames.append(Frame(DATA, _END_STREAM, number, data[at:]))
    return frames


def _join(frames: list[Frame]) -> bytes:
    return PREFACE + b"".join(frame.packed() for frame in frames)


def _frames(rng: Random) -> tuple[str, bytes]:
    """Frames changed, dropped, doubled; settings that should not be."""
    frames = _conversation(rng)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(frames))
        frame = frames[at]
        changed = (
            frame._replace(flags=rng.randrange(256)),
            frame._replace(kind=rng.randrange(11)),
            frame._replace(stream=rng.choice((0, 1, 2, 3, 5, 99, 2**31 - 1, 2**32 - 1))),
            frame._replace(payload=frame.payload[: rng.randrange(12)]),
            frame._replace(payload=frame.payload + rng.randbytes(rng.randint(1, 40))),
            Frame(SETTINGS, 0, 0, b"\0" + bytes((rng.randrange(8),)) + rng.choice(_SIZES)
                  .to_bytes(4, "big")),
            Frame(WINDOW_UPDATE, 0, rng.choice((0, 1, 3)), rng.choice(_SIZES).to_bytes(4, "big")),
        )  # fmt: skip
        if rng.random() < 0.3:
            frames.insert(at, rng.choice(changed))
        else:
            frames[at] = rng.choice(changed)
    return "frames", _join(frames)


def _bytes(rng: Random) -> tuple[str, bytes]:
    data = bytearray(_join(_conversation(rng)))
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(24, len(data))] ^= 1 << rng.randrange(8)
    return "bytes", bytes(data)


def _message(rng: Random) -> tuple[str, bytes]:
    """HTTP/2 is right, the protobuf inside is not."""
    body = bytearray(infer_request())
    for _ in range(rng.choice((1, 1, 2, 6))):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return "message", _join(_conversation(rng, bytes(body[: rng.randint(0, len(body))])))


def _truncated(rng: Random) -> tuple[str, bytes]:
    data = _join(_conversation(rng))
    return "truncated", data[: rng.randrange(1, len(data))]


def _noise(rng: Random) -> tuple[str, bytes]:
    lead = rng.choice((b"", PREFACE, PREFACE + Frame(SETTINGS, 0, 0, b"").packed()))
    return "noise", lead + rng.randbytes(rng.choice((1, 9, 50, 3000)))


def _flood(rng: Random) -> tuple[str, bytes]:
    """Much of what costs a server more than its client."""
    open_ = Frame(HEADERS, _END_HEADERS, 1, block(SERVICE + "ModelStreamInfer"))
    frame = rng.choice(
        (
            Frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1"), Frame(PING, 0, 0, bytes(8)),
            Frame(DATA, 0, 1, b""), Frame(DATA, _PADDED, 1, b"\0"), Frame(2, 0, 1, bytes(5)),
            Frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), Frame(200, 0, 0, b""),
        )
    )  # fmt: skip
    return "flood", _join([Frame(SETTINGS, 0, 0, b""), open_, *[frame] * rng.randint(100, 3000)])
