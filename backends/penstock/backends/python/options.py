"""The options of the Python backend, and what a worker process must be told to make a model.

Knows the parameters of config.pbtxt. ``Recipe`` crosses the border between processes as JSON, in
terms that any interpreter with the standard library understands.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import cuda_number, unknown_option, whole
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

MODEL_PREFIX: Final = "model."
"""Parameters that begin so are the model's own."""
_OF_PROCESSES: Final = ("python", "timeout_s", "memory_limit_mb", "message_limit_mb")
KNOWN: Final = ("isolation", "class", "load_timeout_s", *_OF_PROCESSES)

SpecRow = tuple[str, str, Sequence[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """One model as its maker needs it. ``inputs`` and ``outputs`` are (name, dtype, shape)."""

    path: str
    class_name: str
    name: str
    device: str
    threads: int
    rows_max: int
    parameters: dict[str, str]
    inputs: Sequence[SpecRow] = ()
    outputs: Sequence[SpecRow] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Limits of 0 are none; sizes are bytes. ``python`` is the interpreter of the process."""

    process: bool
    python: str
    timeout_s: int
    load_timeout_s: int
    memory_bytes_max: int
    message_bytes_max: int


def read_options(source: ModelSource) -> Options:
    """The operator's wishes.

    Raises:
        LoadError: an option that is not known, has a value that it cannot have, or means nothing
            in the chosen isolation.
    """
    given = {k: v for k, v in source.options.items() if not k.startswith(MODEL_PREFIX)}
    for key in given:
        if key not in KNOWN:
            raise unknown_option(key, (*KNOWN, f"{MODEL_PREFIX}*"), "python")
    isolation = given.get("isolation", "process").strip()
    if isolation not in ("process", "thread"):
        raise LoadError(f"option 'isolation' is {isolation!r}; it must be process or thread")
    idle = [key for key in _OF_PROCESSES if key in given]
    if isolation == "thread" and idle:
        raise LoadError(f"option {idle[0]!r} needs isolation process: a thread cannot be limited")
    return Options(
        isolation == "process",
        _interpreter(given.get("python", "")),
        whole("timeout_s", given.get("timeout_s", "60")),
        whole("load_timeout_s", given.get("load_timeout_s", "300"), 1),
        whole("memory_limit_mb", given.get("memory_limit_mb", "0")) << 20,
        whole("message_limit_mb", given.get("message_limit_mb", "1024"), 1) << 20,
    )


def _interpreter(given: str) -> str:
    if not given:
        return sys.executable
    found = shutil.which(os.path.expanduser(given))
    if found is None:
        raise LoadError(f"option 'python' is {given!r}; there is no such program")
    return found


def recipe_of(source: ModelSource, path: Path) -> Recipe:
    """What to make of ``path``, the file.

    Raises:
        LoadError: the device is neither the CPU nor a CUDA one.
    """
    cuda_number(source, "python")
    start = len(MODEL_PREFIX)
    return Recipe(
        str(path.absolute()),
        source.options.get("class", ""),
        source.name,
        source.device,
        source.threads,
        source.rows_max,
        {k[start:]: v for k, v in source.options.items() if k.startswith(MODEL_PREFIX)},
        spec_rows(source.inputs),
        spec_rows(source.outputs),
    )


def spec_rows(specs: Sequence[TensorSpec]) -> list[SpecRow]:
    """``specs`` as JSON can hold them."""
    return [(spec.name, spec.dtype.name, list(spec.shape)) for spec in specs]


def specs_of(rows: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The other direction of ``spec_rows``."""
    return tuple(TensorSpec(name, dt.BY_NAME[dtype], tuple(shape)) for name, dtype, shape in rows)


def recipe_json(recipe: Recipe) -> Mapping[str, Any]:
    """``recipe`` as JSON can hold it; ``Recipe(**that)`` is the way back."""
    return dataclasses.asdict(recipe)
