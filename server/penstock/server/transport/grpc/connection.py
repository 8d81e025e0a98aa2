"""gRPC over asyncio: bytes between a socket and the frame machine, and a connection's upkeep.

Knows asyncio and time. Must not know what a frame says. All connections of a port read into one
scratch buffer, which is taken at once; the machine may ask for large messages to be received
straight into their own memory. Reading stops while the client does not read what it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import re
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, cast

from penstock.server.transport.grpc.refusal import LEAVING
from penstock.server.transport.grpc.streaming import StreamCall
from penstock.server.transport.grpc.upkeep import Upkeep, Verdict
from penstock.server.transport.http2.frames import ENHANCE_YOUR_CALM, INTERNAL_ERROR, PREFACE
from penstock.server.transport.http2.machine import Machine

if TYPE_CHECKING:
    from penstock.server.transport.grpc.listener import GrpcListener

_log = logging.getLogger(__name__)

_COPY_MAX: Final = 16 * 1024
"""Reads up to this size are copied: bytes are cheaper to look at than a view."""
_UNSENT_MAX: Final = 1024 * 1024
_BYTES_PER_S_MIN: Final = 1024
_HTTP1: Final = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE) ")


class GrpcConnection(asyncio.BufferedProtocol):
    """One client connection. Created by the listener, which also sweeps it."""

    __slots__ = (
        "_lingering", "_listener", "_machine", "_paused", "_rx", "_transport", "_unsent",
        "_unsent_since", "_upkeep",
    )  # fmt: skip

    def __init__(self, listener: GrpcListener) -> None:
        self._listener = listener
        self._rx = listener.first_scratch
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._machine: Machine = cast(Machine, None)
        self._upkeep: Upkeep = cast(Upkeep, None)
        self._lingering = -1
        self._paused = False
        self._unsent = 0
        self._unsent_since = 0

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast(asyncio.Transport, transport)
        stream.set_write_buffer_limits(high=_UNSENT_MAX)
        listener = self._listener
        self._machine = Machine(listener, stream, listener.tick)
        self._upkeep = Upkeep(listener.limits, self._machine)
        if not listener.add(self):
            self._machine.end(ENHANCE_YOUR_CALM, "too many connections")
            self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.discard(self)
        self._machine.lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        direct = self._machine.direct
        return self._rx if direct is None else direct

    def buffer_updated(self, nbytes: int) -> None:
        machine = self._machine
        machine.heard = machine.tick
        try:
            if machine.direct is not None:
                machine.filled(nbytes)
            else:
                rx = self._rx
                if not machine.begun and self._is_http1(rx[:nbytes]):
                    return
                machine.receive(bytes(rx[:nbytes]) if nbytes <= _COPY_MAX else rx[:nbytes])
                if machine.direct is not None or nbytes < _COPY_MAX:
                    self._rx = self._listener.first_scratch
                elif nbytes == len(rx):
                    self._rx = self._listener.scratch
        except Exception:
            _log.exception("a connection failed")
            machine.end(INTERNAL_ERROR, "internal error")
        if machine.over and self._lingering < 0:
            self._linger()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._machine.paused = True
        self._unsent_since = self._listener.tick
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._machine.resume()
        if self._machine.over and self._lingering < 0:
            self._linger()

    # ------------------------------------------------------------------ the end

    def _is_http1(self, data: memoryview) -> bool:
        """Answers a client that speaks HTTP/1.1 in its own language."""
        first = bytes(data[:24])
        if PREFACE.startswith(first[: len(PREFACE)]) or not _HTTP1.match(first):
            return False
        body = f"this port serves gRPC, which is HTTP/2{self._listener.http_hint}\n".encode()
        self._transport.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._machine.lost()
        self._linger()
        return True

    def _linger(self) -> None:
        # Closing with unread input makes TCP reset the connection, and what was written last may be
        # lost: so our side is closed, and what still comes is dropped until the client closes too.
        self._lingering = self._listener.tick
        self._machine.flush()
        transport = self._transport
        if transport.is_closing():
            return
        if transport.can_write_eof():
            if self._paused:
                self._paused = False
                transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    # ------------------------------------------------------------------ the listener's side

    def sweep(self, tick: int) -> None:
        """Upkeep, and an end to what makes no progress; called once a second."""
        machine = self._machine
        machine.tick = tick
        self._sweep_unsent(tick)
        if self._lingering >= 0:
            unsent = self._transport.get_write_buffer_size()
            if not unsent and tick - self._lingering > self._listener.limits.linger_s:
                self._transport.abort()
            return
        verdict = self._upkeep.sweep(tick)
        if verdict is Verdict.ABORT:
            self._transport.abort()
            return
        now_ns = monotonic_ns()
        for stream in tuple(machine.streams.values()):
            stream.sweep(now_ns)
        if machine.over:
            self._linger()

    def _sweep_unsent(self, tick: int) -> None:
        # What the client takes shows only here: there is no callback for it.
        unsent = self._transport.get_write_buffer_size()
        taken, self._unsent = self._unsent - unsent, unsent
        if not unsent or taken < 0 or taken >= _BYTES_PER_S_MIN:
            self._unsent_since = tick
        elif tick - self._unsent_since > self._listener.limits.write_timeout_s:
            self._transport.abort()

    def drain(self) -> None:
        """Asks the client to go; closes once it has seen that and its calls are answered."""
        if self._lingering >= 0:
            return
        machine = self._machine
        if not machine.begun:
            self._transport.close()
        elif not machine.goaways:
            machine.leave(False)
        elif machine.over:
            self._linger()

    def end_streams(self) -> None:
        """Ends the streaming calls: there is nobody left to answer them."""
        for stream in tuple(self._machine.streams.values()):
            if isinstance(stream, StreamCall):
                stream.broken(LEAVING)

    def abort(self) -> None:
        self._transport.abort()
