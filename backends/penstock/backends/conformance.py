"""Proves that a backend keeps the contract of ``base``.

Knows the contract only: no engine, no test framework. ``check_backend`` loads the given model, runs
it and misuses it; the first broken clause raises AssertionError with a sentence that names it.

The model must be deterministic. Where it can be batched (see ``batchable``) its rows must not
influence each other, unless ``independent_rows`` is False.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final, cast

import numpy as np

from penstock.backends.base import (
    Backend,
    LoadError,
    ModelSource,
    RunError,
    Session,
    StreamingSession,
)
from penstock.backends.batchable import supports_batching
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec, wire_array

UNKNOWN_OPTION: Final = "no_such_option_anywhere"
UNKNOWN_DEVICE: Final = "nowhere:7"
_THREADS: Final = 4
_RUNS_A_THREAD: Final = 8
_FREE: Final = 3
"""Size given to free dimensions behind the first when inputs are made up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """Inputs for one run and, if known, the outputs they must give."""

    inputs: Sequence[Array]
    outputs: Sequence[Array] | None = None


@dataclasses.dataclass(slots=True)
class Report:
    """The clauses that held, and those that could not be tried, with the reason."""

    held: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)


def check_backend(
    backend: Backend,
    source: ModelSource,
    *,
    cases: Sequence[Case] | None = None,
    rows_max: int = 8,
    independent_rows: bool = True,
) -> Report:
    """Runs ``backend`` with the model of ``source`` through every clause of the contract.

    ``cases`` are needed where made-up inputs would not do (small numbers, free dimensions of 3).

    Raises:
        AssertionError: the first clause that is broken, in words.
        LoadError: the model itself cannot be loaded.
    """
    report = Report()
    _check_names(backend)
    with closing(backend.load(source)) as session:
        check_specs(session)
        report.held.append("specs")
        tried = list(cases) if cases else [Case(made_up(session.inputs, 1))]
        _check_cases(session, tried)
        report.held.append("runs")
        _check_ownership(session, tried[0].inputs)
        report.held.append("ownership")
        if supports_batching(session):
            _check_batches(session, tried[0].inputs, (1, 2, 3, rows_max), independent_rows)
            report.held.append("batches")
        else:
            report.skipped.append("batches: the model has no common free first dimension")
        _check_refusals(session, tried[0].inputs)
        report.held.append("refusals")
        if callable(getattr(session, "stream", None)):
            _check_streams(cast("StreamingSession", session), tried[0].inputs)
            report.held.append("streams")
        if session.thread_safe:
            _check_threads(session, tried[0].inputs)
            report.held.append("threads")
        else:
            report.skipped.append("threads: the session is not thread_safe")
    _check_close(backend, source, tried[0].inputs)
    report.held.append("close")
    _check_load_errors(backend, source)
    report.held.append("load errors")
    return report


def made_up(specs: Sequence[TensorSpec], rows: int, seed: int = 0) -> list[Array]:
    """Arrays that fit ``specs``: ``rows`` in a free first dimension; small numbers, repeatable."""
    return [_values(spec, rows, seed + i) for i, spec in enumerate(specs)]


def _values(spec: TensorSpec, rows: int, seed: int) -> Array:
    sizes = [rows if i == 0 else _FREE for i in range(len(spec.shape))]
    shape = [sizes[i] if want == -1 else want for i, want in enumerate(spec.shape)]
    count: Array = (np.arange(int(np.prod(shape))) + seed) % 5
    if spec.dtype is dt.BYTES:
        return wire_array(np.array([f"text {n}" for n in count.tolist()], object).reshape(shape))[1]
    if spec.dtype is dt.BF16:
        return wire_array((count / 4).astype(np.float32).reshape(shape), dt.BF16)[1]
    if spec.dtype.numpy.kind == "f":
        count = count / 4
    return count.astype(spec.dtype.numpy).reshape(shape)


def check_specs(session: Session) -> None:
    """The clauses about ``inputs``, ``outputs`` and ``thread_safe``."""
    assert isinstance(session.thread_safe, bool), "thread_safe must be True or False"
    assert session.outputs, "a session must declare at least one output"
    for kind, specs in (("inputs", session.inputs), ("outputs", session.outputs)):
        assert isinstance(specs, tuple), f"{kind} must be a tuple of TensorSpec"
        names = [spec.name for spec in specs]
        assert all(names), f"{kind} must all have names, but they are {names}"
        assert len(set(names)) == len(names), f"{kind} must have different names, not {names}"
        for spec in specs:
            assert spec.dtype in dt.ALL, f"{spec.name}: {spec.dtype!r} is no element type of ours"
            assert isinstance(spec.shape, tuple), f"{spec.name}: the shape must be a tuple"
            sane = all(type(size) is int and size >= -1 for size in spec.shape)
            assert sane, f"{spec.name}: sizes must be ints of at least -1, not {spec.shape}"


def run_checked(session: Session, inputs: Sequence[Array]) -> list[Array]:
    """One run with every clause about what comes back."""
    return check_outputs(session, session.run(inputs))


def check_outputs(session: Session, returned: Sequence[Array]) -> list[Array]:
    """The clauses about what a run, or one response of a stream, gives back."""
    outputs = list(returned)
    wanted = len(session.outputs)
    assert len(outputs) == wanted, f"run must return {wanted} outputs, it returned {len(outputs)}"
    for spec, array in zip(session.outputs, outputs, strict=True):
        what = f"output {spec.name!r}"
        assert isinstance(array, np.ndarray), f"{what} must be an ndarray, not {type(array)}"
        right = array.dtype == spec.dtype.numpy
        assert right, f"{what} is declared {spec.dtype} but came as {array.dtype}"
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
        )
        assert fits, f"{what} is declared with shape {spec.shape} but came with {array.shape}"
        assert array.flags.c_contiguous, f"{what} must be C-contiguous"
        assert array.flags.aligned, f"{what} must be aligned"
        if spec.dtype is dt.BYTES:
            only_bytes = all(type(item) is bytes for item in array.reshape(-1).tolist())
            assert only_bytes, f"{what} must hold bytes objects only"
    return outputs


def _check_names(backend: Backend) -> None:
    for field in ("name", "default_filename"):
        value = getattr(backend, field, None)
        assert isinstance(value, str), f"a backend's {field} must be a string, not {value!r}"
        assert value, f"a backend's {field} must not be empty"


def _check_cases(session: Session, cases: Sequence[Case]) -> None:
    for i, case in enumerate(cases):
        outputs = run_checked(session, case.inputs)
        if case.outputs is not None:
            _assert_like(outputs, case.outputs, f"case {i} must give the outputs it states")


def _check_ownership(session: Session, inputs: Sequence[Array]) -> None:
    given = [array.copy() for array in inputs]
    for array in given:
        array.flags.writeable = False  # requests arrive as read-only views
    first = run_checked(session, given)
    _assert_like(given, inputs, "run must not modify its inputs", exact=True)
    for array in given:
        array.flags.writeable = True
    kept = [array.copy() for array in first]
    second = run_checked(session, given)
    for spec, mine, later in zip(session.outputs, first, second, strict=True):
        alias = any(np.shares_memory(mine, array) for array in given)
        assert not alias, f"output {spec.name!r} must not alias an input"
        shared = np.shares_memory(mine, later)
        assert not shared, f"output {spec.name!r} of one run must not alias that of the next"
    # Aliases that NumPy cannot see show when the memory is written to.
    for array in given:
        array[...] = np.zeros((), array.dtype) if array.dtype != object else b"overwritten"
    _assert_like(first, kept, "outputs must outlive what happens to the inputs", exact=True)
    for array in second:
        if array.flags.writeable:
            array[...] = np.zeros((), array.dtype) if array.dtype != object else b"overwritten"
    third = run_checked(session, inputs)
    _assert_like(third, kept, "a caller that writes to outputs must not change later runs")


def _rows(inputs: Sequence[Array], rows: int) -> list[Array]:
    """``rows`` rows, taken from ``inputs`` over and over."""
    return [array[np.arange(rows) % len(array)] for array in inputs]


def _check_batches(
    session: Session, inputs: Sequence[Array], sizes: Sequence[int], independent: bool
) -> None:
    alone = run_checked(session, _rows(inputs, 1))
    for rows in sizes:
        outputs = run_checked(session, _rows(inputs, rows))
        for spec, array in zip(session.outputs, outputs, strict=True):
            assert len(array) == rows, f"{spec.name!r}: {rows} rows in, {len(array)} rows out"
        if independent:
            first = [array[:1] for array in outputs]
            _assert_like(first, alone, f"a row among {rows} must give what it gives alone")


def _wrong_inputs(session: Session, inputs: Sequence[Array]) -> list[tuple[str, list[Array]]]:
    wrong: list[tuple[str, list[Array]]] = [("one input too many", [*inputs, np.zeros(1, "f4")])]
    if not inputs:
        return wrong
    spec, first, rest = session.inputs[0], inputs[0], list(inputs[1:])
    other = dt.FP64 if spec.dtype is not dt.FP64 else dt.INT8
    wrong.append(("one input too few", rest))
    wrong.append((f"dtype {other}", [np.zeros(first.shape, other.numpy), *rest]))
    if spec.shape:  # some engines cannot tell a scalar from a tensor of unknown rank
        wrong.append(("one dimension too many", [first[np.newaxis].copy(), *rest]))
    for axis, size in enumerate(spec.shape):
        if size > 0:
            grown = np.concatenate([first, first], axis=axis)
            wrong.append((f"a wrong size of dimension {axis}", [grown, *rest]))
    return wrong


def _check_refusals(session: Session, inputs: Sequence[Array]) -> None:
    before = run_checked(session, inputs)
    for what, given in _wrong_inputs(session, inputs):
        try:
            session.run(given)
        except RunError as error:
            _assert_sentence(str(error), f"the RunError for {what}")
            blames_caller = error.caller_fault
        except Exception as error:
            raise AssertionError(f"{what} must raise RunError, not {error!r}") from error
        else:
            raise AssertionError(f"{what} must raise RunError, but the run succeeded")
        assert blames_caller, f"{what} is the caller's fault, the RunError must say so"
        after = run_checked(session, inputs)
        _assert_like(after, before, f"the session must stay usable after {what}")


def _check_streams(session: StreamingSession, inputs: Sequence[Array]) -> None:
    first: list[list[Array]] = []
    kept: list[list[Array]] = []
    for outputs in session.stream(inputs):
        first.append(check_outputs(session, outputs))
        kept.append([array.copy() for array in outputs])
    again = [check_outputs(session, outputs) for outputs in session.stream(inputs)]
    count = len(kept)
    assert len(again) == count, f"a stream must repeat itself: {count} and then {len(again)} times"
    for mine, copied, other in zip(first, kept, again, strict=True):
        _assert_like(mine, copied, "responses must outlive their stream", exact=True)
        _assert_like(other, copied, "a stream must repeat itself")
    unread = session.stream(inputs)
    next(unread, None)
    unread.close()
    after = [check_outputs(session, outputs) for outputs in session.stream(inputs)]
    assert len(after) == count, "the session must stay usable after a stream that was closed early"
    for what, given in _wrong_inputs(session, inputs):
        try:
            list(session.stream(given))
        except RunError as error:
            blames_caller = error.caller_fault
        else:
            raise AssertionError(f"{what} must raise RunError, but the stream succeeded")
        assert blames_caller, f"{what} is the caller's fault, the RunError must say so"


def _check_threads(session: Session, inputs: Sequence[Array]) -> None:
    # Different work in each thread, so that results that get mixed up are noticed.
    batchable = supports_batching(session)
    work = [_rows(inputs, i + 1) if batchable else list(inputs) for i in range(_THREADS)]
    alone = [run_checked(session, given) for given in work]

    def repeat(i: int) -> None:
        for _ in range(_RUNS_A_THREAD):
            said = "a thread_safe session must give each of several threads its own results"
            _assert_like(run_checked(session, work[i]), alone[i], said)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(repeat, range(_THREADS)))


def _check_close(backend: Backend, source: ModelSource, inputs: Sequence[Array]) -> None:
    one, other = backend.load(source), backend.load(source)
    outputs = run_checked(one, inputs)
    kept = [array.copy() for array in outputs]
    one.close()
    try:
        one.close()
    except Exception as error:
        raise AssertionError(f"close must be idempotent, the second raised {error!r}") from error
    del one
    gc.collect()
    _assert_like(outputs, kept, "outputs must outlive their session", exact=True)
    again = run_checked(other, inputs)
    _assert_like(again, kept, "closing one session must leave another of the same model usable")
    other.close()


def _check_load_errors(backend: Backend, source: ModelSource) -> None:
    def refused(what: str, **changes: object) -> str:
        changed = dataclasses.replace(source, **changes)  # type: ignore[arg-type]
        return _load_refused(lambda: backend.load(changed), what)

    options = {**source.options, UNKNOWN_OPTION: "1"}
    said = refused("an unknown option", options=options)
    assert UNKNOWN_OPTION in said, f"the LoadError must name the unknown option, not {said!r}"
    refused("an unknown device", device=UNKNOWN_DEVICE)
    refused("a missing file", path=source.path / "missing" / backend.default_filename)
    whole = source.path / backend.default_filename if source.path.is_dir() else source.path
    content = whole.read_bytes() if whole.is_file() else b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / whole.name
        damaged = {"a garbage file": b"\x93not a model\n" * 40, "an empty file": b""}
        if content:
            damaged["a truncated file"] = content[: len(content) // 2]
        for what, data in damaged.items():
            path.write_bytes(data)
            refused(what, path=path)


def _load_refused(load: Callable[[], Session], what: str) -> str:
    try:
        session = load()
    except LoadError as error:
        _assert_sentence(str(error), f"the LoadError for {what}")
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what} must raise LoadError, not {error!r}") from error
    session.close()
    raise AssertionError(f"{what} must raise LoadError, but it was loaded")


def _assert_sentence(text: str, what: str) -> None:
    assert text.strip(), f"{what} must say what is wrong"
    assert "\n" not in text, f"{what} must be one line, not {text!r}"


def _assert_like(
    got: Sequence[Array], wanted: Sequence[Array], clause: str, *, exact: bool = False
) -> None:
    assert len(got) == len(wanted), f"{clause}: {len(got)} arrays, not {len(wanted)}"
    for i, (mine, other) in enumerate(zip(got, wanted, strict=True)):
        same = mine.shape == other.shape and mine.dtype == other.dtype
        if same and mine.dtype.kind == "f":
            slack = 0.0 if exact else 1e-3
            same = np.allclose(mine, other, rtol=slack, atol=slack / 10, equal_nan=True)
        elif same:
            same = np.array_equal(mine, other)
        assert same, f"{clause}; array {i} differs"
