"""One call of the library ``grpcio`` as the seam's ``Call``: a coroutine around callbacks.

Knows ``grpc.aio``'s contexts and the seam. Must not know servers or addresses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns
from typing import Any, Final

import grpc
import grpc.aio

from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.server.grpc_seam import Method, Methods, Stream, Trailers
from penstock.server.http_seam import Buffer

_log = logging.getLogger(__name__)

CONGESTED_BYTES: Final = 1024**2
"""Replies that wait to be written; a stream with more of them is congested."""
_CANCEL_S: Final = 0.001
"""In this time the library tells that a call was cancelled whose messages have come to an end."""
_HEADS_MAX: Final = 1024
_STATUSES: Final = {status.value[0]: status for status in grpc.StatusCode}
_BUG: Final = InferError(Code.INTERNAL, "internal error")


class _Head:
    """See ``grpc_seam.CallHead``."""

    __slots__ = ("memo", "metadata", "path")

    def __init__(self, path: str, metadata: Mapping[str, str | bytes]) -> None:
        self.path = path
        self.metadata = metadata
        self.memo: Any = None


class _Heads:
    """One head for all calls of a method whose metadata are alike; at most ``_HEADS_MAX``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[Any, _Head] = {}

    def of(self, context: Any) -> _Head:
        metadata = context.invocation_metadata()
        known = self._known.get(metadata)
        if known is None:
            if len(self._known) >= _HEADS_MAX:
                self._known.clear()
            known = self._known[metadata] = _Head(self._path, _joined(metadata))
        return known


def _joined(metadata: Sequence[tuple[str, str | bytes]]) -> dict[str, str | bytes]:
    fields: dict[str, Any] = {}
    for key, value in metadata:
        before = fields.get(key)
        comma = b"," if isinstance(value, bytes) else ","
        fields[key] = value if before is None else before + comma + value
    return fields


class _Call:
    """What both kinds of call have: their end, and what it is."""

    def __init__(self, context: Any) -> None:
        left_s = context.time_remaining()
        self.deadline_ns = 0 if left_s is None else monotonic_ns() + int(left_s * 1e9)
        self.peer = context.peer()
        self.ended = False
        self.error: PenstockError | None = None
        self.trailers: Trailers = ()

    @property
    def congested(self) -> bool:
        return False

    def reply(self, buffers: Sequence[Buffer], trailers: Trailers = ()) -> None:
        self.send(buffers)
        self.finish(trailers)

    def send(self, buffers: Sequence[Buffer]) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        """Nothing is held back of a call with one message."""

    def finish(self, trailers: Trailers = ()) -> None:
        self._end(None, trailers)

    def fail(self, error: PenstockError, trailers: Trailers = ()) -> None:
        self._end(error, trailers)

    def _end(self, error: PenstockError | None, trailers: Trailers) -> None:
        if not self.ended:
            self.ended, self.error, self.trailers = True, error, trailers
            self.woken()

    def woken(self) -> None:
        """Something changed that the coroutine waits for."""
        raise NotImplementedError

    async def conclude(self, context: Any) -> None:
        """Sends the status."""
        if self.error is not None:
            status = _STATUSES[self.error.code.grpc_status]
            await context.abort(status, self.error.message, tuple(self.trailers))
        elif self.trailers:
            context.set_trailing_metadata(tuple(self.trailers))


class _UnaryCall(_Call):
    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.message = b""

    def send(self, buffers: Sequence[Buffer]) -> None:
        if not self.ended:
            self.message = b"".join(buffers)

    def woken(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _StreamCall(_Call):
    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._turn = asyncio.Event()
        self._admit = asyncio.Event()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._was_congested = False

    @property
    def congested(self) -> bool:
        return self._waiting_bytes > CONGESTED_BYTES

    def send(self, buffers: Sequence[Buffer]) -> None:
        if not self.ended:
            message = b"".join(buffers)
            self._waiting.append(message)
            self._waiting_bytes += len(message)
            self._was_congested = self._was_congested or self.congested
            self._turn.set()

    def resume(self) -> None:
        self._admit.set()

    def woken(self) -> None:
        self._turn.set()
        self._admit.set()

    async def write(self, context: Any, stream: Stream) -> None:
        """Writes what is sent, until the call has ended."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                await context.write(message)
                self._waiting_bytes -= len(message)
                if self._was_congested and not self.congested:
                    self._was_congested = False
                    self._admit.set()
                    stream.drained()
            if self.ended:
                return
            self._turn.clear()
            await self._turn.wait()

    async def read(self, context: Any, stream: Stream, method: Method) -> None:
        """Hands over what the client sends, as long as that is wanted. Raises nothing."""
        try:
            while not self.ended:
                if self.congested or stream.full:
                    self._admit.clear()
                    await self._admit.wait()
                    continue
                message = await context.read()
                if self.ended:
                    return
                if message is grpc.aio.EOF:
                    # The messages of a call that its client cancels end like this too.
                    await asyncio.sleep(_CANCEL_S)
                    if not self.ended:
                        stream.half_closed()
                    return
                if 0 < method.request_bytes_max < len(message):
                    stream.cancel()
                    self.fail(_too_large(len(message), method.request_bytes_max))
                    return
                stream.received(message)
        except Exception:
            if not self.ended:
                _log.exception("method %s failed", method.path)
                stream.cancel()
                self.fail(_BUG)


def handlers_of(methods: Methods, calls: set[Any]) -> dict[str, Any]:
    """The library's handlers by path; ``calls`` holds those in progress."""
    return {path: _handler(method, calls) for path, method in methods.items()}


def _handler(method: Method, calls: set[Any]) -> Any:
    if method.unary is not None:
        return grpc.unary_unary_rpc_method_handler(_unary(method, calls))
    return grpc.stream_stream_rpc_method_handler(_stream(method, calls))


def _unary(method: Method, calls: set[Any]) -> Callable[[bytes, Any], Any]:
    start, heads, bytes_max = method.unary, _Heads(method.path), method.request_bytes_max
    assert start is not None

    async def serve(request: bytes, context: Any) -> bytes:
        call = _UnaryCall(context)
        calls.add(call)
        cancellable = None
        try:
            if bytes_max and len(request) > bytes_max:
                call.fail(_too_large(len(request), bytes_max))
            else:
                cancellable = start(call, heads.of(context), request)
                del request  # The method keeps it for as long as it needs it.
            await call.done
        except asyncio.CancelledError:
            if cancellable is not None and not call.ended:
                cancellable.cancel()
            call.ended = True
            raise
        except Exception:
            _log.exception("method %s failed", method.path)
            call.fail(_BUG)
        finally:
            calls.discard(call)
        await call.conclude(context)
        return call.message

    return serve


def _stream(method: Method, calls: set[Any]) -> Callable[[Any, Any], Any]:
    start, heads = method.stream, _Heads(method.path)
    assert start is not None

    async def serve(_: Any, context: Any) -> None:
        call = _StreamCall(context)
        calls.add(call)
        try:
            stream = start(call, heads.of(context))
            reading = asyncio.ensure_future(call.read(context, stream, method))
            try:
                await call.write(context, stream)
            except BaseException:  # The client is gone, mostly by cancelling this coroutine.
                call.ended = True
                stream.cancel()
                raise
            finally:
                reading.cancel()
        except Exception:
            _log.exception("method %s failed", method.path)
            call.error = _BUG
        finally:
            calls.discard(call)
        await call.conclude(context)

    return serve


def _too_large(size: int, bytes_max: int) -> InferError:
    return InferError(
        Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than {bytes_max} bytes"
    )
