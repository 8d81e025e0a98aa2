"""Server CPU time a request against the bare echo server, on the same bytes.

One round measures every wire on the gateway and on the echo server, one right after the other, so
that a ratio compares neighbours in time; the figure is the median of the rounds' ratios. The load
generator has a core for itself. Knows the cases and their table. Must not know how the load is made
or processes are started.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from penstock.loadtest import children, echo, machine, samples
from penstock.loadtest.bench_run import Bench
from penstock.loadtest.blast import Checks, Plan, Result, Target
from penstock.loadtest.children import Child
from penstock.loadtest.machine import spread
from penstock.loadtest.payload import Payload

CONNECTIONS = (1, 8, 32)
_HEAD = (
    "| add_sub, wire | connections | server CPU µs/request | × echo | requests/s | × echo "
    "| p50 µs | p99 µs |\n|---|---|---|---|---|---|---|---|"
)
Pair = tuple[Result, Result]
"""(echo, gateway) of one round."""


def measure(bench: Bench) -> tuple[str, list[dict[str, Any]]]:
    """(Markdown table, every sample). Cells are ``median (min..max)`` over the rounds."""
    payloads = samples.add_sub()
    found: dict[tuple[str, int], list[Pair]] = {}
    server_cores, load_cores = machine.cores_apart()
    with ExitStack() as running:
        with machine.children_on(server_cores):
            yardstick = running.enter_context(children.echo())
            gateway = running.enter_context(children.add_sub_gateway())
        with (
            machine.children_on(load_cores),
            bench.alone(yardstick.pid, gateway.pid) as verdict,
        ):
            for round_ in range(bench.pace.rounds):
                for payload, connections in _cases(payloads):
                    name = f"cpu {round_ + 1}/{bench.pace.rounds} {payload.wire} c={connections}"
                    pair = (
                        bench.load(f"{name} echo", _plan(bench, payload, connections, yardstick)),
                        bench.load(name, _plan(bench, payload, connections, gateway, real=True)),
                    )
                    found.setdefault((payload.wire, connections), []).append(pair)
    rows = [_row(wire, connections, pairs) for (wire, connections), pairs in found.items()]
    return "\n".join([_HEAD, *rows, "", *verdict]), [
        _dump(*case, pairs) for case, pairs in found.items()
    ]


def _cases(payloads: list[Payload]) -> Iterator[tuple[Payload, int]]:
    for connections in CONNECTIONS:
        for payload in payloads:
            yield payload, connections


def _plan(
    bench: Bench, payload: Payload, connections: int, server: Child, *, real: bool = False
) -> Plan:
    return Plan(
        Target("127.0.0.1", server.port, payload.http()),
        connections=connections,
        seconds=bench.pace.seconds,
        warmup_s=bench.pace.warmup_s,
        checks=Checks(contains=payload.contains if real else (echo.REPLY_BODY,)),
        watch_pid=server.pid,
    )


def _cpu_us(result: Result) -> float:
    return 1e6 * result.server_cpu_s / max(1, result.requests)


def _row(wire: str, connections: int, pairs: list[Pair]) -> str:
    gateway = [ours for _, ours in pairs]
    cells = (
        wire,
        str(connections),
        spread([_cpu_us(ours) for ours in gateway], 1),
        spread([_cpu_us(ours) / max(1e-9, _cpu_us(echo)) for echo, ours in pairs]),
        spread([ours.rps for ours in gateway], 0),
        spread([ours.rps / max(1e-9, echo.rps) for echo, ours in pairs]),
        spread([ours.p50_us for ours in gateway], 0),
        spread([ours.p99_us for ours in gateway], 0),
    )
    return f"| {' | '.join(cells)} |"


def _dump(wire: str, connections: int, pairs: list[Pair]) -> dict[str, Any]:
    rounds = [
        {"echo": dataclasses.asdict(echo), "gateway": dataclasses.asdict(ours)}
        for echo, ours in pairs
    ]
    return {"wire": wire, "connections": connections, "rounds": rounds}
