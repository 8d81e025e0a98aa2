"""Triton's classification extension: the N highest values of an output, as strings. Pure.

Each string is ``value:index`` or, where the model has a label for the index, ``value:index:label``.
The value is written as C's ``%f`` and ``%d`` would. Of equal values the lower index comes first,
and what is not a number comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Array, InferReply, Signature, TensorSpec

ELEMENTS_MAX: Final = 1_000_000
"""Of one row, as in Triton."""
COUNT_MAX: Final = (1 << 32) - 1

_FLOATS: Final = frozenset({dt.FP32, dt.FP64})
_WHOLE: Final = frozenset(
    {dt.UINT8, dt.UINT16, dt.UINT32, dt.UINT64, dt.INT8, dt.INT16, dt.INT32, dt.INT64}
)

Labels = Mapping[str, Sequence[str]]


class Classifier:
    """Turns the outputs of one request signature into classes.

    ``counts`` are, by output name, how many classes of each row are wanted; ``batches`` says
    whether the first dimension of an output is the batch.
    """

    __slots__ = ("_batches", "_counts", "_known")

    def __init__(self, counts: Mapping[str, int], *, batches: bool) -> None:
        self._counts = counts
        self._batches = batches
        # The last pair of signatures: replies to one request signature are mostly alike.
        self._known: tuple[Signature | None, Signature | None] = (None, None)

    def classify(self, reply: InferReply, labels: Labels) -> InferReply:
        """The reply with classes in the place of the outputs that they were asked of.

        Raises:
            InferError: INVALID_ARGUMENT for an output that has none.
        """
        given = reply.signature
        for spec in given.tensors:
            if spec.name in self._counts:
                _check(spec, self._row_elements(spec))
        arrays = [
            self._classes(spec, array, labels.get(spec.name, ()))
            if spec.name in self._counts
            else array
            for spec, array in zip(given.tensors, reply.arrays, strict=True)
        ]
        known, made = self._known
        if known is not given or made is None:
            made = Signature([self._declared(spec) for spec in given.tensors])
            self._known = (given, made)
        return InferReply(made, arrays, reply.model, reply.version, reply.id, reply.parameters)

    def _row_elements(self, spec: TensorSpec) -> int:
        return prod(spec.shape[1:] if self._batches else spec.shape)

    def _declared(self, spec: TensorSpec) -> TensorSpec:
        wanted = self._counts.get(spec.name)
        if wanted is None:
            return spec
        first = spec.shape[:1] if self._batches else ()
        return TensorSpec(spec.name, dt.BYTES, (*first, min(wanted, self._row_elements(spec))))

    def _classes(self, spec: TensorSpec, array: Array, labels: Sequence[str]) -> Array:
        declared = self._declared(spec)
        out = np.empty(declared.shape, dtype=object)
        form = "%f:%d" if spec.dtype in _FLOATS else "%d:%d"
        rows = array.reshape(-1, self._row_elements(spec)) if out.size else array[:0]
        flat = out.reshape(-1)
        place = 0
        for row in rows:
            chosen = highest(row, declared.shape[-1])
            for value, index in zip(row[chosen].tolist(), chosen.tolist(), strict=True):
                text = form % (value, index)
                if index < len(labels) and labels[index]:
                    text = f"{text}:{labels[index]}"
                flat[place] = text.encode()
                place += 1
        return out


def _check(spec: TensorSpec, elements: int) -> None:
    if spec.dtype not in _FLOATS and spec.dtype not in _WHOLE:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"class result not available for output due to unsupported type '{spec.dtype}'",
        )
    if elements > ELEMENTS_MAX:
        raise InferError(Code.INVALID_ARGUMENT, "classification output tensor too large")


def highest(row: Array, count: int) -> Array:
    """The indices of the ``count`` highest of ``row``'s values (one dimension), highest first.

    O(n) in the length of the row, but for those that are chosen.
    """
    size = len(row)
    if row.dtype.kind == "f":
        row = np.where(np.isnan(row), -np.inf, row)
    if count < size:
        least = np.partition(row, size - count)[size - count]
        above = np.flatnonzero(row > least)
        equal = np.flatnonzero(row == least)[: count - len(above)]
        candidates = np.sort(np.concatenate((above, equal)))
    else:
        candidates = np.arange(size)
    # Stable and descending: the reverse of a stable ascending order of the reversed values.
    order = np.argsort(row[candidates][::-1], kind="stable")[::-1]
    return candidates[len(candidates) - 1 - order]
