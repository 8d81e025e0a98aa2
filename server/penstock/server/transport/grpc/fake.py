"""A gRPC client's end of one connection, in memory, and methods to call: for tests.

Knows frames and HPACK, on purpose in code of its own: nothing here is taken from the side that is
tested but numbers. Nothing waits and time passes only through ``sweep``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hpack import Decoder, Encoder

from penstock.protocol.errors import PenstockError
from penstock.server.grpc_seam import Call, CallHead, Method, Methods
from penstock.server.http_seam import Buffer
from penstock.server.transport.fake import FakeTransport
from penstock.server.transport.grpc.connection import GrpcConnection
from penstock.server.transport.grpc.listener import GrpcLimits, GrpcListener

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Field = tuple[str, str | bytes]


class _Transport(FakeTransport):
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As ``FakeTransport`` has them."""


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    def packed(self) -> bytes:
        size = len(self.payload).to_bytes(3, "big")
        return size + bytes((self.kind, self.flags)) + self.stream.to_bytes(4, "big") + self.payload


def frames_of(data: bytes) -> tuple[list[Frame], bytes]:
    """The complete frames in ``data`` and the bytes behind them."""
    found: list[Frame] = []
    at = 0
    while len(data) - at >= 9:
        stop = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if len(data) < stop:
            break
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        found.append(Frame(data[at + 3], data[at + 4], stream, data[at + 9 : stop]))
        at = stop
    return found, data[at:]


def message(payload: bytes, compressed: bool = False) -> bytes:
    return bytes((compressed,)) + len(payload).to_bytes(4, "big") + payload


def settings(pairs: Mapping[int, int]) -> bytes:
    packed = b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in pairs.items())
    return Frame(4, 0, 0, packed).packed()


def window_update(stream: int, increment: int) -> bytes:
    return Frame(8, 0, stream, increment.to_bytes(4, "big")).packed()


@dataclass
class Outcome:
    """What came back on one stream. ``reset`` is the code of a RST_STREAM, -1 for none."""

    heads: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int = -1

    @property
    def messages(self) -> list[bytes]:
        found, data = [], self.data
        while data:
            size = int.from_bytes(data[1:5], "big")
            assert len(data) >= 5 + size, "an incomplete message"
            found.append(data[5 : 5 + size])
            data = data[5 + size :]
        return found

    @property
    def fields(self) -> dict[str, str]:
        """All fields of heads and trailers."""
        return {name: value for head in self.heads for name, value in head.items()}

    @property
    def status(self) -> int:
        """gRPC's; -1 if there is none."""
        return int(self.fields.get("grpc-status", "-1"))


class GrpcWire:
    """One client on ``listener``."""

    def __init__(self, listener: GrpcListener, preface: bool = True) -> None:
        self.listener = listener
        self.connection = GrpcConnection(listener)
        protocol: Any = self.connection
        self.transport = _Transport(protocol)
        self.inbox = bytearray()
        self.lost = False
        self.encoder = Encoder()
        self.last = -1
        self.connection.connection_made(self.transport)
        if preface:
            self.feed(PREFACE + settings({}))

    # ------------------------------------------------------------------ sending

    def feed(self, data: bytes) -> None:
        """Sends ``data``; what the connection does not read yet stays in ``inbox``."""
        self.inbox += data
        self.pump()

    def pump(self) -> None:
        while self.inbox and self.transport.reading and not self.transport.closing:
            buffer = self.connection.get_buffer(-1)
            assert len(buffer), "an empty buffer to receive into"
            size = min(len(buffer), len(self.inbox))
            buffer[:size] = self.inbox[:size]
            del self.inbox[:size]
            self.connection.buffer_updated(size)
        self._settle()

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.feed(Frame(kind, flags, stream, payload).packed())

    def head(self, path: str, fields: Sequence[Field] = (), **changed: str) -> bytes:
        """A header block; ``changed`` replaces pseudo-header fields."""
        pseudo = {"method": "POST", "scheme": "http", "path": path, "authority": "h", **changed}
        pairs: list[Field] = [(f":{name}", value) for name, value in pseudo.items()]
        plain: list[Field] = [("content-type", "application/grpc"), ("te", "trailers")]
        return bytes(self.encoder.encode([*pairs, *plain, *fields]))

    def open(self, path: str, fields: Sequence[Field] = (), end: bool = False) -> int:
        """Opens a stream and gives its number."""
        self.last += 2
        self.send(1, 4 | end, self.last, self.head(path, fields))
        return self.last

    def data(self, stream: int, payload: bytes, end: bool = False) -> None:
        self.send(0, int(end), stream, payload)

    def call(self, path: str, payload: bytes = b"", fields: Sequence[Field] = ()) -> int:
        """A whole unary call in one read, as clients send it."""
        self.last += 2
        head = Frame(1, 4, self.last, self.head(path, fields)).packed()
        self.feed(head + Frame(0, 1, self.last, message(payload)).packed())
        return self.last

    # ------------------------------------------------------------------ what happens

    def take(self, nbytes: int = 1 << 40) -> None:
        """Reads ``nbytes`` of what is held back."""
        self.transport.take(nbytes)
        self.pump()

    def vanish(self) -> None:
        """The connection is reset."""
        self.transport.abort()
        self._settle(ConnectionResetError())

    def sweep(self, seconds: int = 1) -> None:
        """Lets time pass, in the listener's ticks."""
        for _ in range(seconds):
            self.listener.tick += 1
            if not self.lost:
                self.connection.sweep(self.listener.tick)
            self._settle()

    def _settle(self, why: Exception | None = None) -> None:
        if self.transport.closing and not self.transport.held and not self.lost:
            self.lost = True
            self.connection.connection_lost(why)

    # ------------------------------------------------------------------ what came back

    @property
    def frames(self) -> list[Frame]:
        found, rest = frames_of(bytes(self.transport.sent))
        assert rest == b"", f"an incomplete frame: {rest[:60]!r}"
        return found

    @property
    def ended(self) -> bool:
        return self.transport.eof_written or self.transport.closing

    @property
    def goaways(self) -> list[tuple[int, int, bytes]]:
        """(last stream, code, text) of each GOAWAY."""
        return [
            (int.from_bytes(f.payload[:4], "big"), int.from_bytes(f.payload[4:8], "big"),
             f.payload[8:])
            for f in self.frames if f.kind == 7
        ]  # fmt: skip

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """By stream."""
        decoder = Decoder()
        found: dict[int, Outcome] = {}
        block = b""
        for frame in self.frames:
            if not frame.stream or frame.kind == 8:
                continue
            outcome = found.setdefault(frame.stream, Outcome())
            assert not outcome.ended or frame.kind == 3, f"a frame after the end: {frame}"
            if frame.kind in (1, 9):
                block += frame.payload
                if frame.flags & 4:
                    outcome.heads.append(dict(_text(decoder.decode(block, raw=True))))
                    block = b""
            elif frame.kind == 0:
                outcome.data += frame.payload
            elif frame.kind == 3:
                outcome.reset = int.from_bytes(frame.payload, "big")
            if frame.kind in (0, 1):
                outcome.ended = outcome.ended or bool(frame.flags & 1)
        return found

    def outcome(self, stream: int) -> Outcome:
        return self.outcomes.get(stream, Outcome())


def _text(fields: Any) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode("latin-1")) for name, value in fields]


class EchoMethods:
    """``/t.T/Echo`` (unary) and ``/t.T/Chat`` (stream), which send back what they get.

    ``later``: calls wait for ``answer``. ``full``: streams take nothing for now. What happened is
    in ``calls``, ``streams`` and ``cancelled``.
    """

    def __init__(self, later: bool = False) -> None:
        self.later = later
        self.full = False
        self.calls: list[tuple[Call, CallHead, Buffer]] = []
        self.waiting: list[tuple[Call, Buffer]] = []
        self.streams: list[EchoStream] = []
        self.cancelled = 0
        self.methods: Methods = {
            "/t.T/Echo": Method("/t.T/Echo", unary=self._echo),
            "/t.T/Chat": Method("/t.T/Chat", stream=self._chat),
        }

    def listener(self, **limits: Any) -> GrpcListener:
        return GrpcListener(self.methods, GrpcLimits(**limits))

    def _echo(self, call: Call, head: CallHead, payload: Buffer) -> EchoMethods:
        self.calls.append((call, head, payload))
        self.waiting.append((call, payload))
        if not self.later:
            self.answer()
        return self

    def answer(self, error: PenstockError | None = None) -> None:
        """Answers the oldest call that waits."""
        call, payload = self.waiting.pop(0)
        if error is not None:
            call.fail(error)
        else:
            call.reply((payload,))

    def cancel(self) -> None:
        self.cancelled += 1

    def _chat(self, call: Call, head: CallHead) -> EchoStream:
        stream = EchoStream(self, call)
        self.streams.append(stream)
        return stream


class EchoStream:
    """See ``grpc_seam.Stream``. ``got`` are the messages, ``events`` whatever else it was told."""

    def __init__(self, methods: EchoMethods, call: Call) -> None:
        self._methods = methods
        self.call = call
        self.got: list[bytes] = []
        self.events: list[str] = []

    @property
    def full(self) -> bool:
        return self._methods.full

    def received(self, payload: Buffer) -> None:
        assert not self.full
        self.got.append(bytes(payload))
        self.call.send((payload,))

    def half_closed(self) -> None:
        self.events.append("half-closed")
        self.call.finish()

    def drained(self) -> None:
        self.events.append("drained")

    def cancel(self) -> None:
        self.events.append("cancelled")
