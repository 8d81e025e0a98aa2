#!/usr/bin/env python3
"""Trains the larger digits network that INT8 is measured on, with JAX.

Knows the recipe, the command line and the report. The network's shape is in ``digits_large``, the
pictures and their split in ``digits_data``. The held-out third is looked at once, after the last
epoch, to report; it chooses nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

BATCH_ROWS = 36
RATE = 1.5e-3
SMOOTHING = 0.05
WEIGHT_DECAY = 0.02
NEEDS = {
    "jax": "jax",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "sklearn": "scikit-learn",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    import digits_large

    parser = argparse.ArgumentParser(description="Train the larger digits network.")
    parser.add_argument(
        "--out",
        type=Path,
        default=digits_large.PARAMETERS,
        help="file to write the parameters to (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=14,
        help="passes over the training part (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of weights, order and shifts")
    return parser.parse_args(arguments)


def forward(values: Any, images: Any) -> Any:
    """Logits [n,10] of images [n,1,32,32]."""
    import jax
    from digits_large import BLOCKS

    def convolution(x: Any, name: str, stride: int) -> Any:
        weight = values[f"{name}.weight"]
        padding = [(weight.shape[2] // 2,) * 2] * 2
        layout = ("NCHW", "OIHW", "NCHW")
        made = jax.lax.conv_general_dilated(
            x, weight, (stride, stride), padding, dimension_numbers=layout
        )
        return made + values[f"{name}.bias"][:, None, None]

    x = jax.nn.relu(convolution(images, "stem", 1))
    for name, before, after, stride in BLOCKS:
        inner = jax.nn.relu(convolution(x, f"{name}.first", stride))
        changed = before != after or stride != 1
        skip = convolution(x, f"{name}.skip", stride) if changed else x
        x = jax.nn.relu(convolution(inner, f"{name}.second", 1) + skip)
    return x.mean(axis=(2, 3)) @ values["dense.weight"].T + values["dense.bias"]


def initial(seed: int) -> Any:
    """He's initialisation; the last convolution of a block is smaller, so that sums do not grow."""
    import numpy as np
    from digits_large import shapes

    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes().items():
        scale = 0.0 if name.endswith("bias") else np.sqrt(2.0 / np.prod(shape[1:]))
        scale *= 0.5 if ".second" in name or ".skip" in name else 1.0
        values[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return values


def make_step() -> Any:
    """One step of Adam with decoupled weight decay, compiled."""
    import jax
    import jax.numpy as jnp

    def loss(values: Any, images: Any, labels: Any) -> Any:
        targets = jax.nn.one_hot(labels, 10) * (1 - SMOOTHING) + SMOOTHING / 10
        return -(targets * jax.nn.log_softmax(forward(values, images))).sum(axis=1).mean()

    def step(state: Any, number: Any, rate: Any, images: Any, labels: Any) -> Any:
        values, first, second = state
        lost, gradient = jax.value_and_grad(loss)(values, images, labels)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, gradient)

        def moved(value: Any, m: Any, v: Any) -> Any:
            m, v = m / (1 - 0.9**number), v / (1 - 0.99**number)
            decay = WEIGHT_DECAY * value if value.ndim > 1 else 0.0
            return value - rate * (m / (jnp.sqrt(v) + 1e-8) + decay)

        return (jax.tree.map(moved, values, first, second), first, second), lost

    return jax.jit(step)


def train(images: Any, labels: Any, epochs: int, seed: int) -> Any:
    """The parameters after ``epochs``; a line for each."""
    import jax
    import numpy as np
    from digits_data import moved

    rng = np.random.default_rng(seed)
    values = initial(seed)
    zeros = jax.tree.map(np.zeros_like, values)
    state, step, number = (values, zeros, zeros), make_step(), 0
    steps = epochs * (len(labels) // BATCH_ROWS)
    for epoch in range(epochs):
        began_s, losses = time.perf_counter(), []
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - BATCH_ROWS + 1, BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            rate = RATE * min(1.0, (number + 1) / 30) * 0.5 * (1 + np.cos(np.pi * number / steps))
            number += 1
            batch = moved(images[rows], 3, rng)
            state, lost = step(state, float(number), rate, batch, labels[rows].astype(np.int32))
            losses.append(float(lost))
        taken_s = time.perf_counter() - began_s
        print(
            f"epoch {epoch + 1:2d}/{epochs}  loss {np.mean(losses):.4f}  {taken_s:.1f} s",
            flush=True,
        )
    return {name: np.asarray(value) for name, value in state[0].items()}


def main(arguments: list[str] | None = None) -> int:
    absent = [pip for name, pip in NEEDS.items() if importlib.util.find_spec(name) is None]
    if absent:
        names = " ".join(absent)
        print(f"not installed: {names}\n  pip install {names}", file=sys.stderr)
        return 1
    options = parse(arguments)
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]
    from digits_data import load_parts
    from digits_large import build, parameters, upscaled

    training, validation, heldout = load_parts()
    values = train(upscaled(training.raw), training.labels, options.epochs, options.seed)
    halves = {name: value.astype(np.float16) for name, value in values.items()}
    np.savez(options.out, **halves)
    session = onnxruntime.InferenceSession(
        build(parameters(options.out)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for name, part in (("validation", validation), ("held-out", heldout)):
        (logits,) = session.run(None, {"image": upscaled(part.raw)})
        right = int((logits.argmax(axis=1) == part.labels).sum())
        print(f"{name} accuracy {right / len(part.labels):.2%} ({right} of {len(part.labels)})")
    print(f"{options.out.stat().st_size:,d} bytes  {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
