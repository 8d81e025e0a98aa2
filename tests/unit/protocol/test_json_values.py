"""Values in JSON without types: every type there and back, and what is not a value of a type."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.json_values import (
    Document,
    array_of,
    encoded,
    fitted,
    is_bytes,
    values_of,
)
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import widen_bf16

INTEGERS = (dt.INT8, dt.UINT8, dt.INT16, dt.UINT16, dt.INT32, dt.UINT32, dt.INT64, dt.UINT64)


@pytest.mark.parametrize("dtype", [*INTEGERS, dt.FP16, dt.FP32, dt.FP64], ids=str)
def test_numbers_there_and_back(dtype: DType) -> None:
    low, high = (-60000, 60000) if dtype not in INTEGERS else limits_of(dtype)
    array = np.array([[low, 0, 1], [2, 3, high]], dtype.numpy)
    text = encoded(values_of(array, dtype, "x"))
    read = array_of(json.loads(text), dtype, "x")
    assert read.dtype == dtype.numpy
    np.testing.assert_array_equal(read, array)


def limits_of(dtype: DType) -> tuple[int, int]:
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


def test_bf16() -> None:
    read = array_of([1.0, -2.5], dt.BF16, "x")
    np.testing.assert_array_equal(widen_bf16(read), np.array([1.0, -2.5], "f4"))
    assert values_of(read, dt.BF16, "x") == [1.0, -2.5]


def test_booleans() -> None:
    assert array_of([[True], [False]], dt.BOOL, "x").tolist() == [[True], [False]]
    assert array_of([0, 1], dt.BOOL, "x").tolist() == [False, True]


def test_texts_and_bytes() -> None:
    given = ["é", {"b64": "/wA="}]
    read = array_of(given, dt.BYTES, "x")
    assert read.tolist() == ["é".encode(), b"\xff\0"]
    assert values_of(read, dt.BYTES, "x") == given
    assert values_of(read[:1], dt.BYTES, "image_bytes") == [{"b64": "w6k="}]


def test_whole_numbers_for_floats_and_floats_for_whole_numbers() -> None:
    assert array_of([1, 2.5], dt.FP32, "x").tolist() == [1.0, 2.5]
    assert array_of([1, 2.0], dt.INT64, "x").tolist() == [1, 2]


def test_a_scalar_and_nothing() -> None:
    assert array_of(3, dt.INT32, "x").shape == ()
    assert array_of([], dt.FP32, "x").shape == (0,)
    assert array_of([[], []], dt.FP32, "x").shape == (2, 0)


def test_not_finite() -> None:
    array = np.array([np.nan, np.inf, -np.inf, 1], "f4")
    text = encoded(values_of(array, dt.FP32, "x"))
    assert text == b"[NaN,Infinity,-Infinity,1.0]"
    np.testing.assert_array_equal(array_of(Document(list).read(text), dt.FP32, "x"), array)
    assert encoded(["null"]) == b'["null"]'


BAD: dict[str, tuple[Any, DType, str]] = {
    "uneven": ([[1, 2], [3]], dt.FP32, "same length"),
    "deeper later": ([1, [2]], dt.FP32, "same length"),
    "flatter later": ([[1], 2], dt.FP32, "same length"),
    "uneven strings": (["a", ["b"]], dt.BYTES, "same length"),
    "null": ([1, None], dt.FP32, "unexpected null"),
    "text for a number": (["1"], dt.FP32, "unexpected str"),
    "true for a number": ([True], dt.INT32, "unexpected bool"),
    "an object": ([{"a": 1}], dt.FP32, "unexpected object"),
    "a fraction": ([1.5], dt.INT32, "whole numbers"),
    "not a number": ([float("nan")], dt.INT32, "whole numbers"),
    "infinite": ([float("inf")], dt.INT64, "whole numbers"),
    "too large": ([128], dt.INT8, "INT8"),
    "negative": ([-1], dt.UINT8, "UINT8"),
    "beyond float32": ([1e39], dt.FP32, "FP32"),
    "beyond float16": ([70000], dt.FP16, "FP16"),
    "huge": ([10**400], dt.FP64, "FP64"),
    "a number for a text": ([1], dt.BYTES, "expected strings"),
    "not base64": ([{"b64": "%"}], dt.BYTES, "BYTES"),
    "more than b64": ([{"b64": "", "x": 1}], dt.BYTES, "expected strings"),
    "two for a truth": ([2], dt.BOOL, "true or false"),
    "text for a truth": (["true"], dt.BOOL, "true or false"),
}


@pytest.mark.parametrize(("data", "dtype", "text"), BAD.values(), ids=BAD)
def test_what_is_no_value(data: Any, dtype: DType, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        array_of(data, dtype, "x")


def test_limits() -> None:
    deep: Any = 1
    for _ in range(33):
        deep = [deep]
    with pytest.raises(ProtocolError, match="32 dimensions"):
        array_of(deep, dt.FP32, "x")
    with pytest.raises(ProtocolError, match="more strings than 2"):
        array_of(["a"] * 3, dt.BYTES, "x", WireLimits(strings_max=2))


@pytest.mark.parametrize(
    ("given", "declared", "fit"),
    [
        ((2, 64), (-1, 1, 8, 8), (2, 1, 8, 8)),
        ((2,), (-1, 1), (2, 1)),
        ((2, 1), (-1,), (2,)),
        ((2, 1, 8, 8), (-1, 1, 8, 8), (2, 1, 8, 8)),
        ((2, 63), (-1, 1, 8, 8), (2, 63)),
        ((2, 64), (-1, -1, 8, 8), (2, 64)),
        ((), (-1,), ()),
        ((4,), (), (4,)),
    ],
)
def test_flat_rows(given: tuple[int, ...], declared: tuple[int, ...], fit: tuple[int, ...]) -> None:
    assert fitted(np.zeros(given), declared).shape == fit


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1,]", b"nul", b"\xff", b"[NaN", b"[" * 5000 + b"NaN", b'{"a":Infinity}']
)
def test_documents_that_are_none(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        Document(list).read(text)


def test_bytes_are_told_from_objects() -> None:
    assert is_bytes({"b64": "eA=="})
    assert not any(map(is_bytes, [{"b64": 1}, {"b64": "", "x": ""}, {}, [], "b64"]))
