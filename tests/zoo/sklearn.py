"""A forest of scikit-learn's, learned on the same pictures and converted to ONNX."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from tests.zoo import digits

TOLERANCE = 1e-5
"""The conversion keeps probabilities as FP32; scikit-learn adds them up as FP64."""


@functools.cache
def model() -> Any:
    pictures, labels = digits.learning()
    return RandomForestClassifier(20, max_depth=6, random_state=0).fit(pictures, labels)


def expected(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    made: NDArray[np.float64] = model().predict_proba(pictures)
    return made


def write(version: Path) -> str:
    converted = to_onnx(model(), np.zeros((1, 64), np.float32), options={"zipmap": False})
    del converted.graph.output[0]  # the most probable class; clients ask for it by classification
    converted.graph.input[0].name = "image"
    for node in converted.graph.node:
        node.input[:] = ["image" if name == "X" else name for name in node.input]
    (version / "model.onnx").write_bytes(converted.SerializeToString())
    return digits.config("onnxruntime", dims="64")
