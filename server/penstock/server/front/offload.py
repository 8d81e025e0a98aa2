"""Work on large messages that would hold up the event loop: done on a thread, answered on the loop.

Knows threads and the loop. Must not know what the work is. For whatever takes less than a thread
hand-off (about 100 µs) this is a loss: callers have thresholds, measured beside what they guard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from penstock.protocol.errors import Code, InferError

T = TypeVar("T")

THREADS: Final = 2
"""Python's own part of the work takes turns anyway; zlib's does not."""
WAITING_MAX: Final = 256
"""Pieces of work accepted and not finished; the bodies behind them are bounded by the port."""


class Work:
    """One piece; ``cancel`` forgets it: its callback will not be called."""

    __slots__ = ("_then", "future")

    def __init__(self, then: Callable[[Any, Exception | None], None]) -> None:
        self._then: Callable[[Any, Exception | None], None] | None = then
        self.future: Future[Any] | None = None

    def cancel(self) -> None:
        self._then = None
        if self.future is not None:
            self.future.cancel()

    def settle(self, future: Future[Any]) -> None:
        then, self._then, self.future = self._then, None, None
        if then is None or future.cancelled():
            return
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            error = RuntimeError(repr(error))
        then(None if error else future.result(), error)


class Offload:
    """A few threads, started when they are first needed. Used on the event loop."""

    def __init__(self, threads: int = THREADS, waiting_max: int = WAITING_MAX) -> None:
        self._threads = threads
        self._waiting_max = waiting_max
        self._waiting = 0
        self._executor: ThreadPoolExecutor | None = None

    def run(
        self,
        work: Callable[[], T],
        then: Callable[[T, Exception | None], None],
        *,
        owed: bool = False,
    ) -> Work:
        """Runs ``work`` on a thread and then ``then(result, None)`` or ``then(None, error)`` here.

        ``owed`` is work on an answer to what was accepted: it is not refused.

        Raises:
            InferError: RESOURCE_EXHAUSTED, too much is waiting already.
        """
        if self._waiting >= self._waiting_max and not owed:
            raise InferError(Code.RESOURCE_EXHAUSTED, "too many large messages are being worked on")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, "penstock-message")
        loop = asyncio.get_running_loop()
        piece = Work(then)
        self._waiting += 1

        def finished(future: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is gone, and with it the client.
                loop.call_soon_threadsafe(self._settle, piece, future)

        piece.future = self._executor.submit(work)
        piece.future.add_done_callback(finished)
        return piece

    def _settle(self, piece: Work, future: Future[Any]) -> None:
        self._waiting -= 1
        piece.settle(future)

    def close(self) -> None:
        """Lets go of the threads; what has not begun is forgotten."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
