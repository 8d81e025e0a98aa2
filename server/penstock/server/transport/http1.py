"""HTTP/1.1 over asyncio: bytes in, a complete request to its endpoint, an answer out.

One request at a time per connection, in order: what a client pipelines waits in the connection.
Reading stops while too much waits, and no request is started while the client does not read its
replies. When the client goes away the request in progress is cancelled.

Knows nothing of models and protocols: an *endpoint* is called with the connection (as
``Responder``), the head and the body, and answers at once or later. This is the receiving half of a
connection; the writing one is ``http1_replies``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from penstock.server.http_seam import Buffer
from penstock.server.transport.body import body_buffer
from penstock.server.transport.chunked import ChunkedBody
from penstock.server.transport.head import HEAD_BYTES_MAX, Head, parse_head
from penstock.server.transport.http1_replies import (
    BODY,
    BUSY,
    BYTES_PER_S_MIN,
    CHUNKED,
    HEAD,
    LINGER,
    STREAM,
    Http1Replies,
)
from penstock.server.transport.listener import Http1Listener
from penstock.server.transport.status import BadRequest

_log = logging.getLogger(__name__)

_CARRY_MAX: Final = 64 * 1024
"""Pipelined bytes kept while a request is served; beyond it reading stops."""
_COPY_MAX: Final = 16 * 1024
_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Http1Connection(Http1Replies):
    """One client connection. Created by the listener, which also sweeps it for slowness."""

    __slots__ = ("_advancing", "_have", "_need")

    def __init__(self, listener: Http1Listener) -> None:
        super().__init__(listener)
        self._have = 0
        self._need = 0
        self._advancing = False

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._listener.add(self):
            self._fatal(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.discard(self)
        self._state = LINGER
        self._stream = None
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        self._release_body()
        self._carry = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rx

    def buffer_updated(self, nbytes: int) -> None:
        state = self._state
        if state == BODY:
            self._body_received(nbytes)
        elif state == CHUNKED:
            # What follows the body waits until this call is over: an answer given at once would
            # start the next request inside the dispatch of this one.
            self._advancing = True
            self._feed_chunked(bytes(self._rx[:nbytes]))
            self._advancing = False
            self._advance()
        elif state != LINGER:
            if self._carry:
                self._carry += self._rx[:nbytes]
            else:
                self._since = self._began = self._listener.tick
                self._carry = bytes(self._rx[:nbytes])
            if state == HEAD:
                self._advance()
            if len(self._carry) > _CARRY_MAX and not self._read_paused:
                self._read_paused = True
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    # ------------------------------------------------------------------ requests

    def _advance(self) -> None:
        """Starts requests from what was received, until one has to be waited for."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._state == HEAD and self._carry and not self._write_paused:
                if not self._start():
                    return
        except BadRequest as error:
            self._fatal(error.status, error.message)
        finally:
            self._advancing = False
            if self._read_paused and len(self._carry) <= _CARRY_MAX:
                self._read_paused = False
                self._transport.resume_reading()

    def _start(self) -> bool:
        """Starts one request; False when its head is not complete yet."""
        data = self._carry
        end = data.find(_END) + 4
        if end == 3:
            self._check_partial_head(data)
            return False
        raw = data[:end]
        head = self._listener.heads.get(raw)
        if head is None:
            if raw[0] in b"\r\n":
                # RFC 9112 §2.2: empty lines before a request are to be ignored.
                self._carry = data.lstrip(b"\r\n")
                return True
            head = self._parse(raw)
        self._head = head
        need = head.content_length
        got = len(data) - end
        if 0 <= need <= got:
            stop = end + need
            self._carry = data[stop:]
            # A small body is cheaper copied out than looked at through a view.
            small = need <= _COPY_MAX
            self._dispatch(data[end:stop] if small else memoryview(data)[end:stop])
            return True
        self._carry = b""
        self._await_body(head, data[end:])
        return True

    def _check_partial_head(self, data: bytes) -> None:
        if data[0] in b"\r\n":
            self._carry = data.lstrip(b"\r\n")
            return
        if len(data) > HEAD_BYTES_MAX:
            raise BadRequest(431, f"the head is larger than {HEAD_BYTES_MAX} bytes")
        if b"\n\n" in data or not b" " < data[:1] < b"\x7f":
            raise BadRequest(400, "this is not HTTP/1.1 (is it TLS, or without CR before LF?)")

    def _parse(self, raw: bytes) -> Head:
        if len(raw) > HEAD_BYTES_MAX:
            raise BadRequest(431, f"the head is larger than {HEAD_BYTES_MAX} bytes")
        self._head = head = parse_head(raw)
        limit = self._listener.limits.body_bytes_max
        if head.content_length > limit:
            raise BadRequest(
                413,
                f"the body of {head.content_length} bytes is larger than the limit of {limit}; "
                "see --http-max-body-bytes",
            )
        head.endpoint = self._listener.resolve(head)
        self._listener.heads.put(raw, head)
        return head

    def _await_body(self, head: Head, first: bytes) -> None:
        if head.expects_continue and not first:
            self._transport.write(_CONTINUE)
        if head.content_length < 0:
            self._chunked = ChunkedBody(self._listener.limits.body_bytes_max)
            self._have = 0
            self._rx = self._listener.scratch
            self._state = CHUNKED
            self._feed_chunked(first)
            return
        self._receive_into(head, first)

    def _receive_into(self, head: Head, first: bytes) -> None:
        """From now on the socket is read into the body's own buffer, until it is whole."""
        self._body = body = body_buffer(head)
        body[: len(first)] = first
        self._have = len(first)
        self._need = len(body)
        self._rx = body[len(first) :]
        self._state = BODY

    def _body_received(self, nbytes: int) -> None:
        self._since = self._listener.tick
        self._have += nbytes
        try:
            self._charge(nbytes)
        except BadRequest as error:
            self._fatal(error.status, error.message)
            return
        if self._have < self._need:
            self._rx = self._rx[nbytes:]
            return
        self._rx = self._listener.head_scratch
        self._dispatch(cast(memoryview, self._body))
        self._advance()

    def _charge(self, nbytes: int) -> None:
        self._charged += nbytes
        if not self._listener.charge(nbytes):
            raise BadRequest(503, "too many bytes of request bodies are being received")

    def _feed_chunked(self, data: bytes) -> None:
        self._since = self._listener.tick
        chunked = cast(ChunkedBody, self._chunked)
        try:
            self._charge(len(data))
            self._have += len(data)
            rest = chunked.feed(data)
        except BadRequest as error:
            self._fatal(error.status, error.message)
            return
        if rest is not None:
            self._carry = rest
            self._chunked = None
            self._rx = self._listener.head_scratch
            self._dispatch(memoryview(chunked.body))

    def _dispatch(self, body: Buffer) -> None:
        """Hands a complete request to its endpoint."""
        self._state = BUSY
        head = cast(Head, self._head)
        self._body = None
        try:
            pending = head.endpoint(self, head, body)
        except Exception:
            _log.exception("endpoint failed for %s %s", head.method, head.path)
            if self._state == BUSY:
                content_type, text = self._listener.refusal(head, "internal error")
                self.reply(500, content_type, (text,))
            elif self._state == STREAM:
                self._transport.abort()  # Any other end would look like that of a whole answer.
            return
        if self._state >= BUSY:
            self._pending = pending

    # ------------------------------------------------------------------ the listener's side

    def sweep(self, tick: int) -> None:
        """Ends the connection if it made no progress for too long; called once a second."""
        limits = self._listener.limits
        state = self._state
        if state == LINGER or self._write_paused:
            self._sweep_unsent(tick)
            return
        silent_s = tick - self._since
        if state == HEAD and not self._carry:
            if silent_s > limits.idle_timeout_s:
                # A client that leaves the rest of a reply unread would keep a close from ending.
                if self._transport.is_closing():
                    self._transport.abort()
                else:
                    self._transport.close()
        elif state < BUSY and (silent_s > limits.read_timeout_s or self._too_slow(tick)):
            self._fatal(408, "the request did not arrive in time")

    def _too_slow(self, tick: int) -> bool:
        grace_s = self._listener.limits.read_timeout_s
        received = len(self._carry) if self._state == HEAD else self._have
        return received < (tick - self._began - grace_s) * BYTES_PER_S_MIN

    def drain(self) -> None:
        """Closes the connection if no request is in progress."""
        if self._state == HEAD and not self._carry:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
