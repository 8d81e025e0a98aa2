"""A ModelConfig message to the gateway's values, with every check that needs no model artefact.

Knows: the schema's meaning and bounds. Must not know text formats, files or sessions.

Contract: the message is taken over (its ``name`` is filled in) and belongs to the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Final, Literal, NoReturn

from penstock.protocol.dtype import BY_NAME, BYTES, DType
from penstock.server.model_config import (
    All,
    Checksum,
    ConfigError,
    DeviceKind,
    DynamicBatching,
    InstanceGroup,
    Latest,
    ModelConfig,
    QueuePolicy,
    Specific,
    TensorConfig,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from penstock.server.model_config_accelerator import accelerator_options
from penstock.server.model_config_schema import DATA_TYPES
from penstock.server.model_config_sequence import SequenceBatching, read_sequence_batching
from penstock.server.model_config_support import findings

BACKEND_OF_PLATFORM: Final[Mapping[str, str]] = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""What ``platform`` meant before ``backend`` existed; old repositories still say it."""

_DTYPES: Final[dict[int, DType]] = {
    number: BYTES if label == "TYPE_STRING" else BY_NAME[label.removeprefix("TYPE_")]
    for number, label in DATA_TYPES.items()
    if label != "TYPE_INVALID"
}
DATA_TYPE_NUMBERS: Final[dict[str, int]] = {dtype.name: n for n, dtype in _DTYPES.items()}
"""By the dtype's v2 name: the schema's number."""

_ALGORITHMS: Final[dict[str, Literal["md5", "sha256"]]] = {"MD5": "md5", "SHA256": "sha256"}
_DIGESTS: Final = {"md5": "[0-9a-fA-F]{32}", "sha256": "[0-9a-fA-F]{64}"}

_LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_OWN_LABELS: Final = ("model", "version", "reason", "le")
"""Labels that the metrics have already; a bad name would make the whole page unreadable."""

_KINDS: Final[tuple[DeviceKind, ...]] = ("AUTO", "GPU", "CPU", "MODEL")


def read_message(message: Any, where: object, *, name: str = "") -> ModelConfig:
    """The values of ``message``; ``name`` as in ``parse_pbtxt``.

    Raises:
        ConfigError: names every unsupported field at once, else the first thing that is wrong.
    """
    return _Reader(message, where, name).config()


def check_filename(filename: str) -> str:
    """Why ``filename`` may not be joined to a model's directory; empty if it may."""
    parts = filename.split("/")
    if filename.startswith("/") or ".." in parts or "\\" in filename:
        return f"'{filename}' must be a path inside the model directory"
    return f"{filename!r} holds control characters" if not filename.isprintable() else ""


class _Reader:
    """One reading; holds the origin so that every complaint names it."""

    def __init__(self, message: Any, where: object, name: str) -> None:
        self._message = message
        self._where = where
        self._directory = name

    def config(self) -> ModelConfig:
        m = self._message
        m.name = self._name()
        refused, ignored = findings(m)
        if refused:
            self._fail("not supported: " + "; ".join(refused))
        if m.HasField("max_batch_size") and m.max_batch_size < 0:
            self._fail(f"'max_batch_size' must be non-negative, not {m.max_batch_size}")
        return ModelConfig(
            name=m.name,
            message=m,
            where=str(self._where),
            backend=m.backend or BACKEND_OF_PLATFORM.get(m.platform, ""),
            platform=m.platform,
            max_batch_size=m.max_batch_size if m.HasField("max_batch_size") else None,
            inputs=self._tensors("input", m.input),
            outputs=self._tensors("output", m.output),
            version_policy=self._version_policy(),
            dynamic_batching=self._dynamic_batching(),
            sequence_batching=self._sequence_batching(),
            instance_groups=self._instance_groups(),
            parameters=self._parameters(),
            model_warmup=tuple(self._warmup(i, w) for i, w in enumerate(m.model_warmup)),
            response_cache=m.response_cache.enable,
            decoupled=m.model_transaction_policy.decoupled,
            default_model_filename=self._filename(
                "default_model_filename", m.default_model_filename
            ),
            metric_tags=self._metric_tags(),
            checksums=tuple(self._checksums()),
            ignored=tuple(ignored),
        )

    def _parameters(self) -> dict[str, str]:
        m = self._message
        stated = {key: m.parameters[key].string_value for key in sorted(m.parameters)}
        backend = m.backend or BACKEND_OF_PLATFORM.get(m.platform, "")
        if backend not in ("", "onnxruntime"):
            return stated  # Accelerators are ONNX Runtime's alone.
        try:
            return {**accelerator_options(m), **stated}
        except ValueError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> NoReturn:
        raise ConfigError(self._where, reason)

    def _name(self) -> str:
        stated: str = self._message.name
        if not stated and not self._directory:
            self._fail("model configuration must specify 'name'")
        if stated and self._directory and stated != self._directory:
            self._fail(
                f"unexpected directory name '{self._directory}' for model '{stated}', "
                "directory name must equal model name"
            )
        name = stated or self._directory
        if "/" in name or name in (".", "..") or not name.isprintable():
            self._fail(f"model name {name!r} must not contain path traversal characters")
        return name

    def _filename(self, path: str, filename: str) -> str:
        complaint = check_filename(filename)
        if complaint:
            self._fail(f"{path}: {complaint}")
        return filename

    def _metric_tags(self) -> dict[str, str]:
        tags = dict(sorted(self._message.metric_tags.items()))
        for key in tags:
            if key in _OWN_LABELS or not _LABEL_NAME.fullmatch(key):
                self._fail(
                    f"metric_tags: {key!r} cannot be the name of a label; it needs letters, digits "
                    f"and _ and must not be one of {', '.join(_OWN_LABELS)}"
                )
        return tags

    def _checksums(self) -> Iterator[Checksum]:
        """Of Triton's agent ``checksum``: parameters such as ``MD5:1/model.onnx``."""
        for i, agent in enumerate(self._message.model_repository_agents.agents):
            path = f"model_repository_agents.agents[{i}]"
            if agent.name != "checksum":
                self._fail(f"not supported: {path}: the only agent is 'checksum'")
            for key in sorted(agent.parameters):
                kind, _, name = key.partition(":")
                algorithm = _ALGORITHMS.get(kind.upper())
                if algorithm is None or not name or check_filename(name):
                    self._fail(f"{path}: {key!r} is not MD5:FILE or SHA256:FILE")
                digest = agent.parameters[key].strip()
                if not re.fullmatch(_DIGESTS[algorithm], digest):
                    self._fail(f"{path}: {digest[:80]!r} is no {kind.upper()} of {name}")
                yield Checksum(algorithm, name, digest)

    # -- tensors

    def _tensors(self, kind: str, tensors: Sequence[Any]) -> tuple[TensorConfig, ...]:
        seen: set[str] = set()
        for i, tensor in enumerate(tensors):
            if not tensor.name:
                self._fail(f"{kind}[{i}]: model {kind} must specify 'name'")
            if tensor.name in seen:
                self._fail(f"{kind}[{i}]: {kind} '{tensor.name}' is specified more than once")
            seen.add(tensor.name)
        return tuple(self._tensor(kind, i, tensor) for i, tensor in enumerate(tensors))

    def _tensor(self, kind: str, i: int, tensor: Any) -> TensorConfig:
        path = f"{kind}[{i}] '{tensor.name}'"
        is_input = kind == "input"
        return TensorConfig(
            name=tensor.name,
            dtype=self._dtype(path, tensor.data_type) if tensor.data_type else None,
            dims=self._dims(f"{path}.dims", tensor.dims),
            reshape=self._reshape(path, tensor) if tensor.HasField("reshape") else None,
            optional=is_input and tensor.optional,
            label_filename=(
                "" if is_input else self._filename(f"{path}.label_filename", tensor.label_filename)
            ),
            allow_ragged_batch=is_input and tensor.allow_ragged_batch,
        )

    def _dtype(self, path: str, number: int) -> DType:
        found = _DTYPES.get(number)  # protobuf keeps numbers that the enum lacks
        if found is None:
            self._fail(f"{path}: unsupported data type {number}")
        return found

    def _dims(self, path: str, dims: Sequence[int]) -> tuple[int, ...]:
        for dim in dims:
            if dim < 1 and dim != -1:
                self._fail(
                    f"{path}: dimension must be integer >= 1, or -1 to indicate a variable-size "
                    f"dimension, not {dim}"
                )
        return tuple(dims)

    def _reshape(self, path: str, tensor: Any) -> tuple[int, ...]:
        dims = self._dims(f"{path}.dims", tensor.dims)
        shape = self._dims(f"{path}.reshape.shape", tensor.reshape.shape)
        free = (dims.count(-1), shape.count(-1))
        if not dims or free not in ((0, 0), (1, 1)):
            self._fail(
                f"{path}.reshape: dims {list(dims)} and reshape {list(shape)} must both be fixed, "
                "or have one -1 each"
            )
        held, wanted = prod(dims), prod(shape)
        if held != wanted if free == (0, 0) else (held % wanted and wanted % held):
            self._fail(
                f"{path}.reshape: dims {list(dims)} and reshape {list(shape)} have different "
                "numbers of elements"
            )
        return shape

    # -- versions, batching, instances

    def _version_policy(self) -> VersionPolicy:
        policy = self._message.version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return All()
        if choice == "specific":
            versions = sorted(set(policy.specific.versions))
            if not versions or versions[0] < 1:
                self._fail(f"version_policy.specific: {versions} must name versions >= 1")
            return Specific(tuple(versions))
        return Latest(policy.latest.num_versions or 1)

    def _dynamic_batching(self) -> DynamicBatching | None:
        m = self._message
        if not m.HasField("dynamic_batching"):
            return None
        d = m.dynamic_batching
        most = m.max_batch_size if m.HasField("max_batch_size") else None
        for size in d.preferred_batch_size:
            if size < 1:
                self._fail("dynamic batching preferred size must be positive")
            if most is not None and size > most:
                self._fail(f"dynamic batching preferred size must be <= max batch size ({most})")
        self._check_priorities(d)
        return DynamicBatching(
            preferred_batch_size=tuple(d.preferred_batch_size),
            max_queue_delay_us=d.max_queue_delay_microseconds,
            preserve_ordering=d.preserve_ordering,
            priority_levels=d.priority_levels,
            default_priority_level=d.default_priority_level,
            default_queue_policy=_queue_policy(d.default_queue_policy),
            priority_queue_policy={
                level: _queue_policy(d.priority_queue_policy[level])
                for level in sorted(d.priority_queue_policy)
            },
        )

    def _check_priorities(self, d: Any) -> None:
        levels, default = d.priority_levels, d.default_priority_level
        if levels and not 1 <= default <= levels:
            self._fail(f"default priority level must be in range [1, {levels}], not {default}")
        if default and not levels:
            self._fail("default_priority_level needs priority_levels")
        for level in d.priority_queue_policy:
            if not 1 <= level <= levels:
                self._fail(f"priority queue policy level {level} must be in range [1, {levels}]")

    def _sequence_batching(self) -> SequenceBatching | None:
        m = self._message
        if not m.HasField("sequence_batching"):
            return None
        if m.model_transaction_policy.decoupled:
            self._fail("sequence_batching: a decoupled model cannot have sequences here")
        try:
            return read_sequence_batching(m.sequence_batching, self._dtype, self._filename)
        except ValueError as error:
            self._fail(str(error))

    def _instance_groups(self) -> tuple[InstanceGroup, ...]:
        return tuple(
            self._instance_group(i, group) for i, group in enumerate(self._message.instance_group)
        )

    def _instance_group(self, i: int, group: Any) -> InstanceGroup:
        path = f"instance_group[{i}]"
        if group.count < 0 or group.kind not in range(len(_KINDS)):
            self._fail(f"{path}: count {group.count} or kind {group.kind} is out of range")
        kind = _KINDS[group.kind]
        if group.gpus and kind in ("CPU", "MODEL"):
            self._fail(f"{path} has kind KIND_{kind} but specifies one or more GPUs")
        if any(gpu < 0 for gpu in group.gpus):
            self._fail(f"{path}: gpus {list(group.gpus)} must be >= 0")
        group.name = group.name or f"{self._message.name}_{i}"
        group.count = group.count or 1
        return InstanceGroup(group.name, kind, group.count, tuple(group.gpus))

    # -- warm-up

    def _warmup(self, i: int, warmup: Any) -> Warmup:
        path = f"model_warmup[{i}]"
        m = self._message
        if not warmup.name:
            self._fail(f"{path}: must specify 'name'")
        rows = warmup.batch_size or 1
        if m.HasField("max_batch_size") and rows > max(1, m.max_batch_size):
            self._fail(f"{path}: batch_size {rows} exceeds max_batch_size {m.max_batch_size}")
        inputs = {
            key: self._warmup_input(f"{path}.inputs[{key}]", warmup.inputs[key])
            for key in sorted(warmup.inputs)
        }
        return Warmup(warmup.name, rows, warmup.count or 1, inputs)

    def _warmup_input(self, path: str, given: Any) -> WarmupInput:
        if not given.data_type:
            self._fail(f"{path}: must specify 'data_type'")
        dtype, dims = self._dtype(path, given.data_type), self._dims(f"{path}.dims", given.dims)
        if -1 in dims:
            self._fail(f"{path}: dims {list(dims)} must be fixed sizes")
        choice = given.WhichOneof("input_data_type")
        if choice is None:
            self._fail(f"{path}: must specify zero_data, random_data or input_data_file")
        if choice == "input_data_file":
            filename = self._filename(path, given.input_data_file)
            return WarmupInput(dtype, dims, "file", filename)
        return WarmupInput(dtype, dims, "zero" if choice == "zero_data" else "random")


def _queue_policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        timeout_action="DELAY" if policy.timeout_action else "REJECT",
        default_timeout_us=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
