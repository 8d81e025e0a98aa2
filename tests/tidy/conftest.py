"""What the tidy tests look at: the files of this repository, without what tools left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_VISIBLE_DOT_NAMES = frozenset({".ci", ".gitignore", ".pre-commit-config.yaml"})
_BUILT = frozenset({"__pycache__", "build", "dist", "node_modules"})


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> tuple[Path, ...]:
    """Every file, as a path from the root."""
    return tuple(sorted(_walk()))


@pytest.fixture(scope="session")
def sources(files: tuple[Path, ...]) -> dict[Path, str]:
    """Python files and their text."""
    return {path: (ROOT / path).read_text() for path in files if path.suffix == ".py"}


@pytest.fixture(scope="session")
def documents(files: tuple[Path, ...]) -> dict[Path, str]:
    """Markdown files and their text."""
    return {path: (ROOT / path).read_text() for path in files if path.suffix == ".md"}


def _walk() -> Iterator[Path]:
    for folder, names, file_names in os.walk(ROOT):
        names[:] = [n for n in names if _is_ours(n)]
        yield from (Path(folder, n).relative_to(ROOT) for n in file_names if _is_ours(n))


def _is_ours(name: str) -> bool:
    if name in _BUILT or name.endswith(".egg-info"):
        return False
    return not name.startswith(".") or name in _VISIBLE_DOT_NAMES
