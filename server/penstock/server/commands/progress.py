"""Shows how far a long command is: a bar on a terminal, a line now and then elsewhere.

Knows nothing of the work. What it is told is a step in words and the share of it that is done, from
0 to 1; a share that falls back begins another bar.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TextIO

from penstock.server.commands.terminal import printable

Tell = Callable[[str, float], None]

LINE_S_MIN: Final = 10.0
"""Between two lines about one step, in a log."""


class Progress:
    """``with Progress(stream) as tell: work(progress=tell)``; ``quiet`` shows nothing.

    The bar is tqdm's where that is installed; without it a terminal gets lines too.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._make = None if quiet else _bars(stream)
        self._quiet = quiet
        self._bar: Any = None
        self._step = ""
        self._share = 0.0
        self._told_at = 0.0

    def __enter__(self) -> Tell:
        return self._tell

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tell(self, step: str, share: float) -> None:
        if self._quiet:
            return
        step, share = printable(step), min(max(share, 0.0), 1.0)
        if self._make is not None:
            self._draw(step, share)
        elif step != self._step or self._clock() - self._told_at >= LINE_S_MIN:
            self._told_at = self._clock()
            print(f"{step} ({share:.0%})", file=self._stream, flush=True)
        self._step, self._share = step, share

    def _draw(self, step: str, share: float) -> None:
        assert self._make is not None
        if self._bar is None or share < self._share:
            self.__exit__(None, None, None)
            self._bar = self._make()
        self._bar.set_description_str(step, refresh=False)
        self._bar.update(share - self._bar.n)


def _bars(stream: TextIO) -> Callable[[], Any] | None:
    if not stream.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    shape = "{desc:<38.38} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"
    return lambda: tqdm(total=1.0, file=stream, bar_format=shape, dynamic_ncols=True, leave=True)
