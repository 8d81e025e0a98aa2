"""Small float networks to calibrate, written to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES = 6


def value(name: str, kind: int = TensorProto.FLOAT, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape or ["n", FEATURES])


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, NDArray[np.generic]] | None = None,
) -> Path:
    tensors = [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def mlp(path: Path, *, batch: int | str = "n") -> Path:
    """x [n,6] -> hidden [n,8] -> relu -> y [n,6], and best, INT64, the largest of y."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("MatMul", ["relu", "w2"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
    ]
    return save(
        path,
        nodes,
        [value("x", TensorProto.FLOAT, batch, FEATURES)],
        [value("y", TensorProto.FLOAT, batch, FEATURES), value("best", TensorProto.INT64, batch)],
        {
            "w1": rng.standard_normal((FEATURES, 8)).astype(np.float32),
            "w2": rng.standard_normal((8, FEATURES)).astype(np.float32),
        },
    )


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)
