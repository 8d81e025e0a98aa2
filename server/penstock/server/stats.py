"""What one lane counted: plain integers, added to on the hot path and read at scrape time.

Nothing here locks, formats or looks up a label. Each counter has one writer (the event loop), so
readers on the same loop see whole values. All durations are nanoseconds.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

US: Final = 1_000
MS: Final = 1_000_000
S: Final = 1_000_000_000

LATENCY_BOUNDS_NS: Final = (
    *(base * step for base in (100 * US, MS, 10 * MS, 100 * MS, S) for step in (1, 2, 5)),
    10 * S,
)
"""1-2-5 steps from 100 microseconds to 10 seconds."""
BATCH_BOUNDS_ROWS: Final = tuple(1 << i for i in range(11))


class FailReason(enum.Enum):
    """Why a request failed, in the words of Triton's ``nv_inference_request_failure``."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


class Histogram:
    """Counts per bucket; ``counts[i]`` holds values <= ``bounds[i]``, the last one the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Sequence[int]) -> None:
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)


class BatchStats:
    """Runs of one batch size: how many, and the time spent in each phase."""

    __slots__ = ("compute_infer_ns", "compute_input_ns", "compute_output_ns", "count")

    def __init__(self) -> None:
        self.count = 0
        self.compute_input_ns = 0
        self.compute_infer_ns = 0
        self.compute_output_ns = 0


class LaneStats:
    """The counters of one loaded model version.

    Triton's meaning: ``success_count`` requests that were answered with a result and
    ``success_ns`` their total time from arrival to reply; ``response_count`` the replies of
    decoupled models, none or many a request; ``inference_count`` rows; ``execution_count`` batches;
    ``queue_ns`` summed per request; the three compute phases are
    summed per request too (each request of a batch is charged the batch's whole time).
    """

    __slots__ = (
        "batch_rows", "batches", "compute_infer_ns", "compute_input_ns", "compute_output_ns",
        "execution_count", "fail_count", "fail_ns", "inference_count", "last_inference_ms",
        "latency", "queue", "queue_ns", "response_count", "success_count", "success_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.success_count = 0
        self.success_ns = 0
        self.response_count = 0
        self.fail_count = dict.fromkeys(FailReason, 0)
        self.fail_ns = 0
        self.queue_ns = 0
        self.compute_input_ns = 0
        self.compute_infer_ns = 0
        self.compute_output_ns = 0
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        """Wall-clock milliseconds since the epoch of the last successful batch; 0 for none."""
        self.batches: dict[int, BatchStats] = {}
        self.latency = Histogram(LATENCY_BOUNDS_NS)
        self.queue = Histogram(LATENCY_BOUNDS_NS)
        self.batch_rows = Histogram(BATCH_BOUNDS_ROWS)

    def succeeded(self, latencies: Sequence[int], waits: Sequence[int]) -> None:
        """Counts the answered requests of one batch: times from arrival to reply, and to start."""
        self.success_count += len(latencies)
        self.success_ns += sum(latencies)
        self.queue_ns += sum(waits)
        self.latency.add_all(latencies)
        self.queue.add_all(waits)

    def ran(
        self, jobs: int, rows: int, input_ns: int, infer_ns: int, output_ns: int, at_ms: int
    ) -> None:
        """Counts one successful batch: its size, its phases, the wall-clock time of its end."""
        self.inference_count += rows
        self.execution_count += 1
        self.compute_input_ns += input_ns * jobs
        self.compute_infer_ns += infer_ns * jobs
        self.compute_output_ns += output_ns * jobs
        self.last_inference_ms = at_ms
        self.batch_rows.add(rows)
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStats()
        batch.count += 1
        batch.compute_input_ns += input_ns
        batch.compute_infer_ns += infer_ns
        batch.compute_output_ns += output_ns
