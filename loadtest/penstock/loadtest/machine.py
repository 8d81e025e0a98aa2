"""On what a figure was measured, how busy that was, who runs on which core, and table cells.

Knows /proc, versions, CPU affinity and medians. Must not know what was measured.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path


def line() -> str:
    """CPU, cores, versions and date."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("onnxruntime", "uvloop"))
    return (
        f"{_cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {versions}, {datetime.date.today().isoformat()}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (min..max)``; a dash when there is nothing."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def busy_s() -> float:
    """Seconds that all cores together worked since the start, and that the host took from them."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(word) for word in Path("/proc/stat").read_text().split(maxsplit=11)[1:11]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cores_apart() -> tuple[set[int], set[int]]:
    """(for the server, for the load generator): all but one, and that one; the same if only one.

    Left to itself the scheduler sometimes puts both on one core, sometimes not, which changes the
    cost of waking up and with it the figures of one connection by a factor of two.
    """
    cores = sorted(os.sched_getaffinity(0))
    return (set(cores[:-1]), {cores[-1]}) if len(cores) > 1 else (set(cores), set(cores))


@contextmanager
def children_on(cores: set[int]) -> Iterator[None]:
    """Processes started within the block by this thread run on ``cores``, for their whole life."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_model() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = text.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
