"""The inputs and outputs of a Python model: as its configuration states them, or its class.

Knows the notation of the class attributes ``inputs`` and ``outputs``: name to (type, dims), where a
type is one of ours by name or whatever NumPy takes for one, and dims include the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.backends.base import LoadError
from penstock.backends.python.options import Recipe, SpecRow, specs_of
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import TensorSpec

Specs = tuple[TensorSpec, ...]


def declared(instance: Any, recipe: Recipe) -> tuple[Specs, Specs]:
    """(inputs, outputs): the class's own where it states them, else the configuration's.

    Raises:
        LoadError: neither states them, or what the class says cannot be understood.
    """
    return (
        _side(instance, "inputs", recipe.inputs),
        _side(instance, "outputs", recipe.outputs),
    )


def _side(instance: Any, side: str, configured: Sequence[SpecRow]) -> Specs:
    stated = getattr(instance, side, None)
    if isinstance(stated, Mapping) and stated:
        return tuple(_spec(side, name, value) for name, value in stated.items())
    if stated is not None:
        raise LoadError(f"attribute {side} must map names to (type, dims), not be {stated!r:.80}")
    if not configured:
        raise LoadError(
            f"nothing states the model's {side}: give each its data_type and dims in config.pbtxt, "
            f'or the class an attribute, {side} = {{"NAME": ("FP32", [-1, 3])}}'
        )
    return specs_of(configured)


def _spec(side: str, name: Any, value: Any) -> TensorSpec:
    try:
        kind, dims = value
        shape = tuple(int(size) for size in dims)
        found = _dtype(kind)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"attribute {side}: {name!r} is {value!r:.80} where (type, dims) is wanted, such as "
            f'("FP32", [-1, 3]): {error}'
        ) from None
    if not isinstance(name, str) or not name or min(shape, default=0) < -1:
        raise LoadError(f"attribute {side}: {name!r} with dims {list(shape)} is no tensor")
    return TensorSpec(name, found, shape)


def _dtype(kind: Any) -> DType:
    if isinstance(kind, str) and kind.upper() in dt.BY_NAME:
        return dt.BY_NAME[kind.upper()]
    return dt.of_numpy(np.dtype(kind))
