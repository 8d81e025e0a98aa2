"""One HTTP/1.1 connection of the synchronous client.

Knows: sending a ``Call`` and receiving its ``Reply`` over a ``Stream``. Must not know: what is in
the bodies, pools, retries.

The request goes out in one vectored write: the head, then the caller's arrays from where they lie.
The body of the reply is received into its final, aligned memory; only what arrived together with
the head is copied. Nothing is pipelined, so bytes after a reply mean that the connection cannot be
trusted any more.
"""

from __future__ import annotations

from typing import Final

from penstock.client.errors import BadReply, ConnectError, StaleConnection
from penstock.client.exchange import Call, Reply
from penstock.client.http1_head import CHUNKED, UNTIL_CLOSE, Head
from penstock.client.memory import Growing
from penstock.client.stream import Stream
from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.errors import Code, PenstockError

HEAD_BYTES_MAX: Final = 64 << 10
_INTERIM_MAX: Final = 16
_LINE_BYTES_MAX: Final = 4096
_TRAILERS_MAX: Final = 128
_CHUNK_DIGITS_MAX: Final = 15
_READ_BYTES: Final = 64 << 10
_START: Final = b"HTTP/1."
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class Connection:
    """A keep-alive connection; owns ``stream``. One exchange at a time.

    ``reusable`` is True only after a whole reply that lets it be; whatever is raised leaves it
    False. ``idle_since`` belongs to the pool.
    """

    __slots__ = (
        "_body_bytes_max", "_buffer", "_filled", "_head", "_pos", "_raw", "_received", "_stream",
        "_used", "_view", "idle_since", "reusable",
    )  # fmt: skip

    def __init__(self, stream: Stream, body_bytes_max: int) -> None:
        self._stream = stream
        self._body_bytes_max = body_bytes_max
        self._buffer = bytearray(HEAD_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._pos = 0  # The unread bytes are _buffer[_pos:_filled].
        self._filled = 0
        self._received = False
        self._raw = b""
        self._head: Head | None = None
        self.reusable = True
        self._used = False
        self.idle_since = 0.0

    def exchange(self, call: Call[object], deadline: float) -> Reply:
        """Send ``call`` and receive the reply, whatever its status.

        Raises:
            StaleConnection: closed by the peer before the first byte of the reply.
            ConnectError: lost in the middle of the reply.
            BadReply: not HTTP, or larger than the limits.
            DeadlineExceeded
        """
        self.reusable = False
        self._pos = self._filled = 0
        self._received = False
        try:
            complete = self._send(call, deadline)
            head = self._reply_head(deadline)
            body = self._body(head, deadline)
        except PenstockError:
            raise
        except OSError as error:
            raise self._lost(str(error)) from error
        self.reusable = complete and head.keep and self._pos == self._filled
        self._used = True
        return Reply(head.status, head.headers, body)

    def is_quiet(self) -> bool:
        """Whether the idle connection is still open and silent."""
        return self._stream.is_quiet()

    def close(self) -> None:
        self._stream.close()

    def _send(self, call: Call[object], deadline: float) -> bool:
        head = call.head()
        try:
            whole = self._stream.send((head, *call.buffers), len(head) + call.length, deadline)
            self._stream.await_reply(deadline)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a request unread answers and closes: its reply may be here.
            return False
        return whole

    def _reply_head(self, deadline: float) -> Head:
        for _ in range(_INTERIM_MAX + 1):
            raw = self._raw_head(deadline)
            head = self._head
            # A server says mostly the same to the same question: parse it once.
            if head is None or raw != self._raw:
                head = self._head = Head(raw)
                self._raw = raw
            if head.status >= 200:
                return head
            if head.status == 101:
                raise BadReply("the server switched protocols unasked")
        raise BadReply(f"more than {_INTERIM_MAX} interim replies")

    def _raw_head(self, deadline: float) -> bytes:
        buffer, start = self._buffer, self._pos
        searched = start
        while (end := buffer.find(b"\r\n\r\n", searched, self._filled)) < 0:
            if start:
                self._compact()
                start = 0
            if self._filled == HEAD_BYTES_MAX:
                raise BadReply(f"head of more than {HEAD_BYTES_MAX} bytes", Code.OUT_OF_RANGE)
            searched = max(0, self._filled - 3)
            self._more(deadline)
            if not buffer.startswith(_START[: self._filled]):
                raise BadReply(f"not an HTTP/1.1 reply: {bytes(buffer[: min(self._filled, 64)])!r}")
        self._pos = end + 4
        return bytes(self._view[start:end])

    def _body(self, head: Head, deadline: float) -> memoryview:
        if head.length == CHUNKED:
            return self._chunked(deadline)
        if head.length == UNTIL_CLOSE:
            return self._until_close(deadline)
        self._check_size(head.length)
        body = aligned_bytes(head.length, head.lead).data
        self._fill(body, deadline)
        return body

    def _chunked(self, deadline: float) -> memoryview:
        body = Growing()
        while size := _chunk_size(self._line(deadline)):
            self._check_size(body.filled + size)
            self._fill(body.room(size)[:size], deadline)
            body.filled += size
            if self._line(deadline):
                raise BadReply("a chunk is longer than it says")
        for _ in range(_TRAILERS_MAX):
            if not self._line(deadline):
                return body.done()
        raise BadReply(f"more than {_TRAILERS_MAX} trailers")

    def _until_close(self, deadline: float) -> memoryview:
        body = Growing()
        body.append(self._view[self._pos : self._filled])
        self._pos = self._filled
        while True:
            self._check_size(body.filled)
            count = self._stream.recv_into(body.room(_READ_BYTES), deadline)
            if not count:
                return body.done()
            body.filled += count

    def _check_size(self, size: int) -> None:
        if size > self._body_bytes_max:
            raise BadReply(f"body of more than {self._body_bytes_max} bytes", Code.OUT_OF_RANGE)

    def _fill(self, target: memoryview, deadline: float) -> None:
        """Fill ``target``: first with what the buffer holds, then straight from the stream."""
        size = len(target)
        done = min(size, self._filled - self._pos)
        if done:
            target[:done] = self._view[self._pos : self._pos + done]
            self._pos += done
        while done < size:
            count = self._stream.recv_into(target[done:], deadline)
            if not count:
                raise self._lost(f"the server closed it after {done} of {size} bytes")
            done += count

    def _line(self, deadline: float) -> bytes:
        """The next line, without its CRLF."""
        while (end := self._buffer.find(b"\r\n", self._pos, self._filled)) < 0:
            if self._filled - self._pos > _LINE_BYTES_MAX:
                raise BadReply(f"a line of more than {_LINE_BYTES_MAX} bytes between chunks")
            self._compact()
            self._more(deadline)
        line = bytes(self._view[self._pos : end])
        self._pos = end + 2
        return line

    def _compact(self) -> None:
        rest = self._filled - self._pos
        self._buffer[:rest] = self._buffer[self._pos : self._filled]
        self._pos, self._filled = 0, rest

    def _more(self, deadline: float) -> None:
        count = self._stream.recv_into(self._view[self._filled :], deadline)
        if not count:
            raise self._lost("the server closed it")
        self._received = True
        self._filled += count

    def _lost(self, why: str) -> ConnectError:
        if not self._received:
            return StaleConnection(f"connection lost before the reply: {why}", used=self._used)
        return ConnectError(f"connection lost within the reply: {why}")


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not 0 < len(digits) <= _CHUNK_DIGITS_MAX or not _HEX.issuperset(digits):
        raise BadReply(f"not the length of a chunk: {line[:32]!r}")
    return int(digits, 16)
