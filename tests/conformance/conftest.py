"""The held-out digits, which every client is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.server import demo

ACCURACY_MIN = 0.97


@pytest.fixture(scope="session")
def heldout() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return demo.heldout()


@pytest.fixture(scope="session")
def batches(heldout: tuple[NDArray[Any], NDArray[Any]]) -> Callable[[int], Iterator[NDArray[Any]]]:
    """``batches(n)``: the images in portions of ``n``."""

    def cut(size: int) -> Iterator[NDArray[Any]]:
        images = heldout[0]
        return (images[i : i + size] for i in range(0, len(images), size))

    return cut


@pytest.fixture(scope="session")
def check_accuracy(heldout: tuple[NDArray[Any], NDArray[Any]]) -> Callable[[NDArray[Any]], None]:
    """Holds the probabilities of all held-out images against their labels."""

    def check(probabilities: NDArray[Any]) -> None:
        labels = heldout[1]
        assert probabilities.shape == (len(labels), 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        accuracy = (probabilities.argmax(axis=1) == labels).mean()
        assert accuracy >= ACCURACY_MIN

    return check
