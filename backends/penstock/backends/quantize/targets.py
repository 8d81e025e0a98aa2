"""The two kinds of processor that INT8 models are made for, and what each of them runs in INT8.

Knows operators' names and the signs of integers. Knows no graph, no file and no engine.

``cpu``: ONNX Runtime's kernels for x86 and ARM. Activations are unsigned and asymmetric, which its
integer kernels fuse without a remainder in float; biases are INT32; convolutions give integers, so
whole chains of layers stay in integers.

``tensorrt``: explicit quantisation as TensorRT reads it. Everything is symmetric, signed, with zero
points of zero (its parser takes no others). Only inputs of matrix products and the skipping branch
of a residual sum are quantised, biases and outputs are not: TensorRT fuses those by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock.backends.quantize.affine import Affine
from penstock.backends.quantize.ranges import Range

PASSING: Final = frozenset({
    "Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that only move or choose values: their results have the range of their first input."""

FUSED: Final = frozenset({"Clip", "Relu"})
"""Activations that vanish in the clipping of the integers behind them."""


@dataclass(frozen=True, slots=True)
class Target:
    """``products`` are operators with a constant weight as second input, the ones that pay for
    quantisation; ``others`` run in INT8 beside them. Of those in ``integer_out`` the result must be
    quantised too, or the engine has no integer kernel. ``foreign`` allows operators that are not
    of ONNX itself. ``chains``: integers stay integers from one layer to the next.
    """

    name: str
    symmetric: bool
    integer_bias: bool
    products: frozenset[str]
    others: frozenset[str]
    integer_out: frozenset[str]
    chains: bool
    one_branch: bool
    foreign: bool

    def affine(self, found: Range) -> Affine:
        """How this target turns an activation of that range into integers."""
        return found.s8() if self.symmetric else found.u8()


_OTHERS: Final = frozenset(
    {"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"}
)

TARGETS: Final[Mapping[str, Target]] = {
    "cpu": Target(
        "cpu",
        symmetric=False,
        integer_bias=True,
        products=frozenset({"Conv", "Gemm", "MatMul"}),
        others=_OTHERS,
        integer_out=_OTHERS | {"Conv"},
        chains=True,
        one_branch=False,
        foreign=True,
    ),
    "tensorrt": Target(
        "tensorrt",
        symmetric=True,
        integer_bias=False,
        products=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
        others=frozenset({"Add"}),
        integer_out=frozenset(),
        chains=False,
        one_branch=True,
        foreign=False,
    ),
}
