"""The network, its weights, the pictures and the configuration that all artefacts share."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from penstock.server import demo

MODEL = demo.model_repository() / "digits" / "1" / "model.onnx"
"""image FP32 [n,1,8,8] to probabilities FP32 [n,10]."""
ROWS_MAX = 64


def parameters() -> dict[str, NDArray[np.float32]]:
    """The weights by their names in ``deploy/demo/convnet.py``, which also has the arithmetic."""
    return {
        tensor.name: np.array(numpy_helper.to_array(tensor), np.float32)
        for tensor in onnx.load(MODEL).graph.initializer
    }


def pictures() -> NDArray[np.float32]:
    """FP32 [599,1,8,8], as the model takes them."""
    return demo.heldout()[0]


def learning() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The pictures that other models are learned on, FP32 [300,64], and their digits."""
    images, labels = demo.heldout()
    return images[:300].reshape(-1, 64), labels[:300]


def config(backend: str, *, dims: str = "1, 8, 8", more: str = "") -> str:
    """``config.pbtxt`` of a digits model for ``backend``, with both tensors declared."""
    return f"""
backend: "{backend}"
max_batch_size: {ROWS_MAX}
input [{{ name: "image", data_type: TYPE_FP32, dims: [ {dims} ] }}]
output [{{ name: "probabilities", data_type: TYPE_FP32, dims: [ 10 ] }}]
{more}
"""
