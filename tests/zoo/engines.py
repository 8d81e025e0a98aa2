"""Which engines this machine has; a test that needs another one says so, and is skipped.

Where ``CI`` is set a missing engine is a failure, but for those that cannot be there.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from penstock.backends import catalog
from penstock.backends.base import Engine, Probing

BACKEND_OF: Final = {"sklearn": "onnxruntime"}
"""Of modules of the zoo that are not named as the backend is."""
NOT_IN_CI: Final = {
    "pytorch": "its wheels are several GB",
    "tensorrt": "it runs on NVIDIA GPUs only",
}
"""Backends whose models need not run where CI does, and why."""


def engine_of(name: str) -> Engine:
    """What the backend would run on here."""
    backend = catalog.get(name)
    assert isinstance(backend, Probing), f"backend {name!r} cannot tell what it runs on"
    return backend.engine()


def engine_or_skip(name: str) -> Engine:
    """The engine of backend ``name``; without it the calling test is skipped, or fails in CI."""
    found = engine_of(name)
    if found.missing:
        if os.environ.get("CI") and name not in NOT_IN_CI:
            pytest.fail(f"backend {name!r} cannot run, and must where CI is set: {found.missing}")
        pytest.skip(f"backend {name!r} cannot run here: {found.missing}")
    return found
