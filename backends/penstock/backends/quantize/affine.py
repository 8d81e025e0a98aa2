"""Scales and zero points: how a range of real numbers becomes 8-bit integers and back.

Knows NumPy only. The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear:
``q = saturate(round_half_to_even(x / scale) + zero_point)``, ``x' = (q - zero_point) * scale``, all
of it in float32. Zero is exact in every scheme here, since padding and ReLU rely on it. A value
inside the range comes back within half a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["u8", "s8"]
Floats = NDArray[np.float32]

SCALE_MIN: Final = float(np.finfo(np.float32).tiny)
"""Below it 1 / scale is no float32, and engines that flush denormals would divide by zero."""
SCALE_MAX: Final = float(np.finfo(np.float32).max) / 128
"""Beyond it the outermost integers would come back as infinities."""
S8_MAX: Final = 127
"""-128 stays unused, so that the grid is symmetric and products cannot overflow in pairs."""
U8_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class Affine:
    """One scale and zero point, and the integers ``least`` to ``most`` they are used with."""

    kind: Kind
    scale: float
    zero_point: int

    @property
    def least(self) -> int:
        """The smallest integer in use."""
        return 0 if self.kind == "u8" else -S8_MAX

    @property
    def most(self) -> int:
        """The largest integer in use."""
        return U8_MAX if self.kind == "u8" else S8_MAX

    @property
    def low(self) -> float:
        """The smallest real number that is not clipped."""
        return (self.least - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest real number that is not clipped."""
        return (self.most - self.zero_point) * self.scale


def u8(low: float, high: float) -> Affine:
    """Unsigned and asymmetric, over the range and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = _scale(high / U8_MAX - low / U8_MAX)  # high - low may overflow
    zero_point = int(np.clip(np.rint(-low / scale), 0, U8_MAX))
    return Affine("u8", scale, zero_point)


def s8(magnitude: float) -> Affine:
    """Signed and symmetric: -127 to 127, the zero point is 0."""
    return Affine("s8", _scale(magnitude / S8_MAX), 0)


def weight_scales(weights: Floats, axis: int | None) -> Floats:
    """Symmetric scales of a constant: one for each index along ``axis``, or a single one (None).

    The output channels are axis 0 of Conv, 1 of ConvTranspose (one group), the last of MatMul,
    and of Gemm 0 with ``transB``, else 1. A channel of zeros has the scale of the whole, and zeros
    altogether scale 1: nothing divides by zero and nothing is changed.
    """
    magnitudes = np.abs(weights)
    whole = float(magnitudes.max(initial=0.0))
    if axis is None:
        top = np.array([whole])
    else:
        others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
        top = magnitudes.max(axis=others, initial=0.0).astype(np.float64)
    scales = top / S8_MAX
    spare = max(whole / S8_MAX, SCALE_MIN) if whole else 1.0
    return np.where(scales < SCALE_MIN, spare, scales).astype(np.float32)


def quantized(values: Floats, how: Affine) -> NDArray[Any]:
    """``values`` as ``uint8`` or ``int8``; NaN, which has no integer, becomes the zero point."""
    with np.errstate(over="ignore"):  # to infinity, which is clipped
        steps = np.where(np.isnan(values), np.float32(0), values) / np.float32(how.scale)
    steps = np.rint(steps) + how.zero_point
    kept = np.clip(steps, how.least, how.most)
    integers: NDArray[Any] = kept.astype(np.uint8 if how.kind == "u8" else np.int8)
    return integers


def dequantized(integers: NDArray[Any], how: Affine) -> Floats:
    """The real numbers that ``integers`` stand for."""
    return (integers.astype(np.int32) - how.zero_point).astype(np.float32) * np.float32(how.scale)


def quantized_weights(weights: Floats, scales: Floats, axis: int | None) -> NDArray[np.int8]:
    """A constant as ``int8`` by the scales of ``weight_scales`` along the same ``axis``."""
    steps = np.rint(weights / _aligned(scales, weights.ndim, axis))
    integers: NDArray[np.int8] = np.clip(steps, -S8_MAX, S8_MAX).astype(np.int8)
    return integers


def dequantized_weights(weights: NDArray[np.int8], scales: Floats, axis: int | None) -> Floats:
    """The real numbers that ``quantized_weights`` made integers of, to half a scale."""
    return weights.astype(np.float32) * _aligned(scales, weights.ndim, axis)


def _aligned(scales: Floats, rank: int, axis: int | None) -> Floats:
    if axis is None:
        return scales.reshape(())
    return scales.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _scale(wanted: float) -> float:
    """As float32 will hold it."""
    return float(np.float32(min(max(wanted, SCALE_MIN), SCALE_MAX)))
