"""A float ONNX model on disk: what identifies it, what can be watched, and a session that shows it.

Knows ``onnx`` and ONNX Runtime, both imported when first needed; nothing of histograms. Weights in
external files stay there, so that models of any size can be extended.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.backends.onnxruntime_errors import clean
from penstock.backends.quantize.errors import ModelError
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

FLOATS: Final = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})
_HASH_BYTES: Final = 1 << 22


def engine(name: str) -> Any:
    """The module ``onnx`` or ``onnxruntime``.

    Raises:
        ModelError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"needs {name}: pip install 'penstock[quantize]' ({error})") from error


@dataclass(frozen=True, slots=True)
class FloatModel:
    """A model and where it comes from: ``proto`` with its external data in ``folder``, if any."""

    proto: Any
    name: str
    folder: Path | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes, as ``open_samples`` wants it; constants are not among them.

        Raises:
            ModelError: an input is no tensor, or of a type that NumPy has not.
        """
        constant = {tensor.name for tensor in self.proto.graph.initializer}
        given = (value for value in self.proto.graph.input if value.name not in constant)
        return tuple(map(_spec, given))

    def fingerprint(self) -> str:
        """SHA-256 of the model and of the files its weights are in.

        Raises:
            ModelError: one of them cannot be read.
        """
        digest = hashlib.sha256(self.proto.SerializeToString(deterministic=True))
        for name in _external(self.proto):
            file = (self.folder or Path()) / name
            try:
                with file.open("rb") as opened:
                    while block := opened.read(_HASH_BYTES):
                        digest.update(block)
            except OSError as error:
                raise ModelError(f"cannot read {file}: {error.strerror}") from error
        return digest.hexdigest()

    def activations(self, asked: Iterable[str] | None = None) -> list[str]:
        """Those asked for, or all inputs and whatever nodes of the main graph compute, in order.

        Raises:
            ModelError: one that was asked for is no activation of the main graph.
        """
        graph = self.proto.graph
        constant = {tensor.name for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constant]
        computed = (name for node in graph.node for name in node.output if name)
        known = dict.fromkeys((*inputs, *computed))
        chosen = set(known if asked is None else asked)
        for name in sorted(chosen - known.keys()):
            if name in constant:
                raise ModelError(f"tensor {name!r} is a constant of the model, not an activation")
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModelError(f"the model's main graph has no tensor {name!r}{hint}")
        return [name for name in known if name in chosen]


def read_model(model: Path | Any) -> FloatModel:
    """The model in a file, external data left where they are; or an ``onnx.ModelProto`` itself.

    Raises:
        ModelError: the file is missing or no ONNX model.
    """
    onnx = engine("onnx")
    if not isinstance(model, Path):
        return FloatModel(model, "the model")
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {model}: {error.strerror or error}") from error
    except Exception as error:
        raise ModelError(f"{model} is no ONNX model: {clean(str(error))}") from error
    if not proto.graph.node:
        raise ModelError(f"{model} is no ONNX model: it has no nodes")
    return FloatModel(proto, str(model), model.parent.resolve())


def _external(proto: Any) -> list[str]:
    places = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(places)


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    try:
        found = dt.of_numpy(engine("onnx").helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"input {value.name!r} is no tensor that samples can be of") from error
    sizes = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorSpec(value.name, found, tuple(sizes))


class Watch:
    """A session of the model with some of its tensors as outputs. ``close`` gives it back.

    The model runs as it is written: no optimiser replaces what is to be seen. ``tensors`` are those
    asked for that hold floats, the model's inputs among them; others are left out.
    """

    def __init__(self, model: FloatModel, names: Sequence[str], threads: int) -> None:
        ort = engine("onnxruntime")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
            options.add_session_config_entry(key, "0")
        if model.folder is not None:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(model.folder))
        try:
            self._session = ort.InferenceSession(
                _extended(model.proto, names), options, ["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:
            raise ModelError(f"cannot run {model.name}: {clean(str(error))}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        types = {arg.name: arg.type for arg in (*outputs, *inputs)}
        self.tensors = [name for name in names if types[name] in FLOATS]
        self._given = {arg.name for arg in inputs}
        self._name = model.name

    def run(self, feed: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """The arrays of ``names``, which are among ``tensors``, for a batch.

        Raises:
            ModelError: the model failed.
        """
        computed = [name for name in names if name not in self._given]
        try:
            arrays = self._session.run(computed, feed) if computed else []
        except Exception as error:
            raise ModelError(f"{self._name} failed on a batch: {clean(str(error))}") from error
        yield from ((name, feed[name]) for name in names if name in self._given)
        yield from zip(computed, arrays, strict=True)

    def close(self) -> None:
        """Gives the session's memory back."""
        self._session = None


def _extended(proto: Any, names: Sequence[str]) -> bytes:
    onnx = engine("onnx")
    # A message that shares the nodes: a copy of a model would copy its weights.
    outputs = list(proto.graph.output)
    shown = {value.name for value in (*outputs, *proto.graph.input)}
    added = [onnx.ValueInfoProto(name=name) for name in names if name not in shown]
    proto.graph.output.extend(added)
    try:
        data: bytes = proto.SerializeToString()
    except Exception as error:
        raise ModelError(
            f"the model is too large for one file ({error}): save its weights as external data"
        ) from error
    finally:
        del proto.graph.output[len(outputs) :]
    return data
