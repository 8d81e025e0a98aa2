"""The network in NumPy, as a user would write it: ``model.py`` and its weights beside it."""

from pathlib import Path

import numpy as np
from tests.zoo import digits

TOLERANCE = 1e-6
"""The same sums in FP32, in another order."""

MODEL = '''"""Digits: two convolutions and two dense layers, in plain NumPy."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Model:
    def __init__(self, context):
        with np.load(context.directory / "weights.npz") as weights:
            self.weights = dict(weights)

    def predict(self, image):
        pixels = self.convolved("conv2", self.convolved("conv1", image))
        n, channels, height, width = pixels.shape
        pooled = pixels.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
        hidden = np.maximum(self.dense("dense1", pooled.reshape(n, -1)), 0)
        logits = self.dense("dense2", hidden)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {"probabilities": shares / shares.sum(axis=1, keepdims=True)}

    def convolved(self, layer, image):
        n, _, height, width = image.shape
        padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
        columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, height * width, -1)
        weight = self.weights[f"{layer}.weight"]
        rows = columns @ weight.reshape(len(weight), -1).T + self.weights[f"{layer}.bias"]
        return np.maximum(rows, 0).transpose(0, 2, 1).reshape(n, -1, height, width)

    def dense(self, layer, values):
        return values @ self.weights[f"{layer}.weight"].T + self.weights[f"{layer}.bias"]
'''


def write(version: Path) -> str:
    (version / "model.py").write_text(MODEL)
    np.savez(version / "weights.npz", **digits.parameters())
    return digits.config("python")
