"""Metadata documents and raw binary requests: both are about the model's specs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import ProtocolError
from penstock.protocol.message import ModelMetadata, TensorSpec
from penstock.protocol.oip_json import (
    ALL_BINARY,
    decode_raw,
    model_metadata_document,
    parse_model_metadata,
    server_metadata_document,
)

META = ModelMetadata(
    name="m",
    version="",
    versions=("1", "3"),
    platform="onnxruntime_onnx",
    inputs=(TensorSpec("X", dt.FP32, (-1, 4)), TensorSpec("S", dt.BYTES, ())),
    outputs=(TensorSpec("Y", dt.BF16, (-1,)),),
)


def test_model_document() -> None:
    document = model_metadata_document(META)
    assert document == {
        "name": "m",
        "versions": ["1", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "X", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "S", "datatype": "BYTES", "shape": []},
        ],
        "outputs": [{"name": "Y", "datatype": "BF16", "shape": [-1]}],
    }
    assert parse_model_metadata(json.dumps(document).encode()) == META


def test_sparse_model_document() -> None:
    got = parse_model_metadata(b'{"name":"m","inputs":null,"more":1}')
    assert got == ModelMetadata("m", "", (), "", (), ())


@pytest.mark.parametrize(
    "doc",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"name":"m","x":' + b"[" * 10**5,
        b'{"name":"m","inputs":[{"name":"X","datatype":"FLOAT","shape":[]}]}',
        b'{"name":"m","inputs":[{"name":"X","datatype":"FP32","shape":[-2]}]}',
        b'{"name":"m","inputs":[{"name":"X","datatype":"FP32","shape":[0.5]}]}',
        b'{"name":"m","inputs":['
        + b",".join([b'{"name":"X","datatype":"FP32","shape":[]}'] * 1025)
        + b"]}",
    ],
)
def test_not_a_model_document(doc: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_model_metadata(doc)


def test_server_document() -> None:
    assert server_metadata_document("2.1", ("statistics",)) == {
        "name": "triton",
        "version": "2.1",
        "extensions": ["statistics"],
    }


@pytest.mark.parametrize(
    ("shape", "size", "batched", "expected"),
    [
        ((4,), 16, False, (4,)),
        ((-1,), 16, False, (4,)),
        ((-1,), 0, False, (0,)),
        ((-1, 2), 16, False, (2, 2)),
        ((2, -1), 16, False, (2, 2)),
        ((-1, 4), 16, True, (1, 4)),
        ((-1, -1), 16, True, (1, 4)),
        ((), 4, False, ()),
        ((0, -1), 0, False, (0, 0)),
        ((0,), 0, False, (0,)),
    ],
)
def test_raw(shape: tuple[int, ...], size: int, batched: bool, expected: tuple[int, ...]) -> None:
    body = np.arange(size // 4, dtype="f4").tobytes()
    got = decode_raw(body, [TensorSpec("X", dt.FP32, shape)], "M", batched=batched)
    assert got.signature.tensors == (TensorSpec("X", dt.FP32, expected),)
    assert got.signature.form is ALL_BINARY
    assert got.model == "M"
    assert got.arrays[0].shape == expected
    assert got.arrays[0].tobytes() == body


@pytest.mark.parametrize(("shape", "expected"), [((1,), (1,)), ((-1, 1), (1, 1))])
def test_raw_bytes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    for body in (b"whole body", bytearray(b"whole body"), memoryview(b"whole body")):
        got = decode_raw(body, [TensorSpec("X", dt.BYTES, shape)], "M", batched=len(shape) > 1)
        assert got.arrays[0].shape == expected
        assert got.arrays[0].reshape(-1).tolist() == [b"whole body"]


MISMATCH = "input byte size mismatch for input 'X' for model 'M'. Expected {}, got {}"


@pytest.mark.parametrize(
    ("shapes", "dtype", "size", "batched", "text"),
    [
        ([(16,)], dt.FP32, 128, False, MISMATCH.format(64, 128)),
        ([(-1, 4)], dt.FP32, 32, True, MISMATCH.format(16, 32)),
        ([(-1, 4)], dt.FP32, 15, False, MISMATCH.format(16, 15)),
        ([(-1,)], dt.FP32, 7, False, MISMATCH.format(4, 7)),
        ([(0,)], dt.FP32, 4, False, MISMATCH.format(0, 4)),
        ([(-1, -1)], dt.FP32, 4, False, "The shape of the raw input 'X' can not be deduced because "
         "there are more than one variable-sized dimension"),
        ([(-1, -1, -1)], dt.FP32, 4, True, "The shape of the raw input 'X' can not be deduced"),
        ([(-1,)], dt.BYTES, 4, False, "For BYTE datatype raw input 'X', the model must have input "
         "shape [1]"),
        ([(2,)], dt.BYTES, 4, False, "For BYTE datatype raw input 'X', the model must have"),
        ([(1,)] * 3, dt.FP32, 4, False, "Raw request must only have 1 input (found 1) to be "
         "deduced but got 3 inputs in 'M' model configuration"),
        ([], dt.FP32, 4, False, "Raw request must only have 1 input"),
    ],
)  # fmt: skip
def test_raw_refused(
    shapes: list[tuple[int, ...]], dtype: dt.DType, size: int, batched: bool, text: str
) -> None:
    inputs = [TensorSpec("X", dtype, shape) for shape in shapes]
    with pytest.raises(ProtocolError) as caught:
        decode_raw(bytes(size), inputs, "M", batched=batched)
    assert text in caught.value.message
