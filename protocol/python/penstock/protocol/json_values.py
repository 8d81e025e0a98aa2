"""Tensors as JSON that names no types: nested lists of values whose type the model declares.

So write TensorFlow Serving's REST API, KServe v1 and MLflow. Knows how an element of each type
looks: numbers (whole ones for any type, ``2.0`` for 2), ``true``, strings, ``{"b64": ...}`` for
bytes, and the tokens NaN and Infinity, which are not JSON but which these programs write. Knows
nothing of the documents around the values.

Contract: readers raise ``PenstockError`` and nothing else, allocate in proportion to what was
received, and look at single elements of numeric data in C only.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from itertools import chain
from math import prod
from typing import Any, Final, Generic, TypeVar

import msgspec
import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import Array, widen_bf16, wire_array
from penstock.protocol.oip_tensor import DEPTH_TEXT, Body, object_array

M = TypeVar("M")

_PACK: Final = {
    dt.UINT8: "B", dt.INT8: "b", dt.UINT16: "H", dt.INT16: "h", dt.UINT32: "I", dt.INT32: "i",
    dt.UINT64: "Q", dt.INT64: "q", dt.FP16: "e", dt.BF16: "f", dt.FP32: "f", dt.FP64: "d",
    dt.BOOL: "?",
}  # fmt: skip
_FLOATS: Final = (dt.FP16, dt.BF16, dt.FP32, dt.FP64)
_B64: Final = "b64"
_encode = msgspec.json.Encoder().encode


class Document(Generic[M]):
    """Reads one kind of JSON document into its record."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def read(self, text: Body) -> M:
        """The record.

        Raises:
            ProtocolError: ``text`` is not JSON, or not such a document.
        """
        try:
            try:
                return self._decoder.decode(text)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                raw = bytes(text)
                if b"NaN" not in raw and b"Infinity" not in raw:
                    raise
                return msgspec.convert(json.loads(raw.decode()), self._kind)
        except RecursionError:
            raise ProtocolError(DEPTH_TEXT.format(DEFAULT.json_depth_max)) from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"JSON Parse error: {error}") from None

    def of(self, value: object) -> M:
        """The record of a value that was read already; raises as ``read``."""
        try:
            return msgspec.convert(value, self._kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ProtocolError(f"JSON Parse error: {error}") from None


# --- reading --------------------------------------------------------------------------------------


def is_bytes(value: object) -> bool:
    """Whether ``value`` stands for bytes, not for an object with names."""
    return type(value) is dict and len(value) == 1 and type(value.get(_B64)) is str


def array_of(
    data: object,
    dtype: DType,
    name: str,
    limits: WireLimits = DEFAULT,
    *,
    floats: bool = False,
) -> Array:
    """The array that nested lists stand for; its shape is theirs.

    ``floats`` says that the parser has already seen to it that all values are, and ``dtype`` too.

    Raises:
        ProtocolError: lists of unequal length, or a value that ``dtype`` cannot hold.
    """
    shape = _shape(data, name, limits)
    flat = _flat(data, shape, name)
    if dtype is dt.BYTES:
        if len(flat) > limits.strings_max:
            raise ProtocolError(f"input '{name}' has more strings than {limits.strings_max}")
        return object_array([_bytes(value, name) for value in flat], shape)
    kinds: set[type] = set() if floats else set(map(type, flat))
    if list in kinds or dict in kinds:
        raise _uneven(name) if list in kinds else _bad(name, dtype, "unexpected object")
    if dtype is dt.BOOL:
        _check_booleans(flat, kinds, name)
    elif not kinds <= {int, float}:
        found = min(kind.__name__ for kind in kinds - {int, float})
        raise _bad(name, dtype, f"unexpected {'null' if found == 'NoneType' else found}")
    elif float in kinds and dtype not in _FLOATS:
        flat = _whole(flat, dtype, name)
    try:
        # struct checks type and range of every value and is faster than np.array, which does not.
        packed = struct.pack(f"<{len(flat)}{_PACK[dtype]}", *flat)
    except (struct.error, OverflowError) as error:
        raise _bad(name, dtype, str(error)) from None
    if dtype is dt.BF16:
        return wire_array(np.ndarray(shape, "<f4", packed), dt.BF16)[1]
    return np.ndarray(shape, dtype.numpy, packed)


def fitted(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` in the declared ``shape`` if its rows hold as many elements; else as it is.

    Clients that have tables, not tensors, write a row flat, and a row of one element without its
    brackets. Only shapes whose sizes are known behind the first allow this.
    """
    row = shape[1:]
    if array.ndim in (0, len(shape)) or not shape or min(row, default=0) < 0:
        return array
    if prod(array.shape[1:]) != prod(row):
        return array
    return array.reshape(len(array), *row)


def _shape(data: object, name: str, limits: WireLimits) -> tuple[int, ...]:
    sizes = []
    while type(data) is list:
        sizes.append(len(data))
        if len(sizes) > limits.rank_max:
            raise ProtocolError(f"input '{name}' has more than {limits.rank_max} dimensions")
        if not data:
            break
        data = data[0]
    return tuple(sizes)


def _flat(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    if not shape:
        return [data]
    level: list[Any] = data
    for size in shape[1:]:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise _uneven(name)
        level = list(chain.from_iterable(level))
    return level


def _whole(flat: list[Any], dtype: DType, name: str) -> list[int]:
    try:
        whole = list(map(int, flat))
    except (ValueError, OverflowError):  # NaN, Infinity
        whole = []
    if whole != flat:
        raise _bad(name, dtype, "expected whole numbers")
    return whole


def _check_booleans(flat: list[Any], kinds: set[type], name: str) -> None:
    if not kinds <= {bool, int} or (int in kinds and not {0, 1}.issuperset(flat)):
        raise _bad(name, dt.BOOL, "expected true or false")


def _bytes(value: object, name: str) -> bytes:
    if type(value) is bytes:  # not from JSON
        return value
    try:
        if type(value) is str:
            return value.encode()
        if is_bytes(value):
            return base64.b64decode(value[_B64], validate=True)  # type: ignore[index]
    except (binascii.Error, ValueError) as error:
        raise _bad(name, dt.BYTES, str(error)) from None
    if type(value) is list:
        raise _uneven(name)
    raise _bad(name, dt.BYTES, f'expected strings or {{"b64": ...}}, got {type(value).__name__}')


def _uneven(name: str) -> ProtocolError:
    return ProtocolError(f"the lists of input '{name}' are not all of the same length")


def _bad(name: str, dtype: DType, why: str) -> ProtocolError:
    return ProtocolError(f"input '{name}' cannot be read as {dtype}: {why}")


# --- writing --------------------------------------------------------------------------------------


def values_of(array: Array, dtype: DType, name: str) -> Any:
    """``array`` as nested lists for ``encoded``.

    Strings whose tensor has a name that ends in ``_bytes``, and those that are not UTF-8, are
    written as ``{"b64": ...}``.
    """
    if dtype is dt.BYTES:
        written = [_text(v, name.endswith("_bytes")) for v in array.reshape(-1).tolist()]
        objects = np.empty(len(written), dtype=object)
        objects[:] = written
        return objects.reshape(array.shape).tolist()
    if dtype is dt.BF16:
        array = widen_bf16(array)
    return array.tolist()


def _text(value: bytes, as_bytes: bool) -> object:
    if not as_bytes:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {_B64: base64.b64encode(value).decode()}


def encoded(document: object) -> bytes:
    """``document`` as JSON, with the tokens NaN, Infinity and -Infinity where JSON has nothing."""
    text = _encode(document)
    if b"null" in text:  # what msgspec makes of values that are not finite
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return text
