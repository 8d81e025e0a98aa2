"""NVIDIA's perf_analyzer, a Triton load generator in C++: fetched, run, and its report read.

Its binary is inside an old tritonclient wheel; it is linked against CUDA's runtime (taken from the
package registry) and Debian's libb64. Knows that wheel, its flags and the form of its report. Must
not know which server answers.
"""

from __future__ import annotations

import csv
import ctypes.util
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.loadtest import fetched

_WHEELS = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12>=12.2,<13")
RUN_S_MAX = 300
_COMPLAINT = re.compile("fail|error|warn", re.IGNORECASE)


class Failed(Exception):
    """It ended badly or complained; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask, how: ``shape`` as INPUT0:4194304 for free dimensions, ``memory`` none or
    system; ``output_bytes`` is the room for each output in shared memory."""

    model: str
    authority: str
    protocol: str
    concurrency: int
    window_s: float = 1.0
    shape: str = ""
    memory: str = "none"
    output_bytes: int = 0

    def flags(self) -> list[str]:
        """Windows by time, and any spread of them is stable: the spread is ours to judge."""
        flags = [
            "-m", self.model, "-u", self.authority, "-i", self.protocol,
            "--concurrency-range", str(self.concurrency), "--measurement-mode", "time_windows",
            "--measurement-interval", str(max(1, round(self.window_s * 1000))),
            "--stability-percentage", "999", "--max-trials", "3",
        ]  # fmt: skip
        if self.shape:
            flags += ["--shape", self.shape]
        if self.memory != "none":
            flags += ["--shared-memory", self.memory]
            flags += ["--output-shared-memory-size", str(self.output_bytes)]
        return flags


@dataclass(frozen=True, slots=True)
class Report:
    """The line of its report: inferences a second and latencies in µs."""

    inferences_s: float
    p50_us: float
    p99_us: float
    columns: dict[str, float]


class Analyzer:
    """The program, ready to run."""

    def __init__(self) -> None:
        """
        Raises:
            fetched.Unobtainable: not for this machine, or something is missing here.
        """
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise fetched.Unobtainable("perf_analyzer exists for x86-64 Linux only")
        if ctypes.util.find_library("b64") is None and not _has_b64():
            raise fetched.Unobtainable("perf_analyzer needs libb64: apt install libb64-0d")
        environment = fetched.venv("perf-analyzer", ["--no-deps", *_WHEELS])
        cudart = fetched.packages(environment) / "nvidia" / "cuda_runtime" / "lib"
        self._program = environment / "bin" / "perf_analyzer"
        self._variables = {**os.environ, "LD_LIBRARY_PATH": str(cudart)}

    def run(self, load: Load) -> Report:
        """
        Raises:
            Failed: it did not measure, or told of an error.
        """
        return self.run_flags(load.flags())

    def run_flags(self, flags: Sequence[str]) -> Report:
        """As ``run``, with flags of perf_analyzer's own."""
        with tempfile.TemporaryDirectory(prefix="penstock-analyzer-") as folder:
            out = Path(folder, "report.csv")
            try:
                done = subprocess.run(
                    [str(self._program), *flags, "-f", str(out)], env=self._variables,
                    capture_output=True, text=True, check=False, timeout=RUN_S_MAX,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise Failed(f"no result in {RUN_S_MAX} s: {' '.join(flags)}") from None
            said = done.stdout + done.stderr
            if done.returncode or _COMPLAINT.search(said) or not out.exists():
                raise Failed(f"perf_analyzer {' '.join(flags)}\n{said}")
            (line,) = csv.DictReader(out.read_text().splitlines())
        columns = {name: float(value) for name, value in line.items() if name and value}
        return Report(
            columns["Inferences/Second"], columns["p50 latency"], columns["p99 latency"], columns
        )


def _has_b64() -> bool:
    return any(Path("/usr/lib").rglob("libb64.so.0d"))
