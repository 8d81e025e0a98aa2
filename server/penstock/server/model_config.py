"""A model's configuration as the gateway uses it: frozen values, in the gateway's own types.

Knows: what config.pbtxt can say about one model, and the two documents made from it (the v2
configuration and the tensor specs). Must not know files, sessions or the text format:
``model_config_parse`` makes these values, ``model_config_complete`` fills what was left out.

Contract: every value agrees with ``ModelConfig.message``, the protobuf message that it was read
from; nobody changes that message. Dimensions exclude the batch dimension where
``max_batch_size`` > 0. Sizes are rows, times microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from google.protobuf import json_format

from penstock.protocol.dtype import DType
from penstock.protocol.message import TensorSpec
from penstock.server.model_config_sequence import SequenceBatching


class ConfigError(Exception):
    """A configuration that cannot be served. The message is for the operator: where, what, why.

    ``where`` is the file (or other origin), ``line`` counts from 1, 0 where no line is to blame.
    """

    def __init__(self, where: object, reason: str, *, line: int = 0) -> None:
        origin = f"{where}:{line}" if line else str(where)
        super().__init__(f"{origin}: {reason}" if origin else reason)
        self.where = str(where)
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """One input or output. ``dtype`` None and ``dims`` empty mean "as the model has it".

    ``reshape`` is the shape at the model where it differs from ``dims``, which callers see.
    """

    name: str
    dtype: DType | None
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    label_filename: str = ""
    allow_ragged_batch: bool = False


@dataclass(frozen=True, slots=True)
class Latest:
    """Serve the ``n`` highest versions."""

    n: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """Serve every version."""


@dataclass(frozen=True, slots=True)
class Specific:
    """Serve these versions, ascending and without repetition."""

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many requests may wait; 0 means no bound of the model's own."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """Requests of different callers may share a batch.

    ``priority_levels`` 0 means no priorities; else requests have 1 (first) to that number.
    """

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)


DeviceKind = Literal["AUTO", "GPU", "CPU", "MODEL"]


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """``count`` sessions on the CPU, or on each of ``gpus`` (empty: on every GPU there is)."""

    name: str
    kind: DeviceKind = "AUTO"
    count: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """What one input holds in a warm-up request; ``data`` "file" reads ``warmup/<filename>``."""

    dtype: DType
    dims: tuple[int, ...]
    data: Literal["zero", "random", "file"]
    filename: str = ""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request of ``batch_size`` rows that runs ``count`` times before the model is ready."""

    name: str
    batch_size: int
    count: int
    inputs: Mapping[str, WarmupInput]


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file of the model must hash to; ``path`` is relative to the model's directory."""

    algorithm: Literal["md5", "sha256"]
    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of one model.

    ``max_batch_size`` None means "not stated", which only a completed configuration never has; 0
    means that tensors have no batch dimension. ``ignored`` names what was stated but changes
    nothing here, each entry with its reason. ``where`` is the origin for messages.
    """

    name: str
    message: Any = field(repr=False, compare=False)
    where: str = field(default="", compare=False)
    backend: str = ""
    platform: str = ""
    max_batch_size: int | None = None
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    version_policy: VersionPolicy = Latest()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    instance_groups: tuple[InstanceGroup, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    model_warmup: tuple[Warmup, ...] = ()
    response_cache: bool = False
    decoupled: bool = False
    default_model_filename: str = ""
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    checksums: tuple[Checksum, ...] = ()
    ignored: tuple[str, ...] = ()


def metadata_specs(config: ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) as v2 metadata shows them and as requests are checked against.

    In the order of the configuration; in a completed one that is the session's order.

    Raises:
        ConfigError: the configuration is not complete.
    """
    if config.max_batch_size is None:
        raise ConfigError(config.where, f"model '{config.name}' has no max_batch_size yet")
    batch = (-1,) if config.max_batch_size else ()

    def specs(tensors: tuple[TensorConfig, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, _known(config, t), (*batch, *t.dims)) for t in tensors)

    return specs(config.inputs), specs(config.outputs)


def declared(config: ModelConfig) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) at the model, as far as the operator stated them, for engines that cannot
    ask their artefact. A side of which any tensor lacks its type or dims is empty.
    """
    batch = (-1,) if config.max_batch_size else ()

    def specs(tensors: tuple[TensorConfig, ...]) -> tuple[TensorSpec, ...]:
        stated = [
            TensorSpec(t.name, t.dtype, (*batch, *(t.dims if t.reshape is None else t.reshape)))
            for t in tensors
            if t.dtype is not None and (t.dims or t.reshape is not None)
        ]
        return tuple(stated) if len(stated) == len(tensors) else ()

    return specs(config.inputs), specs(config.outputs)


Reshapes = tuple[tuple[int, ...] | None, ...]


def reshapes(config: ModelConfig) -> tuple[Reshapes, Reshapes]:
    """(per input, the row shape that the model takes; per output, the one that callers get).

    None where it is the same on both sides. At most one size is -1: what the elements leave.
    """
    inputs = tuple(tensor.reshape for tensor in config.inputs)
    outputs = tuple(t.dims if t.reshape is not None else None for t in config.outputs)
    return inputs, outputs


def _known(config: ModelConfig, tensor: TensorConfig) -> DType:
    if tensor.dtype is None:
        raise ConfigError(config.where, f"tensor '{tensor.name}' has no data_type yet")
    return tensor.dtype


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The v2 configuration document: upstream's field names, defaults printed, 64-bit as numbers.

    A new dictionary of JSON values at each call.
    """
    document: dict[str, Any] = json_format.MessageToDict(
        config.message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    document.setdefault("max_batch_size", 0)
    _numbers(document, config.message.DESCRIPTOR)
    return document


def _numbers(document: dict[str, Any], descriptor: Any) -> None:
    """Undoes protobuf's JSON habit of quoting 64-bit integers, which clients do not expect."""
    for name, value in document.items():
        field_ = descriptor.fields_by_name[name]
        nested = field_.message_type
        if nested is None:
            if field_.cpp_type in (field_.CPPTYPE_INT64, field_.CPPTYPE_UINT64):
                document[name] = [int(v) for v in value] if isinstance(value, list) else int(value)
        elif nested.GetOptions().map_entry:
            nested = nested.fields_by_name["value"].message_type
            for entry in value.values() if nested is not None else ():
                _numbers(entry, nested)
        else:
            for entry in value if isinstance(value, list) else (value,):
                _numbers(entry, nested)
