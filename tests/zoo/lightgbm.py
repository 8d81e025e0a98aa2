"""A small model learned on the same pictures, as LightGBM's text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from tests.zoo import digits

TOLERANCE = 1e-6
"""LightGBM gives FP64, which is served as FP32."""


@functools.cache
def model() -> Any:
    pictures, labels = digits.learning()
    how = {
        "objective": "multiclass",
        "num_class": 10,
        "num_leaves": 7,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
    }
    return lightgbm.train(how, lightgbm.Dataset(pictures, labels), num_boost_round=10)


def expected(pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    made: NDArray[np.float64] = model().predict(pictures, num_threads=1)
    return made


def write(version: Path) -> str:
    model().save_model(str(version / "model.lgb"))
    return digits.config("lightgbm", dims="64")
