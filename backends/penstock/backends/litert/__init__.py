"""Runs TensorFlow Lite models on LiteRT, on the CPU.

Knows LiteRT's interpreter and its errors; files are judged by ``file``. The engine itself is
imported when the first model is loaded. Knows nothing of requests and batches.

Contract, beyond ``base``: an interpreter for each worker, made by ``clone``, over the same bytes of
the file; a run releases the GIL. Inputs and outputs are copied by the engine. Quantised tensors are
the integers that they are. BYTES pass as they are. Variables begin each run as the file has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from penstock.backends.base import Engine, LoadError, ModelSource, RunError
from penstock.backends.checks import flag, known_options, only_cpu, refusal
from penstock.backends.litert.file import model_bytes
from penstock.backends.loading import engine, one_line, probed
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec

SIGNATURE: Final = "signature"
XNNPACK: Final = "use_xnnpack"
OPTIONS: Final = (SIGNATURE, XNNPACK)
SERVED: Final = "serving_default"

_DTYPES: Final = {
    np.dtype(np.bytes_): dt.BYTES,
    **{found.numpy: found for found in dt.ALL if found not in (dt.BF16, dt.BYTES)},
}
"""By what the interpreter calls the type; BF16, INT4 and complex numbers are not served."""

_TRIED: Final = (2, 3)
"""Numbers of rows with which the interpreter is asked for the outputs' shapes."""


class LiteRtBackend:
    """Makes ``LiteRtSession``s. Stateless; ``load`` may be called from any thread."""

    name = "litert"
    default_filename = "model.tflite"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        return probed("ai_edge_litert", self.name, "litert")

    def load(self, source: ModelSource) -> LiteRtSession:
        """Loads a ``.tflite`` file, or the ``model.tflite`` of a directory.

        Raises:
            LoadError: the package is missing, the file or an option is refused, the device is not
                the CPU, or the model has tensors of a type that is not served.
        """
        module = engine("ai_edge_litert.interpreter", self.name, "litert")
        known_options(source.options, OPTIONS, self.name)
        only_cpu(source, self.name)
        path, content = model_bytes(source, self.default_filename)
        make = _maker(module, content, source)
        try:
            interpreter = make()
            model = _described(interpreter, source.options.get(SIGNATURE, ""))
            return LiteRtSession(_settled(model, interpreter), make, interpreter)
        except LoadError as error:
            raise LoadError(f"{path}: {error}") from error
        except Exception as error:
            raise LoadError(f"cannot load {path}: {_line(error)}") from error


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a model is served: a subgraph, and numbers of its tensors in the order of the specs.

    ``symbols`` are those of ``LiteRtSession``.
    """

    subgraph: int
    input_numbers: tuple[int, ...]
    output_numbers: tuple[int, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[str | None, ...] = ()


class LiteRtSession:
    """One interpreter: one run at a time.

    ``symbols`` has for every input, then every output, a word that is the same where the engine
    gives outputs as many rows as inputs have (None where the first dimension is fixed).
    """

    thread_safe = False

    def __init__(self, model: Signature, make: Callable[[], Any], interpreter: Any) -> None:
        self.inputs, self.outputs, self.symbols = model.inputs, model.outputs, model.symbols
        self._model, self._make = model, make
        self._interpreter: Any = interpreter
        # The public methods reach the first subgraph only.
        self._native: Any = interpreter._interpreter
        self._scalars = [i for i, spec in enumerate(self.outputs) if not spec.shape]
        self._shapes: list[tuple[int, ...]] | None = None
        """Shapes of the inputs for which memory is laid out."""

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        native, model = self._native, self._model
        if native is None:
            raise RunError("the session is closed")
        shapes = [array.shape for array in inputs]
        try:
            if shapes != self._shapes:
                self._lay_out(inputs, shapes)
            native.ResetVariableTensors()
            for number, array in zip(model.input_numbers, inputs):  # noqa: B905 - as many, see above
                native.SetTensor(number, array, model.subgraph)
            native.Invoke(model.subgraph)
            made = [native.GetTensor(number, model.subgraph) for number in model.output_numbers]
        except RunError:
            raise
        except Exception as error:
            raise self._refused(error, inputs) from error
        for i in self._scalars:  # they come as NumPy's scalars, or as bytes
            made[i] = np.asarray(made[i], self.outputs[i].dtype.numpy)
        return made

    def clone(self) -> LiteRtSession:
        """See ``CloneableSession.clone``."""
        if self._native is None:
            raise LoadError("the session is closed")
        try:
            return LiteRtSession(self._model, self._make, self._make())
        except Exception as error:
            raise LoadError(f"no further session: {_line(error)}") from error

    def close(self) -> None:
        """See ``Session.close``."""
        self._native = self._interpreter = None

    def _lay_out(self, inputs: Sequence[Array], shapes: list[tuple[int, ...]]) -> None:
        """Checks new shapes and gives every tensor its place; takes 1 to 5 us for known sizes."""
        why = refusal(self.inputs, inputs)
        if why is not None:
            raise RunError(why, caller_fault=True)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if 0 in shape:
                raise RunError(
                    f"input {spec.name!r} has shape {list(shape)}; LiteRT cannot run on nothing",
                    caller_fault=True,
                )
        self._shapes = None
        _resize(self._native, self._model, shapes)
        self._shapes = shapes

    def _refused(self, error: Exception, inputs: Sequence[Array]) -> RunError:
        self._shapes = None  # whatever the engine was at, it is to begin anew
        why = refusal(self.inputs, inputs)
        if why is not None:
            return RunError(why, caller_fault=True)
        # Shapes fit one by one, but not together, or not what the model does with them.
        return RunError(_line(error), caller_fault=any(-1 in s.shape[1:] for s in self.inputs))


def _maker(module: Any, content: bytes, source: ModelSource) -> Callable[[], Any]:
    resolvers = module.OpResolverType
    xnnpack = flag(XNNPACK, source.options.get(XNNPACK, "1"))
    resolver = resolvers.BUILTIN if xnnpack else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES

    def make() -> Any:
        return module.Interpreter(
            model_content=content,
            num_threads=source.threads,
            experimental_op_resolver_type=resolver,
        )

    return make


def _described(interpreter: Any, wanted: str) -> Signature:
    """The signature that is served; without any, the first subgraph with its tensors' names."""
    signatures = sorted(interpreter.get_signature_list())
    if wanted and wanted not in signatures:
        have = ", ".join(signatures) or "none"
        raise LoadError(f"option {SIGNATURE!r} is {wanted!r}; the model has {have}")
    if not signatures:
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        return _signature(0, _by_name(inputs), _by_name(outputs))
    key = wanted or (signatures[0] if len(signatures) == 1 else SERVED)
    if key not in signatures:
        raise LoadError(
            f"the model has the signatures {', '.join(signatures)}; "
            f"name one with option {SIGNATURE!r}"
        )
    runner = interpreter.get_signature_runner(key)
    subgraph = interpreter._interpreter.GetSubgraphIndexFromSignature(key)
    return _signature(subgraph, runner.get_input_details(), runner.get_output_details())


def _by_name(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Tensors by their names, which need neither be there nor differ."""
    made: dict[str, Mapping[str, Any]] = {}
    for i, details in enumerate(tensors):
        name = details["name"] or f"tensor_{i}"
        made[name if name not in made else f"{name}_{i}"] = details
    return made


def _signature(
    subgraph: int, inputs: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, Mapping[str, Any]]
) -> Signature:
    return Signature(
        subgraph,
        tuple(int(d["index"]) for d in inputs.values()),
        tuple(int(d["index"]) for d in outputs.values()),
        tuple(_spec("input", name, d) for name, d in inputs.items()),
        tuple(_spec("output", name, d) for name, d in outputs.items()),
    )


def _spec(kind: str, name: str, details: Mapping[str, Any]) -> TensorSpec:
    found = _DTYPES.get(np.dtype(details["dtype"]))
    if found is None:
        stated = np.dtype(details["dtype"]).name
        raise LoadError(f"{kind} {name!r} has type {stated}; convert it inside the model")
    signed = details["shape_signature"]
    shape = signed if len(signed) else details["shape"]
    return TensorSpec(name, found, tuple(int(size) for size in shape))


def _resize(native: Any, model: Signature, shapes: Sequence[tuple[int, ...]]) -> None:
    for number, spec, shape in zip(model.input_numbers, model.inputs, shapes, strict=True):
        if -1 in spec.shape:
            native.ResizeInputTensor(number, np.array(shape, np.int32), True, model.subgraph)
    native.AllocateTensors(model.subgraph)


def _settled(model: Signature, interpreter: Any) -> Signature:
    """``model`` with what the interpreter makes of several rows.

    Converters often leave the declared outputs at one row where inputs are free.

    Raises:
        LoadError, and what the engine raises: the model cannot run here, whatever its input.
    """
    native = interpreter._interpreter
    try:
        _resize(native, model, [_example(spec, 1) for spec in model.inputs])
    except RuntimeError as error:
        # Where more than the rows is free, these sizes may be what the model does not like.
        if "unresolved" in str(error) or not any(-1 in spec.shape[1:] for spec in model.inputs):
            raise
    free = any(spec.shape[:1] == (-1,) for spec in model.inputs)
    first, second = (_outputs_for(native, model, rows) if free else None for rows in _TRIED)
    symbols = ["rows" if spec.shape[:1] == (-1,) else None for spec in model.inputs]
    outputs = []
    for i, spec in enumerate(model.outputs):
        follows = first is not None and second is not None and spec.shape != () and (
            (first[i][:1], second[i][:1]) == tuple((rows,) for rows in _TRIED)
        )  # fmt: skip
        outputs.append(replace(spec, shape=(-1, *spec.shape[1:])) if follows else spec)
        symbols.append("rows" if follows else f"output {i}" if spec.shape[:1] == (-1,) else None)
    return replace(model, outputs=tuple(outputs), symbols=tuple(symbols))


def _outputs_for(native: Any, model: Signature, rows: int) -> list[tuple[int, ...]] | None:
    """The outputs' shapes for so many rows of every free input; None where that is refused."""
    shapes = [_example(spec, rows) for spec in model.inputs]
    try:
        _resize(native, model, shapes)
    except Exception:
        return None
    return [tuple(native.TensorSize(n, model.subgraph).tolist()) for n in model.output_numbers]


def _example(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    sizes = [rows if i == 0 else 1 for i in range(len(spec.shape))]
    return tuple(size if want == -1 else want for size, want in zip(sizes, spec.shape, strict=True))


_SOURCE: Final = re.compile(r"(?:third_party/\S+?/)?tflite/\S+?\.(?:cc|h):\d+ ")


def _line(error: object) -> str:
    """The engine's message as one line, without its source files."""
    text = _SOURCE.sub("", str(error))
    return one_line(text) if text.strip() else type(error).__name__


__all__ = ["LiteRtBackend", "LiteRtSession"]
