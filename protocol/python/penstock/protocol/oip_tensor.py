"""The values of one tensor as the Open Inference Protocol writes them: JSON data and binary data.

Knows: how an element type looks inside ``data`` and inside a binary part (little-endian, BOOL one
byte, BYTES a u32 length and the bytes of each element). Knows nothing of the JSON around it.

Contract: readers allocate only in proportion to what was received, never copy numeric binary data,
and raise ``PenstockError`` with the text that Triton's clients and tests expect, whatever they are
given. Writers return C-ordered buffers that share memory with the array where that is cheaper.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, TensorSpec

Buffer = bytes | memoryview
Body = bytes | bytearray | memoryview

BINARY_ONLY: Final = (dt.FP16, dt.BF16)
"""JSON numbers cannot carry these; Triton refuses them in both directions."""

_PART_ELEMENTS: Final = 8192
COPY_BYTES_MAX: Final = 512
"""Up to here copying an array out (60 ns) is cheaper than a memory view of it (200 ns)."""

PACK: Final = {
    dt.UINT8: "B", dt.INT8: "b", dt.UINT16: "H", dt.INT16: "h", dt.UINT32: "I", dt.INT32: "i",
    dt.UINT64: "Q", dt.INT64: "q", dt.FP32: "f", dt.FP64: "d", dt.BOOL: "?",
}  # fmt: skip
_FLOATS: Final = (dt.FP32, dt.FP64)
_length_at = struct.Struct("<I").unpack_from
_encode = msgspec.json.Encoder().encode
_SHAPE_TEXT: Final = "Unable to parse 'data': Shape does not match true shape of 'data' field"
DEPTH_TEXT: Final = "JSON nesting depth exceeds maximum allowed limit ({})"


def element_count(shape: Sequence[int], name: str, limits: WireLimits, what: str = "input") -> int:
    """The number of elements of ``shape`` (dimensions >= 0), refused beyond the limits.

    The product is taken over the dimensions that are not 0, because NumPy bounds them too.
    """
    if len(shape) > limits.rank_max:
        raise ProtocolError(
            f"{what} '{name}' has {len(shape)} dimensions, more than the maximum {limits.rank_max}"
        )
    if prod(d for d in shape if d) > limits.elements_max:
        raise ProtocolError(
            f"shape of {what} '{name}' causes total element count to exceed maximum size of "
            f"{limits.elements_max}"
        )
    return prod(shape)


# --- JSON data ------------------------------------------------------------------------------------


def values_array(
    data: object,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    name: str,
    what: str,
    depth_max: int,
    typed: bool,
) -> Array:
    """The array that JSON ``data``, flat or nested like ``shape``, stands for.

    ``typed`` says that the parser has already seen to it that ``data`` is a flat list of int, float
    and str (no bool, no null, nothing nested).
    """
    if dtype in BINARY_ONLY:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"receiving {dtype} data via JSON is not supported. "
            f"Please use the binary data format for {what} {name}",
        )
    count = prod(shape)
    if typed and dtype is not dt.BOOL:
        flat = data
    else:
        flat = _flatten(data, shape, count, depth_max)
        _check_types(flat, dtype, name, what)
    assert isinstance(flat, list)
    if len(flat) != count:
        raise ProtocolError(_SHAPE_TEXT, field=f"{what} '{name}'")
    if dtype is dt.BYTES:
        return _strings_array(flat, shape, name, what)
    try:
        # struct checks type and range of every value and is faster than np.array, which does not.
        packed = struct.pack(f"<{count}{PACK[dtype]}", *flat)
    except (struct.error, OverflowError) as error:
        raise _bad_value(dtype, name, what, str(error)) from None
    return np.ndarray(shape, dtype.numpy, packed)


def _bad_value(dtype: DType, name: str, what: str, why: str) -> ProtocolError:
    return ProtocolError(f"Unable to parse 'data' of {what} '{name}' as {dtype}: {why}")


def _flatten(data: object, shape: tuple[int, ...], count: int, depth_max: int) -> list[Any]:
    if not isinstance(data, list):
        if shape == ():
            return [data]
        raise ProtocolError("Unable to parse 'data': expected an array")
    if not data or not isinstance(data[0], list):
        return data
    _check_depth(data, depth_max)
    level: list[Any] = [data]
    for dim in shape:
        if not all(isinstance(item, list) and len(item) == dim for item in level):
            raise ProtocolError(_SHAPE_TEXT)
        level = list(chain.from_iterable(level))
    if len(level) != count:
        raise ProtocolError(_SHAPE_TEXT)
    return level


def _check_depth(data: object, depth_max: int) -> None:
    depth = 0
    while isinstance(data, list) and data:
        data = data[0]
        depth += 1
        if depth > depth_max:
            raise ProtocolError(DEPTH_TEXT.format(depth_max))


def _check_types(flat: list[Any], dtype: DType, name: str, what: str) -> None:
    kinds: set[type] = set(map(type, flat))
    allowed: set[type]
    if list in kinds:
        raise ProtocolError(_SHAPE_TEXT, field=f"{what} '{name}'")
    if dtype is dt.BYTES:
        allowed = {str}
    elif dtype is dt.BOOL:
        allowed = {bool, int}
        if int in kinds and not {0, 1}.issuperset(flat):
            raise _bad_value(dtype, name, what, "expected true, false, 0 or 1")
    else:
        allowed = {int, float} if dtype in _FLOATS else {int}
    for kind in kinds - allowed:
        found = "null" if kind is type(None) else kind.__name__
        raise _bad_value(dtype, name, what, f"unexpected {found}")


def _strings_array(flat: list[Any], shape: tuple[int, ...], name: str, what: str) -> Array:
    try:
        return object_array([text.encode() for text in flat], shape)
    except AttributeError:
        raise _bad_value(dt.BYTES, name, what, "expected strings") from None


def json_values(array: Array, dtype: DType, name: str, what: str = "output") -> bytes:
    """``array`` as a flat JSON array. Floats that JSON lacks are written NaN, Infinity, -Infinity.

    FP32 values are written as the doubles they equal, as Triton does; they read back exactly.
    """
    if dtype in BINARY_ONLY:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"sending {dtype} data via JSON is not supported. "
            f"Please use the binary data format for {what} {name}",
        )
    flat = array.reshape(-1)
    if len(flat) > _PART_ELEMENTS:
        # Part by part: on a thread, so that others get their turn; anywhere, for the caches' sake.
        parts = (flat[i : i + _PART_ELEMENTS] for i in range(0, len(flat), _PART_ELEMENTS))
        return b"[%b]" % b",".join([_json_part(p, dtype, name, what)[1:-1] for p in parts])
    return _json_part(flat, dtype, name, what)


def _json_part(array: Array, dtype: DType, name: str, what: str) -> bytes:
    values = array.tolist()
    if dtype is dt.BYTES:
        return _json_strings(values, name, what)
    text = _encode(values)
    if dtype in _FLOATS and b"null" in text:  # what msgspec makes of values that are not finite
        return json.dumps(values, separators=(",", ":")).encode()
    return text


def _json_strings(values: list[bytes], name: str, what: str) -> bytes:
    try:
        return _encode([value.decode() for value in values])
    except UnicodeDecodeError:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"{what} '{name}' holds bytes that are not UTF-8 and cannot be sent as JSON; "
            f"ask for it as binary data (parameter binary_data)",
        ) from None


# --- binary data ----------------------------------------------------------------------------------


def object_array(values: list[bytes], shape: tuple[int, ...]) -> Array:
    """BYTES elements, in C order, as an array; ``len(values)`` must be the product of ``shape``."""
    out = np.empty(len(values), dtype=object)
    if len(values) <= _PART_ELEMENTS:
        out[:] = values
    else:  # in parts, between which other threads may run
        for at in range(0, len(values), _PART_ELEMENTS):
            out[at : at + _PART_ELEMENTS] = values[at : at + _PART_ELEMENTS]
    return out.reshape(shape)


def strings_of(
    raw: Body, count: int, name: str, what: str = "input", model: str = ""
) -> list[bytes]:
    """The ``count`` elements of a BYTES tensor in its binary form. The rest fills error texts."""
    raw = bytes(raw)
    found: list[bytes] = []
    offset = 0
    try:
        for _ in range(count):
            start = offset + 4
            offset = start + _length_at(raw, offset)[0]
            found.append(raw[start:offset])
    except struct.error:  # ran off the end: say below how
        pass
    if offset == len(raw) and len(found) == count:
        return found
    raise ProtocolError(_strings_fault(raw, count, name, what, model))


def _strings_fault(raw: bytes, count: int, name: str, what: str, model: str) -> str:
    offset = elements = 0
    while len(raw) - offset >= 4:
        (length,) = _length_at(raw, offset)
        offset += 4
        if length > len(raw) - offset:
            return (
                f"incomplete string data for inference {what} '{name}', expecting string of "
                f"length {length} but only {len(raw) - offset} bytes available"
            )
        offset += length
        elements += 1
    if offset < len(raw):
        return (
            f"incomplete string length indicator for inference {what} '{name}' for model "
            f"'{model}', expecting 4 bytes but only {len(raw) - offset} bytes available. Please "
            "make sure the string length indicator is in one buffer."
        )
    return strings_mismatch(name, model, count, elements, what)


def strings_mismatch(name: str, model: str, expected: int, got: int, what: str = "input") -> str:
    """The text for a BYTES tensor of another number of elements."""
    where = f"string elements for inference {what} '{name}' for model '{model}'"
    if got < expected:
        return f"expected {expected} {where}, got {got}"
    where = where.replace("elements", f"elements {got}", 1)
    return f"unexpected number of {where}, expecting {expected}"


def view_of(
    body: Body, spec: TensorSpec, start: int, size: int, what: str = "input", model: str = ""
) -> Array:
    """The tensor at ``body[start : start + size]``; only BYTES elements are copied."""
    if spec.dtype is dt.BYTES:
        count = prod(spec.shape)
        strings = strings_of(body[start : start + size], count, spec.name, what, model)
        return object_array(strings, spec.shape)
    return np.ndarray(spec.shape, spec.dtype.numpy, body, start)


def size_mismatch(
    name: str, model: str, expected: int, got: int, what: str = "input"
) -> ProtocolError:
    return ProtocolError(
        f"{what} byte size mismatch for {what} '{name}' for model '{model}'. "
        f"Expected {expected}, got {got}"
    )


def strings_bytes(array: Array) -> bytes:
    """A BYTES array in its binary form."""
    parts: list[bytes] = []
    for value in array.reshape(-1).tolist():
        parts.append(len(value).to_bytes(4, "little"))
        parts.append(value)
    return b"".join(parts)


def buffer_of(array: Array) -> Buffer:
    """The bytes of a numeric array in C order; a view of it unless it is small or scattered."""
    if array.nbytes <= COPY_BYTES_MAX:
        return array.tobytes()
    try:
        return array.data.cast("B")
    except (TypeError, ValueError):
        # Not contiguous (copied here), unaligned or of a format that memoryview cannot cast.
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
