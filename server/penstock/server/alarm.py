"""One timer of an event loop that can be moved. The time is an argument.

Knows nothing of what it wakes. Used on the loop's thread alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_DELAY_S_MAX: Final = 3600.0


class Alarm:
    """Calls ``ring`` once at about the time that it was set to last.

    It may ring early, for a time that is far away: whoever is rung looks what is due, and sets it
    again. Times are monotonic nanoseconds.
    """

    __slots__ = ("_handle", "_loop", "_ring", "at_ns")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self.at_ns = 0
        """When it rings; 0 while it is not set."""
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_ns: int, now_ns: int) -> None:
        """Moves it to ``at_ns``."""
        if self._handle is not None:
            self._handle.cancel()
        delay_s = min(max(at_ns - now_ns, 0) / 1e9, _DELAY_S_MAX)
        self.at_ns = at_ns
        self._handle = self._loop.call_later(delay_s, self._rung)

    def set_by(self, at_ns: int, now_ns: int) -> None:
        """Moves it to ``at_ns`` unless it rings before that anyway."""
        if not 0 < self.at_ns <= at_ns:
            self.set(at_ns, now_ns)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self.at_ns = 0

    def _rung(self) -> None:
        self._handle = None
        self.at_ns = 0
        self._ring()
