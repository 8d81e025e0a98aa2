from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.loadtest import bench, bench_cpu, bench_throughput, children, machine
from penstock.loadtest.bench_run import Bench, Pace
from penstock.loadtest.models import write_mlp

SHORT = Pace(rounds=2, seconds=0.05, warmup_s=0.02)


@contextmanager
def _echo_as_gateway(models: Path, *flags: str) -> Iterator[children.Child]:
    """Answers at once, and always wrong."""
    assert list(models.glob("*/config.pbtxt"))
    assert list(models.glob("*/1/model.onnx"))
    with children.echo() as server:
        yield server


def test_cpu_table_compares_and_wrong_answers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "gateway", _echo_as_gateway)
    monkeypatch.setattr(bench_cpu, "CONNECTIONS", (2,))
    run = Bench(SHORT)
    table, samples = bench_cpu.measure(run)
    assert len(run.problems) == 4  # 2 rounds of 2 wires; the echo itself is right
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == ["graphpipe", "v2"]
    assert [len(case["rounds"]) for case in samples] == [2, 2]
    assert samples[0]["rounds"][0]["echo"]["errors"] == 0


def test_wrong_answers_are_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(run: Bench) -> tuple[str, dict[str, int]]:
        if run.pace.rounds == 2:
            run.problems.append("wrong")
        return "| table |", {"x": 1}

    monkeypatch.setattr(bench_cpu, "measure", measure)
    monkeypatch.setattr(children, "leave_on_sigterm", lambda: None)
    out = tmp_path / "out.json"
    assert bench.main(["--only", "cpu", "--rounds", "1", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["cpu"] == {"x": 1}
    assert bench.main(["--only", "cpu", "--rounds", "2"]) == 1
    assert "| table |" in capsys.readouterr().out


def test_raw_speed_of_a_small_model(tmp_path: Path) -> None:
    write_mlp(tmp_path / "m.onnx", 64)
    session = bench_throughput.open_session(tmp_path / "m.onnx")
    batch, run_s = bench_throughput.calibrate(session)
    assert batch.shape[1:] == (784,)
    assert run_s > 0
    raw = bench_throughput.raw(session, batch, 2, 0.05)
    assert raw.rate > 1
    assert 0 < raw.cpu_s < 0.1


def test_machine_line_and_spread() -> None:
    assert "Python 3." in machine.line()
    assert machine.spread([3.0, 1.0, 2.0]) == "2.00 (1.00..3.00)"
    assert machine.spread([]) == "-"


def test_children_stay_on_their_cores() -> None:
    before = os.sched_getaffinity(0)
    ours, theirs = machine.cores_apart()
    assert ours | theirs == before
    with machine.children_on(theirs), children.echo() as server:
        assert os.sched_getaffinity(server.pid) == theirs
    assert os.sched_getaffinity(0) == before


def test_other_work_is_told_from_ours() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        run = Bench(SHORT)
        with run.alone() as disturbed:
            time.sleep(1)
        with run.alone(hog.pid) as known:
            time.sleep(1)
    finally:
        hog.kill()
        hog.wait()
    share = [int(re.findall(r"took (\d+)%", lines[0])[0]) for lines in (disturbed, known)]
    assert "DISTURBED" in disturbed[1]
    assert share[1] <= share[0]
