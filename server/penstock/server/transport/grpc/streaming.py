"""A streaming call: the client's messages one by one to the method's ``Stream``, replies as sent.

Messages wait here while the stream is full or the client leaves too much unread. What waits is
bounded by the stream's window, which is not renewed meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from penstock.protocol.errors import PenstockError
from penstock.server.grpc_seam import Stream as MethodStream
from penstock.server.grpc_seam import Trailers
from penstock.server.http_seam import Buffer
from penstock.server.transport.grpc.assembly import Framed
from penstock.server.transport.grpc.call import GrpcCall


class StreamCall(GrpcCall):
    """``pending`` is the method's stream."""

    __slots__ = ("_delivering", "_held", "_told_end")

    eager: ClassVar[bool] = True

    _held: deque[Framed]

    def begin(self, end: bool) -> None:
        self._held = deque()
        self._delivering = False
        self._told_end = False
        method = self.head.method
        try:
            stream = method.stream(self, self.head)  # type: ignore[union-attr, misc]
        except Exception as error:
            self.ended = end
            self.broken(error)
            return
        if not self.answered:
            self.pending = stream
        elif end:
            self.ended = True
        if end:
            self.data(b"", 0, 0, True)

    def data(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        if self.answered:
            self.ended = self.ended or end
            return
        try:
            self._held += self.receive(data, start, stop, end)
        except PenstockError as error:
            self.broken(error)
            return
        self._deliver()

    def filled(self, nbytes: int) -> None:
        try:
            self._held += self.fill(nbytes)
        except PenstockError as error:
            self.broken(error)
            return
        self._deliver()

    def resume(self) -> None:
        if not self.answered:
            self._deliver()

    def drained(self) -> None:
        stream: MethodStream | None = self.pending
        if stream is None or self.answered:
            return
        try:
            stream.drained()
        except Exception as error:
            self.broken(error)
            return
        self.resume()

    def _deliver(self) -> None:
        """Hands over what the method may have, in order; a method may come back in here."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._held and not self.answered:
                stream: MethodStream = self.pending
                if stream.full or self.congested:
                    return
                stream.received(self.plain(self._held.popleft()))
                self._settle()
            if self.answered:
                return
            if not self.ended:
                self.want()
            elif not self._told_end:
                self._told_end = True
                self.pending.half_closed()
        except Exception as error:
            self.broken(error)
        finally:
            self._delivering = False

    def _settle(self) -> None:
        """Gives back the memory of messages that were handed over."""
        assembly = self._assembly
        if self._charged and not self._held and not (assembly and assembly.partial):
            self._service.charge(-self._charged)
            self._charged = 0

    @property
    def receiving(self) -> bool:
        return not self._held and self._assembly is not None and self._assembly.partial

    def reply(self, buffers: Sequence[Buffer], trailers: Trailers = ()) -> None:
        self.send(buffers)
        self.finish(trailers)

    def send(self, buffers: Sequence[Buffer]) -> None:
        if not self.answered:
            head, payload, size = self.message(buffers)
            self.transmit(head, payload, size, b"")

    def broken(self, error: Exception) -> None:
        self._held.clear()
        super().broken(error)
