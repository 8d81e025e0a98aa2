"""TensorFlow's ``TensorProto``: bytes to arrays and back.

Knows: dtype numbers, shapes, raw content and the typed fields, with TensorFlow's shorthand that the
last value stands for all that are left out. Knows nothing of the messages around a tensor.

Contract: raw content and packed floats become views of the message. Memory is in proportion to what
was received; shorthand is written out up to ``SHORTHAND_BYTES_MAX`` a message. Replies use the
typed fields, as TensorFlow Serving's do by default and as its clients read them; floats, doubles
and booleans are handed on as they lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array
from penstock.protocol.oip_proto_wire import (
    BYTES,
    Budget,
    Buffer,
    field,
    fields,
    signed,
    varint,
    varint_at,
)
from penstock.protocol.oip_tensor import buffer_of, element_count, object_array
from penstock.protocol.packed_varints import read_varints, write_varints
from penstock.protocol.tf_dtype import BY_DTYPE, BY_NUMBER

SHORTHAND_BYTES_MAX: Final = 64 * 1024**2
"""How large tensors with fewer values than elements may become, all of one message together."""

FIELDS: Final[dict[DType, int]] = {
    dt.FP32: 5, dt.FP64: 6, dt.INT8: 7, dt.INT16: 7, dt.INT32: 7, dt.UINT8: 7, dt.UINT16: 7,
    dt.BYTES: 8, dt.INT64: 10, dt.BOOL: 11, dt.FP16: 13, dt.BF16: 13, dt.UINT32: 16,
    dt.UINT64: 17,
}  # fmt: skip
"""The typed field of each element type."""
_STRINGS: Final = 8
_STRINGS_TAG: Final = _STRINGS << 3 | BYTES
_WIRE_TYPES: Final = {5: 5, 6: 1, 7: 0, 10: 0, 11: 0, 13: 0, 16: 0, 17: 0}
_AS_THEY_LIE: Final = (dt.FP32, dt.FP64, dt.BOOL)
"""Types whose packed field holds the bytes of the array."""


class MessageBudget(Budget):
    """What one message may still cost: fields, and bytes that it does not carry itself."""

    __slots__ = ("shorthand_bytes_left",)

    def __init__(self) -> None:
        super().__init__()
        self.shorthand_bytes_left = SHORTHAND_BYTES_MAX


def read_tensor(
    data: Buffer, start: int, end: int, name: str, limits: WireLimits, budget: MessageBudget
) -> tuple[DType, Array, int]:
    """The tensor in ``data[start:end]``, and where its raw content begins, -1 if it has none.

    Where there is such content of a type of fixed size, its bytes are not looked at. Strings are
    many fields, which are not counted against ``budget``; numbers are packed by whoever sends many.

    Raises:
        ProtocolError: the bytes are no tensor, its type cannot be served, or its values do not fit
            its shape.
    """
    number = 0
    shape: list[int] = []
    content = (0, 0)
    chunks: dict[int, list[Buffer]] = {}
    view = memoryview(data)
    strings: list[Buffer] = []
    for tag, a, b in fields(data, start, end, 2, budget):
        if tag == _STRINGS_TAG:
            if len(strings) >= limits.strings_max:
                raise ProtocolError("too many fields in one protobuf message", offset=a)
            strings.append(bytes(view[a:b]))
            budget.left += 1
        elif tag == 0x22:
            content = (a, b)
        elif tag == 0x12:
            _read_shape(data, a, b, name, shape, limits, budget)
        elif tag == 0x08:
            number = a
        else:
            _keep_chunk(chunks, tag, a, b, view)
    dtype = BY_NUMBER.get(number)
    if dtype is None:
        raise ProtocolError(f"input '{name}' has dtype {number}, which is not supported")
    count = element_count(shape, name, limits)
    a, b = content
    if a == b:
        given = strings if dtype is dt.BYTES else chunks.get(FIELDS[dtype], [])
        values = _typed(given, dtype, count, name, budget)
        return dtype, values.reshape(shape), -1
    if dtype is dt.BYTES:
        texts = _strings(data, a, b, count, name, limits)
        return dtype, object_array(texts, tuple(shape)), -1
    if b - a != count * dtype.itemsize:
        raise ProtocolError(
            f"input '{name}' has {b - a} bytes of tensor_content, expected {count * dtype.itemsize}"
        )
    return dtype, np.ndarray(tuple(shape), dtype.numpy, data, a), a


def _read_shape(
    data: Buffer,
    start: int,
    end: int,
    name: str,
    shape: list[int],
    limits: WireLimits,
    budget: Budget,
) -> None:
    for tag, a, b in fields(data, start, end, 3, budget):
        if tag == 0x12:
            size = 0
            for inner, value, _ in fields(data, a, b, 4, budget):
                if inner == 0x08:
                    size = signed(value)
            if size < 0 or len(shape) >= limits.rank_max:
                raise ProtocolError(f"input '{name}' has no shape that a tensor can have")
            shape.append(size)
        elif tag == 0x18 and a:
            raise ProtocolError(f"input '{name}' has a shape of unknown rank")


def _keep_chunk(
    chunks: dict[int, list[Buffer]], tag: int, a: int, b: int, view: memoryview
) -> None:
    number, kind = tag >> 3, tag & 7
    if number in _WIRE_TYPES:
        if kind == BYTES:
            chunks.setdefault(number, []).append(view[a:b])
        elif kind == _WIRE_TYPES[number]:
            chunks.setdefault(number, []).append(view[a:b] if kind else varint(a))


def _typed(
    chunks: Sequence[Buffer], dtype: DType, count: int, name: str, budget: MessageBudget
) -> Array:
    if dtype is dt.BYTES:
        values: Array = object_array(list(chunks), (len(chunks),))  # type: ignore[arg-type]
    else:
        values = _numbers(chunks, dtype, name)
    if values.size == count:
        return values
    if values.size > count:
        raise ProtocolError(f"input '{name}' has {values.size} values, its shape holds {count}")
    budget.shorthand_bytes_left -= count * (dtype.itemsize or 8)
    if budget.shorthand_bytes_left < 0:
        raise ProtocolError(
            f"input '{name}' has {values.size} values for {count} elements, too many to repeat",
            code=Code.OUT_OF_RANGE,
        )
    full = np.empty(count, dtype.numpy)
    full[: values.size] = values
    full[values.size :] = values[-1] if values.size else (b"" if dtype is dt.BYTES else 0)
    return full


def _numbers(chunks: Sequence[Buffer], dtype: DType, name: str) -> Array:
    packed: Buffer = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if dtype in (dt.FP32, dt.FP64):
        if len(packed) % dtype.itemsize:
            raise ProtocolError(f"the values of input '{name}' end amid one")
        return np.frombuffer(packed, dtype.numpy)
    values = read_varints(packed)
    if dtype is dt.BOOL:
        return np.not_equal(values, 0)
    if dtype is dt.FP16:
        return values.astype("<u2").view("<f2")
    return values.astype(dtype.numpy)


def _strings(
    data: Buffer, start: int, end: int, count: int, name: str, limits: WireLimits
) -> list[bytes]:
    """Strings as raw content: the length of each, then the bytes of all."""
    if count > min(limits.strings_max, end - start):
        raise ProtocolError(f"input '{name}' has too few bytes for {count} strings")
    sizes = []
    at = start
    try:
        for _ in range(count):
            size, at = varint_at(data, at)
            sizes.append(size)
    except IndexError:
        at = end + 1
    if at + sum(sizes) != end:
        raise ProtocolError(f"the strings of input '{name}' do not fill its tensor_content")
    values = []
    for size in sizes:
        values.append(bytes(data[at : at + size]))
        at += size
    return values


# --- writing --------------------------------------------------------------------------------------


def tensor_head(dtype: DType, shape: Sequence[int]) -> bytes:
    """What stands before the values: dtype and shape."""
    dims = b"".join([field(2, b"\x08" + varint(size) if size else b"") for size in shape])
    return b"\x08" + varint(BY_DTYPE[dtype].number) + field(2, dims)


def values_size(dtype: DType, count: int) -> int:
    """The bytes that ``count`` values take, -1 where that depends on the values."""
    return count * dtype.itemsize if dtype in _AS_THEY_LIE else -1


def values_buffer(array: Array, dtype: DType) -> Buffer:
    """The contents of the typed field; for strings the fields themselves, one for each."""
    if dtype in _AS_THEY_LIE:
        return buffer_of(array)
    if dtype is dt.BYTES:
        return b"".join([field(_STRINGS, value) for value in array.reshape(-1).tolist()])
    if dtype is dt.FP16:
        array = array.view("<u2") if array.flags.c_contiguous else array.copy().view("<u2")
    return write_varints(array)
