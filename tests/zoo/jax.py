"""The digits network written in JAX and exported with a symbolic number of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from tests.zoo import digits

TOLERANCE = 1e-5
"""FP32 throughout; only the order of the sums differs."""


def probabilities(image: Any) -> Any:
    """image FP32 [n,1,8,8] to FP32 [n,10]."""
    weights = digits.parameters()
    x = image
    for layer in ("conv1", "conv2"):
        x = lax.conv(x, weights[f"{layer}.weight"], (1, 1), "SAME")
        x = jax.nn.relu(x + weights[f"{layer}.bias"][:, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ weights["dense1.weight"].T + weights["dense1.bias"])
    return jax.nn.softmax(x @ weights["dense2.weight"].T + weights["dense2.bias"])


def write(version: Path) -> str:
    (rows,) = export.symbolic_shape("n")
    given = jax.ShapeDtypeStruct((rows, 1, 8, 8), jnp.float32)
    exported = export.export(jax.jit(probabilities), platforms=["cpu"])(given)
    (version / "model.jax").write_bytes(exported.serialize())
    return digits.config("jax")
