"""Joins what the operator stated with what the model's artefact declares.

Knows: the rules of auto-completion and of agreement between a configuration and a session's specs.
Must not know backends or files: specs come in as values (batch dimension included), labels are read
from the model's directory by ``load_labels`` alone.

Contract: ``complete`` gives a configuration in which nothing is left open and whose i-th input and
output are the session's i-th, or says which tensor disagrees and how. What the operator stated
keeps its value; only the order follows the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn

from penstock.protocol.dtype import DType
from penstock.protocol.message import TensorSpec
from penstock.server.model_config import ConfigError, ModelConfig, TensorConfig
from penstock.server.model_config_read import DATA_TYPE_NUMBERS, check_filename, read_message
from penstock.server.model_config_schema import DATA_TYPES, ModelConfigMessage

BATCH_BYTES_MAX: Final = 32 << 20
BATCH_ROWS_MIN: Final = 8
BATCH_ROWS_MAX: Final = 512
BATCH_ROWS_UNKNOWN_SIZE: Final = 64
LABEL_BYTES_MAX: Final = 64 << 20

Specs = tuple[TensorSpec, ...]


def is_batchable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether every tensor starts with a free dimension, as a batch dimension must be."""
    tensors = (*inputs, *outputs)
    return bool(inputs) and all(spec.shape[:1] == (-1,) for spec in tensors)


def complete(
    config: ModelConfig | None,
    *,
    name: str,
    inputs: Specs,
    outputs: Specs,
    batchable: bool,
    backend: str,
    rows_limit: int = 0,
    default_model_filename: str = "",
    label_filenames: Mapping[str, str] | None = None,
) -> ModelConfig:
    """``config``, or nothing, filled up from the session's ``inputs`` and ``outputs``.

    ``batchable`` is the backend's word that the first free dimension counts independent rows, and
    ``rows_limit`` how many of them the session takes at most, 0 where it sets no limit;
    ``label_filenames`` are by output and used where the operator stated none. Without a stated
    ``max_batch_size`` a batchable model gets dynamic batches of as many rows as fit
    ``BATCH_BYTES_MAX``, unless the stated dims already include the batch dimension. Outputs that
    the operator left out are served too, and ``ignored`` says so.

    Raises:
        ConfigError: the configuration and the model disagree.
    """
    joining = _Joining(config, name, inputs, outputs)
    message = joining.message
    message.backend = message.backend or (config.backend if config else "") or backend
    message.default_model_filename = message.default_model_filename or default_model_filename
    joining.choose_batching(batchable and is_batchable(inputs, outputs), rows_limit)
    joining.fill_tensors()
    joining.fill_labels(label_filenames or {})
    joining.state_version_policy()
    done = read_message(message, joining.where or f"model '{name}'", name=name)
    joining.check(done)
    return replace(done, ignored=tuple(dict.fromkeys((*done.ignored, *joining.notes))))


def rows_that_fit(shapes: Sequence[tuple[DType, Sequence[int]]]) -> int:
    """How many rows of inputs with these dtypes and row shapes make a reasonable largest batch."""
    if any(dtype.itemsize == 0 or min(dims, default=1) < 0 for dtype, dims in shapes):
        return BATCH_ROWS_UNKNOWN_SIZE
    row_bytes = sum(dtype.itemsize * prod(dims) for dtype, dims in shapes)
    return min(BATCH_ROWS_MAX, max(BATCH_ROWS_MIN, BATCH_BYTES_MAX // max(1, row_bytes)))


class _Joining:
    """One completion: ``message`` is a copy of the stated configuration, filled step by step."""

    def __init__(
        self, config: ModelConfig | None, name: str, inputs: Specs, outputs: Specs
    ) -> None:
        self.message: Any = ModelConfigMessage()
        if config is not None:
            self.message.CopyFrom(config.message)
        self.message.name = self.message.name or name
        self.where = config.where if config is not None else ""
        self.notes = list(config.ignored) if config is not None else []
        self._model = name
        self._sides = (("input", inputs), ("output", outputs))

    def _fail(self, reason: str) -> NoReturn:
        raise ConfigError(self.where, reason)

    def choose_batching(self, batchable: bool, rows_limit: int) -> None:
        m = self.message
        if m.HasField("max_batch_size"):
            return
        m.max_batch_size = 0
        if not batchable or not self._dims_exclude_batch():
            return
        stated = {tensor.name: tensor.dims for tensor in m.input}
        rows = rows_that_fit(
            [(s.dtype, stated.get(s.name) or s.shape[1:]) for s in self._sides[0][1]]
        )
        rows = max(rows, *m.dynamic_batching.preferred_batch_size, 0)
        m.max_batch_size = min(rows, rows_limit) if rows_limit else rows
        if m.WhichOneof("scheduling_choice") is None:
            m.dynamic_batching.SetInParent()

    def _dims_exclude_batch(self) -> bool:
        """Stated dims tell what the operator meant; the first tensor that states some decides."""
        for kind, specs in self._sides:
            ranks = {spec.name: len(spec.shape) for spec in specs}
            for tensor in getattr(self.message, kind):
                if tensor.dims and tensor.name in ranks:
                    reshaped = tensor.HasField("reshape")
                    dims = tensor.reshape.shape if reshaped else tensor.dims
                    return len(dims) < ranks[tensor.name]
        return True

    def fill_tensors(self) -> None:
        """Every tensor of the session, in its order, with what was stated about it."""
        for kind, specs in self._sides:
            field = getattr(self.message, kind)
            known = [spec.name for spec in specs]
            stated = {tensor.name: tensor for tensor in field}
            for name in stated:
                if name not in known:
                    self._unknown(kind, name, known)
            missing = [name for name in known if stated and name not in stated]
            if missing:
                self._miss(kind, missing)
            filled = [self._filled(type(field.add()), stated.get(s.name), s) for s in specs]
            del field[:]
            field.extend(filled)

    def _filled(self, make: Any, stated: Any, spec: TensorSpec) -> Any:
        tensor = make(name=spec.name)
        if stated is not None:
            tensor.CopyFrom(stated)
        tensor.data_type = tensor.data_type or DATA_TYPE_NUMBERS[spec.dtype.name]
        if not tensor.dims:
            tensor.dims.extend(spec.shape[1 if self.message.max_batch_size else 0 :])
        return tensor

    def _miss(self, kind: str, names: Sequence[str]) -> None:
        listed = ", ".join(names)
        if kind == "input":
            self._fail(
                f"model '{self._model}': the model configuration lacks the model's input(s) "
                f"{listed}; state all inputs or none"
            )
        self.notes.append(f"output: the model's output(s) {listed} are not stated and served too")

    def _unknown(self, kind: str, name: str, known: Sequence[str]) -> NoReturn:
        self._fail(
            f"model '{self._model}': unexpected inference {kind} '{name}', "
            f"allowed {kind}s are: {', '.join(known)}"
        )

    def state_version_policy(self) -> None:
        policy = self.message.version_policy
        if policy.WhichOneof("policy_choice") in (None, "latest"):
            policy.latest.num_versions = policy.latest.num_versions or 1

    def fill_labels(self, filenames: Mapping[str, str]) -> None:
        for tensor in self.message.output:
            tensor.label_filename = tensor.label_filename or filenames.get(tensor.name, "")

    def check(self, done: ModelConfig) -> None:
        for (_, specs), tensors in zip(self._sides, (done.inputs, done.outputs), strict=True):
            for tensor, spec in zip(tensors, specs, strict=True):
                self._check_tensor(done.max_batch_size or 0, tensor, spec)

    def _check_tensor(self, max_batch_size: int, tensor: TensorConfig, spec: TensorSpec) -> None:
        start = f"model '{self._model}', tensor '{tensor.name}': "
        if tensor.dtype is not spec.dtype:
            self._fail(
                f"{start}the model expects data type {_type_name(spec.dtype)} but the model "
                f"configuration specifies {_type_name(tensor.dtype)}"
            )
        if max_batch_size and spec.shape[:1] != (-1,):
            first = f"is fixed to {spec.shape[0]}" if spec.shape else "does not exist"
            self._fail(
                f"{start}max_batch_size {max_batch_size} needs a model whose first dimension is "
                f"free, but it {first} (shape {_text(spec.shape)}); export the model with a "
                "dynamic batch axis, or set max_batch_size: 0 and state dims with all dimensions"
            )
        dims = tensor.dims if tensor.reshape is None else tensor.reshape
        shape = (-1, *dims) if max_batch_size else dims
        if len(shape) != len(spec.shape) or any(
            want not in (-1, dim) for want, dim in zip(spec.shape, shape, strict=True)
        ):
            count = len(spec.shape)
            batch = f" (with the batch dimension of max_batch_size {max_batch_size})"
            self._fail(
                f"{start}the model expects {count} dimension{'' if count == 1 else 's'} (shape "
                f"{_text(spec.shape)}) but the model configuration specifies {len(shape)} (shape "
                f"{_text(shape)}){batch if max_batch_size else ''}"
            )


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _type_name(dtype: DType | None) -> str:
    return "none" if dtype is None else DATA_TYPES[DATA_TYPE_NUMBERS[dtype.name]]


def load_labels(model_dir: Path, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The class labels of every output that names a label file: line i is the label of index i.

    Raises:
        ConfigError: a file is missing, too long or no UTF-8 text.
    """
    return {
        output.name: _read_labels(model_dir, output.label_filename, config)
        for output in config.outputs
        if output.label_filename
    }


def _read_labels(model_dir: Path, filename: str, config: ModelConfig) -> tuple[str, ...]:
    complaint = check_filename(filename)
    path = model_dir / filename
    try:
        if not complaint and path.stat().st_size > LABEL_BYTES_MAX:
            complaint = f"{path} is longer than {LABEL_BYTES_MAX} bytes"
        text = "" if complaint else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        complaint = f"cannot read {path}: {error}"
    if complaint:
        raise ConfigError(config.where, f"label_filename: {complaint}")
    return tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n")) if text else ()
