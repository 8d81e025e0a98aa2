"""Smoothed models: the same numbers, and less lost in 8 bits where channels have outliers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from tests.unit.backends.quantize import networks

from penstock.backends.quantize.affine import (
    dequantized,
    dequantized_weights,
    quantized,
    quantized_weights,
    s8,
    weight_scales,
)
from penstock.backends.quantize.calibrator import CalibrationSettings, Collected, collect
from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.smooth import outlier_ratio, smoothable, smoothed

Floats = NDArray[np.float32]
CHANNELS = networks.FEATURES


def random(*shape: int) -> Floats:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def network(path: Path, nodes: list[NodeProto], outputs: list[str]) -> ModelProto:
    gain = np.ones(CHANNELS, np.float32)
    gain[[1, 4]] = 60, 100  # the outliers
    constants = {
        "gain": gain,
        "shift": random(CHANNELS),
        "square": random(CHANNELS, CHANNELS) * gain,
        "turned": np.ascontiguousarray((random(CHANNELS, CHANNELS) * gain).T),
        "bias": random(CHANNELS) * gain,
        "up": random(CHANNELS, 9),
        "up_turned": random(9, CHANNELS),
        "nine": random(9),
    }
    read = {name for node in nodes for name in node.input}
    networks.save(
        path,
        nodes,
        [networks.value("x")],
        [networks.value(name, 1, "n", "c") for name in outputs],
        {name: array for name, array in constants.items() if name in read},
    )
    return onnx.load(path)


def node(kind: str, inputs: str, output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"make_{output}", **attributes)


NORM = node("LayerNormalization", "x gain shift", "a")
PRODUCT = node("MatMul", "a up", "y")
CASES: dict[str, tuple[list[NodeProto], list[str], dict[str, str | None]]] = {
    "norm": ([NORM, PRODUCT], ["y"], {"a": "make_a"}),
    "two readers": (
        [NORM, PRODUCT, node("Gemm", "a up_turned nine", "z", transB=1)],
        ["y", "z"],
        {"a": "make_a"},
    ),
    "product": ([node("MatMul", "x square", "a"), PRODUCT], ["y"], {"x": None, "a": "make_a"}),
    "gemm": ([node("Gemm", "x square bias", "a"), PRODUCT], ["y"], {"x": None, "a": "make_a"}),
    "turned gemm": (
        [node("Gemm", "x turned bias", "a", transB=1), PRODUCT],
        ["y"],
        {"x": None, "a": "make_a"},
    ),
    "bias and relu": (
        [
            node("MatMul", "x square", "m"),
            node("Add", "bias m", "b"),
            node("Relu", "b", "a"),
            PRODUCT,
        ],
        ["y"],
        {"x": None, "a": "make_m"},
    ),
    "also an output": ([NORM, PRODUCT], ["y", "a"], {"a": None}),
    "also added": ([NORM, PRODUCT, node("Add", "a x", "z")], ["y", "z"], {"a": None}),
    "curved": ([NORM, node("Sigmoid", "a", "s"), node("MatMul", "s up", "y")], ["y"], {"s": None}),
    "relu read twice": (
        [
            node("MatMul", "x square", "m"),
            node("Relu", "m", "a"),
            PRODUCT,
            node("Neg", "m", "z"),
        ],
        ["y", "z"],
        {"x": None, "a": None},
    ),
}


def maxima(model: ModelProto) -> Collected:
    settings = CalibrationSettings(tensors=(), channels=smoothable(model))
    return collect(model, samples_of({"x": networks.rows(200)}), settings)


def outputs(model: ModelProto, x: Floats) -> list[Floats]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, {"x": x})]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("case", CASES)
def test_a_smoothed_model_computes_the_same(case: str, alpha: float, tmp_path: Path) -> None:
    nodes, names, folded = CASES[case]
    model = network(tmp_path / "model.onnx", nodes, names)
    before = model.SerializeToString()
    found = maxima(model)
    after, done = smoothed(model, found.channel_maxima, alpha=alpha)
    assert {one.tensor: one.folded_into for one in done} == folded
    assert model.SerializeToString() == before, "the model itself is left alone"
    added = sum(place is None for place in folded.values())
    assert len(after.graph.node) == len(model.graph.node) + added
    x = networks.rows(64, seed=7)
    for was, now in zip(outputs(model, x), outputs(after, x), strict=True):
        assert np.abs(now - was).max() <= 1e-4 * np.abs(was).max()


def test_nothing_is_put_in_against_the_will(tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", *CASES["product"][:2])
    after, done = smoothed(model, maxima(model).channel_maxima, insert=False)
    assert [one.tensor for one in done] == ["a"]
    assert len(after.graph.node) == len(model.graph.node)


def test_tensors_without_maxima_or_of_other_sizes_stay(tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", *CASES["norm"][:2])
    for wrong in ({}, {"a": np.ones(3, np.float32)}):
        after, done = smoothed(model, wrong)
        assert not done
        assert after.SerializeToString() == model.SerializeToString()
    with pytest.raises(ValueError, match="alpha is 2"):
        smoothed(model, {}, alpha=2)


def test_silent_channels_and_zero_weights(tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", *CASES["norm"][:2])
    top = np.float32([0, 1, 0, 1e30, 1, 1])
    after, (done,) = smoothed(model, {"a": top})
    assert done.factor_max == 1e4
    for tensor in after.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_a_shared_weight_stays_for_its_other_reader(tmp_path: Path) -> None:
    nodes = [NORM, PRODUCT, node("MatMul", "x up", "z")]
    model = network(tmp_path / "model.onnx", nodes, ["y", "z"])
    found = maxima(model).channel_maxima
    after, _ = smoothed(model, {"a": found["a"]})
    x = networks.rows(16)
    for was, now in zip(outputs(model, x), outputs(after, x), strict=True):
        assert np.abs(now - was).max() <= 1e-4 * np.abs(was).max()


def int8_error(model: ModelProto, x: Floats) -> float:
    """Of y, relative, when a and the weights of its product go through 8 bits."""
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.ValueInfoProto(name="a"))
    y, a = outputs(shown, x)
    product = next(n for n in model.graph.node if n.output[0] == "y")
    weight = next(
        numpy_helper.to_array(t) for t in model.graph.initializer if t.name == product.input[1]
    )
    how, scales = s8(float(np.abs(a).max())), weight_scales(weight, 1)
    rough = dequantized(quantized(a, how), how) @ dequantized_weights(
        quantized_weights(weight, scales, 1), scales, 1
    )
    return float(np.linalg.norm(rough - y) / np.linalg.norm(y))


def test_eight_bits_lose_less_where_channels_have_outliers(tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", *CASES["norm"][:2])
    for tensor in model.graph.initializer:
        if tensor.name == "up":  # what the small channels say matters too
            rows = numpy_helper.to_array(tensor) / np.float32([1, 60, 1, 1, 100, 1])[:, None]
            tensor.CopyFrom(numpy_helper.from_array(rows, "up"))
    found = maxima(model).channel_maxima
    assert outlier_ratio(found["a"]) > 20
    after, (done,) = smoothed(model, found)
    assert done.factor_max > 20
    x = networks.rows(200)
    assert int8_error(after, x) < int8_error(model, x) / 5
