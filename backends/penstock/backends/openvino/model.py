"""What an OpenVINO model declares: names, types, shapes, and which sizes follow the rows.

Knows the engine's ports, its shape inference and its arithmetic. Knows nothing of files, options
and running.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array, TensorSpec

_log = logging.getLogger(__name__)

DTYPES: Final[dict[str, DType]] = {
    "boolean": dt.BOOL,
    "u8": dt.UINT8,
    "i8": dt.INT8,
    "u16": dt.UINT16,
    "i16": dt.INT16,
    "u32": dt.UINT32,
    "i32": dt.INT32,
    "u64": dt.UINT64,
    "i64": dt.INT64,
    "f16": dt.FP16,
    "bf16": dt.BF16,
    "f32": dt.FP32,
    "f64": dt.FP64,
}
"""By the engine's own names of element types."""

_NARROWED: Final = {dt.INT64: "INT32", dt.UINT64: "INT32", dt.FP64: "FP32"}
"""What the CPU computes in, whatever a model says; of larger integers it keeps the lower bits."""
_INT32: Final = np.iinfo(np.int32)

_PRIMES: Final = (7, 11)
"""Numbers of rows to try: no size of a model is likely to be one, and neither divides the other."""

ROWS: Final = "rows"

Shape = tuple[int, ...]


def specs(
    kind: str, ports: Sequence[Any], declared: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """The specs of a model's inputs or outputs; of several names one that the operator declared.

    Raises:
        LoadError: a type that no protocol of ours has.
    """
    wanted = {spec.name for spec in declared}
    made: list[TensorSpec] = []
    for port in ports:
        name = _name(kind, port, wanted)
        if any(spec.name == name for spec in made):
            name = f"{name}_{len(made)}"
        stated = port.get_element_type().get_type_name()
        found = DTYPES.get(stated)
        if found is None:
            raise LoadError(f"{kind} {name!r} has type {stated}; convert it inside the model")
        partial = port.get_partial_shape()
        if partial.rank.is_dynamic:
            raise LoadError(f"{kind} {name!r} has no fixed number of dimensions; state its shape")
        made.append(TensorSpec(name, found, _sizes(partial)))
    return tuple(made)


def _name(kind: str, port: Any, wanted: set[str]) -> str:
    node = port.get_node()
    own = {node.get_friendly_name()}
    if kind == "output":
        # The end of a graph is no name that people gave; the operation before it has one.
        names = port.get_names() - own
        own = {node.input_value(0).get_node().get_friendly_name()}
    else:
        names = port.get_names()
    return str(min(names & wanted or names & own or names or own))


def _sizes(partial: Any) -> Shape:
    return tuple(d.get_length() if d.is_static else -1 for d in partial)


def follow_rows(
    ov: Any, model: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[str | None, ...], tuple[Shape | None, ...]]:
    """A symbol for the first dimension of every tensor, and the outputs' shapes as far as known.

    The symbol is ``ROWS`` where the engine's shape inference ties the dimension to the others of
    that symbol, another where it does not, None where it is fixed. A shape is None unless it is
    known before a run; in it, -1 (first place only) stands for the rows.

    The engine does not keep the author's names of dimensions, so it is asked by trial.
    """
    free = [i for i, spec in enumerate(inputs) if spec.shape[:1] == (-1,)]
    tied = {i for i in free if i == free[0] or _tied(ov, model, inputs, free, i)}
    tried = [_outputs_for(ov, model, inputs, dict.fromkeys(free, n)) for n in _PRIMES]
    symbols: list[str | None] = [
        None if i not in free else ROWS if i in tied else f"input {i}" for i in range(len(inputs))
    ]
    shapes: list[Shape | None] = []
    for i, spec in enumerate(outputs):
        first, second = (shape[i] if shape else (-1,) for shape in tried)
        follows = bool(free) and (first[:1], second[:1]) == tuple((n,) for n in _PRIMES)
        fixed = -1 not in spec.shape
        own = None if spec.shape[:1] != (-1,) else f"output {i}"
        symbols.append(ROWS if follows else own)
        known = fixed or (follows and -1 not in first and first[1:] == second[1:])
        shapes.append(spec.shape if fixed else (-1, *first[1:]) if known else None)
    return tuple(symbols), tuple(shapes)


def _tied(ov: Any, model: Any, inputs: Sequence[TensorSpec], free: list[int], one: int) -> bool:
    """Whether the model refuses another number of rows in input ``one`` than in the others."""
    rows = {i: _PRIMES[i == one] for i in free}
    return _outputs_for(ov, model, inputs, rows) is None


def _outputs_for(
    ov: Any, model: Any, inputs: Sequence[TensorSpec], rows: dict[int, int]
) -> list[Shape] | None:
    """The outputs' shapes for these rows of these inputs; None where the engine refuses them."""
    given = {
        i: ov.PartialShape([rows[i], *spec.shape[1:]]) for i, spec in enumerate(inputs) if i in rows
    }
    copy = model.clone()
    try:
        copy.reshape(given)
        shapes = [port.get_partial_shape() for port in copy.outputs]
    except RuntimeError:
        return None
    return [(-1,) if shape.rank.is_dynamic else _sizes(shape) for shape in shapes]


def too_wide(spec: TensorSpec, array: Array) -> str | None:
    """Why the engine would make other numbers of these 64-bit integers; None where it would not."""
    if not array.size or (array.max() <= _INT32.max and array.min() >= _INT32.min):
        return None
    return (
        f"input {spec.name!r} has {spec.dtype.name} values beyond 32 bits, which OpenVINO would "
        "silently cut"
    )


def warn_of_narrowing(model: str, tensors: Sequence[TensorSpec]) -> None:
    """Tells the operator what the engine does with wide numbers, without a word of its own."""
    wide = sorted({spec.dtype.name for spec in tensors if spec.dtype in _NARROWED})
    if wide:
        narrow = ", ".join(f"{name} in {_NARROWED[dt.BY_NAME[name]]}" for name in wide)
        _log.warning("model %s: OpenVINO's CPU device computes %s", model, narrow)
