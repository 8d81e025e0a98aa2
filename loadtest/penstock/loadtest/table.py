"""``make table``: Penstock beside Triton, in one run, by NVIDIA's own load generator.

Both serve the same ONNX files with the same version of ONNX Runtime, over HTTP and gRPC, with and
without shared memory; perf_analyzer (and h2load) ask one, then the other, cell by cell. Triton is
measured as it usually is (one instance, dynamic batching that waits 500 µs) and, where a first look
says that it is faster, also with the best of its settings for that very cell. Penstock has one
setting: none.

Knows the command line, the order of measurements and the files they end in. Starts servers as
processes; must not import them. Never fails on timing: exit status 1 means that a load was not
served.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from penstock.loadtest import (
    children,
    fetched,
    h2load,
    machine,
    perf_analyzer,
    table_cells,
    table_write,
    triton,
)
from penstock.loadtest.table_cells import USUAL, Cell, Setting
from penstock.loadtest.table_run import Measurement, Row, Server

_QUICK = "add_sub/http/8"


class Table:
    """The measurements so far; kept in a file from the first on, so that an end loses nothing."""

    def __init__(self, out: Path | None, head: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self._out, self._head = out, head

    def measure(
        self, measurement: Measurement, cell: Cell, server: Server, setting: Setting, round_: int
    ) -> None:
        where = f"{cell.name} {server.name}{setting.suffix if server.tuned else ''}"
        try:
            row = measurement.row(cell, server, setting, round_)
        except (perf_analyzer.Failed, h2load.Failed) as error:
            self.problems.append(f"{where}: {error}")
            tell(f"{where}: FAILED")
        else:
            self.rows.append(row)
            told = f"{row.inferences_s:.0f}/s, p99 {row.p99_us:.0f} µs, CPU {row.cpu_us:.1f} µs"
            tell(f"{where}: {told}{', DISTURBED' if row.disturbed else ''}")
        self._keep()

    def _keep(self) -> None:
        if self._out is None:
            return
        rows = [row.document() for row in self.rows]
        document = {**self._head, "problems": self.problems, "rows": rows}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(document, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    arguments = _parser().parse_args(argv)
    children.leave_on_sigterm()
    patterns = [_QUICK] if arguments.quick else arguments.only or ["*"]
    cells = [c for c in table_cells.cells() if any(fnmatch(c.name, p) for p in patterns)]
    if not cells:
        print(f"no cell is like {', '.join(patterns)}", file=sys.stderr)
        return 2
    rounds = 1 if arguments.quick else arguments.rounds
    window_s = 0.3 if arguments.quick else arguments.window_s
    head = {"machine": machine.line(), "rounds": rounds, "window_s": window_s}
    table = Table(None if arguments.quick and not arguments.out else _out(arguments.out), head)
    try:
        with _servers(with_triton=not (arguments.quick or arguments.no_triton)) as servers:
            measurement = Measurement(perf_analyzer.Analyzer(), window_s)
            _measure_all(table, measurement, cells, servers, rounds)
    except fetched.Unobtainable as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    return _report(table, cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m penstock.loadtest.table")
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{_QUICK} of Penstock alone, seconds")
    add("--only", action="append", metavar="CELL", help="model/transport/concurrency, with * and ?")
    add("--rounds", type=int, default=3, help="of every cell (default: %(default)s)")
    add("--window-s", type=float, default=1.0, help="a measurement has three (default: 1)")
    add("--no-triton", action="store_true", help="Penstock alone")
    add("--out", type=Path, metavar="FILE", help="default: loadtest/results/DATE/table.json")
    return parser


def _out(asked: Path | None) -> Path:
    today = datetime.date.today().isoformat()
    return asked or Path("loadtest", "results", today, "table.json")


@contextmanager
def _servers(*, with_triton: bool) -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory(prefix="penstock-table-") as folder, ExitStack() as stack:
        ours, theirs = Path(folder, "penstock"), Path(folder, "triton")
        table_cells.write_penstock(ours)
        flags = ("--grpc-port", "0", "--allow-client-shm", "--log-level", "warning")
        child = stack.enter_context(children.gateway(ours, *flags))
        servers = [Server("penstock", child.port, child.grpc, lambda: [child.pid])]
        if with_triton:
            environment = triton.fetch(f"onnxruntime=={metadata.version('onnxruntime')}")
            triton.add_onnxruntime(environment)
            table_cells.write_triton(theirs)
            other = stack.enter_context(triton.serving(environment, theirs))
            servers.append(Server("triton", other.http, other.grpc, other.pids, tuned=True))
        yield servers


def _measure_all(
    table: Table,
    measurement: Measurement,
    cells: Sequence[Cell],
    servers: Sequence[Server],
    rounds: int,
) -> None:
    """Round by round, cell by cell, server by server, who is first changing with the round."""
    chosen = {cell.name: _contestants(table, measurement, cell, servers) for cell in cells}
    for round_ in range(rounds):
        for cell in cells:
            contestants = chosen[cell.name]
            for server, setting in contestants if round_ % 2 == 0 else contestants[::-1]:
                table.measure(measurement, cell, server, setting, round_)


def _contestants(
    table: Table, measurement: Measurement, cell: Cell, servers: Sequence[Server]
) -> list[tuple[Server, Setting]]:
    found = []
    for server in servers:
        found.append((server, USUAL))
        if server.tuned:
            try:
                best = measurement.best(cell, server)
            except (perf_analyzer.Failed, h2load.Failed) as error:
                table.problems.append(f"{cell.name} {server.name}: {error}")
                continue
            if best is not USUAL:
                found.append((server, best))
    return found


def _report(table: Table, cells: Sequence[Cell]) -> int:
    print(f"{machine.line()}\n\n{table_write.table(cells, table.rows)}\n")
    print(table_write.disturbance(table.rows))
    for problem in table.problems:
        print(f"ERROR {problem}")
    return 1 if table.problems else 0


def tell(text: str) -> None:
    """A progress line for people who wait; not part of the report."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
