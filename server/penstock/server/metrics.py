"""Prometheus text from the lanes' counters, made when it is asked for.

Names and meaning of the ``nv_*`` metrics are Triton's, so that its dashboards work; the
``penstock_*`` histograms are what it lacks. Durations of ``nv_*`` are microseconds, of
``penstock_*`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from penstock.server.models import ModelTable, ModelVersion
from penstock.server.stats import FailReason, Histogram, LaneStats, S

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Value = Callable[[LaneStats], int]
_COUNTERS: Final[tuple[tuple[str, str, _Value], ...]] = (
    ("nv_inference_request_success", "Requests answered with a result",
     lambda s: s.success_count),
    ("nv_inference_count", "Rows inferred (a request with 3 rows counts 3)",
     lambda s: s.inference_count),
    ("nv_inference_exec_count", "Batches run", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Time from arrival to reply, summed over requests",
     lambda s: s.success_ns // 1000),
    ("nv_inference_queue_duration_us", "Time in the queue, summed over requests",
     lambda s: s.queue_ns // 1000),
    ("nv_inference_compute_input_duration_us", "Time to gather inputs, summed over requests",
     lambda s: s.compute_input_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Time in the model, summed over requests",
     lambda s: s.compute_infer_ns // 1000),
    ("nv_inference_compute_output_duration_us", "Time to hand out outputs, summed over requests",
     lambda s: s.compute_output_ns // 1000),
    ("penstock_stream_responses", "Responses of decoupled models",
     lambda s: s.response_count),
)  # fmt: skip


def exposition(models: ModelTable, connections: Mapping[str, int]) -> bytes:
    """The whole page; ``connections`` are those open now, by port."""
    return ("\n".join(_lines(models, connections)) + "\n").encode()


def _lines(models: ModelTable, connections: Mapping[str, int]) -> Iterator[str]:
    ready = [(entry, _labels(entry)) for entry in models if entry.loaded is not None]
    for name, text, value in _COUNTERS:
        yield from _head(name, text, "counter")
        yield from (f"{name}{{{labels}}} {value(_stats(entry))}" for entry, labels in ready)
    name = "nv_inference_request_failure"
    yield from _head(name, "Requests answered with an error or cancelled, by reason", "counter")
    for entry, labels in ready:
        for reason in FailReason:
            count = _stats(entry).fail_count[reason]
            yield f'{name}{{{labels},reason="{reason.value}"}} {count}'
    name = "nv_inference_pending_request_count"
    yield from _head(name, "Requests waiting in the queue", "gauge")
    for entry, labels in ready:
        if entry.loaded is not None:
            yield f"{name}{{{labels}}} {entry.loaded.lane.waiting}"
    name = "nv_model_load_duration_secs"
    yield from _head(name, "Time it took to load the model", "gauge")
    for entry, labels in ready:
        if entry.loaded is not None:
            yield f"{name}{{{labels}}} {entry.loaded.load_s:.6f}"
    yield from _histograms(ready)
    name = "penstock_model_ready"
    yield from _head(name, "1 if the model version can be served, else 0", "gauge")
    for entry in models:
        yield f"{name}{{{_labels(entry)}}} {int(entry.loaded is not None)}"
    for name, text, count in (
        ("penstock_model_loads_succeeded", "Model versions loaded since the start",
         models.loads.succeeded),
        ("penstock_model_loads_failed", "Model versions that failed to load, since the start",
         models.loads.failed),
    ):  # fmt: skip
        yield from _head(name, text, "counter")
        yield f"{name} {count}"
    name = "penstock_connections"
    yield from _head(name, "Open client connections, by port", "gauge")
    for port, count in connections.items():
        yield f'{name}{{port="{port}"}} {count}'


def _histograms(ready: list[tuple[ModelVersion, str]]) -> Iterator[str]:
    kinds: tuple[tuple[str, str, Callable[[LaneStats], Histogram], int], ...] = (
        ("penstock_request_duration_seconds", "Time from arrival to reply",
         lambda s: s.latency, S),
        ("penstock_queue_duration_seconds", "Time from arrival to the start of the batch",
         lambda s: s.queue, S),
        ("penstock_batch_rows", "Rows of the batches that were run", lambda s: s.batch_rows, 1),
    )  # fmt: skip
    for name, text, histogram_of, unit in kinds:
        yield from _head(name, text, "histogram")
        for entry, labels in ready:
            histogram, seen = histogram_of(_stats(entry)), 0
            for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
                seen += count
                yield f'{name}_bucket{{{labels},le="{bound / unit:g}"}} {seen}'
            seen += histogram.counts[-1]
            yield f'{name}_bucket{{{labels},le="+Inf"}} {seen}'
            yield f"{name}_sum{{{labels}}} {histogram.total / unit:.9g}"
            yield f"{name}_count{{{labels}}} {seen}"


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _stats(entry: ModelVersion) -> LaneStats:
    if entry.loaded is None:
        raise ValueError("only loaded versions have statistics")
    return entry.loaded.lane.stats


def _labels(entry: ModelVersion) -> str:
    tags = dict(entry.loaded.config.metric_tags) if entry.loaded is not None else {}
    labels = {"model": entry.name, "version": entry.version, **tags}
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
