"""What loading has in common in every engine: the module and the file; and a first try in
a process of its own, for engines that a damaged file crashes.

Knows the contract's types only, and no engine.

Contract: whatever is not as it should be raises LoadError, in one line. ``tried`` leaves no process
behind and bounds the time and the memory of the one it starts.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource

_LFS: Final = b"version https://git-lfs"
_TRIAL_S_MIN: Final = 30.0
_TRIAL_BYTES_A_SECOND: Final = 1 << 20
_TRIAL_MEMORY_MIN: Final = 4 << 30
_TRIAL_MEMORY_TIMES: Final = 20
_REASON_CHARS_MAX: Final = 600

_LIMITS: Final = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
for name in ("pandas", "sklearn", "pyarrow", "dask", "matplotlib"):
    sys.modules[name] = None  # engines import these if they can, which takes most of a second
"""


def engine(module: str, backend: str, extra: str) -> Any:
    """The engine's module, imported now.

    Raises:
        LoadError: it is not installed, or does not start; says what to install.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library that is missing beneath it may raise anything
        raise LoadError(
            f"backend {backend!r} needs its engine: pip install 'penstock[{extra}]' "
            f"({one_line(error)})"
        ) from error


def probed(module: str, backend: str, extra: str, devices: tuple[str, ...] = ("cpu",)) -> Engine:
    """What ``Probing.engine`` says of an engine that needs no more than its module."""
    try:
        found = engine(module, backend, extra)
    except LoadError as error:
        return Engine(missing=str(error))
    return Engine(str(found.__version__), devices)


def artefact(source: ModelSource, filename: str) -> Path:
    """The file to load: ``source.path``, or ``filename`` in it.

    Raises:
        LoadError: there is none, it is empty, or stands for a file that was not fetched.
    """
    path = source.path / filename if source.path.is_dir() else source.path
    head_of(source.name, path)
    return path


def head_of(model: str, path: Path, size: int = len(_LFS)) -> bytes:
    """The first bytes of a model's file.

    Raises:
        LoadError: as ``artefact``.
    """
    if not path.is_file():
        raise LoadError(f"{model}: there is no file {path}")
    try:
        with path.open("rb") as file:
            head = file.read(size)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise LoadError(f"{path} is empty: copy the model there again")
    if head.startswith(_LFS):
        raise LoadError(f"{path} is a pointer of Git LFS, not the model: run git lfs pull")
    return head


def one_line(error: object) -> str:
    """An engine's message without line breaks and what follows the first of many."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON_CHARS_MAX else text[: _REASON_CHARS_MAX - 3] + "..."


def tried(path: Path, program: str) -> None:
    """Runs the Python ``program`` on ``path`` (its ``sys.argv[1]``) in a process of its own.

    The program loads the file and runs it; it imports the engine only. Takes about 0.3 s more than
    that.

    Raises:
        LoadError: the program ended otherwise than well, or not in time.
    """
    size = path.stat().st_size
    limit_s = _TRIAL_S_MIN + size / _TRIAL_BYTES_A_SECOND
    memory = _TRIAL_MEMORY_MIN + _TRIAL_MEMORY_TIMES * size
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as errors:  # in memory it would have no limit
        try:
            status = subprocess.run(
                # -P: a file of the current directory must not stand in for the engine.
                [sys.executable, "-P", "-c", _LIMITS + program, str(path), str(memory)],
                env={**os.environ, **one_thread},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=limit_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"cannot load {path}: its engine did not come to an end with it in {limit_s:.0f} "
                "s; the file is damaged"
            ) from error
        except OSError as error:
            raise LoadError(f"cannot try {path} in a process of its own: {error}") from error
        if status:
            errors.seek(0)
            raise LoadError(f"cannot load {path}: {_failure(status, errors.read())}")


def _failure(status: int, errors: bytes) -> str:
    if status < 0:
        return (
            "the file is damaged or of another version; its engine crashed on it "
            f"({signal.Signals(-status).name})"
        )
    lines = [line for line in errors.decode(errors="replace").split("\n") if line.strip()]
    return one_line(lines[-1]) if lines else "its engine gave no reason"


__all__ = ["artefact", "engine", "head_of", "one_line", "probed", "tried"]
