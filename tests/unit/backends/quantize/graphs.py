"""Float networks with the layers of real ones, made in memory, and what runs them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from penstock.backends.quantize.model_file import engine
from penstock.backends.quantize.prepare import prepare, session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range

Floats = NDArray[np.float32]


class Graph:
    """Collects nodes and constants; ``model`` closes it."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return self.constant(name, (scale * self.rng.standard_normal(shape)).astype(np.float32))

    def bias(self, name: str, size: int) -> str:
        return self.constant(name, self.rng.normal(0, 0.1, size).astype(np.float32))

    def op(self, kind: str, inputs: str, output: str, **attributes: Any) -> str:
        self._nodes.append(
            helper.make_node(kind, inputs.split(), [output], name=output, **attributes)
        )
        return output

    def convolution(self, x: str, name: str, before: int, after: int, **more: Any) -> str:
        side, stride, group = more.get("side", 3), more.get("stride", 1), more.get("group", 1)
        self.weight(f"{name}.w", after, before // group, side, side)
        self.bias(f"{name}.b", after)
        return self.op(
            "Conv",
            f"{x} {name}.w {name}.b",
            name,
            pads=[side // 2] * 4,
            strides=[stride, stride],
            group=group,
        )

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str]],
        outputs: Mapping[str, Sequence[int | str]],
        opset: int = 17,
    ) -> ModelProto:
        values = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in of]
            for of in (inputs.items(), outputs.items())
        ]
        graph = helper.make_graph(self._nodes, "network", *values, self._constants)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        return model


def residual(opset: int = 17) -> ModelProto:
    """A residual block, pooling, a dense layer: ``x`` [n,3,16,16] to ``y`` [n,10]."""
    g = Graph()
    x = g.op("Relu", g.convolution("x", "stem", 3, 16), "stem.relu")
    inner = g.op("Relu", g.convolution(x, "first", 16, 16), "first.relu")
    second = g.convolution(inner, "second", 16, 16)
    x = g.op("Relu", g.op("Add", f"{second} {x}", "sum"), "sum.relu")
    x = g.op("MaxPool", x, "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Flatten", g.op("GlobalAveragePool", x, "mean"), "flat")
    g.weight("dense.w", 10, 16)
    g.bias("dense.b", 10)
    g.op("Gemm", f"{x} dense.w dense.b", "y", transB=1)
    return g.model({"x": ["n", 3, 16, 16]}, {"y": ["n", 10]}, opset)


def mobile() -> ModelProto:
    """Depthwise convolutions, batch normalisation, Clip, a gate by Sigmoid, Concat; opset 11."""
    g = Graph()
    g.constant("zero", np.float32(0))
    g.constant("six", np.float32(6))

    def block(x: str, name: str, before: int, after: int, *, clip: bool = True, **more: Any) -> str:
        x = g.convolution(x, name, before, after, **more)
        for part, low, high in (("scale", 0.5, 1.5), ("shift", -0.3, 0.3), ("mean", -0.3, 0.3)):
            g.constant(f"{name}.{part}", g.rng.uniform(low, high, after).astype(np.float32))
        g.constant(f"{name}.variance", g.rng.uniform(0.5, 1.5, after).astype(np.float32))
        parts = " ".join(f"{name}.{part}" for part in ("scale", "shift", "mean", "variance"))
        x = g.op("BatchNormalization", f"{x} {parts}", f"{name}.norm")
        return g.op("Clip", f"{x} zero six", f"{name}.clip") if clip else x

    x = block("x", "stem", 3, 16, stride=2)
    inner = block(block(x, "wide", 16, 32, side=1), "deep", 32, 32, group=32)
    x = g.op("Add", f"{x} {block(inner, 'narrow', 32, 16, side=1, clip=False)}", "sum")
    gate = g.op(
        "Sigmoid",
        g.convolution(g.op("GlobalAveragePool", x, "squeeze"), "gate", 16, 16, side=1),
        "sigmoid",
    )
    x = g.op("Mul", f"{x} {gate}", "gated")
    x = g.op("Concat", f"{x} {block(x, 'more', 16, 16)}", "both", axis=1)
    x = g.op("AveragePool", x, "average", kernel_shape=[2, 2], strides=[2, 2])
    g.op("Flatten", g.op("GlobalAveragePool", x, "mean"), "y")
    return g.model({"x": ["n", 3, 16, 16]}, {"y": ["n", 32]}, opset=11)


def attention(width: int = 32, steps: int = 8, heads: int = 4) -> ModelProto:
    """A block of a transformer: ``x`` to ``y``, both [n, steps, width]."""
    g = Graph()
    g.constant("heads", np.array([0, steps, heads, width // heads]))
    g.constant("joined", np.array([0, steps, width]))

    def norm(x: str, name: str) -> str:
        g.constant(f"{name}.g", np.ones(width, np.float32))
        g.constant(f"{name}.s", np.zeros(width, np.float32))
        return g.op("LayerNormalization", f"{x} {name}.g {name}.s", name)

    def linear(x: str, name: str, before: int, after: int) -> str:
        g.weight(f"{name}.w", before, after)
        return g.op(
            "Add",
            f"{g.op('MatMul', f'{x} {name}.w', name)} {g.bias(f'{name}.b', after)}",
            f"{name}.sum",
        )

    z = norm("x", "norm1")
    parts = {
        name: g.op("Reshape", f"{linear(z, name, width, width)} heads", f"{name}.parts")
        for name in ("query", "key", "value")
    }
    q = g.op("Transpose", parts["query"], "q", perm=[0, 2, 1, 3])
    k = g.op("Transpose", parts["key"], "k", perm=[0, 2, 3, 1])
    v = g.op("Transpose", parts["value"], "v", perm=[0, 2, 1, 3])
    weights = g.op("Softmax", g.op("MatMul", f"{q} {k}", "scores"), "weights", axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", f"{weights} {v}", "mixed"), "m", perm=[0, 2, 1, 3])
    out = linear(g.op("Reshape", f"{mixed} joined", "flat"), "out", width, width)
    x = g.op("Add", f"x {out}", "x1")
    hidden = g.op("Relu", linear(norm(x, "norm2"), "up", width, 4 * width), "up.relu")
    g.op("Add", f"{x} {linear(hidden, 'down', 4 * width, width)}", "y")
    return g.model({"x": ["n", steps, width]}, {"y": ["n", steps, width]})


def spiked(layers: int = 4, spike: float = 3000.0, width: int = 32) -> ModelProto:
    """Dense layers, of which ``dense2`` reads one feature thousands of times as large as others.

    That feature counts for no more than others do (its weights are as small), so the model is an
    ordinary one in float; a single scale for all features leaves nothing of the others.
    """
    g = Graph()
    x = "x"
    for number in range(layers):
        weight = g.rng.standard_normal((width, width)) / np.sqrt(width / 2)
        if number == 1:
            weight[:, 0] *= spike
        if number == 2:
            weight[0] /= spike
        name = f"dense{number}"
        g.constant(f"{name}.w", weight.astype(np.float32))
        g.bias(f"{name}.b", width)
        last = number == layers - 1
        x = g.op("Gemm", f"{x} {name}.w {name}.b", "y" if last else name)
        x = x if last else g.op("Relu", x, f"{name}.relu")
    return g.model({"x": ["n", width]}, {"y": ["n", width]})


def prepared(model: ModelProto, folder: Path) -> ModelProto:
    onnx.save(model, folder / "float.onnx")
    return prepare(folder / "float.onnx")


def pictures(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((rows, 3, 16, 16), np.float32)


def values(model: ModelProto, tensors: Sequence[str], feed: Mapping[str, Floats]) -> list[Floats]:
    """What a model's own tensors are for ``feed``, computed as it is written."""
    shown = ModelProto()
    shown.CopyFrom(model)
    have = {value.name for value in (*model.graph.output, *model.graph.input)}
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in tensors if n not in have)
    made = session(shown)
    found = dict(zip([o.name for o in made.get_outputs()], made.run(None, dict(feed)), strict=True))
    return [feed[name] if name in feed else found[name] for name in tensors]


def min_max(plan: Plan, feed: Mapping[str, Floats]) -> dict[str, Range]:
    """Ranges that hold everything there is for ``feed``."""
    found = values(plan.graph.model, plan.tensors, feed)
    return {
        name: Range(min(0.0, float(a.min())), max(1e-6, float(a.max())), "minmax")
        for name, a in zip(plan.tensors, found, strict=True)
    }


def sqnr_db(real: Floats, found: Floats) -> float:
    noise = float(((real - found) ** 2).sum())
    return float(10 * np.log10((real**2).sum() / noise)) if noise else float("inf")


def kernels(model: ModelProto) -> Counter[str]:
    """The operators that ONNX Runtime really runs, after everything it fuses."""
    ort = engine("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(f"{folder}/optimised.onnx").graph.node)
