"""The element types that travel, and their names in every world that Penstock speaks.

Knows: the KServe v2 name, the GraphPipe number, the size of one element and the NumPy type that
holds it. Knows nothing of backends (ONNX, TensorRT type numbers live there) and of codecs.

Bytes on every wire are little-endian, so the NumPy types are too.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

AnyDType = np.dtype[Any]


class DType:
    """One element type. Instances are singletons: compare with ``is``.

    ``numpy`` holds the elements in memory. BF16 has no NumPy type of its own, so it is held as its
    16 bits in ``uint16``; BYTES is held as an object array of ``bytes``.
    ``itemsize`` is the size of an element on the wire in bytes, 0 for BYTES (variable).
    ``graphpipe`` is the number in GraphPipe's ``Type`` enum; see SPEC.md §4 for the two additions.
    """

    __slots__ = ("graphpipe", "itemsize", "name", "numpy")

    def __init__(self, name: str, graphpipe: int, numpy: str) -> None:
        self.name: Final = name
        self.graphpipe: Final = graphpipe
        self.numpy: Final[AnyDType] = np.dtype(numpy)
        self.itemsize: Final = 0 if numpy == "O" else self.numpy.itemsize

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name


UINT8: Final = DType("UINT8", 1, "<u1")
INT8: Final = DType("INT8", 2, "<i1")
UINT16: Final = DType("UINT16", 3, "<u2")
INT16: Final = DType("INT16", 4, "<i2")
UINT32: Final = DType("UINT32", 5, "<u4")
INT32: Final = DType("INT32", 6, "<i4")
UINT64: Final = DType("UINT64", 7, "<u8")
INT64: Final = DType("INT64", 8, "<i8")
FP16: Final = DType("FP16", 9, "<f2")
FP32: Final = DType("FP32", 10, "<f4")
FP64: Final = DType("FP64", 11, "<f8")
BYTES: Final = DType("BYTES", 12, "O")
BOOL: Final = DType("BOOL", 13, "?")
BF16: Final = DType("BF16", 14, "<u2")

ALL: Final[tuple[DType, ...]] = (
    UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64, FP16, FP32, FP64, BYTES, BOOL, BF16,
)  # fmt: skip
BY_NAME: Final[dict[str, DType]] = {d.name: d for d in ALL}
BY_GRAPHPIPE: Final[dict[int, DType]] = {d.graphpipe: d for d in ALL}
GRAPHPIPE_NULL: Final = 0
GRAPHPIPE_LAST_LEGACY: Final = BYTES.graphpipe
"""Peers that never used or announced a higher number crash on one (SPEC.md §4)."""

_BY_NUMPY: Final[dict[AnyDType, DType]] = {d.numpy: d for d in ALL if d is not BF16}


def of_numpy(dtype: AnyDType) -> DType:
    """The element type that an array of ``dtype`` (any byte order) is sent as.

    NumPy strings (``S``, ``U``) and objects are BYTES; ``bfloat16`` as registered by ml_dtypes is
    BF16.

    Raises:
        TypeError: for types with no counterpart on the wire (complex, datetime, structured).
    """
    if dtype.kind in "SUO":
        return BYTES
    if dtype.name == "bfloat16":
        return BF16
    found = _BY_NUMPY.get(dtype.newbyteorder("<"))
    if found is None:
        raise TypeError(f"arrays of {dtype} cannot be sent; convert them to one of {_NAMES}")
    return found


_NAMES: Final = ", ".join(d.name for d in ALL)
