"""A client's end of one connection, in memory: for tests of everything above a socket.

Knows asyncio's transport contract as uvloop keeps it (received bytes go through ``get_buffer`` and
``buffer_updated``). Knows nothing of loops: whatever it does happens at once, and time passes only
through ``sweep``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from penstock.server.http_seam import EVENTS, TEXT, Buffer, Responder
from penstock.server.transport.chunked import ChunkedBody
from penstock.server.transport.head import Head
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

HIGH_WATER: Final = 64 * 1024
LOW_WATER: Final = 16 * 1024


class FakeTransport(asyncio.Transport):
    """What the protocol writes: ``sent`` has reached the client, ``held`` waits while ``stalled``.

    ``gathered`` counts the writes of several buffers that were not joined before.
    """

    def __init__(self, protocol: Http1Connection, half_close: bool = True) -> None:
        super().__init__({"peername": ("127.0.0.1", 12345)})
        self.sent = bytearray()
        self.held = bytearray()
        self.stalled = False
        self.reading = True
        self.eof_written = False
        self.aborted = False
        self.gathered = 0
        self.closing = False
        self._protocol = protocol
        self._half_close = half_close
        self._paused = False

    def write(self, data: Any) -> None:
        assert not self.eof_written, "write after write_eof"
        (self.held if self.stalled else self.sent).extend(data)
        if len(self.held) > HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.gathered += 1
        self.write(b"".join(list_of_data))

    def take(self, nbytes: int = 1 << 40) -> None:
        """The client reads ``nbytes`` of what is held."""
        self.sent += self.held[:nbytes]
        del self.held[:nbytes]
        if self._paused and len(self.held) <= LOW_WATER:
            self._paused = False
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return self._half_close

    def write_eof(self) -> None:
        assert self._half_close
        self.eof_written = True

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.held.clear()

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def get_write_buffer_size(self) -> int:
        return len(self.held)


class Reply(NamedTuple):
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


class Wire:
    """One client on ``listener``. ``lost`` is set when the connection is told of its end."""

    def __init__(self, listener: Http1Listener, half_close: bool = True) -> None:
        self.listener = listener
        self.connection = Http1Connection(listener)
        self.transport = FakeTransport(self.connection, half_close)
        self.inbox = bytearray()
        self.lost = False
        self.connection.connection_made(self.transport)
        self._settle()

    def feed(self, data: bytes) -> None:
        """Sends ``data``; what the connection does not read yet stays in ``inbox``."""
        self.inbox += data
        self.pump()

    def pump(self) -> None:
        """Delivers what is in the inbox, as far as the connection reads."""
        while self.inbox and self.transport.reading and not self.transport.closing:
            buffer = self.connection.get_buffer(-1)
            assert len(buffer), "an empty buffer to receive into"
            size = min(len(buffer), len(self.inbox))
            buffer[:size] = self.inbox[:size]
            del self.inbox[:size]
            self.connection.buffer_updated(size)
        self._settle()

    def take(self, nbytes: int = 1 << 40) -> None:
        """Reads ``nbytes`` of the replies that are held back."""
        self.transport.take(nbytes)
        self.pump()

    def end(self) -> None:
        """Half-closes the client's side."""
        if not self.connection.eof_received():
            self.transport.close()
        self._settle()

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

    def replies(self, methods: Sequence[str] = ()) -> list[Reply]:
        """What the client got; ``methods`` are those of its requests where one is HEAD."""
        found, rest = parse_replies(bytes(self.transport.sent), methods)
        assert rest == b"", f"an incomplete reply: {rest!r}"
        return found

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies()]

    @property
    def ended(self) -> bool:
        """Whether the server has ended its side."""
        return self.transport.eof_written or self.transport.closing

    def _settle(self, why: Exception | None = None) -> None:
        if self.transport.closing and not self.transport.held and not self.lost:
            self.lost = True
            self.connection.connection_lost(why)


def parse_replies(data: bytes, methods: Sequence[str] = ()) -> tuple[list[Reply], bytes]:
    """The complete replies in ``data`` and the bytes behind them; strict about the framing."""
    found: list[Reply] = []
    answered = 0
    while (end := data.find(b"\r\n\r\n")) >= 0:
        first, *lines = data[:end].decode("ascii").split("\r\n")
        version, status, reason = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a field is repeated: {lines}"
        body: bytes | None = b""
        rest = data[end + 4 :]
        if status != "100":
            if answered >= len(methods) or methods[answered] != "HEAD":
                body, rest = _body(headers, rest)
            answered += 1
        if body is None:
            break
        found.append(Reply(int(status), reason, headers, body))
        data = rest
    return found, data


def _body(headers: Mapping[str, str], data: bytes) -> tuple[bytes | None, bytes]:
    """The body at the start of ``data`` and what follows it; None if it is not all there."""
    if "content-length" in headers:
        size = int(headers["content-length"])
        return (data[:size], data[size:]) if len(data) >= size else (None, data)
    if "transfer-encoding" not in headers:
        assert headers["connection"] == "close", "a body without an end"
        return data, b""
    assert headers["transfer-encoding"] == "chunked"
    decoder = ChunkedBody(1 << 30)
    rest = decoder.feed(data)
    return (None, data) if rest is None else (bytes(decoder.body), rest)


class Echo:
    """An endpoint that answers ``METHOD path body``, at once or, if ``later``, by ``answer``.

    ``calls`` are the heads and bodies that it got, ``cancelled`` counts the requests given up.
    """

    def __init__(self, later: bool = False) -> None:
        self.later = later
        self.calls: list[tuple[Head, Buffer]] = []
        self.waiting: list[tuple[Responder, Head, Buffer]] = []
        self.cancelled = 0

    def __call__(self, responder: Responder, head: Head, body: Buffer) -> Echo | None:
        self.calls.append((head, body))
        self.waiting.append((responder, head, body))
        if not self.later:
            self.answer()
        return self

    def answer(self) -> None:
        """Answers the oldest request that waits."""
        responder, head, body = self.waiting.pop(0)
        responder.reply(200, TEXT, (f"{head.method} {head.path} ".encode(), body))

    def cancel(self) -> None:
        self.cancelled += 1


class Teller:
    """An endpoint that begins a streamed answer and leaves the rest to the test.

    ``drained`` counts how often it was told to go on, ``cancelled`` the requests given up.
    """

    def __init__(self) -> None:
        self.told: list[Responder] = []
        self.drained = 0
        self.cancelled = 0

    def __call__(self, responder: Responder, head: Head, body: Buffer) -> Teller:
        self.told.append(responder)
        responder.begin(200, EVENTS, b"X-Extra: 1\r\n", self._drained)
        return self

    def _drained(self) -> None:
        self.drained += 1

    def cancel(self) -> None:
        self.cancelled += 1
