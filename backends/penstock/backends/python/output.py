"""What user code says, made fit for the server's log: bounded lines, a bounded number of them.

``Lines`` and ``Traces`` are pure: time is an argument. ``Drain`` is a thread that empties a pipe,
however much comes, so that a model that prints in a loop never waits for the log.
"""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic
from typing import Final

_log = logging.getLogger("penstock.backends.python")

LINE_CHARS_MAX: Final = 2000
LINES_AT_ONCE: Final = 100
LINES_PER_S: Final = 20.0
TRACE_S: Final = 60.0
"""A traceback like one that was logged less long ago is only counted."""
_TRACES_MAX: Final = 64
_READ_BYTES: Final = 64 << 10


class Lines:
    """Cuts bytes into lines, and lets no more of them pass than the allowance has.

    ``last`` is the last line that was not empty, whether it passed or not.
    """

    def __init__(self, now: float) -> None:
        self.last = ""
        self._rest = b""
        self._allowance = float(LINES_AT_ONCE)
        self._at = now
        self._left_out = 0

    def feed(self, data: bytes, now: float) -> list[str]:
        """The lines to log now; empty ``data`` is the end."""
        self._allowance += (now - self._at) * LINES_PER_S
        self._allowance = min(self._allowance, LINES_AT_ONCE)
        self._at = now
        *whole, rest = (self._rest + data).split(b"\n")
        if not data or len(rest) > LINE_CHARS_MAX:
            whole.append(rest)
            rest = b""
        self._rest = rest
        out = self._passed(whole)
        if not data and self._left_out:
            out.append(self._missing())
        return out

    def _passed(self, lines: list[bytes]) -> list[str]:
        out: list[str] = []
        said = [line for line in lines if line.strip()]
        passing = min(len(said), int(self._allowance))
        if passing and self._left_out:
            out.append(self._missing())
        out += map(_readable, said[:passing])
        self._allowance -= passing
        self._left_out += len(said) - passing
        if said:
            self.last = _readable(said[-1])
        return out

    def _missing(self) -> str:
        count, self._left_out = self._left_out, 0
        return f"({count} more lines, too many to log)"


def _readable(line: bytes) -> str:
    text = line[: 4 * LINE_CHARS_MAX].decode(errors="replace").rstrip()
    text = "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
    return text if len(text) <= LINE_CHARS_MAX else f"{text[:LINE_CHARS_MAX]}..."


class Traces:
    """Says which tracebacks are worth logging: each kind once in a while."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def worth(self, trace: str, now: float) -> int | None:
        """None if one like it was logged lately; else how many were not since that one."""
        kind = "\n".join(line for line in trace.splitlines() if line.startswith("  File "))
        at, left_out = self._seen.get(kind, (now - TRACE_S, 0))
        if now - at < TRACE_S:
            self._seen[kind] = (at, left_out + 1)
            return None
        if len(self._seen) >= _TRACES_MAX:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        return left_out


def log_trace(traces: Traces, model: str, trace: str) -> None:
    """Logs what a model raised, if it is worth it."""
    left_out = traces.worth(trace, monotonic())
    if left_out is not None:
        again = f" ({left_out} like it before this one)" if left_out else ""
        _log.error("model %s raised%s\n%s", model, again, trace.rstrip())


class Drain:
    """Logs what comes out of a pipe, which is its own, until the last writer has closed it."""

    def __init__(self, file: int, model: str) -> None:
        self._lines = Lines(monotonic())
        self._file = file
        self._model = model
        self._thread = threading.Thread(target=self._loop, name=f"{model} output", daemon=True)
        self._thread.start()

    def last(self, wait_s: float) -> str:
        """The last line, once the pipe has ended or the time is up."""
        self._thread.join(wait_s)
        return self._lines.last

    def _loop(self) -> None:
        data = b"?"
        while data:
            try:
                data = os.read(self._file, _READ_BYTES)
            except OSError:
                data = b""
            for line in self._lines.feed(data, monotonic()):
                _log.info("model %s: %s", self._model, line)
        os.close(self._file)
