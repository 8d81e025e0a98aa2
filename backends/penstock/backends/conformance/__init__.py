"""Proves that a backend keeps the contract of ``base``.

Knows the contract only: no engine, no test framework. ``check_backend`` loads the given model, runs
it and misuses it; the first broken clause raises AssertionError with a sentence that names it. What
only some sessions can do (``abilities``) is tried on those that can.

The model must be deterministic. Where it can be batched (see ``batchable``) its rows must not
influence each other, unless ``independent_rows`` is False.
"""

from __future__ import annotations

import dataclasses
import gc
import glob
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np

from penstock.backends.base import (
    Backend,
    BoundSession,
    CloneableSession,
    InterruptibleSession,
    LoadError,
    ModelSource,
    Probing,
    RunError,
    Session,
    StreamingSession,
)
from penstock.backends.batchable import supports_batching
from penstock.backends.conformance.abilities import (
    check_clone,
    check_engine,
    check_interrupt,
    check_into,
    check_orphan,
)
from penstock.backends.conformance.runs import (
    assert_like,
    assert_sentence,
    check_outputs,
    check_specs,
    made_up,
    run_checked,
)
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

UNKNOWN_OPTION: Final = "no_such_option_anywhere"
UNKNOWN_DEVICE: Final = "nowhere:7"
_THREADS: Final = 4
_RUNS_A_THREAD: Final = 8


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
    half_is_broken: bool = True,
) -> Report:
    """Runs ``backend`` with the model of ``source`` through every clause of the contract.

    ``cases`` are needed where made-up inputs would not do (small numbers, free dimensions of 3).
    ``half_is_broken`` is False for artefacts of which half may be one too, such as a program.

    Raises:
        AssertionError: the first clause that is broken, in words.
        LoadError: the model itself cannot be loaded.
    """
    report = Report()
    _check_names(backend)
    if isinstance(backend, Probing):
        check_engine(backend)
        report.held.append("engine")
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
        if session.thread_safe:
            _check_threads(session, tried[0].inputs)
            report.held.append("threads")
        else:
            report.skipped.append("threads: the session is not thread_safe")
        _check_abilities(session, tried[0].inputs, report)
    _check_close(backend, source, tried[0].inputs)
    report.held.append("close")
    _check_load_errors(backend, source)
    _check_damage(backend, source, half_is_broken)
    report.held.append("load errors")
    return report


def _check_abilities(session: Session, inputs: Sequence[Array], report: Report) -> None:
    if isinstance(session, StreamingSession):
        _check_streams(session, inputs)
        report.held.append("streams")
    if isinstance(session, CloneableSession):
        check_clone(session, inputs)
        report.held.append("clones")
    if isinstance(session, InterruptibleSession):
        check_interrupt(session, inputs)
        report.held.append("interrupts")
    if isinstance(session, BoundSession):
        check_into(session, inputs)
        report.held.append("results in place")


def _check_names(backend: Backend) -> None:
    for field in ("name", "default_filename"):
        value = getattr(backend, field, None)
        assert isinstance(value, str), f"a backend's {field} must be a string, not {value!r}"
        assert value, f"a backend's {field} must not be empty"


def _check_cases(session: Session, cases: Sequence[Case]) -> None:
    for i, case in enumerate(cases):
        outputs = run_checked(session, case.inputs)
        if case.outputs is not None:
            assert_like(outputs, case.outputs, f"case {i} must give the outputs it states")


def _check_ownership(session: Session, inputs: Sequence[Array]) -> None:
    given = [array.copy() for array in inputs]
    for array in given:
        array.flags.writeable = False  # requests arrive as read-only views
    first = run_checked(session, given)
    assert_like(given, inputs, "run must not modify its inputs", exact=True)
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
    assert_like(first, kept, "outputs must outlive what happens to the inputs", exact=True)
    for array in second:
        if array.flags.writeable:
            array[...] = np.zeros((), array.dtype) if array.dtype != object else b"overwritten"
    third = run_checked(session, inputs)
    assert_like(third, kept, "a caller that writes to outputs must not change later runs")


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
            assert_like(first, alone, f"a row among {rows} must give what it gives alone")


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
            assert_sentence(str(error), f"the RunError for {what}")
            blames_caller = error.caller_fault
        except Exception as error:
            raise AssertionError(f"{what} must raise RunError, not {error!r}") from error
        else:
            raise AssertionError(f"{what} must raise RunError, but the run succeeded")
        assert blames_caller, f"{what} is the caller's fault, the RunError must say so"
        after = run_checked(session, inputs)
        assert_like(after, before, f"the session must stay usable after {what}")


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
        assert_like(mine, copied, "responses must outlive their stream", exact=True)
        assert_like(other, copied, "a stream must repeat itself")
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
            assert_like(run_checked(session, work[i]), alone[i], said)

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
    assert_like(outputs, kept, "outputs must outlive their session", exact=True)
    again = run_checked(other, inputs)
    assert_like(again, kept, "closing one session must leave another of the same model usable")
    if isinstance(other, CloneableSession):
        check_orphan(other, inputs)
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


def _check_damage(backend: Backend, source: ModelSource, half_is_broken: bool) -> None:
    _check_damaged(backend, source, "a garbage file", lambda _: b"\x93not a model\n" * 40)
    _check_damaged(backend, source, "an empty file", lambda _: b"")
    if half_is_broken and _main_file(backend, source.path).is_file():
        _check_damaged(backend, source, "a truncated file", lambda whole: whole[: len(whole) // 2])


def _check_damaged(
    backend: Backend, source: ModelSource, what: str, damage: Callable[[bytes], bytes]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / source.path.name
        if source.path.is_dir():
            shutil.copytree(source.path, path)
        else:  # with what lies beside it under the same name
            for file in source.path.parent.glob(f"{glob.escape(source.path.stem)}.*"):
                if file.is_file():
                    shutil.copy(file, scratch)
        main = _main_file(backend, path)
        main.write_bytes(damage(main.read_bytes() if main.is_file() else b""))
        _load_refused(lambda: backend.load(dataclasses.replace(source, path=path)), what)


def _main_file(backend: Backend, path: Path) -> Path:
    return path / backend.default_filename if path.is_dir() else path


def _load_refused(load: Callable[[], Session], what: str) -> str:
    try:
        session = load()
    except LoadError as error:
        assert_sentence(str(error), f"the LoadError for {what}")
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what} must raise LoadError, not {error!r}") from error
    session.close()
    raise AssertionError(f"{what} must raise LoadError, but it was loaded")
