"""How much of ONNX Runtime's raw speed is left behind the gateway, all cores counted.

Raw: plain threads, one a core, call one shared session on one batch, nothing else runs. Gateway:
the same batch a request over GraphPipe; server and load generator share the cores that raw had for
itself, so the generator's share is told beside the ratio. Knows ONNX Runtime and the model. Must
not know how the load is made or processes are started.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from penstock.loadtest import children, samples
from penstock.loadtest.bench_run import Bench
from penstock.loadtest.blast import Checks, Plan, Result, Target
from penstock.loadtest.children import Child
from penstock.loadtest.machine import spread
from penstock.loadtest.models import write_mlp
from penstock.loadtest.samples import Array

WIDTH = 1024
"""Weights of 7 MB stay in the cache: at 2048 (33 MB) raw speed itself wanders by half."""
RUN_S = 1e-3
ROWS_MAX = 256
CONNECTIONS_A_CORE = 4
"""Closed loop: enough that a request waits whenever a worker is free."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Batches a second, and CPU seconds of the threads a batch."""

    rate: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round; ``all_cores`` against ``gateway``, ``one_core`` against ``gateway_one``."""

    one_core: Raw
    gateway_one: Result
    all_cores: Raw
    gateway: Result


def measure(bench: Bench) -> tuple[str, dict[str, Any]]:
    """(Markdown table, every sample). Cells are ``median (min..max)`` over the rounds."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        model = Path(folder, "mlp", "1", "model.onnx")
        write_mlp(model, WIDTH, 2)
        session = open_session(model)
        batch, run_s = calibrate(session)
        cores = os.cpu_count() or 1
        bench.tell(f"throughput: {len(batch)} rows take {run_s * 1e6:.0f} µs on one thread")
        Path(folder, "mlp", "config.pbtxt").write_text(_config(len(batch), cores))
        with children.gateway(Path(folder)) as gateway, bench.alone(gateway.pid) as verdict:
            rounds = [
                _round(bench, index, session, batch, gateway, cores)
                for index in range(bench.pace.rounds)
            ]
    head = f"MLP 784-{WIDTH}-{WIDTH}-10, {len(batch)} rows a request ({batch.nbytes} bytes), "
    head += f"{run_s * 1e6:.0f} µs a run on one thread:\n\n"
    dump = {"rows": len(batch), "run_s": run_s, "rounds": [dataclasses.asdict(r) for r in rounds]}
    return "\n".join([head + _table(rounds, cores), "", *verdict]), dump


def open_session(model: Path) -> Any:
    """One thread a run, no spinning: what a server with one worker a core would use."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def calibrate(session: Any) -> tuple[Array, float]:
    """A batch of as many rows as make a run last about ``RUN_S``, and how long it lasts."""
    rng = np.random.default_rng(1)
    rows, batch = 1, rng.random((1, 784), dtype=np.float32)
    run_s = _run_s(session, batch)
    while run_s < RUN_S and rows < ROWS_MAX:
        rows += max(1, rows // 4)
        batch = rng.random((rows, 784), dtype=np.float32)
        run_s = _run_s(session, batch)
    return batch, run_s


def raw(session: Any, batch: Array, threads: int, seconds: float) -> Raw:
    """Run the batch again and again on ``threads`` threads at once."""
    feeds = {"INPUT0": batch}
    done = [0] * threads
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        count = 0
        while time.perf_counter() < end:
            session.run(None, feeds)
            count += 1
        done[index] = count

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    started, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cpu_s = (time.process_time() - cpu) / max(1, sum(done))
    return Raw(sum(done) / (time.perf_counter() - started), cpu_s)


def _run_s(session: Any, batch: Array) -> float:
    """The best of a few runs: what the machine's other work adds is not the model's."""
    times = []
    for _ in range(21):
        started = time.perf_counter()
        session.run(None, {"INPUT0": batch})
        times.append(time.perf_counter() - started)
    return min(times)


def _config(rows: int, cores: int) -> str:
    return (
        f'name: "mlp"\nbackend: "onnxruntime"\nmax_batch_size: {rows}\n'
        f"instance_group [ {{ count: {cores} kind: KIND_CPU }} ]\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )


def _round(
    bench: Bench, index: int, session: Any, batch: Array, gateway: Child, cores: int
) -> Round:
    (expected,) = session.run(None, {"INPUT0": batch})
    payload, _ = samples.infer("mlp", {"INPUT0": batch}, ["OUTPUT0"], (expected.tobytes(),))
    seconds, name = bench.pace.seconds, f"throughput {index + 1}/{bench.pace.rounds}"

    def through(connections: int) -> Result:
        plan = Plan(
            Target("127.0.0.1", gateway.port, payload.http()),
            connections=connections,
            seconds=seconds,
            warmup_s=bench.pace.warmup_s,
            checks=Checks(contains=payload.contains),
            watch_pid=gateway.pid,
        )
        return bench.load(f"{name} gateway c={connections}", plan)

    def around(threads: int, connections: int) -> tuple[Raw, Result]:
        """Raw before and after, so that a drift of the machine hits both alike."""
        before = raw(session, batch, threads, seconds / 2)
        ours = through(connections)
        after = raw(session, batch, threads, seconds / 2)
        mean = Raw((before.rate + after.rate) / 2, (before.cpu_s + after.cpu_s) / 2)
        return mean, ours

    one, ours_one = around(1, 1)
    full, ours = around(cores, CONNECTIONS_A_CORE * cores)
    bench.tell(f"{name} raw {full.rate:.0f}/s on {cores} cores, {one.rate:.0f}/s on one")
    return Round(one, ours_one, full, ours)


def _table(rounds: list[Round], cores: int) -> str:
    lines = [
        "| | raw batches/s | gateway batches/s | gateway / raw | server CPU / raw CPU a batch "
        "| load generator's share of the cores |",
        "|---|---|---|---|---|---|",
        _line(f"{cores} cores", [(r.all_cores, r.gateway) for r in rounds], cores),
        _line("one at a time", [(r.one_core, r.gateway_one) for r in rounds], cores),
    ]
    return "\n".join(lines)


def _line(name: str, pairs: list[tuple[Raw, Result]], cores: int) -> str:
    server_s = [ours.server_cpu_s / max(1, ours.requests) for _, ours in pairs]
    cells = (
        name,
        spread([raw.rate for raw, _ in pairs], 0),
        spread([ours.rps for _, ours in pairs], 0),
        spread([ours.rps / raw.rate for raw, ours in pairs]),
        spread([cpu_s / raw.cpu_s for cpu_s, (raw, _) in zip(server_s, pairs, strict=True)]),
        spread([ours.client_cpu_s / ours.seconds / cores for _, ours in pairs]),
    )
    return f"| {' | '.join(cells)} |"
