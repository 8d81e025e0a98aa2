import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.quantize.affine import (
    SCALE_MIN,
    Affine,
    dequantized,
    dequantized_weights,
    quantized,
    quantized_weights,
    s8,
    u8,
    weight_scales,
)


def test_unsigned_scales_hold_zero_exactly() -> None:
    how = u8(-1.0, 3.0)
    assert (how.scale, how.zero_point) == (pytest.approx(4 / 255), 64)
    assert u8(1.0, 3.0) == u8(0.0, 3.0)
    assert u8(0.0, 2.55).zero_point == 0
    assert u8(-2.55, -1.0).zero_point == 255
    for low, high in ((-1, 3), (-0.1, 7), (-5, 0), (0, 1e-3)):
        zero = np.zeros(1, np.float32)
        assert dequantized(quantized(zero, u8(low, high)), u8(low, high))[0] == 0


def test_signed_scales_are_symmetric_and_leave_out_minus_128() -> None:
    how = s8(12.7)
    assert (how.scale, how.zero_point) == (pytest.approx(0.1), 0)
    values = np.float32([-100, -12.7, 0, 12.7, 100])
    assert quantized(values, how).tolist() == [-127, -127, 0, 127, 127]
    assert (how.low, how.high) == pytest.approx((-12.7, 12.7))


def test_halves_go_to_the_even_neighbour() -> None:
    how = Affine("s8", 1.0, 0)
    assert quantized(np.float32([0.5, 1.5, 2.5, -0.5, -1.5]), how).tolist() == [0, 2, 2, 0, -2]


def test_nothing_divides_by_zero() -> None:
    assert u8(0, 0).scale == s8(0).scale == s8(1e-45).scale == SCALE_MIN
    for how in (u8(-3.4e38, 3.4e38), s8(3.4e38)):
        ends = np.array([how.least, how.most])
        assert np.isfinite(dequantized(ends, how)).all()
    assert quantized(np.float32([np.nan, np.inf, -np.inf]), u8(-1, 3)).tolist() == [64, 255, 0]


def test_weights_have_a_scale_for_each_channel() -> None:
    weights = np.float32([[1.27, -0.5], [0, 0], [-12.7, 1]])
    assert weight_scales(weights, 0).tolist() == pytest.approx([0.01, 0.1, 0.1]), (
        "a channel of zeros has the whole's"
    )
    assert weight_scales(weights, -1).tolist() == pytest.approx([0.1, 1 / 127])
    assert weight_scales(weights, None).tolist() == pytest.approx([0.1])
    assert weight_scales(np.zeros((2, 2), np.float32), 0).tolist() == [1, 1]
    assert weight_scales(np.empty((0, 2), np.float32), 1).tolist() == [1, 1]


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_weights_come_back_within_half_a_step(axis: int | None) -> None:
    weights = np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32)
    weights *= np.float32([1, 10, 0.1, 3, 1e-6]).reshape(-1, 1, 1, 1)
    scales = weight_scales(weights, axis)
    integers = quantized_weights(weights, scales, axis)
    assert integers.dtype == np.int8
    assert integers.min() >= -127
    back = dequantized_weights(integers, scales, axis)
    steps = (
        scales if axis is None else np.expand_dims(scales, [i for i in range(4) if i != axis % 4])
    )
    assert (np.abs(back - weights) <= 0.5001 * steps).all()


@pytest.mark.parametrize("how", [u8(-1.3, 2.9), u8(0, 6), s8(3.3), s8(1e-30)])
def test_the_arithmetic_is_that_of_the_operators(how: Affine) -> None:
    """QuantizeLinear and DequantizeLinear of ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    kind = TensorProto.UINT8 if how.kind == "u8" else TensorProto.INT8
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor_value_info("q", kind, ["n"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [how.scale]),
            helper.make_tensor("z", kind, [], [how.zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    inside = np.random.default_rng(0).uniform(how.low, how.high, 10_000).astype(np.float32)
    integers, back = ReferenceEvaluator(model).run(None, {"x": inside})
    assert np.array_equal(quantized(inside, how), integers)
    assert np.array_equal(dequantized(integers, how), back)
