"""TensorRT or TensorRT for RTX: two libraries with one Python API, of which one or both are there.

Knows their module names, element types and logging. Everything of theirs that we call is called in
``build`` and ``session``, on the module that a ``Library`` holds.

Contract: importing this file imports neither. A library is imported once and kept: its logger has
to outlive whatever was made with it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from types import MappingProxyType
from typing import Any, Final

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.options import KINDS
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import TensorSpec

_log = logging.getLogger(__name__)

MODULES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    # The package of the plain name is a shell around the bindings, and does not have to be there.
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
})  # fmt: skip
DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "tensorrt": ("tensorrt", "tensorrt_cu13_bindings", "tensorrt_cu12_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx"),
})  # fmt: skip
EXTRAS: Final[Mapping[str, str]] = MappingProxyType({
    "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx",
})  # fmt: skip
DTYPES: Final[Mapping[str, DType]] = MappingProxyType({
    "BOOL": dt.BOOL,
    "UINT8": dt.UINT8,
    "INT8": dt.INT8,
    "INT32": dt.INT32,
    "INT64": dt.INT64,
    "HALF": dt.FP16,
    "BF16": dt.BF16,
    "FLOAT": dt.FP32,
})  # fmt: skip
_RECENT: Final = 32
_ERROR: Final = 1
_WARNING: Final = 2


class Said:
    """What a library logged of late, by thread: its functions only say that they failed."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, int, str]] = deque(maxlen=_RECENT)
        self._heard: dict[int, list[str]] = {}

    def hear(self, severity: int, text: str) -> None:
        """Called by the library on any of its threads."""
        line = clean(text)
        if severity <= _WARNING:
            thread = threading.get_ident()
            self._lines.append((thread, severity, line))
            heard = self._heard.get(thread)
            if heard is not None and line not in heard[-_RECENT:]:
                heard.append(line)
        _log.log(logging.INFO if severity <= _WARNING else logging.DEBUG, "%s", line)

    def forget(self) -> None:
        self._lines.clear()

    def why(self) -> str:
        """The last complaint made on this thread, else on any; empty if there is none."""
        mine = threading.get_ident()
        lines = list(self._lines)  # at once, because others may be heard meanwhile
        errors = [(thread, line) for thread, severity, line in lines if severity <= _ERROR]
        own = [line for thread, line in errors if thread == mine]
        return (own or [line for _, line in errors] or [""])[-1]

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """Every warning and error of this thread meanwhile, whatever others say and forget; but
        not again and again."""
        heard = self._heard[threading.get_ident()] = []
        try:
            yield heard
        finally:
            del self._heard[threading.get_ident()]


class Library:
    """One of the two. ``trt`` is its module; ``logger`` what it wants to be given everywhere."""

    def __init__(self, kind: str, trt: Any) -> None:
        self.kind = kind
        self.trt = trt
        self.version = str(trt.__version__)
        self.said = Said()
        self.logger = _logger(trt, self.said)
        # TensorRT brings operators such as NonZero as plugins, which it has to be asked for.
        register = getattr(trt, "init_libnvinfer_plugins", None)
        if register is not None:
            register(self.logger, "")

    def spec(self, kind: str, name: str, dtype: Any, shape: Any) -> TensorSpec:
        """The spec of an input or output.

        Raises:
            LoadError: an element type that does not travel.
        """
        found = DTYPES.get(dtype.name)
        if found is None:
            raise LoadError(f"{kind} {name!r} has type {dtype.name}; cast it inside the model")
        return TensorSpec(name, found, tuple(shape))


def _logger(trt: Any, said: Said) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            said.hear(int(severity), message)

    return Logger()


def installed() -> dict[str, str]:
    """The versions of the libraries that are installed, by kind; imports nothing."""
    found = {}
    for kind in KINDS:
        if any(_is_there(module) for module in MODULES[kind]):
            found[kind] = _version(kind)
    return found


def _is_there(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    # A folder of this name on the path is a package too, of nothing.
    return spec is not None and spec.origin is not None


def _version(kind: str) -> str:
    for name in DISTRIBUTIONS[kind]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


@functools.cache
def library(kind: str) -> Library:
    """The library ``kind``, imported.

    Raises:
        LoadError: it is not installed, or cannot be imported.
    """
    failed: Exception | None = None
    for name in MODULES[kind]:
        try:
            return Library(kind, importlib.import_module(name))
        except (ImportError, OSError, RuntimeError) as error:
            if not isinstance(error, ModuleNotFoundError) or failed is None:
                failed = error
    raise LoadError(
        f"backend 'tensorrt' needs its engine: pip install 'penstock[{EXTRAS[kind]}]' ({failed})"
    ) from failed


_NOISE: Final = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"^\[?[\w./]+\.(?:cpp|h|hpp|cu)\S*?:\d+\]?:?\s*"), ""),
    (re.compile(r"^(?:ERROR: |\(\w+\): )"), ""),
    (re.compile(r"\s*In \w+ at \S+\.(?:cpp|h|hpp|cu):\d+"), ""),
    (re.compile(r"^I\w+::\w+: "), ""),
    (re.compile(r"Error Code \d+: "), ""),
    (re.compile(r"\s+"), " "),
)


def clean(text: str) -> str:
    """A library's message as one line, without its source files and functions."""
    for pattern, into in _NOISE:
        text = pattern.sub(into, text)
    return text.strip()
