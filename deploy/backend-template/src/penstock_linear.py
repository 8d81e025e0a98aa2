"""Serves linear models, ``scores = features @ weights + bias``, from NumPy's ``.npz`` files."""

import numpy as np

from penstock.backends.base import LoadError, RunError
from penstock.backends.checks import refusal, unknown_option
from penstock.protocol.dtype import FP32
from penstock.protocol.message import TensorSpec


class LinearBackend:
    name = "linear"  # what config.pbtxt says: backend: "linear"
    default_filename = "model.npz"
    runs_code = False  # the file is data; else operators must allow it with --allow-code

    def load(self, source):
        for key in source.options:
            raise unknown_option(key, (), self.name)
        if source.device != "cpu":
            raise LoadError(f"{source.name}: linear models run on the CPU, not {source.device}")
        try:
            with source.path.open("rb") as file:
                arrays = np.load(file, allow_pickle=False)
                return LinearSession(np.float32(arrays["weights"]), np.float32(arrays["bias"]))
        except Exception as error:
            raise LoadError(f"{source.path} is no linear model: {error}") from error


class LinearSession:
    thread_safe = True  # several threads may call run at the same time

    def __init__(self, weights, bias):
        features, scores = weights.shape
        self.inputs = (TensorSpec("features", FP32, (-1, features)),)
        self.outputs = (TensorSpec("scores", FP32, (-1, scores)),)
        self.weights, self.bias = weights, np.broadcast_to(bias, (scores,))

    def run(self, inputs):
        if wrong := refusal(self.inputs, inputs):
            raise RunError(wrong, caller_fault=True)
        return [inputs[0] @ self.weights + self.bias]

    def close(self):
        pass
