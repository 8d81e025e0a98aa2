"""Finds a backend by the name that a model's configuration gives.

The only place that names concrete backends, as lazy ``"module:Class"`` strings: nothing is imported
before a model asks for it. Packages outside this repository add theirs with an entry point of the
group ``penstock.backends``; the built-in names and aliases cannot be replaced that way.

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
    "jax": "penstock.backends.jax:JaxBackend",
    "lightgbm": "penstock.backends.lightgbm:LightGbmBackend",
    "litert": "penstock.backends.litert:LiteRtBackend",
    "onnxruntime": "penstock.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "penstock.backends.openvino:OpenVinoBackend",
    "python": "penstock.backends.python:PythonBackend",
    "pytorch": "penstock.backends.pytorch:PyTorchBackend",
    "tensorrt": "penstock.backends.tensorrt:TensorRtBackend",
    "tvm": "penstock.backends.tvm:TvmBackend",
    "xgboost": "penstock.backends.xgboost:XgBoostBackend",
}

_ALIASES: Final[Mapping[str, str]] = {
    # Values of `platform` in Triton's config.pbtxt, and what people write.
    "onnxruntime_onnx": "onnxruntime",
    "onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorrt_plan": "tensorrt",
    "tflite": "litert",
    "torch": "pytorch",
}

_SUFFIXES: Final[Mapping[str, str]] = {
    ".engine": "tensorrt",
    ".fake": "fake",
    ".jax": "jax",
    ".lgb": "lightgbm",
    ".onnx": "onnxruntime",
    ".ort": "onnxruntime",
    ".plan": "tensorrt",
    ".pt": "pytorch",
    ".pt2": "pytorch",
    ".py": "python",
    ".so": "tvm",
    ".tflite": "litert",
    ".ubj": "xgboost",
    ".xgb": "xgboost",
    ".xml": "openvino",
}

_ONNX_TOO: Final = frozenset({"openvino", "tensorrt"})
"""Backends that read ONNX besides what is theirs alone."""

_DATA_ONLY: Final = frozenset(
    {"fake", "jax", "lightgbm", "litert", "onnxruntime", "openvino", "xgboost"}
)
"""Backends whose artefacts are data: loading one runs the engine, but no program that it brings."""

_FROM_ANYBODY: Final = frozenset({"fake", "onnxruntime"})
"""Backends whose engine may read files of people whom the operator does not know. The others' were
made for files of one's own: that a damaged one does no harm is tried, a hostile one is another
matter.
"""

_made: dict[str, Backend] = {}
_making = threading.RLock()  # a backend may be made of another one


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


def reads(name: str, path: Path) -> bool:
    """Whether the backend takes files with this extension, where a configuration names it."""
    found = for_file(path)
    return found == name or (found == "onnxruntime" and name in _ONNX_TOO)


def runs_code(name: str) -> bool:
    """Whether an artefact of this backend may be a program (a library, a pickle, a plan, Python).

    One from another package says so itself, with an attribute ``runs_code``; where it does not, or
    cannot be imported, the answer is True.
    """
    name = canonical(name)
    if name in _BUILT_IN:
        return name not in _DATA_ONLY
    try:
        return bool(getattr(get(name), "runs_code", True))
    except LoadError:
        return True


def takes_uploads(name: str) -> bool:
    """Whether clients may send artefacts of this backend where the operator said nothing of it."""
    return canonical(name) in _FROM_ANYBODY


def _make(name: str) -> Backend:
    try:
        if name in _BUILT_IN:
            module, _, attribute = _BUILT_IN[name].partition(":")
            made = getattr(importlib.import_module(module), attribute)()
        elif name in _outside():
            made = _outside()[name]()()
        else:
            raise LoadError(f"there is no backend {name!r}; known are {', '.join(offered())}")
    except LoadError:
        raise
    except Exception as error:  # Of another package, or of an engine that breaks at its import.
        raise LoadError(f"backend {name!r} cannot be imported: {error}") from error
    if getattr(made, "name", None) != name or not hasattr(made, "default_filename"):
        # What is allowed, shown and counted goes by the name.
        raise LoadError(
            f"backend {name!r} is not usable: its class must have the name {name!r}, as its entry "
            "point, and a default_filename"
        )
    return cast(Backend, made)


@functools.cache
def _outside() -> dict[str, Callable[[], Any]]:
    points = entry_points(group=GROUP)
    return {point.name: point.load for point in points if point.name not in _ALIASES}
