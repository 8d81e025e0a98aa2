"""The server's side of one HTTP/2 connection (RFC 9113): bytes in, streams told, frames out.

Sans-IO: ``receive`` is given what came. Knows the preface, frames, DATA and header blocks; the
connection's own frames are ``control``'s. Must not know what is spoken in the streams: the
``Application`` resolves header fields to an entry and makes streams of entries.

A rule that the peer broke ends its stream (RST_STREAM) or the connection (GOAWAY); nothing that a
peer sends raises.
"""

from __future__ import annotations

from typing import Final

from penstock.server.http_seam import Buffer
from penstock.server.transport.http2 import frames as fr
from penstock.server.transport.http2.application import Application, Output
from penstock.server.transport.http2.blocks import Blocks
from penstock.server.transport.http2.control import Control
from penstock.server.transport.http2.fields import check_trailers
from penstock.server.transport.http2.frames import ConnectionFault, StreamFault
from penstock.server.transport.http2.stream import CREDIT_BYTES, Stream

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""The largest DATA frame we take: large ones are received without detour."""
BLOCK_BYTES_MAX: Final = 64 * 1024
"""The largest header block, and the largest frame of any other kind."""
BLOCK_FRAMES_MAX: Final = 64
CONNECTION_CREDIT_BYTES: Final = 2**30
"""The connection's window, given back whatever a stream does: streams have their own. It cannot be
overdrawn: half of it is given back at once, and a frame is much smaller."""
_DIRECT_MIN: Final = 32 * 1024
"""A rest of a frame that is worth a read of its own."""
_OWN_PARENT: Final = 0x100
"""Beside the flags of HEADERS: the stream was declared to depend on itself."""

_unpack: Final = fr.HEAD.unpack_from


class Machine(Control):
    """One connection. ``direct``, if not None, is where the next bytes shall be received to;
    ``filled`` is told of them instead of ``receive``."""

    __slots__ = (
        "_begun", "_block", "_block_flags", "_block_frames", "_block_stream", "_blocks", "_carry",
        "_data_end", "_data_left", "_data_pad", "_data_stream", "_known", "_received", "direct",
    )  # fmt: skip

    def __init__(self, app: Application, output: Output, tick: int = 0) -> None:
        super().__init__(app, output, tick)
        self.direct: memoryview | None = None
        self._blocks = Blocks(app.resolve)
        self._known = self._blocks.known
        self._carry = b""
        self._begun = False
        self._received = 0
        """Since the connection's window was given back."""
        # The DATA frame of which a part is still to come; without a stream it is dropped.
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._data_pad = 0
        self._data_end = False
        # The header block of which a part is still to come.
        self._block: bytearray | None = None
        self._block_flags = 0
        self._block_frames = 0
        self._block_stream = 0

    @property
    def begun(self) -> bool:
        """The client's preface has come."""
        return self._begun

    @property
    def partial(self) -> bool:
        """A frame or header block has begun and not ended."""
        return bool(self._carry) or self._data_left > 0 or self._block is not None

    def _greet(self) -> None:
        """Sends our side's preface; not before the client's, who may not speak HTTP/2 at all."""
        told = {
            fr.MAX_CONCURRENT_STREAMS: self._app.streams_max,
            fr.INITIAL_WINDOW_SIZE: CREDIT_BYTES,
            fr.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
            fr.MAX_HEADER_LIST_SIZE: self._app.header_list_bytes_max,
        }
        more = fr.window_update(0, CONNECTION_CREDIT_BYTES - fr.WINDOW_DEFAULT)
        self.emit(fr.settings(told) + more)

    def receive(self, data: Buffer) -> None:
        """Takes what came; a view of a buffer is not kept."""
        if self.over:
            return
        if self._carry:
            data = self._carry + bytes(data)
            self._carry = b""
        self._corked = True
        try:
            self._parse(data, len(data))
        except ConnectionFault as fault:
            self.end(fault.code, fault.text)
        finally:
            self.flush()

    def _parse(self, data: Buffer, size: int) -> None:
        at = 0
        if not self._begun:
            at = self._preface(data, size)
            if not at:
                return
        elif self._data_left or self._data_pad:
            at = self._more_data(data, 0, size)
        streams = self.streams
        while size - at >= 9 and not self.over:
            word, flags, number = _unpack(data, at)
            number &= 0x7FFFFFFF
            length = word >> 8
            start = at + 9
            stop = start + length
            if word & 0xFF == 0:
                stream = streams.get(number)
                if (
                    stop <= size
                    and stream is not None
                    and not (flags & 8 or stream.ended)
                    and self._block is None
                ):
                    self._received += length
                    if not length and not flags & 1:
                        self.annoyed("empty DATA frames")
                    self._take(stream, data, start, stop, length, flags & 1 == 1)
                    at = stop
                elif (at := self._data(data, start, size, length, flags, number)) < 0:
                    at = start - 9
                    break
                continue
            if length > BLOCK_BYTES_MAX:
                self._too_large(length)
            if stop > size:
                break
            self._frame(word & 0xFF, bytes(data[start:stop]), flags, number)
            at = stop
        if at < size and not self.over:
            self._carry = bytes(data[at:])
        if self._received >= CONNECTION_CREDIT_BYTES // 2:
            self.emit(fr.window_update(0, self._received))
            self._received = 0

    def _frame(self, kind: int, payload: bytes, flags: int, number: int) -> None:
        """A whole frame that is not DATA."""
        if self._block is not None:
            if kind != fr.CONTINUATION or number != self._block_stream:
                raise ConnectionFault(fr.PROTOCOL_ERROR, "a header block was not continued")
            self._continuation(payload, flags)
        elif kind == fr.HEADERS:
            if flags & 0x2C == fr.END_HEADERS and number > self.last_id:
                self._open(payload, flags, number)
            else:
                self._headers(payload, flags, number)
        elif kind == fr.CONTINUATION:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "CONTINUATION of nothing")
        else:
            self.control(kind, payload, flags, number)

    @staticmethod
    def _too_large(length: int) -> None:
        raise ConnectionFault(fr.FRAME_SIZE_ERROR, f"a frame of {length} bytes is too large")

    def _preface(self, data: Buffer, size: int) -> int:
        """The end of the client's preface; 0 while it is not all there."""
        need = len(fr.PREFACE)
        head = bytes(data[: need + fr.HEAD_BYTES])
        if not fr.PREFACE.startswith(head[:need]):
            raise ConnectionFault(fr.PROTOCOL_ERROR, "this is not HTTP/2")
        if len(head) < need + fr.HEAD_BYTES:
            self._carry = head
            return 0
        word, flags, _ = _unpack(head, need)
        if word & 0xFF != fr.SETTINGS or flags & fr.ACK:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "the preface lacks SETTINGS")
        self._begun = True
        self._greet()
        return need

    # ------------------------------------------------------------------ DATA

    def _take(
        self, stream: Stream, data: Buffer, start: int, stop: int, counted: int, end: bool
    ) -> None:
        stream.credit -= counted
        try:
            if stream.credit < 0:
                raise StreamFault(fr.FLOW_CONTROL_ERROR, "more than the window allows")
            stream.data(data, start, stop, end)
        except StreamFault as fault:
            self.reset(stream, fault.code)

    def _data(
        self, data: Buffer, start: int, size: int, length: int, flags: int, number: int
    ) -> int:
        """A DATA frame that is padded, unfinished, or not for an open stream.

        Gives where it ends in ``data``; -1 if its head must be read again with more behind it.
        """
        if self._block is not None:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "a header block was not continued")
        if length > FRAME_BYTES_MAX:
            self._too_large(length)
        if not number:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "DATA without a stream")
        left, pad = length, 0
        if flags & fr.PADDED:
            if not length:
                raise ConnectionFault(fr.FRAME_SIZE_ERROR, "a padded frame of no bytes")
            if start == size:
                return -1
            pad = data[start]
            start += 1
            left -= 1 + pad
            if left < 0:
                raise ConnectionFault(fr.PROTOCOL_ERROR, "more padding than frame")
        self._received += length
        end = flags & fr.END_STREAM == 1
        stream = self._owner(number, length, left or end)
        if stream is not None:
            stream.credit -= length - left
            if not left:
                self._take(stream, data, start, start, 0, end)
        self._data_stream = stream
        self._data_left, self._data_pad, self._data_end = left, pad, end
        return self._more_data(data, start, size)

    def _owner(self, number: int, length: int, useful: int) -> Stream | None:
        """The stream that a DATA frame is for; None if the frame is to be dropped."""
        stream = self.streams.get(number)
        if stream is not None:
            if stream.ended:
                self.reset(stream, fr.STREAM_CLOSED)
            elif stream.credit < length:
                self.reset(stream, fr.FLOW_CONTROL_ERROR)
            else:
                if not useful:
                    self.annoyed("empty DATA frames")
                return stream
        elif number > self.last_id or not number & 1:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "DATA for a stream that was never opened")
        elif number not in self._resets_kept:
            # The client may not have seen yet that the stream has ended; or it knows no better.
            self.annoyed("DATA frames for closed streams")
            self.emit(fr.rst_stream(number, fr.STREAM_CLOSED))
        return None

    def _more_data(self, data: Buffer, at: int, size: int) -> int:
        """Goes on with a DATA frame; gives where in ``data`` it ends."""
        left = self._data_left
        if left:
            stop = min(at + left, size)
            stream = self._data_stream
            self._data_left = left = left - (stop - at)
            if stream is not None and stream.live and stop > at:
                self._take(stream, data, at, stop, stop - at, self._data_end and not left)
            at = stop
            if left:
                self._aim()
        if not left:
            self._data_stream = None
            if self._data_pad:
                stop = min(at + self._data_pad, size)
                self._data_pad -= stop - at
                at = stop
        return at

    def _aim(self) -> None:
        """Lets the rest of a large frame be received straight into its message."""
        self.direct = None
        stream = self._data_stream
        if self._data_left >= _DIRECT_MIN and stream is not None and stream.live:
            room = stream.room()
            if room is not None and len(room):
                self.direct = room[: self._data_left]

    def filled(self, nbytes: int) -> None:
        """So many bytes came into ``direct``."""
        direct, stream = self.direct, self._data_stream
        if direct is None or stream is None:
            return
        if self.over or not stream.live:
            # It ended while the bytes came in; the rest of the frame goes the usual way.
            self._data_left -= nbytes
            self.direct = None
            return
        self._data_left -= nbytes
        stream.credit -= nbytes
        self._corked = True
        try:
            stream.filled(nbytes)
            if self._data_left and nbytes < len(direct) and stream.live:
                self.direct = direct[nbytes:]
            else:
                self._aim()
            if not self._data_left:
                self._data_stream = None
                if self._data_end and stream.live:
                    self._take(stream, b"", 0, 0, 0, True)
        except StreamFault as fault:
            self.direct = None
            self.reset(stream, fault.code)
        except ConnectionFault as fault:
            self.end(fault.code, fault.text)
        finally:
            self.flush()

    # ------------------------------------------------------------------ HEADERS

    def _headers(self, payload: bytes, flags: int, number: int) -> None:
        """HEADERS with padding, priority or continuation, or of a stream there was already."""
        start, stop = 0, len(payload)
        if flags & fr.PADDED:
            if not payload:
                raise ConnectionFault(fr.FRAME_SIZE_ERROR, "a padded frame of no bytes")
            start, stop = 1, stop - payload[0]
        if flags & fr.PRIORITISED:
            parent = int.from_bytes(payload[start : start + 4], "big") & fr.STREAM_ID_MAX
            if parent == number:
                flags |= _OWN_PARENT
            start += 5
        if start > stop:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "more padding than frame")
        block = payload[start:stop]
        if flags & fr.END_HEADERS:
            self._whole_block(block, flags, number)
            return
        self._block = bytearray(block)
        self._block_flags, self._block_stream, self._block_frames = flags, number, 0

    def _continuation(self, payload: bytes, flags: int) -> None:
        block = self._block or bytearray()
        block += payload
        self._block = block
        self._block_frames += 1
        if len(block) > BLOCK_BYTES_MAX or self._block_frames > BLOCK_FRAMES_MAX:
            raise ConnectionFault(fr.ENHANCE_YOUR_CALM, "the header block is too large")
        if flags & fr.END_HEADERS:
            self._block = None
            self._whole_block(bytes(block), self._block_flags, self._block_stream)

    def _whole_block(self, block: bytes, flags: int, number: int) -> None:
        if number > self.last_id:
            self._open(block, flags, number)
            return
        # Whatever becomes of it, it may change what later blocks mean.
        fields = self._blocks.fields(block)
        stream = self.streams.get(number)
        if stream is None:
            if number in self._resets_kept:
                return
            # A stream that has ended, or one that was passed over: not remembered for ever.
            code = fr.STREAM_CLOSED if number == self.last_id else fr.PROTOCOL_ERROR
            raise ConnectionFault(code, "HEADERS for a stream that cannot be opened")
        try:
            if stream.ended:
                raise StreamFault(fr.STREAM_CLOSED, "HEADERS after the end")
            if not flags & fr.END_STREAM or flags & _OWN_PARENT:
                raise StreamFault(fr.PROTOCOL_ERROR, "trailers that do not end the stream")
            check_trailers(fields)
            stream.data(b"", 0, 0, True)
        except StreamFault as fault:
            self.reset(stream, fault.code)

    def _open(self, block: bytes, flags: int, number: int) -> None:
        """A new stream."""
        if not number & 1:
            raise ConnectionFault(fr.PROTOCOL_ERROR, "HEADERS for a stream that is not a client's")
        self.last_id = number
        try:
            entry = self._known.get(block) or self._blocks.decode(block)
            if flags & _OWN_PARENT:
                raise StreamFault(fr.PROTOCOL_ERROR, "a stream that depends on itself")
            if len(self.streams) >= self._app.streams_max or number > self.last_id_told:
                raise StreamFault(fr.REFUSED_STREAM, "too many streams, or too late")
        except StreamFault as fault:
            self.reset_number(number, fault.code)
            return
        self.opened += 1
        stream = self.streams[number] = self._app.make(self, number, entry)
        end = flags & fr.END_STREAM == 1
        try:
            if stream.eager:
                stream.begin(end)
            elif end:
                stream.data(b"", 0, 0, True)
        except StreamFault as fault:
            self.reset(stream, fault.code)
