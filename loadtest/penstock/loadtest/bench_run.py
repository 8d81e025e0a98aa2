"""What the parts of the benchmark share: how long to measure, and one place that runs the loads.

Knows the load generator's process. Must not know what is compared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from penstock.loadtest.blast import Plan, Result
from penstock.loadtest.blast_cli import describe, run_apart


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

    def tell(self, text: str) -> None:
        """A progress line for people who wait; not part of the report."""
        print(text, file=sys.stderr, flush=True)
