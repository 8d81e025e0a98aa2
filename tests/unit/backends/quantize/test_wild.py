"""Models as exporters write them: each becomes a right INT8 model or is clearly refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tests.unit.backends.quantize.graphs import Graph

from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.errors import QuantizeError
from penstock.backends.quantize.pipeline import Task, quantize
from penstock.backends.quantize.prepare import file_bytes, session

VECTORS = {"x": np.random.default_rng(3).normal(size=(96, 16)).astype(np.float32)}


def dense(*, same: bool = False) -> ModelProto:
    """Two dense layers, with one weight for both if ``same``."""
    g = Graph()
    for name in ("first.w", "second.w"):
        g.weight(name, 16, 16)
    for name in ("first.b", "second.b"):
        g.bias(name, 16)
    hidden = g.op("Relu", g.op("Gemm", "x first.w first.b", "first", transB=1), "act")
    second = "first" if same else "second"
    g.op("Gemm", f"{hidden} {second}.w second.b", "y", transB=1)
    return g.model({"x": ["n", 16]}, {"y": ["n", 16]})


def stored_in_nodes() -> ModelProto:
    model = dense()
    for tensor in reversed(model.graph.initializer):
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    return model


def with_output(op: str, name: str, kind: int, shape: list[Any], **attributes: Any) -> ModelProto:
    model = dense()
    model.graph.node.append(helper.make_node(op, ["y"], [name], **attributes))
    model.graph.output.insert(0, helper.make_tensor_value_info(name, kind, shape))
    return model


def branching() -> ModelProto:
    """Both branches of an If read an activation and a weight from outside."""
    model = dense()

    def branch(op: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["act", "first.w"], [f"{op}.inside"]),
            helper.make_node(op, [f"{op}.inside"], [f"{op}.out"]),
        ]
        shape = helper.make_tensor_value_info(f"{op}.out", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, op, [], [shape])

    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "zero"], ["positive"]),
            helper.make_node(
                "If", ["positive"], ["z"], then_branch=branch("Relu"), else_branch=branch("Neg")
            ),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 16]))
    return model


def named_oddly() -> ModelProto:
    model = dense()
    for node, name in zip(model.graph.node, ("", "/block/gemm", "ünï <&> x"), strict=True):
        node.name = name
    return model


MODELS: dict[str, Callable[[], ModelProto]] = {
    "constants in nodes": stored_in_nodes,
    "one weight twice": lambda: dense(same=True),
    "branches": branching,
    "odd names": named_oddly,
    "scalar output": lambda: with_output("ReduceMean", "m", TensorProto.FLOAT, [], keepdims=0),
    "class output": lambda: with_output("ArgMax", "c", TensorProto.INT64, ["n"], keepdims=0),
    "the input as output": lambda: with_output("Identity", "i", TensorProto.FLOAT, ["n", 16]),
}


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_near_the_file_that_was_given(name: str, target: Any, tmp_path: Path) -> None:
    path, into = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(MODELS[name](), path)
    samples = samples_of(VECTORS)
    task = Task(
        path, into, samples, target, batches=(), comparisons=False, methods=("minmax",),
    )  # fmt: skip
    result = quantize(task)
    if name == "class output":  # near ties go either way
        assert any("values of an output without real numbers" in r for r in result.verdict.reasons)
        return
    assert result.passed, result.verdict
    assert result.kept_float == ()
    onnx.checker.check_model(into)
    before, after = session(path), session(into)
    assert [o.name for o in after.get_outputs()] == [o.name for o in before.get_outputs()]
    assert [(i.name, i.shape) for i in after.get_inputs()] == [("x", ["n", 16])]
    for real, found in zip(before.run(None, VECTORS), after.run(None, VECTORS), strict=True):
        noise = float(np.square(real - found, dtype=np.float64).sum())
        assert noise < 0.02 * float(np.square(real, dtype=np.float64).sum())


def test_an_output_whose_size_depends_on_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    model = dense()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "least"))
    model.graph.node.extend(
        [
            helper.make_node("Greater", ["y", "least"], ["over"]),
            helper.make_node("NonZero", ["over"], ["places"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("places", TensorProto.INT64, [2, None]))
    onnx.save(model, path)
    task = Task(path, tmp_path / "o.onnx", samples_of(VECTORS), batches=(), comparisons=False)
    with pytest.raises(QuantizeError, match="its size depends on values"):
        quantize(task)


def test_one_label_for_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(dense(), path)
    samples = samples_of(VECTORS, np.zeros(96, np.int64))
    with pytest.raises(QuantizeError, match="all labels are equal"):
        quantize(Task(path, tmp_path / "o.onnx", samples, batches=(), comparisons=False))


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    whole, apart = tmp_path / "whole.onnx", tmp_path / "apart.onnx"
    onnx.save(dense(), whole)
    onnx.save(dense(), apart, save_as_external_data=True, location="apart.bin", size_threshold=64)
    assert apart.stat().st_size < 1500
    assert abs(file_bytes(apart) - file_bytes(whole)) < 1000
    task = Task(apart, tmp_path / "o.onnx", samples_of(VECTORS), batches=(), comparisons=False)
    assert quantize(task).float_bytes == file_bytes(apart)
