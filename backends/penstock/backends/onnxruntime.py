"""Runs ONNX models on ONNX Runtime, on the CPU or a CUDA device.

Knows ONNX Runtime's Python API and its errors; options are read by ``onnxruntime_options``. The
engine itself is imported when the first model is loaded. Knows nothing of requests and batches.

Contract, beyond ``base``: sessions are ``thread_safe`` (a run releases the GIL); inputs are shared
with the engine, not copied; outputs are NumPy arrays over memory that the engine gave away. Models
with inputs or outputs that are no tensors are refused. BF16 travels as ``uint16`` bits. BYTES are
UTF-8, because strings cross ONNX Runtime's Python border as ``str``: other bytes are refused with
RunError (``caller_fault`` if they came in, not if the model made them).
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.checks import refusal
from penstock.backends.onnxruntime_options import providers, run_options, session_options
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array, TensorSpec

DTYPES: Final[dict[str, DType]] = {
    "tensor(bool)": dt.BOOL,
    "tensor(uint8)": dt.UINT8,
    "tensor(int8)": dt.INT8,
    "tensor(uint16)": dt.UINT16,
    "tensor(int16)": dt.INT16,
    "tensor(uint32)": dt.UINT32,
    "tensor(int32)": dt.INT32,
    "tensor(uint64)": dt.UINT64,
    "tensor(int64)": dt.INT64,
    "tensor(float16)": dt.FP16,
    "tensor(bfloat16)": dt.BF16,
    "tensor(float)": dt.FP32,
    "tensor(double)": dt.FP64,
    "tensor(string)": dt.BYTES,
}
ONNX_BFLOAT16: Final = 16
"""TensorProto.BFLOAT16; its name is in the onnx package, which serving does not need."""

_LFS: Final = b"version https://git-lfs"

_LOADING = threading.Lock()
"""Creating sessions at the same time from several threads is racy inside the engine."""


class OnnxRuntimeBackend:
    """Makes ``OnnxRuntimeSession``s. Stateless; ``load`` may be called from any thread."""

    name = "onnxruntime"
    default_filename = "model.onnx"

    def load(self, source: ModelSource) -> OnnxRuntimeSession:
        """Loads an ``.onnx`` or ``.ort`` file, or the ``model.onnx`` of a directory.

        Raises:
            LoadError: the package is missing, the file or an option is refused, the device cannot
                be had, or the model speaks of more than tensors.
        """
        ort = _engine()
        path = source.path / self.default_filename if source.path.is_dir() else source.path
        if not path.is_file():
            raise LoadError(f"{source.name}: there is no file {path}")
        _refuse_what_is_no_model(path)
        wanted = providers(ort, source)
        options = session_options(ort, source)
        try:
            with _LOADING:
                # The engine's own fallback prints to stdout and goes on with the CPU.
                made = ort.InferenceSession(str(path), options, wanted, enable_fallback=0)
                made.disable_fallback()
        except Exception as error:
            raise LoadError(f"cannot load {path}: {_reason(error)}") from error
        if made.get_providers()[0] != wanted[0][0]:
            raise LoadError(
                f"{source.name}: device {source.device!r} was asked for, "
                f"but onnxruntime chose {made.get_providers()[0]}"
            )
        return _session_class(source, made)(made, run_options(ort, source), ort)


class OnnxRuntimeSession:
    """One loaded model whose tensors NumPy can hold: what it is given, the engine takes.

    ``symbols`` has for every input, then every output, the graph's own name of the first dimension
    (None where it is fixed, unnamed or absent).
    """

    thread_safe = True

    def __init__(self, made: Any, run_options: Any, ort: Any) -> None:
        self.inputs = tuple(_spec("input", arg) for arg in made.get_inputs())
        self.outputs = tuple(_spec("output", arg) for arg in made.get_outputs())
        self.symbols = tuple(_symbol(arg) for arg in (*made.get_inputs(), *made.get_outputs()))
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._run_options = run_options
        self._ort = ort
        self._made = made
        # The public run adds 1.3 us of checks of what is known here, to 4.9 us for a small model.
        self._run: Callable[..., list[Array]] = getattr(made, "_sess", made).run

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        # zip would drop what is too much, and the engine takes a missing input for an optional one.
        if len(inputs) != len(self._input_names):
            raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
        try:
            feed = dict(zip(self._input_names, inputs))  # noqa: B905 - strict costs 0.2 us
            return self._run(self._output_names, feed, self._run_options)
        except RunError:
            raise
        except Exception as error:
            raise self._refused(error, inputs) from error

    def close(self) -> None:
        """See ``Session.close``."""
        self._run = _closed
        self._made = None

    def _refused(self, error: Exception, inputs: Sequence[Array]) -> RunError:
        text = str(error)
        if "INVALID_ARGUMENT" in text:
            # The engine says what is wrong, but not with which input.
            return RunError(refusal(self.inputs, inputs) or clean(text), caller_fault=True)
        return RunError(clean(text) or type(error).__name__)


class _TextSession(OnnxRuntimeSession):
    """A model with strings: BYTES are ``bytes`` on our side and ``str`` on the engine's."""

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        if len(inputs) == len(self.inputs):
            pairs = zip(self.inputs, inputs, strict=True)
            inputs = [_decoded(s, array) if s.dtype is dt.BYTES else array for s, array in pairs]
        outputs = super().run(inputs)
        return [_encoded(array) if array.dtype == object else array for array in outputs]


class _Bf16Session(OnnxRuntimeSession):
    """A model with BF16, which NumPy has no type for: goes through the engine's own values.

    Costs 30 us a run more than the plain way.
    """

    def __init__(self, made: Any, run_options: Any, ort: Any) -> None:
        super().__init__(made, run_options, ort)
        self._run = self._run_values

    def _run_values(
        self, names: list[str], feed: dict[str, Array], run_options: Any
    ) -> list[Array]:
        values = {
            spec.name: self._value(spec, array)
            for spec, array in zip(self.inputs, feed.values(), strict=True)
        }
        outputs = self._made.run_with_ort_values(names, values, run_options)
        made = [
            _bits(value) if spec.dtype is dt.BF16 else value.numpy()
            for spec, value in zip(self.outputs, outputs, strict=True)
        ]
        # An output that is an input of the graph comes back as that input's own memory.
        given = list(feed.values())
        return [a.copy() if any(np.may_share_memory(a, g) for g in given) else a for a in made]

    def _value(self, spec: TensorSpec, array: Array) -> Any:
        if spec.dtype is not dt.BF16:
            return self._ort.OrtValue.ortvalue_from_numpy(array)
        if array.dtype != spec.dtype.numpy:
            # The engine would take any array for bits.
            raise RunError(str(refusal((spec,), [array])), caller_fault=True)
        return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_BFLOAT16)


class _Bits:
    """Shows the memory of an engine's value to NumPy, and keeps it alive as the array's base."""

    def __init__(self, value: Any, shape: tuple[int, ...]) -> None:
        self.value = value
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dt.BF16.numpy.str,
            "data": (value.data_ptr(), False),
        }


def _bits(value: Any) -> Array:
    shape = tuple(value.shape())
    if 0 in shape:
        return np.empty(shape, dt.BF16.numpy)
    return np.asarray(_Bits(value, shape))


def _closed(*_: object) -> list[Array]:
    raise RunError("the session is closed")


def _engine() -> Any:
    # Newer engines report usage to their maker from a thread, and keep a database in the home
    # directory for it. Only this variable stops both, and it is read at the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise LoadError(
            f"backend 'onnxruntime' needs its engine: pip install 'penstock[onnx]' ({error})"
        ) from error


def _refuse_what_is_no_model(path: Path) -> None:
    """What the engine would call a failure of its parser, or a number."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise LoadError(f"{path} is empty: copy the model there again")
    if head == _LFS:
        raise LoadError(f"{path} is a pointer of Git LFS, not the model: run git lfs pull")


def _session_class(source: ModelSource, made: Any) -> type[OnnxRuntimeSession]:
    types = {arg.type for arg in (*made.get_inputs(), *made.get_outputs())}
    text, bf16 = "tensor(string)" in types, "tensor(bfloat16)" in types
    if text and bf16:
        raise LoadError(
            f"{source.name}: has both strings and BF16 among its inputs and outputs, which ONNX "
            "Runtime cannot pass in one call; cast the BF16 ones to FP32 inside the model"
        )
    return _TextSession if text else _Bf16Session if bf16 else OnnxRuntimeSession


def _spec(kind: str, arg: Any) -> TensorSpec:
    found = DTYPES.get(arg.type)
    if found is None:
        advice = (
            "cast it inside the model"
            if arg.type.startswith("tensor(")
            else "only tensors can be served; for scikit-learn export with zipmap=False"
        )
        raise LoadError(f"{kind} {arg.name!r} has type {arg.type}; {advice}")
    shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in arg.shape)
    return TensorSpec(arg.name, found, shape)


def _symbol(arg: Any) -> str | None:
    first = arg.shape[0] if arg.shape else None
    return first if isinstance(first, str) else None


def _decoded(spec: TensorSpec, array: Array) -> Array:
    """``bytes`` to ``str``: of ``bytes`` the engine would take Python's notation, b'...'."""
    if array.dtype != object:
        return array
    out = np.empty(array.shape, dtype=object)
    flat = out.reshape(-1)
    for i, item in enumerate(array.reshape(-1).tolist()):
        try:
            flat[i] = item.decode()
        except (UnicodeDecodeError, AttributeError) as error:
            raise RunError(
                f"input {spec.name!r}: element {i} is not UTF-8 text, which ONNX Runtime needs",
                caller_fault=True,
            ) from error
    return out


def _encoded(array: Array) -> Array:
    out = np.empty(array.shape, dtype=object)
    flat = out.reshape(-1)
    for i, item in enumerate(array.reshape(-1).tolist()):
        flat[i] = item.encode()
    return out


_NOISE: Final = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "), ""),
    (re.compile(r"^Load model from .*? failed:\s*"), ""),
    # "/src/x.cc:12 void ns::fn(int) const [with T = int] " before the sentence that says why.
    (
        re.compile(
            r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ "
            r"(?:[^()\n]*?\w+::[^()\n]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? )?"
        ),
        "",
    ),
    (
        re.compile(
            r"Non-zero status code returned while running (\w+) node\. "
            r"Name:'([^']*)' Status Message: "
        ),
        r"node \1 '\2': ",
    ),
    (re.compile(r"\s*Please fix either the inputs/outputs or the model\."), ""),
    (re.compile(r"\s+"), " "),
)


def _reason(error: Exception) -> str:
    text = clean(str(error)) or type(error).__name__
    if "fallback to CPU EP" in text:
        return f"{text} Option session.disable_cpu_ep_fallback=0 allows what stays on the CPU."
    return text


def clean(text: str) -> str:
    """An engine's message as one line, without its prefixes, source files and C++ signatures."""
    for pattern, into in _NOISE:
        text = pattern.sub(into, text)
    return text.strip()


__all__ = ["DTYPES", "OnnxRuntimeBackend", "OnnxRuntimeSession", "clean"]
