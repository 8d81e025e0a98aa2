"""A small convolutional network for 8x8 pictures, in plain NumPy: forward, gradients, Adam.

Knows the arithmetic of one fixed network, laid out as ONNX lays it out (NCHW, weights as
``[out, in, ...]``), so that the parameters can be exported without a transposition:

    image [n,1,8,8] - conv3x3 16 - relu - conv3x3 32 - relu - maxpool2 - dense 64 - relu - dense 10

Knows nothing of the data set, of files, of ONNX or of the command line. Everything is a pure
function of its arguments; randomness comes in as a ``numpy.random.Generator``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.integer[Any]]
Parameters: TypeAlias = dict[str, Floats]

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (16, 1, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "conv2.bias": (32,),
    "dense1.weight": (64, 512),
    "dense1.bias": (64,),
    "dense2.weight": (10, 64),
    "dense2.bias": (10,),
}


def initial_parameters(rng: np.random.Generator) -> Parameters:
    """FP32 parameters: weights by He et al. 2015 (variance 2 / fan-in), biases zero."""
    parameters: Parameters = {}
    for name, shape in SHAPES.items():
        scale = 0.0 if name.endswith("bias") else np.sqrt(2.0 / np.prod(shape[1:]))
        parameters[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return parameters


def probabilities(parameters: Parameters, images: Floats) -> Floats:
    """Class probabilities [n,10] of images [n,1,8,8]; no dropout, so the same as the export."""
    return _softmax(_forward(parameters, images, None)[0])


def loss_and_gradients(
    parameters: Parameters,
    images: Floats,
    labels: Labels,
    *,
    dropout: float = 0.0,
    smoothing: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[float, Parameters]:
    """Mean cross-entropy over the rows, and its gradient for every parameter.

    ``dropout`` is the share of the flattened features set to zero (needs ``rng``);
    ``smoothing`` is the share of each target spread evenly over the ten classes.
    """
    keep = None
    if dropout > 0.0 and rng is not None:
        kept = rng.random((len(images), SHAPES["dense1.weight"][1])) >= dropout
        keep = (kept / (1.0 - dropout)).astype(images.dtype)
    logits, trace = _forward(parameters, images, keep)
    predicted = _softmax(logits)
    targets = np.full_like(predicted, smoothing / predicted.shape[1])
    targets[np.arange(len(labels)), labels] += 1.0 - smoothing
    loss = -float((targets * np.log(predicted + 1e-12)).sum(axis=1).mean())
    return loss, _backward(parameters, trace, (predicted - targets) / len(labels), keep)


def _forward(
    parameters: Parameters, images: Floats, keep: Floats | None
) -> tuple[Floats, dict[str, Floats]]:
    """Logits [n,10], and the intermediate values that ``_backward`` needs."""
    trace: dict[str, Floats] = {}
    trace["columns1"] = _columns(images)
    trace["relu1"] = np.maximum(_convolve(trace["columns1"], parameters, "conv1"), 0)
    trace["columns2"] = _columns(trace["relu1"])
    trace["relu2"] = np.maximum(_convolve(trace["columns2"], parameters, "conv2"), 0)
    trace["pooled"] = _pool_windows(trace["relu2"]).max(axis=(3, 5))
    flat = trace["pooled"].reshape(len(images), -1)
    trace["flat"] = flat if keep is None else flat * keep
    hidden = trace["flat"] @ parameters["dense1.weight"].T + parameters["dense1.bias"]
    trace["relu3"] = np.maximum(hidden, 0)
    return trace["relu3"] @ parameters["dense2.weight"].T + parameters["dense2.bias"], trace


def _backward(
    parameters: Parameters, trace: dict[str, Floats], grad: Floats, keep: Floats | None
) -> Parameters:
    """Gradients of all parameters, from the gradient of the logits [n,10]."""
    gradients: Parameters = {}
    gradients["dense2.weight"], gradients["dense2.bias"] = grad.T @ trace["relu3"], grad.sum(axis=0)
    grad = (grad @ parameters["dense2.weight"]) * (trace["relu3"] > 0)
    gradients["dense1.weight"], gradients["dense1.bias"] = grad.T @ trace["flat"], grad.sum(axis=0)
    grad = grad @ parameters["dense1.weight"]
    grad = grad if keep is None else grad * keep
    grad = _unpool(grad.reshape(trace["pooled"].shape), trace["relu2"], trace["pooled"])
    grad = _convolution_gradients(
        grad * (trace["relu2"] > 0), trace["columns2"], gradients, "conv2"
    )
    grad = _scatter(grad @ parameters["conv2.weight"].reshape(32, -1), trace["relu1"].shape)
    _convolution_gradients(grad * (trace["relu1"] > 0), trace["columns1"], gradients, "conv1")
    return gradients


def _columns(images: Floats) -> Floats:
    """im2col: the padded 3x3 surroundings of each pixel, [n,c,h,w] to [n,h*w,c*9]."""
    n, channels, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, height * width, channels * 9)


def _scatter(columns: Floats, shape: tuple[int, ...]) -> Floats:
    """The adjoint of ``_columns``: adds each surrounding back to the pixels it came from."""
    n, channels, height, width = shape
    windows = columns.reshape(n, height, width, channels, 3, 3)
    padded = np.zeros((n, channels, height + 2, width + 2), columns.dtype)
    for row in range(3):
        for column in range(3):
            part = windows[..., row, column].transpose(0, 3, 1, 2)
            padded[:, :, row : row + height, column : column + width] += part
    return padded[:, :, 1:-1, 1:-1]


def _convolve(columns: Floats, parameters: Parameters, layer: str) -> Floats:
    weight = parameters[f"{layer}.weight"]
    flat = columns @ weight.reshape(len(weight), -1).T + parameters[f"{layer}.bias"]
    side = int(np.sqrt(columns.shape[1]))
    return flat.transpose(0, 2, 1).reshape(len(columns), len(weight), side, side)


def _convolution_gradients(
    grad: Floats, columns: Floats, gradients: Parameters, layer: str
) -> Floats:
    """Stores the layer's two gradients; returns ``grad`` [n,c,h,w] rearranged as [n,h*w,c]."""
    n, channels = grad.shape[:2]
    rows = grad.reshape(n, channels, -1).transpose(0, 2, 1)
    weight = rows.reshape(-1, channels).T @ columns.reshape(-1, columns.shape[2])
    gradients[f"{layer}.weight"] = weight.reshape(SHAPES[f"{layer}.weight"])
    gradients[f"{layer}.bias"] = rows.sum(axis=(0, 1))
    return rows


def _pool_windows(images: Floats) -> Floats:
    n, channels, height, width = images.shape
    return images.reshape(n, channels, height // 2, 2, width // 2, 2)


def _unpool(grad: Floats, images: Floats, pooled: Floats) -> Floats:
    """Gradient of the 2x2 maximum; equal maxima share it."""
    chosen = _pool_windows(images) == pooled[:, :, :, None, :, None]
    share = grad[:, :, :, None, :, None] / chosen.sum(axis=(3, 5), keepdims=True).astype(grad.dtype)
    spread: Floats = chosen * share
    return spread.reshape(images.shape)


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    quotient: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return quotient


class Adam:
    """Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).

    Updates the given parameters in place and owns their two running moments. ``average`` is a
    running mean of the parameters over the recent steps, smoother than the last step's.
    """

    def __init__(
        self, parameters: Parameters, *, weight_decay: float, average_decay: float
    ) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._average_decay = average_decay
        self._steps = 0
        self._first = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._second = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.average = {name: value.copy() for name, value in parameters.items()}

    def step(self, gradients: Parameters, rate: float) -> None:
        self._steps += 1
        first_scale = 1.0 / (1.0 - 0.9**self._steps)
        second_scale = 1.0 / (1.0 - 0.999**self._steps)
        # The mean starts short, so that the first parameters do not weigh on it.
        decay = min(self._average_decay, self._steps / (self._steps + 10))
        for name, value in self._parameters.items():
            first, second, gradient = self._first[name], self._second[name], gradients[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            if not name.endswith("bias"):
                value *= 1.0 - rate * self._weight_decay
            value -= rate * (first * first_scale) / (np.sqrt(second * second_scale) + 1e-8)
            self.average[name] += (1.0 - decay) * (value - self.average[name])
