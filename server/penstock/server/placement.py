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


def place(groups: Sequence[InstanceGroup], cores: int, device: str = "cpu") -> list[Placement]:
    """Where the workers of a model go.

    Without instance groups: up to two workers that share the CPU's cores, or two on ``device``,
    which is where the backend runs models that nobody placed.
    """
    if not groups:
        if device != "cpu":
            return [Placement(device, WORKERS_AUTO_MAX, 1)]
        count = max(1, min(WORKERS_AUTO_MAX, cores))
        return [Placement("cpu", count, max(1, cores // count))]
    by_device = [(group, _on_gpu(group, device)) for group in groups]
    on_cpu = sum(group.count for group, on_gpu in by_device if not on_gpu)
    threads = max(1, cores // max(1, on_cpu))
    placements = []
    for group, on_gpu in by_device:
        if on_gpu:
            placements += [Placement(f"cuda:{i}", group.count, 1) for i in group.gpus or (0,)]
        else:
            placements.append(Placement("cpu", group.count, threads))
    return placements


def _on_gpu(group: InstanceGroup, device: str) -> bool:
    return group.kind == "GPU" or (group.kind == "AUTO" and device != "cpu")


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
