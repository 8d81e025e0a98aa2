"""What config.pbtxt says about stateful sequences: control tensors and states.

Knows the schema's ``sequence_batching`` and its rules. Must not know requests, sessions or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType

ControlKind = Literal["START", "READY", "END", "CORRID"]

IDLE_US: Final = 1_000_000
"""Triton's ``max_sequence_idle_microseconds`` where none is stated."""
_CORRID_TYPES: Final = (dt.UINT64, dt.INT64, dt.UINT32, dt.INT32, dt.BYTES)


@dataclass(frozen=True, slots=True)
class ControlInput:
    """An input that tells the model where a request stands in its sequence.

    ``values`` are what it holds for no and for yes; empty for CORRID, which holds the id.
    """

    name: str
    kind: ControlKind
    dtype: DType
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StateTensor:
    """An output that becomes an input of the sequence's next request.

    ``dims`` exclude the batch dimension. ``initial_dims`` are those of the first request's state:
    zeros, or the content of ``initial_state/<initial_file>``.
    """

    input_name: str
    output_name: str
    dtype: DType
    dims: tuple[int, ...]
    initial_dims: tuple[int, ...]
    initial_file: str = ""


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests with one sequence id run in order, each after the one before it is answered.

    A sequence that is silent for ``idle_us`` is forgotten.
    """

    idle_us: int = IDLE_US
    controls: tuple[ControlInput, ...] = ()
    states: tuple[StateTensor, ...] = ()

    @property
    def hidden_inputs(self) -> tuple[str, ...]:
        """Inputs of the model that callers do not send, in the order in which they are added."""
        return (*[c.name for c in self.controls], *[s.input_name for s in self.states])

    @property
    def hidden_outputs(self) -> tuple[str, ...]:
        return tuple(s.output_name for s in self.states)


def read_sequence_batching(
    message: Any,
    dtypes: Callable[[str, int], DType],
    filename: Callable[[str, str], str],
) -> SequenceBatching:
    """The values of a ``ModelSequenceBatching`` message.

    ``dtypes(path, number)`` and ``filename(path, name)`` are the reader's own checks; what they
    raise is raised.

    Raises:
        ValueError: what is wrong, beginning with the field's path.
    """
    controls = [
        _control(f"sequence_batching.control_input[{i}]", control, dtypes)
        for i, control in enumerate(message.control_input)
    ]
    states = [
        _state(f"sequence_batching.state[{i}]", state, dtypes, filename)
        for i, state in enumerate(message.state)
    ]
    made = SequenceBatching(
        message.max_sequence_idle_microseconds or IDLE_US, tuple(controls), tuple(states)
    )
    _check_unique("control_input", [c.kind for c in controls])
    _check_unique("inputs of control_input and state", made.hidden_inputs)
    _check_unique("state outputs", made.hidden_outputs)
    return made


def _control(path: str, message: Any, dtypes: Callable[[str, int], DType]) -> ControlInput:
    if not message.name:
        raise ValueError(f"{path}: a control input must have a name")
    if len(message.control) != 1:
        raise ValueError(
            f"{path}: '{message.name}' states {len(message.control)} controls; one is expected"
        )
    control = message.control[0]
    kind: ControlKind = control.Kind.Name(control.kind).removeprefix("CONTROL_SEQUENCE_")
    if kind == "CORRID":
        dtype = dtypes(f"{path}.data_type", control.data_type)
        if dtype not in _CORRID_TYPES:
            raise ValueError(f"{path}: a correlation id cannot be of type {dtype}")
        return ControlInput(message.name, kind, dtype)
    stated = [
        (dtype, tuple(values))
        for dtype, values in (
            (dt.INT32, control.int32_false_true),
            (dt.FP32, control.fp32_false_true),
            (dt.BOOL, control.bool_false_true),
        )
        if values
    ]
    if len(stated) != 1 or len(stated[0][1]) != 2:
        raise ValueError(
            f"{path}: '{message.name}' must state two values in one of int32_false_true, "
            "fp32_false_true and bool_false_true"
        )
    dtype, values = stated[0]
    return ControlInput(message.name, kind, dtype, values)


def _state(
    path: str,
    message: Any,
    dtypes: Callable[[str, int], DType],
    filename: Callable[[str, str], str],
) -> StateTensor:
    if not message.input_name or not message.output_name:
        raise ValueError(f"{path}: a state must have an input_name and an output_name")
    dtype = dtypes(f"{path}.data_type", message.data_type)
    dims = tuple(message.dims)
    initial = message.initial_state[0] if message.initial_state else None
    if len(message.initial_state) > 1:
        raise ValueError(f"{path}: one initial_state is expected, not several")
    initial_dims, file = dims, ""
    if initial is not None:
        initial_dims = tuple(initial.dims) or dims
        if initial.data_type and dtypes(f"{path}.initial_state", initial.data_type) is not dtype:
            raise ValueError(f"{path}: initial_state is not of type {dtype}")
        if initial.WhichOneof("state_data") == "data_file":
            file = filename(f"{path}.initial_state.data_file", initial.data_file)
    if any(dim < 0 for dim in initial_dims):
        # A free size that nobody fixed: as small as can be, as Triton has it.
        initial_dims = tuple(max(dim, 1) for dim in initial_dims)
    fits = len(initial_dims) == len(dims) and all(
        want in (-1, got) for want, got in zip(dims, initial_dims, strict=True)
    )
    if not fits:
        raise ValueError(f"{path}: dims {list(initial_dims)} of initial_state are not {list(dims)}")
    return StateTensor(message.input_name, message.output_name, dtype, dims, initial_dims, file)


def _check_unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"sequence_batching: {what} name {', '.join(twice)} twice")
