"""The writing half of an HTTP/1.1 connection: replies, streamed replies, and the last words.

Knows how an answer is framed, when it ends the connection, and how long a client may take to read
it. Must not know how requests are received: ``http1`` builds its connection on this and is told by
``_advance`` that the next request may start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

from penstock.server.http_seam import Buffer, Cancellable
from penstock.server.transport.chunked import ChunkedBody
from penstock.server.transport.head import Head
from penstock.server.transport.listener import Http1Listener

JOIN_MAX: Final = 32 * 1024
"""Replies up to this size are copied into one buffer: cheaper than a vector of small parts."""
BYTES_PER_S_MIN: Final = 1024
"""A request that arrives, or a reply that is read, more slowly than this is given up in time."""

# States of a connection. Receiving:
HEAD: Final = 0
BODY: Final = 1
CHUNKED: Final = 2
# Answered and half-closed: whatever still comes is read and dropped, so that the reply arrives.
LINGER: Final = 3
# A request is with its endpoint, unanswered; or its answer has begun.
BUSY: Final = 4
STREAM: Final = 5


class StreamedReply:
    """An answer in parts. ``chunked`` says whether they are framed, ``last`` whether its end is the
    connection's, ``silent`` that the client asked for the head alone.
    """

    __slots__ = ("chunked", "drained", "last", "silent")

    def __init__(
        self, chunked: bool, last: bool, silent: bool, drained: Callable[[], None] | None
    ) -> None:
        self.chunked = chunked
        self.last = last
        self.silent = silent
        self.drained = drained


class Http1Replies(asyncio.BufferedProtocol):
    """What a connection knows of its request in progress, and all that it writes.

    Implements ``http_seam.Responder``.
    """

    __slots__ = (
        "_began", "_body", "_carry", "_charged", "_chunked", "_head", "_listener", "_pending",
        "_read_paused", "_rx", "_since", "_state", "_stream", "_transport", "_unsent",
        "_write_paused",
    )  # fmt: skip

    def __init__(self, listener: Http1Listener) -> None:
        self._listener = listener
        self._rx: memoryview = listener.head_scratch
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._state = HEAD
        self._carry = b""
        self._head: Head | None = None
        self._body: memoryview | None = None
        self._charged = 0
        self._chunked: ChunkedBody | None = None
        self._pending: Cancellable | None = None
        self._stream: StreamedReply | None = None
        self._read_paused = False
        self._write_paused = False
        self._unsent = 0
        # Ticks of the listener: when this request (or idleness) began, and the last progress.
        self._began = self._since = listener.tick

    def _advance(self) -> None:
        """Starts the request behind the one that was just answered."""
        raise NotImplementedError

    # ------------------------------------------------------------------ asyncio's side

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since = self._listener.tick
        stream = self._stream
        if stream is None:
            self._advance()
        elif stream.drained is not None:
            stream.drained()

    # ------------------------------------------------------------------ the endpoint's side

    def reply(
        self,
        status: int,
        content_type: str,
        buffers: Sequence[Buffer],
        fields: bytes = b"",
        reason: str = "",
        close: bool = False,
    ) -> None:
        """Answers the request in progress; see ``Responder``."""
        if self._state != BUSY:
            return
        self._pending = None
        self._release_body()
        head = cast(Head, self._head)
        listener = self._listener
        size = 0
        for buffer in buffers:
            size += len(buffer)
        last = close or not head.keep_alive or listener.draining
        start = listener.reply_head(status, content_type, reason)
        if last:
            fields += b"Connection: close\r\n"
        elif head.version == "1.0":
            fields += b"Connection: keep-alive\r\n"
        top = b"%b%b%bContent-Length: %d\r\n\r\n" % (start, listener.date, fields, size)
        if head.method == "HEAD":
            self._transport.write(top)
        elif size <= JOIN_MAX:
            self._transport.write(b"".join((top, *buffers)))
        else:
            self._transport.writelines([top, *buffers])
        if last:
            self._linger()
            return
        self._state = HEAD
        self._since = self._began = listener.tick
        if self._carry:
            self._advance()

    def begin(
        self,
        status: int,
        content_type: str,
        fields: bytes = b"",
        drained: Callable[[], None] | None = None,
    ) -> None:
        """Starts a streamed answer; see ``Responder``.

        A client of HTTP/1.0 does not know chunks: for it the end of the connection is the end.
        """
        if self._state != BUSY:
            return
        head = cast(Head, self._head)
        listener = self._listener
        chunked = head.version != "1.0"
        last = not chunked or not head.keep_alive or listener.draining
        if last:
            fields += b"Connection: close\r\n"
        if chunked:
            fields += b"Transfer-Encoding: chunked\r\n"
        start = listener.reply_head(status, content_type, "")
        self._state = STREAM
        self._stream = StreamedReply(chunked, last, head.method == "HEAD", drained)
        self._transport.write(b"%b%b%b\r\n" % (start, listener.date, fields))

    def chunk(self, buffers: Sequence[Buffer]) -> None:
        """The next part of a streamed answer; see ``Responder``."""
        stream = self._stream
        if stream is None or stream.silent:
            return
        size = sum(map(len, buffers))
        if not size:
            return  # An empty chunk would be the last one.
        transport = self._transport
        unsent_max = self._listener.limits.unsent_bytes_max
        if self._write_paused and transport.get_write_buffer_size() > unsent_max:
            # The loss of the connection, which follows, cancels what produces the stream.
            self._stream = None
            transport.abort()
            return
        if stream.chunked:
            buffers = (b"%x\r\n" % size, *buffers, b"\r\n")
        if size <= JOIN_MAX:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)

    def end(self) -> None:
        """Completes a streamed answer; see ``Responder``."""
        stream = self._stream
        if stream is None:
            return
        self._stream = self._pending = None
        self._release_body()
        if stream.chunked and not stream.silent:
            self._transport.write(b"0\r\n\r\n")
        if stream.last:
            self._linger()
            return
        self._state = HEAD
        self._since = self._began = self._listener.tick
        if self._carry:
            self._advance()

    @property
    def congested(self) -> bool:
        """Whether the client leaves what was written unread."""
        return self._write_paused

    # ------------------------------------------------------------------ the last words

    def _fatal(self, status: int, message: str) -> None:
        """Answers a request that cannot be framed or accepted, and ends the connection."""
        if self._state == LINGER:
            return
        # Of a head that cannot be read the request before it tells what the client understands.
        content_type, body = self._listener.refusal(self._head, message)
        self._release_body()
        self._transport.write(
            b"%b%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (self._listener.reply_head(status, content_type, message),
               self._listener.date, len(body), body)
        )  # fmt: skip
        self._linger()

    def _linger(self) -> None:
        # Closing with unread input makes TCP reset the connection and the reply may be lost: so the
        # sending side is closed, and reading goes on until the client closes or a sweep ends it.
        self._state = LINGER
        self._rx = self._listener.scratch
        self._carry = b""
        self._chunked = None
        self._since = self._listener.tick
        transport = self._transport
        if transport.is_closing():
            return
        if transport.can_write_eof():
            if self._read_paused:
                self._read_paused = False
                transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()

    def _release_body(self) -> None:
        self._body = None
        if self._charged:
            self._listener.charge(-self._charged)
            self._charged = 0

    def _sweep_unsent(self, tick: int) -> None:
        # What the client takes of a reply shows only here: there is no callback for it.
        unsent = self._transport.get_write_buffer_size()
        taken, self._unsent = self._unsent - unsent, unsent
        if taken < 0 or taken >= BYTES_PER_S_MIN or (taken and not unsent):
            self._since = tick
        limits = self._listener.limits
        if tick - self._since > (limits.write_timeout_s if unsent else limits.linger_s):
            self._transport.abort()
