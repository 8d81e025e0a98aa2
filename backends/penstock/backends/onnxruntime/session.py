"""A model that ONNX Runtime has loaded: its tensors, and running it.

Knows ONNX Runtime's Python API, given as the imported module. Knows nothing of files and options.

Contract, beyond ``base``: sessions are ``thread_safe`` (a run releases the GIL); inputs are shared
with the engine, not copied; outputs are NumPy arrays over memory that the engine gave away. A clone
shares everything but what interrupts its runs. An interrupt takes effect between two nodes of the
graph. BF16 travels as ``uint16`` bits. BYTES are UTF-8, because strings cross ONNX Runtime's Python
border as ``str``: other bytes are refused with RunError (``caller_fault`` if they came in, not if
the model made them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import numpy as np

from penstock.backends.base import LoadError, RunError
from penstock.backends.checks import refusal
from penstock.backends.onnxruntime_errors import run_reason
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


def session_of(
    model: str, made: Any, options_of_runs: Callable[[], Any], ort: Any
) -> OnnxRuntimeSession:
    """The session over an ``InferenceSession``; ``options_of_runs`` makes ``RunOptions``.

    Raises:
        LoadError: the model has inputs or outputs that cannot be served.
    """
    types = {arg.type for arg in (*made.get_inputs(), *made.get_outputs())}
    text, bf16 = "tensor(string)" in types, "tensor(bfloat16)" in types
    if text and bf16:
        raise LoadError(
            f"{model}: has both strings and BF16 among its inputs and outputs, which ONNX "
            "Runtime cannot pass in one call; cast the BF16 ones to FP32 inside the model"
        )
    kind = _TextSession if text else _Bf16Session if bf16 else _NumberSession
    return kind(made, options_of_runs, ort)


class OnnxRuntimeSession:
    """One loaded model whose tensors NumPy can hold: what it is given, the engine takes.

    ``symbols`` has for every input, then every output, the graph's own name of the first dimension
    (None where it is fixed, unnamed or absent).
    """

    thread_safe = True

    def __init__(self, made: Any, options_of_runs: Callable[[], Any], ort: Any) -> None:
        self.inputs = tuple(_spec("input", arg) for arg in made.get_inputs())
        self.outputs = tuple(_spec("output", arg) for arg in made.get_outputs())
        self.symbols = tuple(_symbol(arg) for arg in (*made.get_inputs(), *made.get_outputs()))
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._options_of_runs = options_of_runs
        self._run_options = options_of_runs()
        self._ort = ort
        self._made = made
        # The public run adds 1.3 us of checks of what is known here, to 4.9 us for a small model.
        self._run: Callable[..., list[Array]] = getattr(made, "_sess", made).run

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        # zip would drop what is too much, and the engine takes a missing input for an optional one.
        if len(inputs) != len(self._input_names):
            raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
        options = self._run_options
        options.terminate = False
        try:
            feed = dict(zip(self._input_names, inputs))  # noqa: B905 - strict costs 0.2 us
            return self._run(self._output_names, feed, options)
        except RunError:
            raise
        except Exception as error:
            raise self._refused(error, inputs) from error

    def interrupt(self) -> None:
        """See ``InterruptibleSession.interrupt``; the engine looks before each node."""
        self._run_options.terminate = True

    def clone(self) -> Self:
        """See ``CloneableSession.clone``."""
        if self._made is None:
            raise LoadError("the session is closed")
        return type(self)(self._made, self._options_of_runs, self._ort)

    def close(self) -> None:
        """See ``Session.close``; the engine's memory goes with the last of the clones."""
        self._run = _closed
        self._made = None

    def _refused(self, error: Exception, inputs: Sequence[Array]) -> RunError:
        text = str(error)
        if "INVALID_ARGUMENT" in text:
            # The engine says what is wrong, but not with which input.
            return RunError(refusal(self.inputs, inputs) or run_reason(error), caller_fault=True)
        return RunError(run_reason(error))


class _NumberSession(OnnxRuntimeSession):
    """A model of which every output can be written where the caller wants it."""

    def __init__(self, made: Any, options_of_runs: Callable[[], Any], ort: Any) -> None:
        super().__init__(made, options_of_runs, ort)
        # The public one asks the engine for what is known here, which costs 10 us a run.
        self._binding_of: Callable[[Any], Any] = type(made.io_binding()._iobinding)
        self._cpu = ort.OrtDevice.make("cpu", 0)._get_c_device()

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        """See ``BoundSession.run_into``. Costs 8 us more than ``run``."""
        made = self._made
        if made is None:
            _closed()
        if len(inputs) != len(self._input_names):
            raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
        options = self._run_options
        options.terminate = False
        session = made._sess
        # A binding is not to be shared by threads, and a new one costs 2 us.
        binding = self._binding_of(session)
        try:
            for name, array in zip(self._input_names, inputs, strict=True):
                binding.bind_input(name, array)
            for name, given in zip(self._output_names, outputs, strict=True):
                if given is None:
                    binding.bind_output(name, self._cpu)
                else:
                    address = given.__array_interface__["data"][0]
                    binding.bind_output(name, self._cpu, given.dtype, given.shape, address)
            session.run_with_iobinding(binding, options)
        except Exception as error:
            why = refusal(self.inputs, inputs)
            raise RunError(why or run_reason(error), caller_fault=why is not None) from error
        values = binding.get_outputs()  # Iterating over them would cost 40 us.
        return [_settled(values[i], given, inputs) for i, given in enumerate(outputs)]


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

    def __init__(self, made: Any, options_of_runs: Callable[[], Any], ort: Any) -> None:
        super().__init__(made, options_of_runs, ort)
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
        return [_apart(array, list(feed.values())) for array in made]

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


def _settled(value: Any, given: Array | None, inputs: Sequence[Array]) -> Array:
    """The output in ``value``, which lies in ``given`` unless that is None."""
    if given is None:
        return _apart(value.numpy(), inputs)
    # What is no node's output, a constant or an input, may come as the engine's own memory.
    if given.size and value.data_ptr() != given.__array_interface__["data"][0]:
        made = value.numpy()
        if made.shape != given.shape:
            raise RunError(f"an output has shape {list(made.shape)}, not {list(given.shape)}")
        given[...] = made
    return given


def _apart(array: Array, given: Sequence[Array]) -> Array:
    """``array``, or a copy: an output that is an input of the graph comes back as that memory."""
    return array.copy() if any(np.may_share_memory(array, other) for other in given) else array


def _closed(*_: object) -> list[Array]:
    raise RunError("the session is closed")


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
