"""A larger network for the same digits, upscaled: residual, nearly all of its time convolutions.

Knows the pictures' size, the network's shape and how it is written in ONNX, without batch
normalisation and with the layers that such networks have everywhere:

    image [n,1,32,32] - conv3x3 32 - relu
      - block 64, stride 2 - block 128, stride 2 - block 128 - mean over the picture - dense 10
    block: relu(conv3x3(relu(conv3x3 x)) + x), with conv1x1 on x where its shape changes

It is what INT8 is measured on; it is not shipped. The parameters are trained by
``train_digits_large.py`` and kept in half precision beside this file, so that whoever measures
needs no training framework.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIDE = 32
PARAMETERS = Path(__file__).with_name("digits_large.npz")
BLOCKS = (("block1", 32, 64, 2), ("block2", 64, 128, 2), ("block3", 128, 128, 1))
"""(name, channels in, channels out, stride)."""

Floats = NDArray[np.float32]
Parameters = dict[str, Floats]


def shapes() -> dict[str, tuple[int, ...]]:
    """Of all parameters, as ONNX lays them out: ``[out, in, height, width]``."""
    found: dict[str, tuple[int, ...]] = {"stem.weight": (32, 1, 3, 3), "stem.bias": (32,)}
    for name, before, after, stride in BLOCKS:
        found[f"{name}.first.weight"] = (after, before, 3, 3)
        found[f"{name}.second.weight"] = (after, after, 3, 3)
        found[f"{name}.first.bias"] = found[f"{name}.second.bias"] = (after,)
        if before != after or stride != 1:
            found[f"{name}.skip.weight"] = (after, before, 1, 1)
            found[f"{name}.skip.bias"] = (after,)
    return {**found, "dense.weight": (10, 128), "dense.bias": (10,)}


def upscaled(raw: NDArray[np.uint8]) -> Floats:
    """Pictures uint8 [n,8,8] of 0..16 as FP32 [n,1,32,32] of 0..1, linear between the pixels."""
    places = (np.arange(SIDE) + 0.5) * 8 / SIDE - 0.5
    weights = np.maximum(0, 1 - np.abs(places.clip(0, 7)[:, None] - np.arange(8)))
    large = weights @ (raw / 16.0) @ weights.T
    return np.ascontiguousarray(large[:, None], np.float32)


def parameters(path: Path = PARAMETERS) -> Parameters:
    """The trained ones."""
    with np.load(path, allow_pickle=False) as kept:
        return {name: kept[name].astype(np.float32) for name in shapes()}


def build(values: Parameters) -> onnx.ModelProto:
    """The network with these parameters: ``image`` [batch,1,32,32] to ``logits`` [batch,10]."""
    nodes = [_convolution("image", "stem", 3, 1), _relu("stem", "stem.relu")]
    last = "stem.relu"
    for name, before, after, stride in BLOCKS:
        skip = last
        nodes += [
            _convolution(last, f"{name}.first", 3, stride),
            _relu(f"{name}.first", f"{name}.first.relu"),
            _convolution(f"{name}.first.relu", f"{name}.second", 3, 1),
        ]
        if before != after or stride != 1:
            nodes.append(_convolution(last, f"{name}.skip", 1, stride))
            skip = f"{name}.skip"
        nodes.append(helper.make_node("Add", [f"{name}.second", skip], [f"{name}.sum"]))
        last = f"{name}.relu"
        nodes.append(_relu(f"{name}.sum", last))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], transB=1),
    ]
    for node in nodes:
        node.name = node.output[0]
    graph = helper.make_graph(
        nodes,
        "digits_large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="penstock",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _convolution(source: str, name: str, side: int, stride: int) -> NodeProto:
    return helper.make_node(
        "Conv",
        [source, f"{name}.weight", f"{name}.bias"],
        [name],
        kernel_shape=[side, side],
        strides=[stride, stride],
        pads=[side // 2] * 4,
    )


def _relu(source: str, into: str) -> NodeProto:
    return helper.make_node("Relu", [source], [into])
