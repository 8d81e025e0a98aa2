"""Finds OpenVINO and reads model files with it; says in words what is wrong with either.

Knows the package, its frontends and its messages. Knows nothing of options, arrays and running.

Contract: the engine is imported at the first call, once, and reports nothing to its maker. Files
that are no models raise LoadError in one line. TensorFlow Lite files are tried in a process of
their own first: sizes that cannot be end the process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
import sys
import threading
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource
from penstock.backends.loading import head_of, one_line, tried

INSTALL: Final = "pip install 'penstock[openvino]'"
FILENAMES: Final = ("model.xml", "model.onnx", "model.tflite")

_TELEMETRY: Final = "openvino_telemetry"
_HEAD_BYTES: Final = 4096
_FRONTENDS: Final = {".onnx": "onnx", ".tflite": "tflite"}

_TRIAL: Final = """
from penstock.backends.openvino import runtime
runtime.trial(sys.argv[1])
"""

_MAPPED: Final = False
"""A frontend that is asked for by name does not know what its ``Core`` was told."""

_importing = threading.Lock()
_core: Any = None


def engine() -> tuple[Any, Any]:
    """The module and the one ``Core`` of this process.

    Raises:
        LoadError: the package is missing, or cannot be imported.
    """
    global _core
    with _importing:
        try:
            ov = _imported()
            if _core is None:
                _core = ov.Core()
                # A weights file that is written over while it is mapped kills the process.
                _core.set_property({"ENABLE_MMAP": False})
        except Exception as error:
            raise LoadError(f"backend 'openvino' needs its engine: {INSTALL} ({error})") from error
        return ov, _core


def found() -> Engine:
    """See ``Probing.engine``."""
    try:
        _, core = engine()
        version = importlib.metadata.version("openvino")
        return Engine(version, tuple(core.available_devices))
    except Exception as error:
        return Engine(missing=str(error))


def _imported() -> Any:
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    # The import alone sends a message to the maker and puts an identity into the home directory,
    # unless the package for it is missing; it has no switch that a program could set.
    absent = object()
    before = sys.modules.get(_TELEMETRY, absent)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if before is absent:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]


def model_file(source: ModelSource) -> Path:
    """The model of ``source``: the file itself, or the one that its directory holds.

    Raises:
        LoadError: there is none, or it cannot be a model.
    """
    path = source.path
    if path.is_dir():
        there = [path / name for name in FILENAMES if (path / name).is_file()]
        if not there:
            raise LoadError(f"{source.name}: {path} holds none of {', '.join(FILENAMES)}")
        path = there[0]
    head = head_of(source.name, path, _HEAD_BYTES)
    if path.suffix != ".xml" and path.suffix not in _FRONTENDS:
        raise LoadError(f"{path}: backend 'openvino' reads .xml, .onnx and .tflite files")
    _refuse_what_is_no_model(path, head)
    return path


def _refuse_what_is_no_model(path: Path, head: bytes) -> None:
    """What the engine would hand to one frontend after the other, each with complaints."""
    if path.suffix == ".xml":
        stated = re.search(rb"<net\s[^>]*?\bversion=\"(\d+)\"", head)
        if stated is None:
            raise LoadError(f"{path} is no OpenVINO model: it has no <net version=...>")
        if stated[1] not in (b"10", b"11"):
            raise LoadError(
                f"{path} is IR version {stated[1].decode()}; this engine reads 10 and 11: "
                "convert the original model again"
            )
        if not path.with_suffix(".bin").is_file() and b"<weights" not in head:
            _need_weights(path)
    if path.suffix == ".tflite":
        if head[4:8] != b"TFL3":
            raise LoadError(f"{path} is no TensorFlow Lite model")
        tried(path, _TRIAL)


def trial(path: str) -> None:
    """What another process does with a file first; what it refuses is refused again, with a reason,
    where it is to be served.
    """
    with contextlib.suppress(Exception):
        ov, core = engine()
        compiled = core.compile_model(
            read(ov, core, Path(path)), "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        )
        request = compiled.create_infer_request()
        for i, port in enumerate(compiled.inputs):
            sizes = [d.get_length() if d.is_static else 1 for d in port.get_partial_shape()]
            request.set_input_tensor(i, ov.Tensor(port.get_element_type(), ov.Shape(sizes)))
        request.infer()


def _need_weights(path: Path) -> None:
    if b'type="Const"' in path.read_bytes():
        raise LoadError(
            f"{path.with_suffix('.bin')} is missing: an IR model is {path.name} with the .bin file "
            "of the same name beside it"
        )


def read(ov: Any, core: Any, path: Path) -> Any:
    """The model of a file. Raises what the engine raises."""
    framework = _FRONTENDS.get(path.suffix)
    if framework is None:
        return core.read_model(str(path))
    frontend = ov.frontend.FrontEndManager().load_by_framework(framework)
    return frontend.convert(frontend.load(str(path), _MAPPED))


_NOISE: Final = (
    (re.compile(r"Exception from \S+:\d+:?\s*"), ""),
    (re.compile(r"Check '.*?' failed at \S+:\d+:?\s*", re.DOTALL), ""),
    (re.compile(r"Caught exception:\s*"), ""),
)


def clean(error: object) -> str:
    """The engine's message as one line, without its source files and conditions."""
    text = str(error)
    for pattern, into in _NOISE:
        text = pattern.sub(into, text)
    return one_line(text) if text.strip() else type(error).__name__
