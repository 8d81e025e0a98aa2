"""Brings a float ONNX model into the form that quantisation works on.

Constants are folded, batch normalisation is folded into convolutions, operators nobody needs are
gone, shapes are known, the operator set can express a scale for each channel, every node has a name
of its own. ONNX Runtime's own optimiser does the folding, at the level that keeps to ONNX.

Knows ONNX and ONNX Runtime; nothing of ranges or targets' number formats.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto, version_converter
from onnx.external_data_helper import load_external_data_for_model

from penstock.backends.base import ModelSource
from penstock.backends.onnxruntime.options import session_options
from penstock.backends.onnxruntime_errors import clean
from penstock.backends.quantize.errors import ModelError
from penstock.backends.quantize.model_file import engine

_QUANTISED: Final = frozenset(
    {"ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)
OPSET_MIN: Final = 13
"""The first in which QuantizeLinear and DequantizeLinear have an axis."""
ROOM_BYTES: Final = 1 << 20
"""Beside the model itself, in the folder for temporary files."""
BYTES_MAX: Final = 2**31 - 2**20
"""What fits a protobuf message, less some room for what is added."""


def prepare(path: Path) -> onnx.ModelProto:
    """The model at ``path``, folded and named, with its weights inside.

    Raises:
        ModelError: it is no ONNX model, is too large, is quantised already, or the engine refuses
            it.
    """
    model = _read(path)
    _refuse(path, model)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OPSET_MIN:
        try:
            model = version_converter.convert_version(model, OPSET_MIN)
        except Exception as error:
            raise ModelError(
                f"{path} has operator set {opset}; INT8 needs {OPSET_MIN} and it cannot be "
                f"converted: {line(error)}"
            ) from error
    _close(model)
    folded = _folded(path, model)
    _name_nodes(folded)
    try:
        return onnx.shape_inference.infer_shapes(folded, data_prop=True)
    except Exception as error:
        raise ModelError(f"{path}: shapes cannot be inferred: {line(error)}") from error


def session(model: onnx.ModelProto | bytes | Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU over a model, with the server's own options.

    ``threads`` of 0 is all cores.

    Raises:
        ModelError: the engine refuses the model.
    """
    ort = engine("onnxruntime")
    options = session_options(ort, ModelSource("model", Path(), threads=threads))
    try:
        blob = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        return ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the model: {line(error)}") from error


def line(error: Exception) -> str:
    """An engine's message as one line."""
    return clean(str(error)) or type(error).__name__


def file_bytes(path: Path) -> int:
    """The size of a model's file with the weights that lie beside it."""
    return path.stat().st_size + _beside(onnx.load(path, load_external_data=False))


def _beside(model: onnx.ModelProto) -> int:
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        if not path.stat().st_size:
            raise ModelError(f"{path} is empty")
        model = onnx.load(path, load_external_data=False)
        size = path.stat().st_size + _beside(model)
        if size > BYTES_MAX:
            raise ModelError(
                f"{path} has {size / 2**30:.1f} GiB with its weights; quantising in one file ends "
                "at 2 GiB"
            )
        load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise ModelError(f"{path} is not an ONNX model: {line(error)}") from error
    return model


def _refuse(path: Path, model: onnx.ModelProto) -> None:
    """What would come out wrong rather than not at all."""
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        raise ModelError(f"{path} is quantised already; give the float model")
    stored = (
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute
    )
    weights = (*model.graph.initializer, *stored)
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in weights):
        raise ModelError(
            f"{path} has no FP32 weights, so there is nothing to quantise; export it in FP32"
        )


def _close(model: onnx.ModelProto) -> None:
    """Makes constants of those inputs that have a value: callers never give them."""
    known = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(given)


def _folded(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    ort = engine("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    blob = model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        into = Path(folder) / "folded.onnx"
        _room(into.parent, len(blob))
        options.optimized_model_filepath = str(into)
        try:
            ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path}: ONNX Runtime refuses the model: {line(error)}") from error
        return onnx.load(into)


def _room(folder: Path, nbytes: int) -> None:
    """ONNX Runtime does not tell a full disk from a bad model."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + ROOM_BYTES:
        raise ModelError(
            f"{folder.parent} has {free / 2**20:.0f} MiB left, and the model needs "
            f"{(nbytes + ROOM_BYTES) / 2**20:.0f}: make room, or set TMPDIR to another folder"
        )


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives every node a name that no other has; layers are reported by it."""
    taken: set[str] = set()
    for node in model.graph.node:
        base = name = node.name or f"{node.op_type}_{node.output[0]}"
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        node.name = name
        while node.input and not node.input[-1]:  # says nothing, and TensorRT stumbles over it
            del node.input[-1]
