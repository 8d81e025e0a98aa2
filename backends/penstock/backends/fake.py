"""A backend without an engine, for tests of everything above the contract.

Knows the contract and NumPy. Deterministic: the same inputs give the same outputs; time passes only
where a delay is asked for. The catalog offers it as ``fake``, so a whole gateway can be run on it.

What is loaded: a directory without a ``model.fake`` (the model is then all in the options), or a
``model.fake`` file as ``artefact()`` writes it, whose options the source's own override.

Options (all strings):

=================== ===============================================================================
``kind``            ``identity`` (default): OUTPUT0 = INPUT0
                    ``add_sub``: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1
                    ``echo_rows``: OUTPUT0 = INPUT0, ROWS int64 [N, 1] = rows of the run it was in
                    ``fail``: every run raises RunError
                    ``slow``: ``identity`` with ``delay_ms`` 50
                    ``repeat``: ``identity``, and streams: OUTPUT0 = INPUT0 ``times`` times
``times``           how often ``repeat`` answers (default 3); -1: as often as INPUT0's first element
``dtype``           element type of the tensors: a KServe name (default INT32)
``shape``           sizes behind the batch dimension, such as ``16`` (default), ``-1,4`` or empty
``batch``           first dimension: -1 (default, any number of rows) or a fixed number
``delay_ms``        how long every run blocks, with the GIL released
``poison``          an input element of this value makes the run raise RunError
``poison_is_caller_fault``  1 (default) or 0: what that RunError says
``fail_runs``       this many first runs raise RunError, later ones succeed
``load_error``      ``load`` raises LoadError with this text
``thread_safe``     1 (default) or 0; where 0, overlapping runs raise AssertionError
``able``            1: sessions can be cloned, interrupted and write in place (default 0)
=================== ===============================================================================

Puppet style: give the backend a ``gate`` (``threading.Event``); every run, and every response of a
stream, announces itself on ``session.entered`` and then waits for the gate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.checks import flag, refusal, unknown_option, whole
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec

Compute = Callable[[Sequence[Array]], Sequence[Array]]

GATE_S_MAX: Final = 30.0
"""A run that waits longer for its gate fails, so that a broken test ends."""

_HEAD: Final = "penstock-fake 1"
_END: Final = "end"
_KINDS: Final = ("identity", "add_sub", "echo_rows", "fail", "slow", "repeat")
_OPTIONS: Final = (
    "kind", "dtype", "shape", "batch", "delay_ms", "poison", "poison_is_caller_fault",
    "fail_runs", "load_error", "thread_safe", "times", "able",
)  # fmt: skip


def artefact(options: Mapping[str, str]) -> bytes:
    """The bytes of a ``model.fake`` that says ``options``."""
    lines = [_HEAD, *(f"{key}={value}" for key, value in options.items()), _END]
    return "\n".join(lines).encode() + b"\n"


class FakeBackend:
    """Makes ``FakeSession``s and keeps them in ``sessions``, in the order of loading.

    ``inputs``, ``outputs`` and ``compute`` together replace the ``kind``: ``compute`` gets the
    checked inputs and returns new arrays. ``devices`` are the device names that it takes.
    """

    name = "fake"
    default_filename = "model.fake"

    def __init__(
        self,
        *,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        compute: Compute | None = None,
        gate: threading.Event | None = None,
        devices: Sequence[str] = ("cpu",),
    ) -> None:
        self.sessions: list[FakeSession] = []
        self._own = (tuple(inputs), tuple(outputs), compute) if compute else None
        self._gate = gate
        self._devices = tuple(devices)

    def load(self, source: ModelSource) -> FakeSession:
        """Loads a fake model; see the module for what and with which options.

        Raises:
            LoadError: a missing or damaged file, an unknown option or device, or ``load_error``.
        """
        options = {**self._file_options(source), **source.options}
        for key in options:
            if key not in _OPTIONS:
                raise unknown_option(key, _OPTIONS, self.name)
        if source.device not in self._devices:
            raise LoadError(
                f"device {source.device!r} is not known to backend 'fake'; "
                f"it has {', '.join(self._devices)}"
            )
        if "load_error" in options:
            raise LoadError(options["load_error"])
        inputs, outputs, compute = self._own or _model(options)
        session = _session_class(options)(inputs, outputs, compute, options, self._gate)
        self.sessions.append(session)
        return session

    def _file_options(self, source: ModelSource) -> dict[str, str]:
        path = source.path
        if path.is_dir():
            path = path / self.default_filename
            if not path.exists():
                return {}
        try:
            lines = path.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"{source.name}: cannot read {path}: {error}") from error
        if lines[0] != _HEAD or lines[-2:] != [_END, ""]:
            raise LoadError(f"{source.name}: {path} is no whole fake model")
        pairs = [line.partition("=") for line in lines[1:-2]]
        return {key: value for key, _, value in pairs}


class FakeSession:
    """A fake model that remembers what it did.

    ``batches`` has the rows of every run that got past the checks, in the order they began (1 for
    inputs without dimensions); ``runs`` has their inputs, copied. ``entered`` is released once a
    run, before the gate. ``closed`` counts calls of ``close``.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        compute: Compute,
        options: Mapping[str, str],
        gate: threading.Event | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.thread_safe = flag("thread_safe", options.get("thread_safe", "1"))
        self.batches: list[int] = []
        self.runs: list[list[Array]] = []
        self.entered = threading.Semaphore(0)
        self.closed = 0
        self._compute = compute
        self._gate = gate
        self._delay_s = _delay_s(options)
        self._poison = options.get("poison")
        fault = options.get("poison_is_caller_fault", "1")
        self._poison_is_caller_fault = flag("poison_is_caller_fault", fault)
        self._fails = options.get("kind") == "fail"
        self._fail_runs = whole("fail_runs", options.get("fail_runs", "0"))
        self._lock = threading.Lock()
        self._running = 0

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        why = refusal(self.inputs, inputs)
        if why is not None:
            raise RunError(why, caller_fault=True)
        self._begin(inputs)
        try:
            self._wait()
            self._raise_if_told(inputs)
            return self._compute(inputs)
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """See ``Session.close``."""
        assert not self._running, "closed while a run is in progress"
        self.closed += 1

    def _begin(self, inputs: Sequence[Array]) -> None:
        with self._lock:
            if self.closed:
                raise RunError("the session is closed")
            assert self.thread_safe or not self._running, "runs overlap, but it is not thread-safe"
            self._running += 1
            self.batches.append(len(inputs[0]) if inputs and inputs[0].shape else 1)
            self.runs.append([array.copy() for array in inputs])

    def _wait(self) -> None:
        self.entered.release()
        if self._gate is not None and not self._gate.wait(GATE_S_MAX):
            raise RunError(f"nobody opened the gate within {GATE_S_MAX:.0f} s")
        if self._delay_s:
            time.sleep(self._delay_s)

    def _raise_if_told(self, inputs: Sequence[Array]) -> None:
        if self._fails:
            raise RunError("this model always fails")
        with self._lock:
            if self._fail_runs:
                self._fail_runs -= 1
                raise RunError("this model was told to fail this run")
        if self._poison is None:
            return
        for spec, array in zip(self.inputs, inputs, strict=True):
            if bool(np.any(array == _element(spec.dtype, self._poison))):
                raise RunError(
                    f"input {spec.name!r} contains the poison {self._poison}",
                    caller_fault=self._poison_is_caller_fault,
                )


class FakeAbleSession(FakeSession):
    """A fake model with every ability but to stream.

    ``interrupts`` counts the calls of ``interrupt``; ``clones`` are in the order of their making.
    An interrupt ends a run that waits, for its gate or for its time; one that computes goes on.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        compute: Compute,
        options: Mapping[str, str],
        gate: threading.Event | None = None,
    ) -> None:
        super().__init__(inputs, outputs, compute, options, gate)
        self.interrupts = 0
        self.clones: list[FakeAbleSession] = []
        self._made_of = (inputs, outputs, compute, options, gate)
        self._interrupted = threading.Event()

    def clone(self) -> FakeAbleSession:
        """See ``CloneableSession.clone``."""
        self.clones.append(FakeAbleSession(*self._made_of))
        return self.clones[-1]

    def interrupt(self) -> None:
        """See ``InterruptibleSession.interrupt``."""
        self.interrupts += 1
        self._interrupted.set()

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        """See ``BoundSession.run_into``."""
        made = list(self.run(inputs))
        for i, given in enumerate(outputs):
            if given is None:
                continue
            if given.shape != made[i].shape:
                raise RunError(
                    f"output {self.outputs[i].name!r} has shape {list(made[i].shape)}, the array "
                    f"for it {list(given.shape)}"
                )
            given[...] = made[i]
            made[i] = given
        return made

    def _begin(self, inputs: Sequence[Array]) -> None:
        super()._begin(inputs)
        self._interrupted.clear()

    def _wait(self) -> None:
        self.entered.release()
        until = time.monotonic() + (GATE_S_MAX if self._gate is not None else self._delay_s)
        while (left := until - time.monotonic()) > 0:
            if self._gate is not None and self._gate.is_set():
                return
            if self._interrupted.wait(min(left, 0.001)):
                raise RunError("the run was interrupted")
        if self._gate is not None:
            raise RunError(f"nobody opened the gate within {GATE_S_MAX:.0f} s")


class FakeStreamingSession(FakeSession):
    """A fake model that can stream. ``streams`` counts those that ended: (responses, whole)."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        compute: Compute,
        options: Mapping[str, str],
        gate: threading.Event | None = None,
    ) -> None:
        super().__init__(inputs, outputs, compute, options, gate)
        self.streams: list[tuple[int, bool]] = []
        self._times = whole("times", options.get("times", "3"), -1)

    def stream(self, inputs: Sequence[Array]) -> Generator[Sequence[Array], None, None]:
        """See ``StreamingSession.stream``."""
        why = refusal(self.inputs, inputs)
        if why is not None:
            raise RunError(why, caller_fault=True)
        self._begin(inputs)
        made, exhausted = 0, False
        times = max(int(inputs[0].flat[0]), 0) if self._times < 0 else self._times
        try:
            while made < times:
                self._wait()
                self._raise_if_told(inputs)
                made += 1
                yield self._compute(inputs)
            exhausted = True
        finally:
            self.streams.append((made, exhausted))
            with self._lock:
                self._running -= 1


def _session_class(options: Mapping[str, str]) -> type[FakeSession]:
    if options.get("kind") == "repeat":
        return FakeStreamingSession
    return FakeAbleSession if flag("able", options.get("able", "0")) else FakeSession


def _delay_s(options: Mapping[str, str]) -> float:
    default = "50" if options.get("kind") == "slow" else "0"
    return whole("delay_ms", options.get("delay_ms", default)) / 1e3


def _element(dtype: dt.DType, text: str) -> Any:
    return text.encode() if dtype is dt.BYTES else np.array(text).astype(dtype.numpy)


def _model(
    options: Mapping[str, str],
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Compute]:
    kind = options.get("kind", "identity")
    dtype = dt.BY_NAME.get(options.get("dtype", "INT32"))
    if kind not in _KINDS:
        raise LoadError(f"option 'kind' is {kind!r}; it must be one of {', '.join(_KINDS)}")
    if dtype is None:
        raise LoadError(
            f"option 'dtype' is {options['dtype']!r}; it must be one of {', '.join(dt.BY_NAME)}"
        )
    behind = [part for part in options.get("shape", "16").split(",") if part.strip()]
    shape = (
        whole("batch", options.get("batch", "-1"), -1),
        *(whole("shape", part, -1) for part in behind),
    )
    in0, out0 = TensorSpec("INPUT0", dtype, shape), TensorSpec("OUTPUT0", dtype, shape)
    if kind == "add_sub":
        if dtype in (dt.BYTES, dt.BOOL, dt.BF16):
            raise LoadError(f"kind 'add_sub' cannot add {dtype.name}")
        pair = (in0, TensorSpec("INPUT1", dtype, shape))
        return pair, (out0, TensorSpec("OUTPUT1", dtype, shape)), _add_sub
    if kind == "echo_rows":
        return (in0,), (out0, TensorSpec("ROWS", dt.INT64, (shape[0], 1))), _echo_rows
    return (in0,), (out0,), _identity


def _identity(inputs: Sequence[Array]) -> Sequence[Array]:
    return [array.copy() for array in inputs]


def _add_sub(inputs: Sequence[Array]) -> Sequence[Array]:
    first, second = inputs
    if first.shape != second.shape:
        raise RunError(
            f"INPUT0 has shape {list(first.shape)}, INPUT1 {list(second.shape)}; they must agree",
            caller_fault=True,
        )
    # asarray: of arrays without dimensions NumPy makes scalars.
    return [np.asarray(first + second), np.asarray(first - second)]


def _echo_rows(inputs: Sequence[Array]) -> Sequence[Array]:
    rows = len(inputs[0])
    return [inputs[0].copy(), np.full((rows, 1), rows, dt.INT64.numpy)]
