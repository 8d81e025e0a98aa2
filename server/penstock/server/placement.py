"""How many sessions and workers a model gets, on which devices, with how many cores each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.server.model_config import InstanceGroup

WORKERS_AUTO_MAX = 2
"""Two keep the device busy while one of them hands results over; more only split batches."""


@dataclass(frozen=True, slots=True)
class Placement:
    """``count`` workers on ``device``, each run using ``threads`` cores."""

    device: str
    count: int
    threads: int


def place(groups: Sequence[InstanceGroup], cores: int) -> list[Placement]:
    """Where the workers of a model go.

    Without instance groups: up to two workers on the CPU that share its cores.
    """
    if not groups:
        count = max(1, min(WORKERS_AUTO_MAX, cores))
        return [Placement("cpu", count, max(1, cores // count))]
    on_cpu = sum(group.count for group in groups if group.kind != "GPU")
    threads = max(1, cores // max(1, on_cpu))
    placements = []
    for group in groups:
        if group.kind == "GPU":
            placements += [Placement(f"cuda:{i}", group.count, 1) for i in group.gpus or (0,)]
        else:
            placements.append(Placement("cpu", group.count, threads))
    return placements


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, bounded by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # No control group of version 2, or none that limits.
    return cores
