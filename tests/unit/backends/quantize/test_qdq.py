"""Q/DQ placement: whole integer graphs for the CPU, what TensorRT's own parser takes, numbers."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tests.unit.backends import tensorrt_real
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize.affine import dequantized, quantized
from penstock.backends.quantize.errors import ModelError
from penstock.backends.quantize.prepare import session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.targets import TARGETS

CPU, TENSORRT = TARGETS["cpu"], TARGETS["tensorrt"]
MODELS = {
    "residual": (graphs.residual, {"x": graphs.pictures(8)}),
    "mobile": (graphs.mobile, {"x": graphs.pictures(8)}),
    "attention": (
        graphs.attention,
        {"x": np.random.default_rng(0).standard_normal((8, 8, 32)).astype(np.float32)},
    ),
}


def quantised(name: str, target: str, folder: Path) -> tuple[Plan, ModelProto, ModelProto]:
    """(plan, float, INT8) of one of ``MODELS`` with everything in INT8 that is worth it."""
    make, feed = MODELS[name]
    model = graphs.prepared(make(), folder)
    plan = Plan(model, TARGETS[target])
    chosen = plan.worth({layer.name for layer in plan.layers})
    return plan, model, plan.build(chosen, graphs.min_max(plan, feed))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS)
def test_int8_computes_about_the_same(name: str, target: str, tmp_path: Path) -> None:
    _, model, int8 = quantised(name, target, tmp_path)
    onnx.checker.check_model(int8, full_check=True)
    feed = MODELS[name][1]
    real, found = (session(m).run(None, dict(feed))[0] for m in (model, int8))
    assert graphs.sqnr_db(real, found) > 25


def test_residual_networks_become_integers_from_end_to_end(tmp_path: Path) -> None:
    _, _, int8 = quantised("residual", "cpu", tmp_path)
    found = graphs.kernels(int8)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == found["QGemm"] == 1
    # One way in; the dense layer gives real numbers by itself.
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] == 0
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm"} & found.keys()


def test_mobile_networks_become_integers_from_end_to_end(tmp_path: Path) -> None:
    _, _, int8 = quantised("mobile", "cpu", tmp_path)
    found = graphs.kernels(int8)
    integers = {
        "QLinearConv": 6, "QLinearAdd": 1, "QLinearSigmoid": 1, "QLinearMul": 1,
        "QLinearConcat": 1, "QLinearAveragePool": 1, "QLinearGlobalAveragePool": 2,
    }  # fmt: skip
    assert {name: found[name] for name in integers} == integers
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert found.keys() - integers.keys() == {
        "QuantizeLinear", "DequantizeLinear", "Transpose", "Flatten",
    }  # fmt: skip


def test_of_transformers_only_products_with_weights_are_integers(tmp_path: Path) -> None:
    plan, _, int8 = quantised("attention", "cpu", tmp_path)
    chosen = plan.worth({layer.name for layer in plan.layers})
    assert chosen == {"query", "key", "value", "out", "up", "down"}
    found = graphs.kernels(int8)
    assert found["MatMulIntegerToFloat"] == 6
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == 4  # query, key and value read the same tensor


@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_takes_it(name: str, tmp_path: Path) -> None:
    trt = tensorrt_real.real()
    _, model, int8 = quantised(name, "tensorrt", tmp_path)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, builder.logger)
    taken = parser.parse(int8.SerializeToString())
    assert taken, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    kinds = Counter(network.get_layer(i).type for i in range(network.num_layers))
    assert kinds[trt.LayerType.QUANTIZE] >= 3
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = [dim.dim_value or 4 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    profile.set_shape("x", shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 10_000


@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_gets_signed_integers_and_zero_points_of_zero(name: str, tmp_path: Path) -> None:
    _, _, int8 = quantised(name, "tensorrt", tmp_path)
    constants = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer}
    pairs = [n for n in int8.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 10
    for node in pairs:
        zeros = constants[node.input[2]]
        assert zeros.dtype == np.int8
        assert not zeros.any()
    # Neither biases nor outputs: nothing of INT32, and no pair feeds an output of the graph.
    assert not any(t.data_type == TensorProto.INT32 for t in int8.graph.initializer)
    made = {name for node in pairs for name in node.output}
    assert not made & {output.name for output in int8.graph.output}


def test_of_a_residual_sum_tensorrt_gets_the_skipping_branch(tmp_path: Path) -> None:
    plan, _, int8 = quantised("residual", "tensorrt", tmp_path)
    assert plan.by_name["sum"].reads == ("stem.relu",)
    (node,) = (n for n in int8.graph.node if n.name == "sum")
    assert list(node.input) == ["second", "stem.relu/back"]


def test_numbers_are_those_of_the_arithmetic(tmp_path: Path) -> None:
    """One dense layer against NumPy: integers in, INT32 sums, real numbers out."""
    g = graphs.Graph()
    g.weight("w", 5, 16)
    g.constant("b", np.array([0.5, -3, 1e-3, 0, 40], np.float32))
    g.op("Gemm", "x w b", "y", transB=1)
    model = graphs.prepared(g.model({"x": ["n", 16]}, {"y": ["n", 5]}), tmp_path)
    x = np.random.default_rng(3).normal(0.3, 1, (50, 16)).astype(np.float32)
    plan = Plan(model, CPU)
    ranges = graphs.min_max(plan, {"x": x})
    int8 = plan.build({plan.layers[0].name}, ranges)
    affine = ranges["x"].u8()
    weight, scales = plan.integers(plan.layers[0])
    np.testing.assert_allclose(
        weight * scales[:, None], plan.graph.constants["w"], atol=float(scales.max()) / 1.99
    )
    sums = (quantized(x, affine).astype(np.int64) - affine.zero_point) @ weight.T.astype(np.int64)
    bias = np.rint(plan.graph.constants["b"] / (np.float32(affine.scale) * scales))
    expected = (sums + bias) * (np.float32(affine.scale) * scales)
    (found,) = session(int8).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    real = dequantized(quantized(x, affine), affine)
    assert float(np.abs(real - x).max()) <= affine.scale * 0.51


def test_a_bias_that_int32_cannot_hold_makes_its_weight_coarser(tmp_path: Path) -> None:
    g = graphs.Graph()
    weight = np.full((2, 4), 1e-6, np.float32)
    weight[1] = 1
    g.constant("w", weight)
    g.constant("b", np.array([50.0, 1.0], np.float32))
    g.op("Gemm", "x w b", "y", transB=1)
    model = graphs.prepared(g.model({"x": ["n", 4]}, {"y": ["n", 2]}), tmp_path)
    x = np.random.default_rng(3).random((8, 4), np.float32)
    plan = Plan(model, CPU)
    int8 = plan.build({plan.layers[0].name}, graphs.min_max(plan, {"x": x}))
    real, found = (session(m).run(None, {"x": x})[0] for m in (model, int8))
    assert graphs.sqnr_db(real, found) > 40


def test_layers_that_are_not_chosen_see_real_numbers(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    plan = Plan(model, CPU)
    feed = {"x": graphs.pictures(4)}
    ranges = graphs.min_max(plan, feed)
    untouched = plan.build(frozenset(), ranges)
    assert not any("quantize" in n.op_type.lower() for n in untouched.graph.node)
    np.testing.assert_array_equal(*(session(m).run(None, feed)[0] for m in (model, untouched)))
    alone = plan.build({"second"}, ranges)
    found = graphs.kernels(alone)
    assert found["QLinearConv"] == 1
    assert found["Conv"] + found["FusedConv"] == 2
    # The real numbers of its input stay where the skipping branch reads them.
    (add,) = (n for n in alone.graph.node if n.name == "sum")
    assert list(add.input) == ["second", "stem.relu"]


def test_sums_and_pooling_are_integers_only_where_integers_reach_them(tmp_path: Path) -> None:
    plan = Plan(graphs.prepared(graphs.residual(), tmp_path), CPU)
    every = {layer.name for layer in plan.layers}
    assert plan.worth(every) == every
    assert plan.worth(every - {"stem", "first", "second"}) == {"y"}
    assert plan.worth(every - {"stem", "second", "sum"}) == {"first", "y"}


def test_reduced_range_leaves_room_for_two_products_in_16_bits(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    for reduce_range, most in ((False, 127), (True, 63)):
        plan = Plan(model, CPU, reduce_range=reduce_range)
        weight, scales = plan.integers(plan.by_name["first"])
        assert int(np.abs(weight).max()) == most
        np.testing.assert_allclose(
            weight * scales.reshape(-1, 1, 1, 1),
            plan.graph.constants["first.w"],
            atol=float(scales.max()) / 1.99,
        )


def test_graph_outputs_keep_their_names_and_types(tmp_path: Path) -> None:
    g = graphs.Graph()
    g.op("Relu", g.convolution("x", "a", 3, 8), "seen")
    g.convolution("seen", "y", 8, 4)
    shape = ["n", 8, 16, 16]
    model = graphs.prepared(
        g.model({"x": ["n", 3, 16, 16]}, {"seen": shape, "y": ["n", 4, 16, 16]}), tmp_path
    )
    plan = Plan(model, CPU)
    feed = {"x": graphs.pictures(2)}
    int8 = plan.build({layer.name for layer in plan.layers}, graphs.min_max(plan, feed))
    made = session(int8)
    assert [(o.name, o.type) for o in made.get_outputs()] == [
        ("seen", "tensor(float)"), ("y", "tensor(float)"),
    ]  # fmt: skip
    for real, found in zip(session(model).run(None, feed), made.run(None, feed), strict=True):
        assert graphs.sqnr_db(real, found) > 30


def test_names_that_are_taken_are_left_alone(tmp_path: Path) -> None:
    g = graphs.Graph()
    g.weight("x/scale", 4, 3)
    g.bias("x/zero", 4)
    g.op("Gemm", "x x/scale x/zero", "x/int8", transB=1)
    g.op("Relu", "x/int8", "x/back")
    model = graphs.prepared(g.model({"x": ["n", 3]}, {"x/back": ["n", 4]}), tmp_path)
    plan = Plan(model, CPU)
    feed = {"x": np.random.default_rng(0).random((20, 3), np.float32)}
    int8 = plan.build({layer.name for layer in plan.layers}, graphs.min_max(plan, feed))
    onnx.checker.check_model(int8, full_check=True)
    real, found = (session(m).run(None, feed)[0] for m in (model, int8))
    assert graphs.sqnr_db(real, found) > 30


def test_equal_input_equal_bytes(tmp_path: Path) -> None:
    one, two = (quantised("mobile", "cpu", tmp_path)[2] for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_constants_that_only_graphs_inside_read_stay(tmp_path: Path) -> None:
    def branch(name: str, constant: str) -> onnx.GraphProto:
        node = helper.make_node("Add", ["dense", constant], [name])
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([node], name, [], [value])

    g = graphs.Graph()
    g.weight("w", 3, 4)
    g.bias("one", 4)
    g.bias("two", 4)
    g.op("Gemm", "x w", "dense")
    g.op("Greater", "s s", "flag")
    g.op("If", "flag", "y", then_branch=branch("a", "one"), else_branch=branch("b", "two"))
    model = graphs.prepared(g.model({"x": ["n", 3], "s": []}, {"y": ["n", 4]}), tmp_path)
    plan = Plan(model, CPU)
    feed = {"x": np.ones((5, 3), np.float32), "s": np.array(1, np.float32)}
    ranges = {"x": Range(0, 1, "minmax"), "dense": Range(-9, 9, "minmax")}
    int8 = plan.build({"dense"}, ranges)
    real, found = (session(m).run(None, feed)[0] for m in (model, int8))
    assert graphs.sqnr_db(real, found) > 30


def test_tensorrt_does_not_get_onnxruntimes_own_operators(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(ModelError, match=r"does not know Conv of com\.microsoft \(node 'stem'\)"):
        Plan(model, TENSORRT)


def test_a_range_that_is_missing_is_named(tmp_path: Path) -> None:
    plan = Plan(graphs.prepared(graphs.residual(), tmp_path), CPU)
    with pytest.raises(ModelError, match=r"no range for tensor 'stem\.relu'"):
        plan.build({"stem"}, {})


def test_a_model_without_anything_to_quantise_is_refused(tmp_path: Path) -> None:
    g = graphs.Graph()
    g.constant("c", np.ones(4, np.float32))
    g.op("Mul", "x c", "y")
    model = graphs.prepared(g.model({"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path)
    with pytest.raises(ModelError, match=r"none of the model's operators in INT8.*Conv, Gemm"):
        Plan(model, CPU)
