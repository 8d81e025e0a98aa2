"""Keeps one worker process alive: loads its model, starts it again, knows when to give up.

Knows processes and time. Must not know runs or tensors.

Contract: a process that ends by itself is started again at once, but no more than ``RESTARTS_MAX``
times in ``WINDOW_S``; then ``alive`` raises without a process until that is over.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec

from penstock.backends.base import LoadError, RunError
from penstock.backends.python.options import Options, Recipe, specs_of
from penstock.backends.python.process import CLOSE_S_MAX, Ended, Process
from penstock.protocol.message import TensorSpec

_log = logging.getLogger("penstock.backends.python")

RESTARTS_MAX: Final = 10
"""Enough for one request that ends the process each time its batch is run in halves."""
WINDOW_S: Final = 60.0


_ROWS = list[tuple[str, str, list[int]]]
_TOLD: Final = msgspec.json.Decoder(tuple[_ROWS, _ROWS, bool])
_REFUSED: Final = msgspec.json.Decoder(dict[str, str | bool])

Told = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], bool]
"""The inputs, the outputs, and whether the model streams."""


class Restarts:
    """Counts ends that nobody wanted. Pure: time is an argument."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=RESTARTS_MAX)

    def ended(self, now: float) -> None:
        self._ends.append(now)

    def count(self, now: float) -> int:
        """How many there were within the window, at most ``RESTARTS_MAX``."""
        return sum(now - end < WINDOW_S for end in self._ends)

    def wait_s(self, now: float) -> float:
        """How long there shall be no other process; 0 if there may be one."""
        return self._ends[0] + WINDOW_S - now if self.count(now) == RESTARTS_MAX else 0.0


class Supervisor:
    """The worker of one session; ``told`` is what it answered when its model was made.

    Raises:
        LoadError: the model cannot be made.
    """

    def __init__(self, recipe: Recipe, options: Options) -> None:
        self._recipe = recipe
        self._options = options
        self._restarts = Restarts()
        self._what = f"the worker process of model '{recipe.name}'"
        self._loaded = self._closed = False
        self._process: Process | None = Process(recipe, options)
        self.told: Told | None = None
        self.told = self._load(self._process, lambda: None)

    def alive(self, watch: Callable[[], None]) -> Process:
        """The process, with its model made. Waits for it; ``watch`` may stop that by raising.

        Raises:
            RunError: there is none, and why.
        """
        process = self._process
        if process is not None and self._loaded:
            return process
        if self._closed:
            raise RunError("the session is closed")
        if process is None:
            wait_s = self._restarts.wait_s(monotonic())
            if wait_s:
                raise RunError(
                    f"{self._what} ended {RESTARTS_MAX} times in {WINDOW_S:g} s; "
                    f"the next one starts in {wait_s:.0f} s"
                )
            process = self._begin()
        try:
            told = self._load(process, watch)
        except LoadError as error:
            _log.error("model %s: %s", self._recipe.name, error)
            raise RunError(f"{self._what} does not start again; the log says why") from None
        if told != self.told:
            self.close()
            raise RunError(f"{self._what} has other inputs or outputs than before; load it again")
        return process

    def lost(self, error: Ended, why: str = "", *, wanted: bool = False) -> RunError:
        """The process has ended in a run, which fails; another one is begun.

        ``why`` is told instead of how it ended; ``wanted`` ends are not held against the model.
        """
        self._process, now = None, monotonic()
        if not wanted:
            self._restarts.ended(now)
        why, ends = why or f"{self._what} {error}", self._restarts.count(now)
        last = f"; it last said: {error.last}" if error.last else ""
        _log.error("%s%s (%d such ends in %g s)", why, last, ends, WINDOW_S)
        if not self._restarts.wait_s(now):
            with contextlib.suppress(RunError):  # Found again by the next run.
                self._begin()
        return RunError(why)

    def close(self) -> None:
        """Ends the process, which may close its model first. Idempotent."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            process.end(CLOSE_S_MAX if self._loaded else 0.0)

    def _begin(self) -> Process:
        try:
            self._process = Process(self._recipe, self._options)
        except LoadError as error:
            self._restarts.ended(monotonic())
            raise RunError(str(error)) from error
        self._loaded = False
        return self._process

    def _load(self, process: Process, watch: Callable[[], None]) -> Told:
        limit_s = self._options.load_timeout_s
        until = monotonic() + limit_s

        def watch_both() -> None:
            watch()
            if monotonic() > until:
                process.end()
                raise Ended(f"needed more than {limit_s} s, its load_timeout_s")

        try:
            answer = process.receive(watch_both)
        except Ended as error:
            self._fell(process)
            last = f"; it last said: {error.last}" if error.last else ""
            said = f"cannot load {self._recipe.path}: {self._what} {error}{last}"
            raise LoadError(said) from None
        try:
            told = _told(answer)
        except LoadError:
            self._fell(process)
            raise
        self._loaded = True
        return told

    def _fell(self, process: Process) -> None:
        process.end()
        self._process = None
        self._restarts.ended(monotonic())


def _told(answer: bytes) -> Told:
    """What the first answer says.

    Raises:
        LoadError: the model was not made, or that is no answer.
    """
    try:
        if answer[:1] == b"e":
            raise LoadError(str(_REFUSED.decode(answer[1:])["text"]))
        inputs, outputs, streams = _TOLD.decode(answer[1:])
        return specs_of(inputs), specs_of(outputs), streams
    except (msgspec.DecodeError, KeyError) as error:
        raise LoadError(f"the worker process speaks nonsense: {error}") from error
