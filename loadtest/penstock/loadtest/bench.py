"""``make bench``: what the gateway costs, told as ratios that hold on any machine.

Two questions. *cpu*: server CPU time a request, as a multiple of what the bare echo server of
``echo`` needs for the very same bytes (``bench_cpu``). *throughput*: how much of ONNX Runtime's raw
speed on all cores is left behind the gateway (``bench_throughput``).

Knows the command line, the order of the parts and the form of the report. Starts servers as
processes; must not import them. Never fails on timing: exit status 1 means errors or wrong answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.loadtest import bench_cpu, bench_throughput, children, machine
from penstock.loadtest.bench_run import FULL, QUICK, Bench, Pace


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.bench")
    add = parser.add_argument
    add("--quick", action="store_true", help="less than a minute instead of five")
    add("--rounds", type=int, help=f"instead of {FULL.rounds}, or {QUICK.rounds} with --quick")
    add("--only", choices=("cpu", "throughput"))
    add("--json", type=Path, metavar="OUT", help="write every sample here too")
    args = parser.parse_args(argv)
    children.leave_on_sigterm()
    pace = QUICK if args.quick else FULL
    if args.rounds:
        pace = Pace(max(1, args.rounds), pace.seconds, pace.warmup_s)
    return _report(Bench(pace), args.only, args.json)


def _report(bench: Bench, only: str | None, out: Path | None) -> int:
    print(f"{machine.line()}\n", flush=True)
    samples: dict[str, Any] = {"machine": machine.line()}
    parts = {"cpu": bench_cpu.measure, "throughput": bench_throughput.measure}
    for name, measure in parts.items():
        if only in (None, name):
            table, samples[name] = measure(bench)
            print(f"{table}\n", flush=True)
    samples["problems"] = bench.problems
    if out:
        out.write_text(json.dumps(samples, indent=1))
    for problem in bench.problems:
        print(f"ERROR {problem}")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
