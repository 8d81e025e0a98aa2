"""A small model learned on the same pictures, as XGBoost's UBJSON."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from tests.zoo import digits

TOLERANCE = 0.0
"""The same engine computes both."""


@functools.cache
def model() -> Any:
    pictures, labels = digits.learning()
    how = {"objective": "multi:softprob", "num_class": 10, "max_depth": 3, "nthread": 1}
    return xgboost.train(how, xgboost.DMatrix(pictures, labels), num_boost_round=10)


def expected(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32] = model().predict(xgboost.DMatrix(pictures))
    return made


def write(version: Path) -> str:
    model().save_model(version / "model.ubj")
    return digits.config("xgboost", dims="64")
