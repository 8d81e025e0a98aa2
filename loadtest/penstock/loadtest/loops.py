"""Runs a command's coroutine on uvloop so that SIGTERM unwinds it.

A signal handler that raises does not do: uvloop swallows what is raised within a protocol's
callback, and the command would go on. Knows the loop and the signal; must not know the work.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled on SIGTERM.

    Raises:
        SystemExit: with status 143, after it was cancelled.
    """

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            raise SystemExit(128 + signal.SIGTERM) from None
