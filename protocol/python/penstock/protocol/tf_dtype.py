"""TensorFlow's numbers and names for the element types (``tensorflow.DataType``)."""

from __future__ import annotations

from typing import Final, NamedTuple

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType


class TfType(NamedTuple):
    number: int
    name: str


BY_DTYPE: Final[dict[DType, TfType]] = {
    dt.FP32: TfType(1, "DT_FLOAT"),
    dt.FP64: TfType(2, "DT_DOUBLE"),
    dt.INT32: TfType(3, "DT_INT32"),
    dt.UINT8: TfType(4, "DT_UINT8"),
    dt.INT16: TfType(5, "DT_INT16"),
    dt.INT8: TfType(6, "DT_INT8"),
    dt.BYTES: TfType(7, "DT_STRING"),
    dt.INT64: TfType(9, "DT_INT64"),
    dt.BOOL: TfType(10, "DT_BOOL"),
    dt.BF16: TfType(14, "DT_BFLOAT16"),
    dt.UINT16: TfType(17, "DT_UINT16"),
    dt.FP16: TfType(19, "DT_HALF"),
    dt.UINT32: TfType(22, "DT_UINT32"),
    dt.UINT64: TfType(23, "DT_UINT64"),
}
BY_NUMBER: Final[dict[int, DType]] = {known.number: dtype for dtype, known in BY_DTYPE.items()}
