"""Networks for the table of INT8: what they are, their pictures or rows, and what is right.

Knows how each is made in ONNX; nothing of quantising. No training framework is needed: the larger
digits network is read from its parameters, the dense one has random layers and a last one that is
fitted by least squares, and the encoder has no task at all, its outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits_large
import numpy as np
import onnx
from digits_data import load_parts
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
DIGITS = (
    Path(__file__).resolve().parents[2] / "server/penstock/server/demo/models/digits/1/model.onnx"
)
WIDTH = 1024
STEPS, HIDDEN = 64, 512


@dataclass(frozen=True)
class Subject:
    """A model with the data that it is calibrated and judged by; labels None: none are known."""

    title: str
    model: onnx.ModelProto
    input: str
    calibration: Floats
    calibration_labels: NDArray[Any] | None
    evaluation: Floats
    evaluation_labels: NDArray[Any] | None


def digits() -> Subject:
    """The demonstration model that is shipped; 8x8 pixels, microseconds."""
    training, _, heldout = load_parts()
    return Subject(
        "digits CNN, 8x8 (shipped)",
        onnx.load(DIGITS),
        "image",
        training.images,
        training.labels,
        heldout.images,
        heldout.labels,
    )


def large() -> Subject:
    """The residual network whose time is convolutions."""
    training, _, heldout = load_parts()
    return Subject(
        "digits CNN, 32x32, residual, 32 to 128 channels",
        digits_large.build(digits_large.parameters()),
        "image",
        digits_large.upscaled(training.raw),
        training.labels,
        digits_large.upscaled(heldout.raw),
        heldout.labels,
    )


def overexposed() -> Subject:
    """The same, with one in a hundred calibration pictures spoilt: 30 times too bright.

    They have no labels: whoever had looked at each picture would have thrown these out.
    """
    plain = large()
    images = plain.calibration.copy()
    images[np.random.default_rng(0).permutation(len(images))[: len(images) // 100]] *= 30
    return Subject(
        "the same, 1 % of the calibration pictures overexposed",
        plain.model,
        plain.input,
        images,
        None,
        plain.evaluation,
        plain.evaluation_labels,
    )


def dense() -> Subject:
    """Dense layers, 1024 wide, on the upscaled pictures as rows."""
    training, _, heldout = load_parts()
    rows, judged = (digits_large.upscaled(p.raw).reshape(-1, WIDTH) for p in (training, heldout))
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32)
        for _ in range(3)
    ]
    features = rows
    for weight in weights:
        features = np.maximum(features @ weight, 0)
    targets = np.eye(10)[training.labels] - 0.1
    gram = features.T.astype(np.float64) @ features
    ridge = 1e-2 * np.trace(gram) / WIDTH * np.eye(WIDTH)
    weights.append(np.linalg.solve(gram + ridge, features.T @ targets).astype(np.float32))
    nodes, last = [], "rows"
    for number, _ in enumerate(weights):
        nodes.append(helper.make_node("Gemm", [last, f"w{number}"], [f"dense{number}"]))
        last = f"dense{number}"
        if number < 3:
            nodes.append(helper.make_node("Relu", [last], [f"relu{number}"]))
            last = f"relu{number}"
    constants = {f"w{number}": weight for number, weight in enumerate(weights)}
    model = _model(nodes, ("rows", ["batch", WIDTH]), (last, ["batch", 10]), constants)
    return Subject(
        "digits MLP, 3 hidden layers of 1024",
        model,
        "rows",
        rows,
        training.labels,
        judged,
        heldout.labels,
    )


def encoder() -> Subject:
    """A transformer's block, 64 steps of 512, with random weights and rows: no labels."""
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "heads": np.array([0, STEPS, 8, HIDDEN // 8]),
        "joined": np.array([0, STEPS, HIDDEN]),
        "scale": np.array(1 / np.sqrt(HIDDEN // 8), np.float32),
        # Features of unequal size, as trained norms have them.
        "gain": rng.lognormal(0, 0.7, HIDDEN).astype(np.float32),
        "shift": np.zeros(HIDDEN, np.float32),
    }
    nodes: list[NodeProto] = []

    def op(kind: str, inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))
        return output

    def linear(x: str, name: str, before: int, after: int) -> str:
        weight = rng.standard_normal((before, after)) / np.sqrt(before)
        constants[f"{name}.w"] = weight.astype(np.float32)
        constants[f"{name}.b"] = (0.1 * rng.standard_normal(after)).astype(np.float32)
        return op("Add", f"{op('MatMul', f'{x} {name}.w', name)} {name}.b", f"{name}.sum")

    x = op("LayerNormalization", "rows gain shift", "norm1")
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        part = op("Reshape", f"{linear(x, name, HIDDEN, HIDDEN)} heads", f"{name}.heads")
        op("Transpose", part, f"{name}.turned", perm=perm)
    scores = op("MatMul", "q.turned k.turned", "scores")
    shares = op("Softmax", op("Mul", f"{scores} scale", "scaled"), "shares", axis=-1)
    mixed = op("MatMul", f"{shares} v.turned", "mixed")
    flat = op("Reshape", f"{op('Transpose', mixed, 'back', perm=[0, 2, 1, 3])} joined", "flat")
    x = op("Add", f"rows {linear(flat, 'out', HIDDEN, HIDDEN)}", "middle")
    x = op("LayerNormalization", f"{x} gain shift", "norm2")
    x = op("Relu", linear(x, "up", HIDDEN, 4 * HIDDEN), "relu")
    op("Add", f"middle {linear(x, 'down', 4 * HIDDEN, HIDDEN)}", "encoded")
    shape: list[int | str] = ["batch", STEPS, HIDDEN]
    samples = rng.standard_normal((200, STEPS, HIDDEN)).astype(np.float32)
    return Subject(
        "encoder block, 64 steps of 512",
        _model(nodes, ("rows", shape), ("encoded", shape), constants),
        "rows",
        samples[:150],
        None,
        samples[150:],
        None,
    )


def _model(
    nodes: list[NodeProto],
    given: tuple[str, list[int | str]],
    made: tuple[str, list[int | str]],
    constants: Mapping[str, NDArray[Any]],
) -> onnx.ModelProto:
    for node in nodes:
        node.name = node.output[0]
    takes, gives = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (given, made)
    )
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "network", takes, gives, tensors)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "digits": digits,
    "large": large,
    "overexposed": overexposed,
    "dense": dense,
    "encoder": encoder,
}
