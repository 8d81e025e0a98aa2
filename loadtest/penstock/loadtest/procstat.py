"""What Linux tells about a running process, by pure reads of /proc and of its CPU clock.

Knows the files of /proc and their units. Must not know what the process serves, and never signals
or slows it. All functions raise ``ProcessLookupError`` for a process that is gone.

CPU time comes from the process's CPU-time clock (nanoseconds; user + system of all threads, dead
ones included). /proc/PID/stat tells the same in ticks of 10 ms, which is too coarse for a round of
a second with one connection; it is read where the clock is refused.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK_HZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class ProcStat:
    """One look at a process. Subtract two of them field by field to get a run's share."""

    cpu_s: float
    user_s: float
    system_s: float
    rss_bytes: int
    fds: int
    threads: int
    switches_voluntary: int
    switches_forced: int


def read(pid: int) -> ProcStat:
    """Everything at once; costs about 100 µs and a little per thread and open file."""
    user_s, system_s = cpu_split_s(pid)
    voluntary, forced, threads = _switches(pid)
    return ProcStat(
        cpu_s=cpu_s(pid),
        user_s=user_s,
        system_s=system_s,
        rss_bytes=rss_bytes(pid),
        fds=fd_count(pid),
        threads=threads,
        switches_voluntary=voluntary,
        switches_forced=forced,
    )


def cpu_s(pid: int) -> float:
    """User + system seconds of all threads since the process started."""
    try:
        # The kernel's id of another process's CPU clock: see CPUCLOCK_* in <linux/posix-timers.h>.
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return sum(cpu_split_s(pid))


def cpu_split_s(pid: int) -> tuple[float, float]:
    """(user, system) seconds of all threads, in steps of a tick (10 ms)."""
    # The command's name, in brackets, may hold anything, so fields are counted from its end.
    fields = _text(pid, "stat").rpartition(")")[2].split()
    return int(fields[11]) / _TICK_HZ, int(fields[12]) / _TICK_HZ


def rss_bytes(pid: int) -> int:
    """Resident memory now."""
    return int(_text(pid, "statm").split()[1]) * _PAGE_BYTES


def fd_count(pid: int) -> int:
    """Open file descriptors now."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return _text(pid, "stat").rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False


def _switches(pid: int) -> tuple[int, int, int]:
    """(voluntary switches, forced switches, threads) summed over the threads alive now."""
    voluntary = forced = threads = 0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    for task in tasks:
        try:
            lines = _text(pid, f"task/{task}/status").splitlines()
        except ProcessLookupError:  # the thread ended since it was listed
            continue
        threads += 1
        for line in lines:
            if line.startswith("voluntary_ctxt_switches:"):
                voluntary += int(line.split()[1])
            elif line.startswith("nonvoluntary_ctxt_switches:"):
                forced += int(line.split()[1])
    return voluntary, forced, threads


def _text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
