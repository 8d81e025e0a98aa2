"""The handwritten digits as arrays, their fixed split, and the pictures shifted for training.

Knows where the data come from (scikit-learn's bundled copy of the UCI set: 1,797 pictures of
8x8 pixels, 0..16) and which pictures are held out. The split never depends on ``--seed``: the
held-out pictures are shipped with the package and must stay unseen by every training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

HELDOUT_ROWS = 599
VALIDATION_ROWS = 118
_SPLIT_SEED = 1797


@dataclass(frozen=True)
class Part:
    """Some pictures: ``raw`` uint8 [n,8,8] of 0..16, ``labels`` uint8 [n] of 0..9."""

    raw: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def images(self) -> NDArray[np.float32]:
        """The network's input: FP32 [n,1,8,8] of 0..1."""
        return self.raw[:, None].astype(np.float32) / np.float32(16)

    def take(self, rows: NDArray[np.intp]) -> Part:
        return Part(self.raw[rows], self.labels[rows])


def load_parts() -> tuple[Part, Part, Part]:
    """(training, validation, held out): 1080, 118 and 599 pictures, disjoint and stratified."""
    digits = load_digits()
    everything = Part(digits.images.astype(np.uint8), digits.target.astype(np.uint8))
    rng = np.random.default_rng(_SPLIT_SEED)
    rest, heldout = _split(everything, HELDOUT_ROWS, rng)
    training, validation = _split(rest, VALIDATION_ROWS, rng)
    return training, validation, heldout


def _split(part: Part, rows: int, rng: np.random.Generator) -> tuple[Part, Part]:
    """Moves ``rows`` pictures out of ``part``, each class by its share; returns (rest, moved).

    Walking through the shuffled pictures class by class in equal strides gives every class its
    share to within one picture and exactly ``rows`` pictures in all.
    """
    shuffled = rng.permutation(len(part.labels))
    by_class = shuffled[np.argsort(part.labels[shuffled], kind="stable")]
    places = np.arange(rows) * len(by_class) // rows
    moved = np.zeros(len(by_class), dtype=bool)
    moved[by_class[places]] = True
    order = rng.permutation(len(by_class))
    return part.take(order[~moved[order]]), part.take(order[moved[order]])


def shifted(
    images: NDArray[np.float32], share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The pictures, a ``share`` of them moved by one pixel at random in each direction."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = rng.random(len(images)) < share
    offsets = np.where(moved[:, None], rng.integers(0, 3, (len(images), 2)), 1)
    result = np.empty_like(images)
    for down in range(3):
        for right in range(3):
            rows = (offsets[:, 0] == down) & (offsets[:, 1] == right)
            result[rows] = padded[rows, :, down : down + 8, right : right + 8]
    return result


def moved(
    images: NDArray[np.float32], pixels: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The pictures, each moved at random by up to ``pixels`` in both directions, over zeros."""
    side = images.shape[2]
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    offsets = rng.integers(0, 2 * pixels + 1, (len(images), 2))
    rows = [
        picture[:, down : down + side, right : right + side]
        for picture, (down, right) in zip(padded, offsets, strict=True)
    ]
    return np.stack(rows)
