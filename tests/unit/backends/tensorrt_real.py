"""TensorRT for RTX itself, which parses and builds on any machine, and models to build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.facade import Library, library


def real_library() -> Library:
    """The calling test is skipped without it, and fails where CI is set."""
    try:
        return library("tensorrt_rtx")
    except LoadError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def real() -> Any:
    return real_library().trt


def write(path: Path, nodes: Sequence[Any], inputs: Any, outputs: Any, constants: Any = ()) -> Path:
    """An ONNX model; ``inputs`` and ``outputs`` are ``{name: (element type, shape)}``."""
    values = [
        [helper.make_tensor_value_info(name, *what) for name, what in of.items()]
        for of in (inputs, outputs)
    ]
    graph = helper.make_graph(list(nodes), "g", *values, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def quantized(path: Path, kind: int, zero_point: int) -> Path:
    """Relu behind QuantizeLinear and DequantizeLinear."""
    return write(
        path,
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["f"]),
            helper.make_node("Relu", ["f"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["n", 4])},
        {"y": (TensorProto.FLOAT, ["n", 4])},
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("zero", kind, [], [zero_point]),
        ],
    )
