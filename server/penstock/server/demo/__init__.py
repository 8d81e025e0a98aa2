"""The demonstration: a model that ships with the server, pictures to send it, a way to see them.

Knows where the package keeps its ``digits`` model repository and its held-out pictures, and how
to draw such a picture with characters. Must not know the server, a backend or a runtime: it needs
numpy alone, so that a client's example can use it too. ``README.md`` beside this file says where
the pictures come from; ``deploy/demo/train_digits.py`` makes every other file here.

Contract: pure functions; ``heldout`` reads one small file (16 KB) at each call and caches nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FOLDER = Path(__file__).resolve().parent
_INK_MAX = 16  # a raw pixel counts the inked points of a 4x4 block
_SHADES = " ░▒▓█"
_SHADES_ASCII = " .+#@"
_GREY_FIRST, _GREY_COUNT = 232, 24  # the grey ramp of the 256-colour terminal palette
_COLOR_RESET = "\x1b[0m"


def model_repository() -> Path:
    """The folder to serve: a model repository in Triton's layout with one model, ``digits``."""
    return _FOLDER / "models"


def heldout() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The 599 pictures that training never saw, and their digits.

    Images FP32 [599,1,8,8], 0 (paper) to 1 (ink), as the model's input ``image`` takes them;
    labels UINT8 [599], 0 to 9.
    """
    with np.load(_FOLDER / "digits_heldout.npz", allow_pickle=False) as arrays:
        raw: NDArray[np.uint8] = arrays["images"]
        labels: NDArray[np.uint8] = arrays["labels"]
    images = raw[:, np.newaxis].astype(np.float32) / np.float32(_INK_MAX)
    return images, labels


def draw(
    image: NDArray[np.floating[Any]], *, color: bool = False, ascii_only: bool = False
) -> list[str]:
    """One picture as lines for a terminal: a line per row, two columns per pixel.

    ``image`` is [height,width] or [1,height,width] of 0..1. Five shades; 24 greys with ``color``,
    by ANSI 256-colour backgrounds, in which case ink is bright and only ASCII is written anyway.
    Raises ValueError on another shape, and on values outside 0..1 (NaN, raw pixels of 0..16).
    """
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2:
        raise ValueError(f"one picture is [height,width] or [1,height,width], not {image.shape}")
    if not np.all((image >= 0) & (image <= 1)):
        raise ValueError("a picture's values are 0 to 1; divide raw pixels by 16")
    if color:
        return [_colored(row) for row in _levels(image, _GREY_COUNT)]
    shades = _SHADES_ASCII if ascii_only else _SHADES
    return ["".join(2 * shades[level] for level in row) for row in _levels(image, len(shades))]


def _levels(image: NDArray[np.floating[Any]], count: int) -> list[list[int]]:
    """Each value's nearest of ``count`` evenly spaced levels, 0 to ``count - 1``."""
    rows: list[list[int]] = np.floor(image * (count - 1) + 0.5).astype(int).tolist()
    return rows


def _colored(row: list[int]) -> str:
    return "".join(f"\x1b[48;5;{_GREY_FIRST + level}m  " for level in row) + _COLOR_RESET
