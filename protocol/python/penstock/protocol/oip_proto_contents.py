"""Typed tensor values: ``InferTensorContents``, from its bytes to an array.

Knows: which field holds which element types, packed or one by one. Knows nothing of tensors' names
beyond error texts, and of raw contents.

Contract: one chunk of packed floats is a view of the message; everything else costs memory in
proportion to what was received. Integers narrower than their field keep their lower bits, as
google.protobuf and Triton do it.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, TensorSpec
from penstock.protocol.oip_proto_wire import BYTES, Budget, Buffer, fields, varint
from penstock.protocol.oip_tensor import object_array, size_mismatch, strings_mismatch
from penstock.protocol.packed_varints import read_varints

_FIELDS: Final = {
    dt.BOOL: 1, dt.INT8: 2, dt.INT16: 2, dt.INT32: 2, dt.INT64: 3, dt.UINT8: 4, dt.UINT16: 4,
    dt.UINT32: 4, dt.UINT64: 5, dt.FP32: 6, dt.FP64: 7, dt.BYTES: 8,
}  # fmt: skip
_WIDTHS: Final = {6: 4, 7: 8}
_STRINGS: Final = 8
_STRINGS_TAG: Final = 0x42
_TYPES: Final = {
    1: dt.BOOL, 2: dt.INT32, 3: dt.INT64, 4: dt.UINT32, 5: dt.UINT64, 6: dt.FP32, 7: dt.FP64,
    8: dt.BYTES,
}  # fmt: skip
_WIRE_TYPES: Final = {1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 5, 7: 1}


class Contents:
    """The values of one tensor as they come: chunks by field number, each of whole values."""

    __slots__ = ("chunks",)

    def __init__(self) -> None:
        self.chunks: dict[int, list[Buffer]] = {}

    def read(self, data: Buffer, start: int, end: int, limits: WireLimits, budget: Budget) -> None:
        """Adds the values in ``data[start:end]``; a message may come in several pieces.

        Strings are many fields, which are not counted against ``budget``; numbers are packed by
        whoever sends many of them.
        """
        view, whole = memoryview(data), b""
        strings: list[bytes] = []
        for tag, a, b in fields(data, start, end, 2, budget=budget):
            if tag == _STRINGS_TAG:
                if not strings:  # slices of bytes cost a third of bytes of views
                    whole = bytes(view[start:end])
                elif len(strings) >= limits.strings_max:
                    raise ProtocolError("too many fields in one protobuf message", offset=start)
                strings.append(whole[a - start : b - start])
                budget.left += 1
                continue
            number, kind = tag >> 3, tag & 7
            if kind == BYTES:
                if number in _WIRE_TYPES and a < b:
                    _check_chunk(view, a, b, number)
                    self._add(number, view[a:b])
            elif _WIRE_TYPES.get(number) == kind:
                self._add(number, view[a:b] if kind else varint(a))
        if strings:
            self.chunks.setdefault(_STRINGS, []).extend(strings)

    def _add(self, number: int, chunk: Buffer) -> None:
        chunks = self.chunks.get(number)
        if chunks is None:
            self.chunks[number] = [chunk]
        else:
            chunks.append(chunk)

    def array(self, spec: TensorSpec, model: str, what: str) -> Array:
        """The tensor, which has the shape of ``spec``.

        Raises:
            ProtocolError: the values are of another type or number.
        """
        wanted = _FIELDS.get(spec.dtype)
        for number in self.chunks:
            if number != wanted:
                raise ProtocolError(
                    f"unexpected explicit tensor data for {what} tensor '{spec.name}' for model "
                    f"'{model}' of type '{_TYPES[number]}', expected datatype '{spec.dtype}'"
                )
        if wanted == _STRINGS:
            return self._strings(spec, model, what)
        flat = self._flat(spec, wanted or 0)
        if flat.size != prod(spec.shape):
            size = spec.dtype.itemsize
            raise size_mismatch(spec.name, model, prod(spec.shape) * size, flat.size * size, what)
        return flat.reshape(spec.shape)

    def _strings(self, spec: TensorSpec, model: str, what: str) -> Array:
        values: list[Any] = self.chunks.get(_STRINGS, [])
        count = prod(spec.shape)
        if len(values) != count:
            raise ProtocolError(strings_mismatch(spec.name, model, count, len(values), what))
        return object_array(values, spec.shape)

    def _flat(self, spec: TensorSpec, number: int) -> Array:
        chunks = self.chunks.get(number, [])
        packed = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if number in _WIDTHS:
            return np.frombuffer(packed, spec.dtype.numpy)
        values = read_varints(packed)
        return values != 0 if spec.dtype is dt.BOOL else values.astype(spec.dtype.numpy)


def _check_chunk(view: memoryview, start: int, end: int, number: int) -> None:
    """Refuses a packed chunk that ends amid a value."""
    width = _WIDTHS.get(number)
    if view[end - 1] > 0x7F if width is None else (end - start) % width:
        raise ProtocolError("malformed protobuf message: truncated", field="contents", offset=start)
