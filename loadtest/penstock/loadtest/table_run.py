"""Measures cells of the performance table on running servers.

Knows the two load generators and how a server's CPU time and count of requests are read. Must not
know how servers are started, nor how results are shown. Contract: one ``Row`` a measurement, with
what others took of the machine meanwhile; a run that failed is a problem, not a row.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.request import urlopen

from penstock.loadtest import h2load, machine, perf_analyzer, procstat
from penstock.loadtest.bench_run import OTHERS_MAX
from penstock.loadtest.table_cells import Cell, Setting, h2load_request, settings

_LARGE_BYTES = 1024**2
"""Replies of which few fit into a short look."""
_BETTER_BY = 1.03
"""Another setting of Triton's is worth measuring if a first look at it is faster than this."""


@dataclass(frozen=True)
class Server:
    """A running one. ``pids`` tells all its processes; ``tuned`` says that it has the copies of
    ``table_cells.write_triton``."""

    name: str
    http: int
    grpc: int
    pids: Callable[[], Sequence[int]]
    tuned: bool = False


@dataclass(frozen=True)
class Row:
    """One measurement; ``others`` is the share of the cores that went to other programs."""

    cell: str
    server: str
    setting: str
    round: int
    inferences_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    requests: int
    others: float

    @property
    def disturbed(self) -> bool:
        return self.others > OTHERS_MAX

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "disturbed": self.disturbed}


class Measurement:
    """Runs the load generators, one after another, ``3 * window_s`` each."""

    def __init__(self, analyzer: perf_analyzer.Analyzer, window_s: float) -> None:
        self._analyzer = analyzer
        self._window_s = window_s

    def row(self, cell: Cell, server: Server, setting: Setting, round_: int) -> Row:
        """
        Raises:
            perf_analyzer.Failed, h2load.Failed: the load was not served.
        """
        return self._measured(cell, server, setting, round_, self._window_s)

    def best(self, cell: Cell, server: Server) -> Setting:
        """The fastest of the server's settings for a cell, by one short look at each.

        The first in the list is preferred: another one has to be faster by 3 %.
        """
        offered = settings(cell.model)
        seconds = min(self._window_s, 1.0 if cell.model.output_bytes > _LARGE_BYTES else 0.5)
        speeds = [self._measured(cell, server, s, 0, seconds).inferences_s for s in offered]
        fastest = max(range(len(offered)), key=speeds.__getitem__)
        return offered[fastest] if speeds[fastest] > speeds[0] * _BETTER_BY else offered[0]

    def _measured(
        self, cell: Cell, server: Server, setting: Setting, round_: int, window_s: float
    ) -> Row:
        served_as = cell.model.name + (setting.suffix if server.tuned else "")
        started, busy, ours = time.perf_counter(), machine.busy_s(), _own_cpu_s()
        cpu, count = _cpu_s(server), _requests(server, served_as)
        told = self._load(cell, server, served_as, window_s)
        cpu, count = _cpu_s(server) - cpu, _requests(server, served_as) - count
        busy, ours = machine.busy_s() - busy, _own_cpu_s() - ours
        cores_s = (time.perf_counter() - started) * (os.cpu_count() or 1)
        return Row(
            cell=cell.name,
            server=server.name,
            setting=setting.suffix if server.tuned else "",
            round=round_,
            inferences_s=told[0],
            p50_us=told[1],
            p99_us=told[2],
            cpu_us=cpu / max(1, count) * 1e6,
            requests=count,
            others=max(0.0, busy - ours - cpu) / cores_s,
        )

    def _load(
        self, cell: Cell, server: Server, served_as: str, window_s: float
    ) -> tuple[float, float, float]:
        if cell.transport == "h2load":
            request = h2load_request(cell.model, served_as)
            reply_bytes = cell.model.output_bytes * len(cell.model.outputs)
            authority = f"127.0.0.1:{server.grpc}"
            by_h2load = h2load.run(
                authority, request, reply_bytes, 3 * window_s, at_once=cell.concurrency
            )
            return by_h2load.calls_s, by_h2load.p50_us, by_h2load.p99_us
        port = server.http if cell.protocol == "http" else server.grpc
        load = perf_analyzer.Load(
            model=served_as,
            authority=f"127.0.0.1:{port}",
            protocol=cell.protocol,
            concurrency=cell.concurrency,
            window_s=window_s,
            shape=cell.model.shape,
            memory=cell.memory,
            output_bytes=cell.model.output_bytes,
        )
        report = self._analyzer.run(load)
        return report.inferences_s, report.p50_us, report.p99_us


def _cpu_s(server: Server) -> float:
    return sum(procstat.cpu_s(pid) for pid in server.pids())


def _own_cpu_s() -> float:
    """Ours, with the load generators that have ended."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def _requests(server: Server, model: str) -> int:
    """Answered inference requests, by the server's own statistics."""
    url = f"http://127.0.0.1:{server.http}/v2/models/{model}/stats"
    with urlopen(url, timeout=10) as reply:
        (stats,) = json.load(reply)["model_stats"]
    count: int = stats["inference_stats"]["success"]["count"]
    return count
