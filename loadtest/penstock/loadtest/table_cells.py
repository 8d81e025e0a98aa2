"""What the performance table measures: models, the settings they are served with, and cells.

Knows the ONNX files of ``models`` and ``config.pbtxt``, which Penstock and Triton are given alike.
Must not know how a cell is measured. Contract: names of cells are their own, so that parts of a
table can be asked for by patterns: ``add_sub/grpc/32``, ``identity/http+shm/*``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from penstock.loadtest import h2load, models

_BATCH_ROWS_MAX: Final = 64
_IDENTITY_ELEMENTS: Final = 4 * 1024**2
TRITON_DELAY_US: Final = 500


@dataclass(frozen=True)
class Model:
    """``batched``: whether Triton is told to batch it dynamically; Penstock is not told.

    ``shape`` gives sizes to free dimensions as perf_analyzer reads them; ``output_bytes`` is the
    room that its outputs need in shared memory, each."""

    name: str
    write: Callable[[Path], None]
    inputs: Sequence[tuple[str, str, Sequence[int]]]
    outputs: Sequence[tuple[str, str, Sequence[int]]]
    output_bytes: int
    batched: bool = False
    shape: str = ""


_ROW = ("INT32", [16])
_IMAGE = [3, 224, 224]

MODELS: Final = {
    model.name: model
    for model in (
        Model(
            "add_sub", models.write_add_sub,
            [("INPUT0", *_ROW), ("INPUT1", *_ROW)], [("OUTPUT0", *_ROW), ("OUTPUT1", *_ROW)], 64,
        ),
        Model(
            "mlp512", lambda path: models.write_mlp(path, 512),
            [("INPUT0", "FP32", [784])], [("OUTPUT0", "FP32", [10])], 40, batched=True,
        ),
        Model(
            "mlp2048", lambda path: models.write_mlp(path, 2048),
            [("INPUT0", "FP32", [784])], [("OUTPUT0", "FP32", [10])], 40, batched=True,
        ),
        Model(
            "image_mean", models.write_image_mean,
            [("INPUT0", "FP32", _IMAGE)], [("OUTPUT0", "FP32", [1])], 4,
        ),
        Model(
            "identity", models.write_identity,
            [("INPUT0", "FP32", [-1])], [("OUTPUT0", "FP32", [-1])],
            4 * _IDENTITY_ELEMENTS, shape=f"INPUT0:{_IDENTITY_ELEMENTS}",
        ),
    )
}  # fmt: skip

_CONCURRENCIES: Final = {
    "add_sub": (1, 8, 32),
    "mlp512": (1, 8, 32),
    "mlp2048": (1, 16, 64),
    "image_mean": (1, 4),
    "identity": (1, 4),
}
TRANSPORTS: Final = ("http", "grpc", "http+shm", "grpc+shm")
_BY_H2LOAD: Final = ("add_sub", "mlp512")


@dataclass(frozen=True)
class Cell:
    """``transport`` is one of ``TRANSPORTS``, or ``h2load`` for gRPC by that client."""

    model: Model
    transport: str
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.transport}/{self.concurrency}"

    @property
    def protocol(self) -> str:
        return "http" if self.transport.startswith("http") else "grpc"

    @property
    def memory(self) -> str:
        return "system" if self.transport.endswith("+shm") else "none"


def cells() -> Iterator[Cell]:
    """All of the table, in the order of its rows."""
    for name, counts in _CONCURRENCIES.items():
        for transport in TRANSPORTS:
            yield from (Cell(MODELS[name], transport, count) for count in counts)
        if name in _BY_H2LOAD:
            yield Cell(MODELS[name], "h2load", 32)


def h2load_request(model: Model, served_as: str) -> bytes:
    """One row for h2load, of numbers that are always the same."""
    random = np.random.default_rng(0)
    tensors = []
    for name, datatype, dims in model.inputs:
        kind = {"INT32": "<i4", "FP32": "<f4"}[datatype]
        row = random.integers(0, 100, dims).astype(kind)
        tensors.append((name, datatype, [1, *dims], row.tobytes()))
    return h2load.message(served_as, tensors)


@dataclass(frozen=True)
class Setting:
    """How Triton serves a model; its copies of a model differ by ``suffix``.

    ``delay_us`` is of dynamic batching, for those models that are batched."""

    suffix: str
    instances: int
    delay_us: int


USUAL: Final = Setting("", 1, TRITON_DELAY_US)
"""One instance, as Triton has it where nothing is said, and a delay of half a millisecond."""
OTHERS: Final = (
    Setting("-i2", 2, TRITON_DELAY_US),
    Setting("-d0", 1, 0),
    Setting("-i2-d0", 2, 0),
)


def settings(model: Model) -> list[Setting]:
    """Those that make a difference to a model."""
    return [USUAL, *(s for s in OTHERS if model.batched or s.delay_us == TRITON_DELAY_US)]


def write_penstock(folder: Path) -> None:
    """A repository in which nothing is tuned: Penstock learns how to batch and when to thread."""
    for model in MODELS.values():
        _write(folder / model.name, model, "dynamic_batching { }" if model.batched else "")


def write_triton(folder: Path) -> None:
    """The same models, each under all of Triton's settings."""
    for model in MODELS.values():
        for setting in settings(model):
            group = f"instance_group {{ count: {setting.instances} kind: KIND_CPU }}"
            delay = f"max_queue_delay_microseconds: {setting.delay_us}"
            batching = f"dynamic_batching {{ {delay} }}" if model.batched else ""
            _write(folder / (model.name + setting.suffix), model, f"{group}\n{batching}")


def _write(folder: Path, model: Model, more: str) -> None:
    model.write(folder / "1" / "model.onnx")
    fields = [
        f'{way} {{ name: "{name}" data_type: TYPE_{datatype} dims: {list(dims)} }}'
        for way, tensors in (("input", model.inputs), ("output", model.outputs))
        for name, datatype, dims in tensors
    ]
    head = ['backend: "onnxruntime"', f"max_batch_size: {_BATCH_ROWS_MAX}"]
    (folder / "config.pbtxt").write_text("\n".join([*head, *fields, more, ""]))
