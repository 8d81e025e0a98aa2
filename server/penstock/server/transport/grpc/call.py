"""One gRPC call on a stream: what unary and streaming calls have in common.

Knows gRPC's replies and how a message is received; ``unary`` and ``streaming`` say when the method
is called. Must not know sockets. ``Service`` is what calls need of the port that they came in by.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Final, Protocol

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.grpc_seam import Trailers
from penstock.server.http_seam import Buffer
from penstock.server.transport.grpc import wire
from penstock.server.transport.grpc.assembly import Assembly, Framed
from penstock.server.transport.grpc.coding import compress, decompress
from penstock.server.transport.grpc.head import GrpcHead
from penstock.server.transport.http2.control import Control
from penstock.server.transport.http2.frames import CANCEL, PROTOCOL_ERROR, StreamFault
from penstock.server.transport.http2.stream import CREDIT_BYTES, Stream

_log = logging.getLogger(__name__)

PREFIX: Final = struct.Struct(">BI")
BYTES_PER_S_MIN: Final = 1024
"""A message that arrives, or a reply that is read, more slowly than this is given up in time."""
_TOO_MANY: Final = InferError(
    Code.RESOURCE_EXHAUSTED, "too many bytes of messages are being received"
)
_TOO_LATE: Final = InferError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
_TOO_SLOW: Final = InferError(Code.DEADLINE_EXCEEDED, "the message did not arrive in time")


class Service(Protocol):
    """The part of a port that its calls use. Times are in seconds."""

    @property
    def read_timeout_s(self) -> int: ...
    @property
    def write_timeout_s(self) -> int: ...
    def charge(self, nbytes: int) -> bool: ...


class GrpcCall(Stream):
    """A call whose method is known. ``pending`` is what is cancelled if the client goes away."""

    __slots__ = (
        "_assembly", "_began", "_began_bytes", "_charged", "_headed", "_payload_bytes", "_service",
        "deadline_ns", "head", "pending",
    )  # fmt: skip

    def __init__(
        self, connection: Control, number: int, head: GrpcHead, timeout_ns: int, service: Service
    ) -> None:
        super().__init__(connection, number)
        self.head = head
        self.deadline_ns = monotonic_ns() + timeout_ns if timeout_ns else 0
        self.pending: Any = None
        self._service = service
        self._assembly: Assembly | None = None
        self._headed = False
        """The fields before the first message are sent."""
        self._charged = 0
        self._payload_bytes = 0
        # Since when, and after how many bytes, the message that is being received.
        self._began = self.moved
        self._began_bytes = 0

    # ------------------------------------------------------------------ receiving

    def receive(self, data: Buffer, start: int, stop: int, end: bool) -> list[Framed]:
        """The messages that are complete now; ``end`` is kept as ``ended``.

        Raises:
            StreamFault: not so many bytes as the client said.
            InferError: see ``Assembly.feed``; or there are too many bytes of all clients.
        """
        self.moved = self.machine.tick
        self._payload_bytes += stop - start
        told = self.head.content_length
        if told >= 0 and (self._payload_bytes > told or (end and self._payload_bytes != told)):
            raise StreamFault(PROTOCOL_ERROR, "content-length does not match the data")
        if end:
            self.ended = True
        assembly = self._assembly
        if assembly is None:
            assembly = self._assembly = Assembly(self.head.bytes_max)
        fresh = not assembly.partial
        done = assembly.feed(data, start, stop)
        if done or fresh:
            self._began, self._began_bytes = self.moved, self._payload_bytes
        if end and assembly.partial:
            raise InferError(Code.INTERNAL, "the last message is not complete")
        if assembly.partial or self._charged:
            self._charge(stop - start)
        return done

    def absorbed(self, nbytes: int) -> None:
        """Accounts for bytes that were taken as the inside of a message.

        Raises:
            InferError: there are too many bytes of all clients.
        """
        self.moved = self.machine.tick
        self._payload_bytes += nbytes
        self._charge(nbytes)
        if self.credit < CREDIT_BYTES // 2:
            self.want()

    def room(self) -> memoryview | None:
        return None if self._assembly is None else self._assembly.room()

    def fill(self, nbytes: int) -> list[Framed]:
        """As ``receive``, for bytes that came into ``room``."""
        self.moved = self.machine.tick
        self._payload_bytes += nbytes
        self._charge(nbytes)
        assembly = self._assembly
        return [] if assembly is None else assembly.filled(nbytes)

    def plain(self, framed: Framed) -> Buffer:
        """The message itself.

        Raises:
            InferError: it cannot be decompressed.
        """
        compressed, message = framed
        if not compressed:
            return message
        return decompress(message, self.head.coding, self.head.bytes_max)

    def want(self) -> None:
        """Lets the client send on: a large message that has begun, all at once."""
        assembly = self._assembly
        self.grant(max(CREDIT_BYTES, assembly.remaining if assembly is not None else 0))

    def _charge(self, nbytes: int) -> None:
        self._charged += nbytes
        if not self._service.charge(nbytes):
            raise _TOO_MANY

    def release(self) -> None:
        """What was received is not needed any more."""
        self._assembly = None
        if self._charged:
            self._service.charge(-self._charged)
            self._charged = 0

    # ------------------------------------------------------------------ replying

    @property
    def answered(self) -> bool:
        """The call has ended as far as its method is concerned."""
        return not self.live or self.leaving

    def message(self, buffers: Sequence[Buffer]) -> tuple[bytes, list[Buffer], int]:
        """(the head's frame if it was not sent yet, a message with its prefix, the bytes of it)."""
        size = wire.size_of(buffers)
        coding = self.head.reply_coding
        head = b""
        if not self._headed:
            self._headed = True
            head = self.machine.headers(self.id, wire.head_block(coding), end=False)
        packed = compress(buffers, size, coding) if coding else None
        if packed is not None:
            return head, [PREFIX.pack(1, len(packed)), packed], len(packed) + wire.PREFIX_BYTES
        return head, [PREFIX.pack(0, size), *buffers], size + wire.PREFIX_BYTES

    def finish(self, trailers: Trailers = ()) -> None:
        self._end(0, "", trailers)

    def fail(self, error: PenstockError, trailers: Trailers = ()) -> None:
        self._end(error.code.grpc_status, error.message, trailers)

    def _end(self, status: int, message: str, trailers: Trailers) -> None:
        if self.answered:
            return
        self.pending = None
        block = wire.trailer_block(status, message, trailers)
        if not self._headed:
            block = wire.HEAD_BLOCK + block
        self.release()
        self.transmit(b"", (), 0, self.machine.headers(self.id, block, end=True))

    def broken(self, error: Exception) -> None:
        """A method raised, or the client's message cannot be read: tells the client."""
        self.cancel()
        if isinstance(error, PenstockError):
            self.fail(error)
            return
        _log.error("method failed: %s", self.head.path, exc_info=error)
        self.fail(InferError(Code.INTERNAL, "internal error"))

    # ------------------------------------------------------------------ ends

    def cancel(self) -> None:
        """Cancels what the method does for this call."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.cancel()

    def gone(self) -> None:
        self.release()
        self.cancel()

    @property
    def receiving(self) -> bool:
        """The client owes us the rest of a message."""
        raise NotImplementedError

    def sweep(self, now_ns: int) -> None:
        if self.deadline_ns and now_ns > self.deadline_ns and not self.answered:
            self.cancel()
            self.drop_outgoing()
            self.fail(_TOO_LATE)
            return
        silent_s = self.machine.tick - self.moved
        if self.waiting:
            if silent_s > self._service.write_timeout_s and not self.machine.paused:
                self.machine.abandon(self, CANCEL)
        elif self.receiving and not self.answered:
            if self.machine.paused:  # Nothing is read, so nothing can come.
                self.moved = self._began = self.machine.tick
                return
            grace_s = self._service.read_timeout_s
            owed = (self.machine.tick - self._began - grace_s) * BYTES_PER_S_MIN
            if silent_s > grace_s or self._payload_bytes - self._began_bytes < owed:
                self.broken(_TOO_SLOW)
