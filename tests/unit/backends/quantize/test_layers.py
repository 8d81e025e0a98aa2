"""Which nodes are layers, and what belongs to them."""

from pathlib import Path

import numpy as np
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize.layers import Graph, LayerNode, find_layers
from penstock.backends.quantize.targets import TARGETS


def layers(
    g: graphs.Graph, inputs: dict, outputs: dict, target: str = "cpu"
) -> dict[str, LayerNode]:  # type: ignore[type-arg]
    import onnx

    model = onnx.shape_inference.infer_shapes(g.model(inputs, outputs))
    return {layer.name: layer for layer in find_layers(Graph(model), TARGETS[target])}


def test_relu_belongs_to_the_layer_before_it(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    found = {x.name: x for x in find_layers(Graph(model), TARGETS["cpu"])}
    assert list(found) == ["stem", "first", "second", "sum", "mean", "y"]
    assert found["stem"].result == "stem.relu"
    assert found["second"].result == "second"
    assert found["sum"].reads == ("second", "stem.relu")
    assert found["stem"].parameters == 16 * 3 * 9 + 16
    assert (found["y"].axis, found["stem"].axis) == (0, 0)
    signed = {x.name: x for x in find_layers(Graph(model), TARGETS["tensorrt"])}
    assert list(signed) == ["stem", "first", "second", "sum", "y"]


def test_a_relu_that_others_see_past_does_not() -> None:
    g = graphs.Graph()
    g.op("Relu", g.convolution("x", "a", 3, 4), "r")
    g.op("Add", "a r", "y")
    shape = ["n", 4, 8, 8]
    found = layers(g, {"x": ["n", 3, 8, 8]}, {"y": shape})
    assert found["a"].result == "a"


def test_products_that_are_more_than_that_stay_float() -> None:
    g = graphs.Graph()
    g.weight("w", 4, 4)
    g.bias("b", 4)
    g.constant("wide", np.ones((3, 4), np.float32))
    for name, more in {
        "plain": {},
        "scaled": {"alpha": 2.0},
        "weighted": {"beta": 0.5},
        "turned": {"transA": 1},
    }.items():
        g.op("Gemm", "x w b", name, **more)
    g.op("Gemm", "x w", "bare", transB=1)
    g.op("Gemm", "three w wide", "rows")
    g.op("MatMul", "x plain", "both")
    found = layers(
        g,
        {"x": [4, 4], "three": [3, 4]},
        {n: [4, 4] for n in ("plain", "scaled", "weighted", "turned", "bare", "both")}
        | {"rows": [3, 4]},
    )
    assert list(found) == ["plain", "bare"]
    assert (found["plain"].axis, found["bare"].axis) == (1, 0)
    assert (found["plain"].bias, found["bare"].bias) == ("b", "")


def test_weights_that_are_given_at_run_time_stay_float() -> None:
    g = graphs.Graph()
    g.op("Conv", "x w", "y")
    found = layers(g, {"x": ["n", 3, 8, 8], "w": [4, 3, 3, 3]}, {"y": ["n", 4, 6, 6]})
    assert not found


def test_transposed_convolutions_are_for_tensorrt() -> None:
    g = graphs.Graph()
    g.weight("w", 4, 6, 3, 3)
    g.op("ConvTranspose", "x w", "one")
    g.op("ConvTranspose", "x w", "groups", group=2)
    arguments = (
        {"x": ["n", 4, 8, 8]},
        {"one": ["n", 6, 10, 10], "groups": ["n", 12, 10, 10]},
    )
    assert not layers(g, *arguments)
    found = layers(g, *arguments, target="tensorrt")
    assert found["one"].axis == 1
    assert found["groups"].axis is None
