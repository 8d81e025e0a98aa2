"""Which fields of config.pbtxt Penstock does not act on, and what happens when one is set.

Knows: the table, by field path. Two fates: *refused*, where serving the model without the field
would give other results than its author meant; *ignored*, where only speed or placement differ.
A field in neither table is acted on. Must not know how fields are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import Message

_TENSORRT_ONLY: Final = "it steers Triton's TensorRT backend only"

REFUSED: Final[dict[str, str]] = {
    "sequence_batching.iterative_sequence": "requests are not rescheduled",
    "ensemble_scheduling": "ensembles are not implemented; call the models one after another",
    "batch_input": "inputs derived from a ragged batch are not implemented",
    "batch_output": "outputs scattered over a ragged batch are not implemented",
    "input.allow_ragged_batch": "ragged batches are not implemented; requests of equal shapes "
    "share a batch without it",
    "input.is_shape_tensor": "TensorRT shape tensors are not implemented",
    "output.is_shape_tensor": "TensorRT shape tensors are not implemented",
    "input.is_non_linear_format_io": "TensorRT's non-linear formats are not implemented",
    "output.is_non_linear_format_io": "TensorRT's non-linear formats are not implemented",
    "model_operations": "libraries of custom operators execute code and are not loaded",
    "response_cache.enable": "the response cache is not implemented",
    "cc_model_filenames": "one file per compute capability is not implemented; use "
    "default_model_filename",
    "instance_group.passive": "passive instances are not implemented",
    "dynamic_batching.default_queue_policy.timeout_action": "DELAY is not implemented, only REJECT",
    "dynamic_batching.priority_queue_policy.timeout_action": "DELAY is not implemented, only "
    "REJECT",
}

IGNORED: Final[dict[str, str]] = {
    "dynamic_batching.preferred_batch_size": "batches grow while all instances are busy",
    "dynamic_batching.max_queue_delay_microseconds": "an idle instance starts at once, a busy one "
    "lets the batch grow",
    "dynamic_batching.preserve_ordering": "each reply goes to its own request, in any order",
    "dynamic_batching.default_queue_policy.allow_timeout_override": "the shorter of the request's "
    "timeout and the configured one holds",
    "dynamic_batching.priority_queue_policy.allow_timeout_override": "the shorter of the request's "
    "timeout and the configured one holds",
    "dynamic_batching.priority_queue_policy.max_queue_size": "the limit of the whole queue holds",
    "sequence_batching.direct": "requests of different sequences share batches as they come",
    "sequence_batching.oldest": "requests of different sequences share batches as they come",
    "sequence_batching.state.use_growable_memory": "states have the sizes that the model gives",
    "sequence_batching.state.use_same_buffer_for_input_output": "states are copied between "
    "requests",
    "input.optional": "requests must hold every input",
    "optimization.execution_accelerators.cpu_execution_accelerator": "on a CPU the model runs on "
    "the kernels of its backend",
    "optimization.graph": "the backend's own default level applies",
    "optimization.priority": _TENSORRT_ONLY,
    "optimization.cuda": _TENSORRT_ONLY,
    "optimization.input_pinned_memory": "the backend owns the transfers",
    "optimization.output_pinned_memory": "the backend owns the transfers",
    "optimization.gather_kernel_buffer_threshold": _TENSORRT_ONLY,
    "optimization.eager_batching": _TENSORRT_ONLY,
    "instance_group.rate_limiter": "instances share no counted resources",
    "instance_group.host_policy": "placement on the host is the operating system's",
    "instance_group.profile": _TENSORRT_ONLY,
    "instance_group.secondary_devices": "there are no NVDLA cores",
    "runtime": "backends are chosen by name, not by library file",
    "model_metrics": "histograms have fixed buckets",
}


def findings(message: Any) -> tuple[list[str], list[str]]:
    """(refused, ignored) of a ModelConfig message: ``path: reason`` in the schema's order."""
    refused, ignored = [], []
    for path, generic in _set_fields(message, "", ""):
        if generic in REFUSED:
            refused.append(f"{path}: {REFUSED[generic]}")
        elif generic in IGNORED:
            ignored.append(f"{path}: {IGNORED[generic]}")
    return refused, ignored


def _set_fields(message: Any, path: str, generic: str) -> Iterator[tuple[str, str]]:
    """Every field that differs from its default: (path with indices, path without).

    Stops at the fields of the tables, so that one entry stands for all that it holds.
    """
    for field, value in message.ListFields():
        here, kind = f"{path}{field.name}", f"{generic}{field.name}"
        yield here, kind
        if field.message_type is None or kind in REFUSED or kind in IGNORED:
            continue
        for suffix, child in _children(field, value):
            yield from _set_fields(child, f"{here}{suffix}.", f"{kind}.")


def _children(field: Any, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Message):
        yield "", value
    elif not field.message_type.GetOptions().map_entry:
        yield from ((f"[{i}]", child) for i, child in enumerate(value))
    elif field.message_type.fields_by_name["value"].message_type is not None:
        yield from ((f"[{key}]", value[key]) for key in sorted(value))
