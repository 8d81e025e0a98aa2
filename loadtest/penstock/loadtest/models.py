"""Writes the ONNX models that benchmarks and tests run.

Knows the few fields of ONNX's protobuf messages that it needs and writes them by hand, so that a
load-test machine needs neither the ``onnx`` package nor protobuf. Knows nothing of servers.

Contract: same arguments, same bytes. Folders are made as needed. Every graph is opset 17, its first
dimension is the batch ``N``, its tensors are ``INPUT0``, ``INPUT1``, ``OUTPUT0``, ``OUTPUT1``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array

_OPSET: Final = 17
_IR_VERSION: Final = 8

_ONNX: Final[dict[DType, int]] = {
    dt.FP32: 1,
    dt.UINT8: 2,
    dt.INT8: 3,
    dt.UINT16: 4,
    dt.INT16: 5,
    dt.INT32: 6,
    dt.INT64: 7,
    dt.BYTES: 8,
    dt.BOOL: 9,
    dt.FP16: 10,
    dt.FP64: 11,
    dt.UINT32: 12,
    dt.UINT64: 13,
    dt.BF16: 16,
}
"""TensorProto.DataType."""

Shape = Sequence[int | str]
"""Sizes; a string names a free dimension."""


def write_add_sub(path: Path, dtype: DType = dt.INT32, width: int = 16) -> None:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1; all ``dtype`` [N, ``width``]."""
    shape: Shape = ("N", width)
    ins = [_value(name, dtype, shape) for name in ("INPUT0", "INPUT1")]
    outs = [_value(name, dtype, shape) for name in ("OUTPUT0", "OUTPUT1")]
    nodes = [
        _node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        _node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    _write(path, "add_sub", nodes, ins, outs)


def write_mlp(path: Path, width: int = 512, hidden_layers: int = 2) -> None:
    """FP32 [N, 784] through ``hidden_layers`` of ``width`` with ReLU to [N, 10].

    784-512-512-10 is ``write_mlp(path, 512)``. Weights are random, always the same.
    """
    random = np.random.default_rng(0)
    sizes = [784, *[width] * hidden_layers, 10]
    nodes, weights, last = [], [], "INPUT0"
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        final = i == len(sizes) - 2
        scale = np.float32(np.sqrt(2 / rows))
        weights.append(_tensor(f"W{i}", random.standard_normal((rows, columns), "f4") * scale))
        weights.append(_tensor(f"B{i}", np.zeros(columns, "<f4")))
        summed = "OUTPUT0" if final else f"S{i}"
        nodes.append(_node("Gemm", [last, f"W{i}", f"B{i}"], [summed]))
        if not final:
            last = f"H{i}"
            nodes.append(_node("Relu", [summed], [last]))
    ins, outs = [_value("INPUT0", dt.FP32, ("N", 784))], [_value("OUTPUT0", dt.FP32, ("N", 10))]
    _write(path, f"mlp_{width}", nodes, ins, outs, weights)


def write_identity(path: Path, dtype: DType = dt.FP32, shape: Shape = ("N", "M")) -> None:
    """OUTPUT0 = INPUT0 for any ``dtype``; ``shape`` [N, -1] unless told."""
    nodes = [_node("Identity", ["INPUT0"], ["OUTPUT0"])]
    ins, outs = [_value("INPUT0", dtype, shape)], [_value("OUTPUT0", dtype, shape)]
    _write(path, "identity", nodes, ins, outs)


def write_image_mean(path: Path, side: int = 224) -> None:
    """FP32 [N, 3, ``side``, ``side``] (600 KB a row at 224) to the mean of each image, [N, 1]."""
    nodes = [
        _node("Flatten", ["INPUT0"], ["FLAT"]),
        _node("ReduceMean", ["FLAT"], ["OUTPUT0"], _ints("axes", [1])),
    ]
    ins = [_value("INPUT0", dt.FP32, ("N", 3, side, side))]
    _write(path, "image_mean", nodes, ins, [_value("OUTPUT0", dt.FP32, ("N", 1))])


def _write(
    path: Path,
    name: str,
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    initializers: Sequence[bytes] = (),
) -> None:
    graph = b"".join([
        *(_bytes(1, node) for node in nodes),
        _bytes(2, name.encode()),
        *(_bytes(5, tensor) for tensor in initializers),
        *(_bytes(11, value) for value in inputs),
        *(_bytes(12, value) for value in outputs),
    ])  # fmt: skip
    opset = _bytes(1, b"") + _number(2, _OPSET)
    head = _number(1, _IR_VERSION) + _bytes(2, b"penstock")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + _bytes(7, graph) + _bytes(8, opset))


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], attribute: bytes = b"") -> bytes:
    """NodeProto."""
    return b"".join([
        *(_bytes(1, name.encode()) for name in inputs),
        *(_bytes(2, name.encode()) for name in outputs),
        _bytes(4, op.encode()),
        _bytes(5, attribute) if attribute else b"",
    ])  # fmt: skip


def _ints(name: str, values: Sequence[int]) -> bytes:
    """AttributeProto of type INTS."""
    numbers = b"".join(_number(8, value) for value in values)
    return _bytes(1, name.encode()) + numbers + _number(20, 7)


def _value(name: str, dtype: DType, shape: Shape) -> bytes:
    """ValueInfoProto of a tensor."""
    sizes = [_bytes(2, d.encode()) if isinstance(d, str) else _number(1, d) for d in shape]
    dimensions = b"".join(_bytes(1, size) for size in sizes)
    tensor = _number(1, _ONNX[dtype]) + _bytes(2, dimensions)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _tensor(name: str, array: Array) -> bytes:
    """TensorProto of FP32 values."""
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, 1) + _bytes(8, name.encode()) + _bytes(9, array.tobytes())


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
