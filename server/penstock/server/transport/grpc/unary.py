"""A unary call: one message, one reply. The hot path of gRPC."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.grpc_seam import Trailers
from penstock.server.http_seam import Buffer
from penstock.server.transport.grpc import wire
from penstock.server.transport.grpc.assembly import Framed
from penstock.server.transport.grpc.call import GrpcCall
from penstock.server.transport.http2.frames import END_HEADERS, END_STREAM, HEADERS
from penstock.server.transport.http2.stream import JOIN_MAX

_HEAD: Final = wire.HEAD_BLOCK
_OK: Final = wire.OK_BLOCK
_TOP: Final = struct.Struct(f">IBI{len(_HEAD)}sIBIBI")
"""HEADERS, and the head of a DATA frame with a message's prefix behind it."""
_TAIL: Final = struct.Struct(f">IBI{len(_OK)}s")
_HEAD_WORD: Final = len(_HEAD) << 8 | HEADERS
_OK_WORD: Final = len(_OK) << 8 | HEADERS
_LAST: Final = END_HEADERS | END_STREAM


class UnaryCall(GrpcCall):
    """Calls the method once the client has ended its side with exactly one message."""

    __slots__ = ("_message",)

    _message: Framed | None

    def data(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        size = stop - start - 5
        head = self.head
        if (
            end
            and self._assembly is None
            and size >= 0
            and data[start] == 0
            and int.from_bytes(data[start + 1 : start + 5], "big") == size
            and size <= head.bytes_max
            and (head.content_length < 0 or head.content_length == size + 5)
        ):
            self.ended = True
            self._call(bytes(data[start + 5 : stop]))
        elif end or (assembly := self._assembly) is None or not assembly.absorb(data, start, stop):
            self._gather(data, start, stop, end)
        else:
            try:
                self.absorbed(stop - start)
            except PenstockError as error:
                self.broken(error)

    def _gather(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        if self.answered:
            self.ended = self.ended or end
            return
        if self._assembly is None:
            self._message = None
        try:
            self._keep(self.receive(data, start, stop, end))
            if end:
                message = self._message
                if message is None:
                    raise InferError(Code.INTERNAL, "a unary call without a message")
                self._message = None
                self._call(self.plain(message))
            else:
                self.want()
        except PenstockError as error:
            self.broken(error)

    def filled(self, nbytes: int) -> None:
        try:
            self._keep(self.fill(nbytes))
        except PenstockError as error:
            self.broken(error)

    def _keep(self, messages: list[Framed]) -> None:
        for message in messages:
            if self._message is not None:
                raise InferError(Code.INTERNAL, "a unary call with more than one message")
            self._message = message

    def _call(self, message: Buffer) -> None:
        method = self.head.method
        try:
            pending = method.unary(self, self.head, message)  # type: ignore[union-attr, misc]
        except Exception as error:
            self.broken(error)
            return
        if self.live:
            self.pending = pending

    @property
    def receiving(self) -> bool:
        return not self.ended

    def reply(self, buffers: Sequence[Buffer], trailers: Trailers = ()) -> None:
        if not self.live or self.leaving:
            return
        self.pending = None
        size = 5
        for buffer in buffers:
            size += len(buffer)
        connection = self.machine
        if (
            size <= JOIN_MAX
            and size <= self.send_window
            and size <= connection.send_window
            and not trailers
            and not self.head.reply_coding
            and not connection.fresh
        ):
            connection.send_window -= size
            self.live = False
            number = self.id
            connection.emit(
                b"".join(
                    (
                        _TOP.pack(_HEAD_WORD, END_HEADERS, number, _HEAD, size << 8, 0, number, 0,
                                  size - 5),
                        *buffers,
                        _TAIL.pack(_OK_WORD, _LAST, number, _OK),
                    )
                )
            )  # fmt: skip
            if self._assembly is not None:
                self.release()
            connection.finish(self)
            return
        self._reply_large(buffers, trailers)

    def _reply_large(self, buffers: Sequence[Buffer], trailers: Trailers) -> None:
        head, payload, size = self.message(buffers)
        block = wire.trailer_block(0, "", trailers) if trailers else wire.OK_BLOCK
        self.release()
        self.transmit(head, payload, size, self.machine.headers(self.id, block, end=True))

    def send(self, buffers: Sequence[Buffer]) -> None:
        raise TypeError("a unary call is answered by one reply")

    def resume(self) -> None:
        """There is nothing to resume."""
