"""Judges a TensorFlow Lite file before an interpreter gets it.

Knows the format's head, and that the interpreter verifies how a file is built but not what it says:
a node that lacks an input, or sizes that cannot be, kill the process. Knows nothing of serving.

Contract: whatever the file holds, the caller gets its bytes or LoadError in one line.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.loading import artefact, tried

_MAGIC: Final = b"TFL3"
_TRIAL: Final = """
from penstock.backends.litert import file as litert_file
litert_file.trial(sys.argv[1])
"""


def model_bytes(source: ModelSource, filename: str) -> tuple[Path, bytes]:
    """The file and all that is in it, once another process has loaded and run it.

    It is not mapped: a file that is replaced while it is mapped kills the process.

    Raises:
        LoadError: there is none, it cannot be a model, or that process died or did not end.
    """
    path = artefact(source, filename)
    content = path.read_bytes()
    if content[4:8] != _MAGIC:
        raise LoadError(f"{path} is no TensorFlow Lite model")
    tried(path, _TRIAL)
    return path, content


def trial(path: str) -> None:
    """What the other process does: two runs, and one of every signature.

    The engine's refusals are no concern of it: the same are found again, with their reasons, where
    the model is to be served.
    """
    with contextlib.suppress(ValueError, RuntimeError, TypeError, KeyError, MemoryError):
        module = importlib.import_module("ai_edge_litert.interpreter")
        content = Path(path).read_bytes()
        interpreter = module.Interpreter(model_content=content, num_threads=1)
        _run(interpreter, 1)
        _run(interpreter, 2)
        for key in interpreter.get_signature_list():
            runner = interpreter.get_signature_runner(key)
            runner(**{name: _zeros(d, 1) for name, d in runner.get_input_details().items()})


def _run(interpreter: Any, rows: int) -> None:
    inputs = interpreter.get_input_details()
    for details in inputs:
        if -1 in details["shape_signature"]:
            interpreter.resize_tensor_input(details["index"], _zeros(details, rows).shape, True)
    interpreter.allocate_tensors()
    for details in inputs:
        interpreter.set_tensor(details["index"], _zeros(details, rows))
    interpreter.invoke()
    for details in interpreter.get_output_details():
        interpreter.get_tensor(details["index"])


def _zeros(details: Any, rows: int) -> Any:
    signed = details["shape_signature"]
    sizes = signed if len(signed) else details["shape"]
    shape = [(1 if i else rows) if size == -1 else size for i, size in enumerate(sizes)]
    return np.zeros(shape, details["dtype"])


__all__ = ["model_bytes", "trial"]
