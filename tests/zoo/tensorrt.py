"""The network as TensorRT builds it when it is loaded; runs where a GPU is."""

import shutil
from pathlib import Path

from tests.zoo import digits

TOLERANCE = 1e-4
"""FP32 throughout (TF32 is switched off), but sums in another order."""


def write(version: Path) -> str:
    shutil.copy(digits.MODEL, version / "model.onnx")
    more = """
default_model_filename: "model.onnx"
parameters { key: "tf32" value: { string_value: "0" } }
"""
    return digits.config("tensorrt", more=more)
