"""A session whose control inputs and states stand behind the tensors that callers see.

Knows the order of tensors. The lane above and the session below both count tensors by position, so
a model of sequences is brought into one order here: callers' inputs, controls, states; callers'
outputs, states.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from penstock.backends.base import (
    BoundSession,
    InterruptibleSession,
    LoadError,
    OffLoopSession,
    Session,
)
from penstock.protocol.message import Array, TensorSpec
from penstock.server.model_config_sequence import SequenceBatching, StateTensor

Specs = tuple[TensorSpec, ...]


class SequenceSession:
    """``session`` in the order of sequences. ``hidden_inputs`` and ``hidden_outputs`` are counted
    from the end. It can be interrupted, and write results in place, if ``session`` can.

    Raises:
        LoadError: a control or a state is no tensor of the model, or is of another type.
    """

    def __init__(self, session: Session, config: SequenceBatching) -> None:
        self._session = session
        self._into = _order(session.inputs, config.hidden_inputs, "input")
        self._out_of = _order(session.outputs, config.hidden_outputs, "output")
        self.inputs: Specs = tuple(session.inputs[i] for i in self._into)
        self.outputs: Specs = tuple(session.outputs[i] for i in self._out_of)
        self._made_at = sorted(range(len(self._out_of)), key=self._out_of.__getitem__)
        self.thread_safe = session.thread_safe
        self.off_loop = isinstance(session, OffLoopSession) and session.off_loop
        if isinstance(session, InterruptibleSession):
            self.interrupt = session.interrupt
        if isinstance(session, BoundSession):
            self._run_into = session.run_into
            self.run_into = self._into_in_order
        self._place = sorted(range(len(self._into)), key=self._into.__getitem__)
        inputs = {spec.name: spec for spec in session.inputs}
        outputs = {spec.name: spec for spec in session.outputs}
        for control in config.controls:
            _check(inputs[control.name], control.dtype.name, "control input")
        for state in config.states:
            _check(inputs[state.input_name], state.dtype.name, "state")
            _check(outputs[state.output_name], state.dtype.name, "state")

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        return self._in_order(self._session.run([inputs[i] for i in self._place]))

    def _into_in_order(
        self, inputs: Sequence[Array], outputs: Sequence[Array | None]
    ) -> Sequence[Array]:
        given = [outputs[i] for i in self._made_at]
        return self._in_order(self._run_into([inputs[i] for i in self._place], given))

    def _in_order(self, outputs: Sequence[Array]) -> Sequence[Array]:
        # A wrong number of outputs is for the worker to find.
        if len(outputs) != len(self._out_of):
            return outputs
        return [outputs[i] for i in self._out_of]

    def close(self) -> None:
        self._session.close()


def in_order(sessions: Sequence[Session], config: SequenceBatching) -> list[Session]:
    """Each session in the order of sequences; one that stands there several times, once.

    Raises:
        LoadError: as ``SequenceSession``.
    """
    made: dict[int, Session] = {}
    for session in sessions:
        if id(session) not in made:
            made[id(session)] = SequenceSession(session, config)
    return [made[id(session)] for session in sessions]


def initial_states(config: SequenceBatching, folder: Path) -> list[Array]:
    """The states of a sequence's first request; ``folder`` is the model's directory.

    Raises:
        LoadError: a file is missing or has another size.
    """
    return [_initial(state, folder) for state in config.states]


def _initial(state: StateTensor, folder: Path) -> Array:
    dtype = state.dtype.numpy
    if not state.initial_file:
        zero = b"" if dtype.hasobject else 0
        return np.full(state.initial_dims, zero, dtype)
    path = folder / "initial_state" / state.initial_file
    if dtype.hasobject:
        raise LoadError(f"{path}: states of type {state.dtype} cannot be read from files")
    try:
        return np.frombuffer(path.read_bytes(), dtype).reshape(state.initial_dims)
    except (OSError, ValueError) as error:
        raise LoadError(f"initial state of '{state.input_name}': {path}: {error}") from error


def _order(specs: Specs, hidden: Sequence[str], what: str) -> list[int]:
    known = {spec.name: i for i, spec in enumerate(specs)}
    missing = [name for name in hidden if name not in known]
    if missing:
        raise LoadError(
            f"sequence_batching: the model has no {what} {', '.join(missing)}; it has "
            f"{', '.join(known)}"
        )
    shown = [i for i, spec in enumerate(specs) if spec.name not in hidden]
    return [*shown, *[known[name] for name in hidden]]


def _check(spec: TensorSpec, expected: str, what: str) -> None:
    if spec.dtype.name != expected:
        raise LoadError(
            f"sequence_batching: {what} '{spec.name}' is configured as {expected}, but the model "
            f"takes {spec.dtype}"
        )
