"""The models of the conformance cases, as one repository for Triton and the same for Penstock.

Knows ``config.pbtxt`` and how each side is given a model's code: Triton a Python model, Penstock an
ONNX file (its fake backend's file for what ONNX has no words for) of the same names, types, shapes
and results. Must not know cases or servers.

``LOADED`` models are there at the start of a case; ``SPARE`` ones lie in the repository for the
cases that load them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from penstock.backends import fake

CODE: Final = Path(__file__).with_name("triton_model.py")

_FAKE: Final = {
    "repeat": {"kind": "repeat", "times": "-1", "dtype": "INT32", "shape": "", "poison": "99"},
}

Tensor = tuple[str, str, Sequence[int]]
"""Name, KServe type, sizes without the batch."""

_ONNX: Final = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """``kind`` names the result: a method of ``triton_model`` and a graph of ``_GRAPHS``."""

    name: str
    kind: str
    batch_rows_max: int
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    more: str = ""
    versions: Sequence[str] = ("1",)
    labels: Sequence[str] = ()


def _identity(name: str, batch: int, datatype: str, dims: Sequence[int], **more: Any) -> Model:
    tensors = [("INPUT0", datatype, dims)], [("OUTPUT0", datatype, dims)]
    return Model(name, "identity", batch, *tensors, **more)


def _add_sub(name: str, batch: int, dims: Sequence[int]) -> Model:
    tensors = [[(f"{way}{i}", "INT32", dims) for i in (0, 1)] for way in ("INPUT", "OUTPUT")]
    return Model(name, "add_sub", batch, *tensors)


_TYPES: Final = [t.lower() for t in _ONNX]

LOADED: Final = [
    _add_sub("simple", 8, [16]),
    _add_sub("simple_nobatch", 0, [1, 4]),
    *(_identity(f"identity_{t}", 8, t.upper(), [-1]) for t in _TYPES),
    _identity("identity_2d", 0, "FP32", [-1, -1]),
    _identity("text1", 8, "BYTES", [1]),
    Model("three", "three", 8, [(n, "FP32", [2]) for n in "ABC"], [("SUM", "FP32", [2])]),
    _identity("classes", 8, "FP32", [4], labels=("cat", "dog", "cow")),
    _identity("classes_nobatch", 0, "FP32", [2, 2], labels=("cat", "dog", "cow", "hen")),
    _identity("versions", 8, "INT32", [2], versions=("1", "2", "3"),
              more="version_policy { specific { versions: [1, 3] } }"),
    Model("gather", "gather", 0, [("INPUT0", "INT64", [-1])], [("OUTPUT0", "FP32", [-1])]),
    Model("generate", "generate", 8, [("text_input", "BYTES", [1])],
          [("text_output", "BYTES", [1])]),
]  # fmt: skip
SPARE: Final = [
    _identity("spare", 8, "FP32", [-1]),
    Model("broken", "broken", 0, [("INPUT0", "FP32", [1])], [("OUTPUT0", "FP32", [1])]),
]
DECOUPLED: Final = [
    Model(
        "repeat", "repeat", 0, [("INPUT0", "INT32", [-1])], [("OUTPUT0", "INT32", [-1])],
        more="model_transaction_policy { decoupled: true }",
    ),
]  # fmt: skip
"""Models that answer a request any number of times."""
FIXED: Final = [LOADED[0], SPARE[1]]
"""For the server whose models are all loaded at the start, of which one cannot be."""
MODELS: Final = {"explicit": [*LOADED, *SPARE], "fixed": FIXED, "decoupled": DECOUPLED}
"""The repository of each ``case.Server``."""


def write(folder: Path, models: Sequence[Model], *, triton: bool) -> None:
    """Makes ``folder`` a repository of ``models`` for one side."""
    for model in models:
        own = folder / model.name
        for version in model.versions:
            place = own / version
            place.mkdir(parents=True)
            if triton:
                shutil.copy(CODE, place / "model.py")
                (place / "kind").write_text(model.kind)
            elif model.kind in _FAKE:
                (place / "model.fake").write_bytes(fake.artefact(_FAKE[model.kind]))
            else:
                (place / "model.onnx").write_bytes(onnx_bytes(model))
        (own / "config.pbtxt").write_text(config(model, triton=triton))
        if model.labels:
            (own / "labels.txt").write_text("".join(f"{label}\n" for label in model.labels))


def config(model: Model, *, triton: bool) -> str:
    """Its ``config.pbtxt``."""
    labels = ' label_filename: "labels.txt"' if model.labels else ""
    ours = "fake" if model.kind in _FAKE else "onnxruntime"
    lines = [
        f'backend: "{"python" if triton else ours}"',
        f"max_batch_size: {model.batch_rows_max}",
        *(f"input {{ {_field(tensor)} }}" for tensor in model.inputs),
        *(f"output {{ {_field(tensor)}{labels} }}" for tensor in model.outputs),
        model.more,
    ]
    return "\n".join(lines) + "\n"


def _field(tensor: Tensor) -> str:
    name, datatype, dims = tensor
    kind = {"BYTES": "STRING"}.get(datatype, datatype)
    return f'name: "{name}" data_type: TYPE_{kind} dims: {list(dims)}'


def onnx_bytes(model: Model) -> bytes:
    """The ONNX file that does what the Python model of this kind does."""
    if model.kind == "broken":
        return b"this is no ONNX file"
    nodes, constants = _nodes(model)
    graph = helper.make_graph(
        nodes, model.name,
        [_value(model, tensor) for tensor in model.inputs],
        [_value(model, tensor) for tensor in model.outputs],
        constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    out: bytes = proto.SerializeToString(deterministic=True)
    return out


def _nodes(model: Model) -> tuple[list[Any], list[Any]]:
    ins, outs = [t[0] for t in model.inputs], [t[0] for t in model.outputs]
    match model.kind:
        case "add_sub":
            pairs = zip(("Add", "Sub"), outs, strict=True)
            return [helper.make_node(operator, ins, [out]) for operator, out in pairs], []
        case "three":
            return [helper.make_node("Sum", ins, outs)], []
        case "gather":
            table = helper.make_tensor("T", TensorProto.FLOAT, [4], [0.0, 1.0, 2.0, 3.0])
            return [helper.make_node("Gather", ["T", *ins], outs)], [table]
        case _:
            pairs = zip(ins, outs, strict=True)
            return [helper.make_node("Identity", [i], [o]) for i, o in pairs], []


def _value(model: Model, tensor: Tensor) -> Any:
    name, datatype, dims = tensor
    sizes = [f"{name}_{i}" if size < 0 else size for i, size in enumerate(dims)]
    shape = ["N", *sizes] if model.batch_rows_max else sizes
    return helper.make_tensor_value_info(name, _ONNX[datatype], shape)
