"""The clauses about what a session can do besides ``run``: be cloned, be interrupted, write where
the caller wants.

Knows the contract and the clauses about what a run gives back. ``conformance`` calls these for
sessions that have the ability; each raises AssertionError with a sentence that names the clause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

import numpy as np

from penstock.backends.base import (
    BoundSession,
    CloneableSession,
    Engine,
    InterruptibleSession,
    Probing,
    RunError,
    Session,
)
from penstock.backends.conformance.runs import assert_like, assert_sentence, run_checked
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

_CLONES: Final = 3
_RUNS_A_CLONE: Final = 8
_INTERRUPTS: Final = 50
_INTERRUPTING_S_MAX: Final = 1.0
"""An engine may need long to stand up again after each."""


def check_engine(backend: Probing) -> None:
    """``engine`` tells what there is, twice the same, and raises nothing."""
    try:
        found, again = backend.engine(), backend.engine()
    except Exception as error:
        raise AssertionError(f"engine() must never raise, it raised {error!r}") from error
    assert isinstance(found, Engine), f"engine() must return an Engine, not {found!r}"
    assert found == again, f"engine() must repeat itself: {found} and then {again}"
    if found.missing:
        assert_sentence(found.missing, "what engine() says is missing")
    else:
        assert found.version, "engine() must tell the version of an engine that is there"
        assert found.devices, "engine() must name a device, or say what is missing"


def check_clone(session: CloneableSession, inputs: Sequence[Array]) -> None:
    """Clones declare and compute the same, at the same time, and live and die on their own."""
    alone = run_checked(session, inputs)
    clones = [session.clone() for _ in range(_CLONES)]
    try:
        for clone in clones:
            same = (clone.inputs, clone.outputs) == (session.inputs, session.outputs)
            assert same, "a clone must declare the same inputs and outputs"
            assert clone is not session, "a clone must be a session of its own"

        def repeat(one: Session) -> None:
            for _ in range(_RUNS_A_CLONE):
                said = "clones that run at the same time must each give their own results"
                assert_like(run_checked(one, inputs), alone, said)

        with ThreadPoolExecutor(_CLONES + 1) as pool:
            list(pool.map(repeat, (session, *clones)))
    finally:
        for clone in clones[1:]:
            clone.close()
    with closing(clones[0]) as left:
        said = "closing one clone must leave the others usable"
        _usable(left, inputs, alone, said)
    said = "closing clones must leave the session that they were made of usable"
    _usable(session, inputs, alone, said)


def check_orphan(session: CloneableSession, inputs: Sequence[Array]) -> None:
    """A clone outlives what it was made of. Closes ``session``."""
    alone = run_checked(session, inputs)
    with closing(session.clone()) as clone:
        session.close()
        said = "closing the session that a clone was made of must leave the clone usable"
        _usable(clone, inputs, alone, said)


def check_interrupt(session: InterruptibleSession, inputs: Sequence[Array]) -> None:
    """An interrupt hits the run that is in progress and no other."""
    alone = run_checked(session, inputs)
    for _ in range(2):
        session.interrupt()
    said = "interrupt must not touch a run that begins after it"
    for _ in range(2):
        _usable(session, inputs, alone, said)
    # Runs may be over before an interrupt comes: whatever becomes of one, it is one of two things.
    done = threading.Event()

    def interrupt() -> None:
        until = time.monotonic() + _INTERRUPTING_S_MAX
        for _ in range(_INTERRUPTS):
            session.interrupt()
            if done.wait(0.0002) or time.monotonic() > until:
                break
        done.set()

    thread = threading.Thread(target=interrupt, name="interrupts")
    thread.start()
    try:
        while not done.is_set():
            try:
                outputs = run_checked(session, inputs)
            except RunError as error:
                assert_sentence(str(error), "the RunError of an interrupted run")
                blames_caller = error.caller_fault
            else:
                assert_like(outputs, alone, "a run is interrupted or gives all of its results")
                blames_caller = False
            assert not blames_caller, "an interrupted run is not the caller's fault"
    finally:
        done.set()
        thread.join()
    _usable(session, inputs, alone, "the session must stay usable after it was interrupted")


def check_into(session: BoundSession, inputs: Sequence[Array]) -> None:
    """Results are written where the caller says, or refused where they do not fit."""
    alone = run_checked(session, inputs)
    nowhere: list[Array | None] = [None] * len(alone)
    said = "run_into without arrays must give what run gives"
    assert_like(list(session.run_into(inputs, nowhere)), alone, said)
    bindable = [i for i, array in enumerate(alone) if array.dtype != dt.BYTES.numpy]
    for wanted in (bindable, *([i] for i in bindable)):
        given = [_scribbled(array) if i in wanted else None for i, array in enumerate(alone)]
        outputs = session.run_into(inputs, given)
        for mine, returned in zip(given, outputs, strict=True):
            itself = mine is None or returned is mine
            assert itself, "run_into must return an array that it was given as itself"
        assert_like(list(outputs), alone, "run_into must give what run gives")
        kept = [array.copy() for array in outputs]
        other = run_checked(session, inputs)
        assert_like(list(outputs), kept, "a later run must not touch the caller's arrays")
        assert_like(other, alone, "run_into must not change later runs")
    for i in bindable:
        _check_misfit(session, inputs, alone, i)


def _check_misfit(
    session: BoundSession, inputs: Sequence[Array], alone: Sequence[Array], index: int
) -> None:
    array = alone[index]
    if not array.shape:
        return
    for shape in ((array.shape[0] + 1, *array.shape[1:]), (*array.shape, 1)):
        given: list[Array | None] = [None] * len(alone)
        # Larger than what is to come: a backend that does not look would not be harmed.
        given[index] = np.zeros(shape, array.dtype)
        what = f"an output of shape {list(array.shape)} and an array of shape {list(shape)}"
        try:
            session.run_into(inputs, given)
        except RunError as error:
            assert_sentence(str(error), f"the RunError for {what}")
        else:
            raise AssertionError(f"run_into must raise RunError for {what}")
        said = "the session must stay usable after an array that did not fit"
        _usable(session, inputs, alone, said)


def _usable(session: Session, inputs: Sequence[Array], alone: Sequence[Array], said: str) -> None:
    try:
        assert_like(run_checked(session, inputs), alone, said)
    except RunError as error:
        raise AssertionError(f"{said}; it raised {error!r}") from error


def _scribbled(like: Array) -> Array:
    """Memory that no result looks like by chance."""
    out = np.empty(like.shape, like.dtype)
    out.reshape(-1).view(np.uint8)[:] = 0xA5
    return out
