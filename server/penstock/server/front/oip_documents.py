"""What the Open Inference Protocol tells about a server and its models, for both of its wires.

Knows: the documents as dictionaries, whose keys are those of JSON and the fields of protobuf alike.
Must not know how they travel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.server.model_control import IndexEntry
from penstock.server.models import ModelState, ModelTable, ModelVersion
from penstock.server.stats import FailReason, LaneStats

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
    "trace",
)
"""What this server does of Triton's extensions."""
SHARED_MEMORY_EXTENSIONS: Final = ("system_shared_memory", "cuda_shared_memory")
"""And where it is allowed."""


def extensions(shared_memory: bool) -> tuple[str, ...]:
    """What server metadata tells; ``shared_memory`` says whether clients may use it."""
    return (*EXTENSIONS, *SHARED_MEMORY_EXTENSIONS) if shared_memory else EXTENSIONS


def index(models: ModelTable, ready_only: bool) -> list[dict[str, str]]:
    """The models and versions of the repository; without those that cannot be served if asked."""
    return index_document(
        IndexEntry(entry.name, entry.version, entry.state, entry.reason)
        for entry in models
        if entry.state is ModelState.READY or not ready_only
    )


def index_document(entries: Iterable[IndexEntry]) -> list[dict[str, str]]:
    """What is not known of an entry is not in it."""
    return [_index_entry(entry) for entry in entries]


def statistics(models: ModelTable, name: str = "", version: str = "") -> dict[str, Any]:
    """Of one loaded version, of all of a model's, or, without a name, of everything.

    Raises:
        InferError: INVALID_ARGUMENT, as in Triton, where there is no such model or version, or it
            is not loaded.
    """
    if not name:
        return {"model_stats": [_statistics(entry) for entry in models if entry.loaded]}
    loaded = [entry for entry in models.versions(name) if entry.loaded]
    if not loaded:
        raise InferError(Code.INVALID_ARGUMENT, f"requested model '{name}' is not available")
    chosen = [entry for entry in loaded if version in ("", entry.version)]
    if not chosen:
        raise InferError(
            Code.INVALID_ARGUMENT, f"requested model version is not available for model '{name}'"
        )
    return {"model_stats": [_statistics(entry) for entry in chosen]}


def _index_entry(entry: IndexEntry) -> dict[str, str]:
    described = {"name": entry.name}
    if entry.state is not None:
        described |= {"version": entry.version, "state": entry.state.value}
    if entry.reason:
        described["reason"] = entry.reason
    return described


def _statistics(entry: ModelVersion) -> dict[str, object]:
    """One model's statistics in Triton's shape; durations in nanoseconds."""
    if entry.loaded is None:
        raise ValueError("only loaded versions have statistics")
    stats: LaneStats = entry.loaded.lane.stats
    count = stats.success_count
    failed = sum(stats.fail_count[reason] for reason in FailReason)
    return {
        "name": entry.name,
        "version": entry.version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {
            "success": _duration(count, stats.success_ns),
            "fail": _duration(failed, stats.fail_ns),
            "queue": _duration(count, stats.queue_ns),
            "compute_input": _duration(count, stats.compute_input_ns),
            "compute_infer": _duration(count, stats.compute_infer_ns),
            "compute_output": _duration(count, stats.compute_output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(batch.count, batch.compute_input_ns),
                "compute_infer": _duration(batch.count, batch.compute_infer_ns),
                "compute_output": _duration(batch.count, batch.compute_output_ns),
            }
            for rows, batch in sorted(stats.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
