#!/usr/bin/env python3
"""Trains Penstock's demonstration model: handwritten digits, a small CNN in plain NumPy.

Knows the recipe (rates, epochs, augmentation), the command line and the report. The arithmetic is
in ``convnet``, the pictures and their split in ``digits_data``, the files in ``digits_model``.
Same seed, same libraries, same machine: the same bytes. The held-out third is looked at once,
after the last epoch, to report; it chooses nothing. Nor does the validation part choose an epoch:
the shipped parameters are the running mean at the last one.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convnet import Parameters
    from digits_data import Part

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "server" / "penstock" / "server" / "demo"
ACCURACY_MIN = 0.97
BATCH_ROWS = 32
RATE = 2e-3
RECIPE = {"dropout": 0.3, "smoothing": 0.05}
SHIFTED_SHARE = 0.5

# import name: the name that pip installs it by
NEEDS = {
    "numpy": "numpy",
    "sklearn": "scikit-learn",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
}

EPILOG = """\
what it does:
  1. takes scikit-learn's bundled digits (1,797 pictures, nothing is downloaded) and holds out
     a fixed third, 599 pictures, that training never sees;
  2. trains on the rest; each epoch's line shows the accuracy on a validation part of that rest;
  3. writes under OUT, replacing what is there:
       models/digits/1/model.onnx   image FP32 [-1,1,8,8] -> probabilities FP32 [-1,10]
       models/digits/labels.txt     the ten labels
       models/digits/config.pbtxt   the model configuration, in Triton's format
       digits_heldout.npz           the held-out pictures, to try the served model with
  4. prints the accuracy on the held-out third and which digits were mistaken for which.

examples:
  train_digits.py                               retrain the shipped model, some ten seconds
  train_digits.py --epochs 1 --out /tmp/digits  a quick look, away from the shipped files

needs: pip install numpy scikit-learn onnx onnxruntime
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train Penstock's demonstration model, a small CNN for handwritten digits.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        default=60,
        help="passes over the training part; the learning rate falls to zero over them, so fewer "
        "epochs is a shorter training, not an interrupted one (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of the first weights, the order, the shifts and the dropout; the split into "
        "training and held out does not depend on it (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def missing() -> list[str]:
    """The distributions this script needs and cannot find."""
    return [pip for name, pip in NEEDS.items() if importlib.util.find_spec(name) is None]


def train(training: Part, validation: Part, *, epochs: int, seed: int) -> Parameters:
    """The parameters after ``epochs``, averaged over the last steps; a line per epoch."""
    import numpy as np
    from convnet import Adam, initial_parameters, loss_and_gradients
    from digits_data import shifted

    rng = np.random.default_rng(seed)
    parameters = initial_parameters(rng)
    adam = Adam(parameters, weight_decay=0.02, average_decay=0.99)
    images, labels = training.images, training.labels
    steps_per_epoch = -(-len(labels) // BATCH_ROWS)
    for epoch in range(epochs):
        began_s, losses = time.perf_counter(), []
        order = rng.permutation(len(labels))
        for step in range(steps_per_epoch):
            rows = order[step * BATCH_ROWS : (step + 1) * BATCH_ROWS]
            batch = shifted(images[rows], SHIFTED_SHARE, rng)
            loss, gradients = loss_and_gradients(parameters, batch, labels[rows], **RECIPE, rng=rng)
            done = (epoch * steps_per_epoch + step) / (epochs * steps_per_epoch)
            adam.step(gradients, RATE * 0.5 * (1.0 + np.cos(np.pi * done)))
            losses.append(loss)
        print(
            f"epoch {epoch + 1:3d}/{epochs}  loss {np.mean(losses):.4f}  "
            f"validation {accuracy(adam.average, validation):.2%}  "
            f"{time.perf_counter() - began_s:.2f} s",
            flush=True,
        )
    return adam.average


def accuracy(parameters: Parameters, part: Part) -> float:
    from convnet import probabilities

    found = probabilities(parameters, part.images).argmax(axis=1)
    return float((found == part.labels).mean())


def report(parameters: Parameters, heldout: Part) -> float:
    """Prints the held-out accuracy and, digit by digit, what was mistaken for what."""
    from convnet import probabilities

    found = probabilities(parameters, heldout.images).argmax(axis=1)
    right = int((found == heldout.labels).sum())
    share = right / len(found)
    print(f"\nheld-out accuracy {share:.2%} ({right} of {len(found)})")
    print("digit  right  taken for")
    for digit in range(10):
        given = found[heldout.labels == digit]
        wrong = [
            f"{other} ({n}x)"
            for other in range(10)
            if other != digit and (n := int((given == other).sum()))
        ]
        print(f"{digit:5d}  {int((given == digit).sum()):2d}/{len(given)}  {', '.join(wrong)}")
    return share


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if absent := missing():
        names = " ".join(absent)
        print(f"train_digits: not installed: {names}\n  pip install {names}", file=sys.stderr)
        return 1
    import digits_model
    from digits_data import load_parts

    # comes with scikit-learn
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    began_s = time.perf_counter()
    training, validation, heldout = load_parts()
    # One thread: sums in one order, whatever the number of cores; the matrices are small anyway.
    with threadpool_limits(1):
        parameters = train(training, validation, epochs=options.epochs, seed=options.seed)
    trained_s = time.perf_counter() - began_s
    model = digits_model.build(parameters)
    worst = digits_model.verify(model, parameters, training.images)
    files = digits_model.write(options.out, model, heldout.raw, heldout.labels)
    share = report(parameters, heldout)
    print(f"\ntrained in {trained_s:.1f} s; ONNX Runtime and NumPy differ by {worst:.1e} at most")
    for file in files:
        print(f"  {file.stat().st_size:7,d} bytes  {file}")
    if share < ACCURACY_MIN:
        print(f"below {ACCURACY_MIN:.0%}: too short a training to ship", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
