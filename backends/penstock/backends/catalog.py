"""Finds a backend by the name that a model's configuration gives.

The only place that names concrete backends, as lazy ``"module:Class"`` strings: nothing is imported
before a model asks for it. Packages outside this repository add theirs with an entry point of the
group ``penstock.backends``; the built-in names cannot be replaced that way.

Contract: a backend object is made once per process and name, and shared.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, cast

from penstock.backends.base import Backend, LoadError

GROUP: Final = "penstock.backends"

_BUILT_IN: Final[Mapping[str, str]] = {
    "fake": "penstock.backends.fake:FakeBackend",
    "onnxruntime": "penstock.backends.onnxruntime:OnnxRuntimeBackend",
}

_ALIASES: Final[Mapping[str, str]] = {
    # Values of `platform` in Triton's config.pbtxt, and what people write.
    "onnxruntime_onnx": "onnxruntime",
    "onnx": "onnxruntime",
}

_SUFFIXES: Final[Mapping[str, str]] = {
    ".fake": "fake",
    ".onnx": "onnxruntime",
    ".ort": "onnxruntime",
}

_DATA_ONLY: Final = frozenset({"fake", "onnxruntime"})
"""Backends whose artefacts are data: loading one runs the engine, but no program that it brings."""

_made: dict[str, Backend] = {}
_making = threading.Lock()


def names() -> tuple[str, ...]:
    """The names of all backends that are known, sorted; whether their engines are installed is
    found out when a model is loaded."""
    return tuple(sorted({*_BUILT_IN, *_outside()}))


def offered() -> tuple[str, ...]:
    """The names that are of use to an operator: all but the one that is made for tests."""
    return tuple(name for name in names() if name != "fake")


def canonical(name: str) -> str:
    """The backend's own name for a ``backend`` or ``platform`` value; unknown ones as they are."""
    return _ALIASES.get(name, name)


def get(name: str) -> Backend:
    """The backend with this name or alias.

    Raises:
        LoadError: there is no such backend, or its module cannot be imported.
    """
    name = canonical(name)
    with _making:
        if name not in _made:
            _made[name] = _make(name)
        return _made[name]


def for_file(path: Path) -> str | None:
    """The name of the backend that runs files with this extension; None if there is none."""
    return _SUFFIXES.get(path.suffix.lower())


def runs_code(name: str) -> bool:
    """Whether an artefact of this backend may be a program (a library, a pickle, a plan, Python).

    True for every backend that is not known better, such as all from other packages.
    """
    return canonical(name) not in _DATA_ONLY


def _make(name: str) -> Backend:
    try:
        if name in _BUILT_IN:
            module, _, attribute = _BUILT_IN[name].partition(":")
            made = getattr(importlib.import_module(module), attribute)()
        elif name in _outside():
            made = _outside()[name]()()
        else:
            raise LoadError(f"there is no backend {name!r}; known are {', '.join(offered())}")
    except (ImportError, AttributeError) as error:
        raise LoadError(f"backend {name!r} cannot be imported: {error}") from error
    return cast(Backend, made)


@functools.cache
def _outside() -> dict[str, Callable[[], Any]]:
    return {point.name: point.load for point in entry_points(group=GROUP)}
