"""Calls that are not served: answered by an error as soon as that is known."""

from __future__ import annotations

from typing import ClassVar, Final

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.http_seam import Buffer
from penstock.server.transport.grpc import wire
from penstock.server.transport.grpc.coding import ACCEPTED
from penstock.server.transport.grpc.head import GrpcHead
from penstock.server.transport.http2.control import Control
from penstock.server.transport.http2.frames import (
    CANCEL,
    END_STREAM,
    HEAD,
    PROTOCOL_ERROR,
    StreamFault,
)
from penstock.server.transport.http2.stream import Stream

_DISCARD_MAX: Final = 64 * 1024
"""What is read of a request before it is told that it is none of ours."""
_SILENT_S_MAX: Final = 30
_UNREAD_S_MAX: Final = 60

LEAVING: Final = InferError(
    Code.UNAVAILABLE, "GRPC server is shutting down and has stopped accepting new requests"
)


class RefusedCall(Stream):
    """Answers with a gRPC status in trailers alone."""

    __slots__ = ("_error",)

    eager: ClassVar[bool] = True

    def __init__(self, connection: Control, number: int, error: PenstockError) -> None:
        super().__init__(connection, number)
        self._error = error

    def begin(self, end: bool) -> None:
        self.ended = end
        error = self._error
        block = wire.HEAD_BLOCK + wire.trailer_block(error.code.grpc_status, error.message)
        if error.code is Code.UNIMPLEMENTED:
            block += wire.literal(b"grpc-accept-encoding", ACCEPTED)
        self.transmit(b"", (), 0, self.machine.headers(self.id, block, end=True))

    def data(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        self.ended = self.ended or end


class PlainRefusal(Stream):
    """Answers in plain HTTP, once the request has ended or is longer than anyone cares for."""

    __slots__ = ("_have", "_head")

    def __init__(self, connection: Control, number: int, head: GrpcHead) -> None:
        super().__init__(connection, number)
        self._head = head
        self._have = 0

    def data(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        self.ended = self.ended or end
        self._have += stop - start
        if not self.live or self.leaving:
            return
        told = self._head.content_length
        if told >= 0 and (self._have > told or (end and self._have != told)):
            raise StreamFault(PROTOCOL_ERROR, "content-length does not match the data")
        if end or self._have > _DISCARD_MAX:
            self._answer()

    def _answer(self) -> None:
        head = self._head
        body = head.text.encode() + b"\n"
        more = wire.literal(b"allow", b"POST") if head.status == 405 else b""
        block = wire.plain_block(head.status, b"text/plain; charset=utf-8", len(body), more)
        frame = self.machine.headers(self.id, block, end=False)
        self.transmit(frame, (body,), len(body), HEAD.pack(0, END_STREAM, self.id))

    def sweep(self, now_ns: int) -> None:
        silent_s = self.machine.tick - self.moved
        if self.waiting and silent_s > _UNREAD_S_MAX:
            self.machine.abandon(self, CANCEL)
        elif not self.waiting and silent_s > _SILENT_S_MAX:
            self._answer()
