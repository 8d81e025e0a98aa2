"""A session whose model lives in a process of its own.

Knows what a run is: arrays into shared memory, a packet there and one back, views of shared memory
out. Must not know how processes are started, or how a user's class is called.

Contract, beyond ``base``: outputs above ``COPIED_BYTES_MAX`` are views of memory that is used again
once the last of them has gone. A run that takes too long, or that nobody wants, gets
KeyboardInterrupt, and its process is ended if that does not help within ``GRACE_S``.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator, Sequence
from time import monotonic
from typing import Any, Final

import msgspec
import numpy as np

from penstock.backends.base import RunError
from penstock.backends.checks import refusal
from penstock.backends.python.memory import Header, Place, Segment, laid_out, matches, stored
from penstock.backends.python.options import Options, Recipe
from penstock.backends.python.output import Traces, log_trace
from penstock.backends.python.process import Ended, Process, Unheard
from penstock.backends.python.supervisor import Supervisor
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

COPIED_BYTES_MAX: Final = 64 << 10
"""Smaller outputs are copied: their memory is free at once, and a view costs as much."""
KEPT_BYTES_MAX: Final = 64 << 20
"""A segment that is larger goes after its run."""
GRACE_S: Final = 2.0
_INPUTS: Final = 0
_OUTPUTS: Final = range(1, 5)
"""Slots: more outputs than these may be in use elsewhere, but their memory is not used again."""
_PLANS_MAX: Final = 256
_HEADERS: Final = msgspec.json.Decoder(list[tuple[list[int], int]])


class _Failure(msgspec.Struct):
    text: str
    caller_fault: bool
    interrupted: bool
    trace: str


_FAILURES: Final = msgspec.json.Decoder(_Failure)
_INTERRUPTED: Final = "the run was interrupted: nobody wants its results"

Plan = tuple[bytes, list[Place], int]
"""A header as JSON, the places that follow from it, and the bytes that they need."""


class ProcessSession:
    """One model in one process, which is the session's own."""

    thread_safe = False
    off_loop = True

    def __init__(self, supervisor: Supervisor, recipe: Recipe, options: Options) -> None:
        assert supervisor.told is not None
        self.inputs, self.outputs, _ = supervisor.told
        self._supervisor = supervisor
        self._recipe = recipe
        self._options = options
        self._traces = Traces()
        self._there: dict[Any, Plan] = {}
        self._back: dict[bytes, Plan] = {}
        self._kinds = [spec.dtype for spec in self.outputs]
        self._packs = any(spec.dtype is dt.BYTES for spec in self.inputs)
        self._state = threading.Lock()
        """Held while a wait begins or ends, and by who interrupts one."""
        self._waiting = False
        self._asked: Process | None = None
        self._why = ""
        self._deadline = self._give_up = 0.0

    def clone(self) -> ProcessSession:
        """See ``CloneableSession.clone``: another process."""
        return open_session(self._recipe, self._options)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        return self._taken(*self._begun(b"R", inputs))

    def interrupt(self) -> None:
        """See ``InterruptibleSession.interrupt``."""
        with self._state:
            if self._waiting:
                self._why = self._why or _INTERRUPTED
                if self._asked is not None:
                    self._asked.signal(signal.SIGINT)

    def close(self) -> None:
        """See ``Session.close``: ends the process, which may close its model first."""
        self._supervisor.close()

    # ------------------------------------------------------------------ there

    def _begun(self, letter: bytes, inputs: Sequence[Array]) -> tuple[Process, int, bytes]:
        """What a process answers to ``inputs``, and the slot where outputs are."""
        plan = self._plan(inputs)
        for first in (True, False):
            process = self._alive()
            try:
                form = self._place(process, inputs, plan)
                slot = self._free_slot(process)
                return process, slot, self._ask(process, letter, slot, form)
            except Ended as error:
                lost = self._lost(error)
                # One that ended while it had nothing to do costs no run.
                if not (first and isinstance(error, Unheard)):
                    break
        raise lost

    def _plan(self, inputs: Sequence[Array]) -> Plan | None:
        """How inputs like these are told of and laid out; None if that depends on their bytes."""
        key = tuple([(array.dtype, array.shape) for array in inputs])
        plan = self._there.get(key)
        if plan is None:
            why = refusal(self.inputs, inputs)
            if why is not None:
                raise RunError(why, caller_fault=True)
            if self._packs:
                return None
            plan = _planned(stored(inputs)[0])
            _remember(self._there, key, plan)
        return plan

    def _place(self, process: Process, inputs: Sequence[Array], plan: Plan | None) -> bytes:
        """Copies ``inputs`` to where the process finds them."""
        if plan is None:
            header, inputs = stored(inputs)
            plan = _planned(header)
        form, places, size = plan
        segment = process.segments.get(_INPUTS)
        if segment is None or segment.size < size:
            segment = self._share(process, _INPUTS, size, "the inputs")
        segment.write(places, inputs)
        return form

    def _share(self, process: Process, slot: int, size: int, what: str) -> Segment:
        most = self._options.message_bytes_max
        if size > most:
            raise RunError(
                f"{what} need {size} bytes; message_limit_mb is {most >> 20}",
                caller_fault=slot == _INPUTS,
            )
        try:
            return process.share(slot, size)
        except OSError as error:
            raise RunError(f"no memory for {what} of {size} bytes: {error.strerror}") from error

    # ------------------------------------------------------------------ and back

    def _free_slot(self, process: Process) -> int:
        for slot in _OUTPUTS:
            segment = process.segments.get(slot)
            if segment is None or not segment.lent():
                return slot
        process.forget(_OUTPUTS[0])
        return _OUTPUTS[0]

    def _taken(self, process: Process, slot: int, answer: bytes) -> list[Array]:
        """The outputs that ``answer``, an ``r``, says are in ``slot``."""
        plan = self._back.get(answer)
        if plan is None:
            plan = self._understood(answer)
        _, places, size = plan
        if not size:
            return [np.empty(at.shape, kind.numpy) for at, kind in zip(places, self._kinds)]  # noqa: B905
        segment = process.segments.get(slot)
        if segment is None or size > segment.size:
            raise RunError("the worker process speaks of memory that it does not have")
        try:
            pairs = zip(places, self._kinds, strict=True)
            outputs = [segment.array(place, kind) for place, kind in pairs]
        except ValueError as error:
            raise RunError(f"the worker process speaks nonsense: {error}") from error
        if size <= COPIED_BYTES_MAX:
            outputs = [array.copy() for array in outputs]
        if segment.size > KEPT_BYTES_MAX:
            process.forget(slot)
        return outputs

    def _understood(self, answer: bytes) -> Plan:
        try:
            header: Header = list(_HEADERS.decode(answer[1:]))
        except msgspec.DecodeError as error:
            raise RunError(f"the worker process speaks nonsense: {error}") from error
        if answer[:1] != b"r":
            raise RunError(f"the worker process speaks nonsense: {answer[:1]!r}")
        if not matches(header, self._kinds):
            raise RunError("the worker process speaks of other outputs than it has")
        plan = _planned(header)
        _remember(self._back, answer, plan)
        return plan

    # ------------------------------------------------------------------ waiting

    def _ask(self, process: Process, letter: bytes, slot: int, form: bytes = b"") -> bytes:
        """The answer to a packet about ``slot``, which grows if it must.

        Raises:
            RunError: the answer is an error, or wants more memory than there is.
            Ended: the process has, or had to be.
        """
        limit_s = self._options.timeout_s
        self._deadline = monotonic() + limit_s if limit_s else 0.0
        self._begin_wait(process)
        try:
            process.tell(letter + bytes([slot]) + form)
            answer = process.receive(self._watch)
            if answer[:1] == b"m":
                self._grow(process, slot, answer)
                answer = process.receive(self._watch)
        finally:
            self._end_wait()
        if answer[:1] == b"e":
            raise self._raised(answer)
        held = process.segments.get(_INPUTS)
        if held is not None and held.size > KEPT_BYTES_MAX and letter == b"R":
            process.forget(_INPUTS)
        return answer

    def _grow(self, process: Process, slot: int, answer: bytes) -> None:
        try:
            self._share(process, slot, int(answer[1:]), "the outputs")
        except ValueError as error:
            raise RunError(f"the worker process speaks nonsense: {error}") from error
        except RunError:
            process.segments.pop(slot, None)
            process.tell(b"D" + bytes([slot]))  # The answer that it waits for.
            raise

    def _alive(self) -> Process:
        self._begin_wait(None)
        try:
            return self._supervisor.alive(self._watch)
        finally:
            self._end_wait()

    def _begin_wait(self, asked: Process | None) -> None:
        with self._state:
            self._waiting = True
            self._asked = asked
            self._why = ""
            self._give_up = 0.0

    def _end_wait(self) -> None:
        with self._state:
            self._waiting = False
            self._asked = None

    def _watch(self) -> None:
        """Called while an answer is waited for: stops a run that has no business to go on."""
        now, asked = monotonic(), self._asked
        if asked is None:
            if self._why:
                raise RunError(self._why)
            return
        if self._deadline and now > self._deadline and not self._why:
            self._why = f"the run took longer than {self._options.timeout_s} s, its timeout_s"
        if self._why:
            self._give_up = self._give_up or now + GRACE_S
            if now > self._give_up:
                raise Ended(asked.end())
            asked.signal(signal.SIGINT)

    def _raised(self, answer: bytes) -> RunError:
        try:
            told = _FAILURES.decode(answer[1:])
        except msgspec.DecodeError as error:
            return RunError(f"the worker process speaks nonsense: {error}")
        if told.interrupted and self._why:
            return RunError(self._why)
        if not told.caller_fault:
            log_trace(self._traces, self._recipe.name, told.trace)
        return RunError(told.text, caller_fault=told.caller_fault)

    def _lost(self, error: Ended) -> RunError:
        return self._supervisor.lost(error, self._why, wanted=self._why == _INTERRUPTED)


class ProcessStreamingSession(ProcessSession):
    """One whose ``predict`` is a generator."""

    def stream(self, inputs: Sequence[Array]) -> Generator[Sequence[Array], None, None]:
        """See ``StreamingSession.stream``."""
        process, _, _ = self._begun(b"S", inputs)
        going = True
        try:
            while True:
                slot = self._free_slot(process)
                answer = self._ask(process, b"N", slot)
                if answer[:1] == b"x":
                    going = False
                    return
                yield self._taken(process, slot, answer)
        except Ended as error:
            going = False
            raise self._lost(error) from None
        finally:
            if going:
                self._leave(process)

    def _leave(self, process: Process) -> None:
        """Closes the stream before its end: what the model raises then is for the log alone."""
        with contextlib.suppress(RunError):
            try:
                self._ask(process, b"E", _INPUTS)
            except Ended as error:
                raise self._lost(error) from None


def open_session(recipe: Recipe, options: Options) -> ProcessSession:
    """A session with a process that has made its model.

    Raises:
        LoadError: it cannot be made.
    """
    supervisor = Supervisor(recipe, options)
    streams = supervisor.told is not None and supervisor.told[2]
    return (ProcessStreamingSession if streams else ProcessSession)(supervisor, recipe, options)


def _planned(header: Header) -> Plan:
    return msgspec.json.encode(header), *laid_out(header)


def _remember(plans: dict[Any, Plan], key: Any, plan: Plan) -> None:
    if len(plans) >= _PLANS_MAX:
        plans.clear()
    plans[key] = plan
