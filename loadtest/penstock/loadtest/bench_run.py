"""What the parts of the benchmark share: how long to measure, and one place that runs the loads.

Knows the load generator's process. Must not know what is compared.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from penstock.loadtest import machine, procstat
from penstock.loadtest.blast import Plan, Result
from penstock.loadtest.blast_cli import describe, run_apart

OTHERS_MAX = 0.05
"""Share of the cores; the load itself cannot be told from others' better than that."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure: every run takes ``warmup_s + seconds``, everything ``rounds`` times."""

    rounds: int
    seconds: float
    warmup_s: float


QUICK = Pace(rounds=3, seconds=0.6, warmup_s=0.2)
FULL = Pace(rounds=7, seconds=1.5, warmup_s=0.3)


@dataclass(slots=True)
class Bench:
    """Runs the load generator apart, tells how far it is, remembers what went wrong."""

    pace: Pace
    problems: list[str] = field(default_factory=list)

    def load(self, name: str, plan: Plan) -> Result:
        """Run one plan in another process."""
        result = run_apart(plan)
        self.tell(f"{name}: {describe(result)}")
        if result.errors:
            self.problems.append(f"{name}: {describe(result)}")
        return result

    @contextmanager
    def alone(self, *pids: int) -> Iterator[list[str]]:
        """Watches how much CPU went to others than us, our children and ``pids``.

        The list gets the line to be printed under the table when the block ends.
        """
        verdict: list[str] = []
        started, busy, ours = time.perf_counter(), machine.busy_s(), _cpu_s(pids)
        yield verdict
        others = max(0.0, machine.busy_s() - busy - (_cpu_s(pids) - ours))
        share = others / (time.perf_counter() - started) / (os.cpu_count() or 1)
        verdict.append(f"Other work took {share:.0%} of the cores meanwhile.")
        if share > OTHERS_MAX:
            verdict.append("DISTURBED: the machine was not ours, repeat before quoting figures.")

    def tell(self, text: str) -> None:
        """A progress line for people who wait; not part of the report."""
        print(text, file=sys.stderr, flush=True)


def _cpu_s(pids: Sequence[int]) -> float:
    used = os.times()
    reaped = used.children_user + used.children_system
    return time.process_time() + reaped + sum(procstat.cpu_s(pid) for pid in pids)
