"""The performance table: its cells, its lines, and one cell of it measured for real."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.loadtest import table, table_cells, table_prototype, table_write
from penstock.loadtest.table_run import Row

CELLS = {cell.name: cell for cell in table_cells.cells()}
ROW = Row("add_sub/http/1", "penstock", "", 0, 2000.0, 300.0, 900.0, 50.0, 6000, 0.01)


def lines(*rows: Row) -> list[list[str]]:
    text = table_write.table([CELLS["add_sub/http/1"]], rows)
    return [[word.strip() for word in line.split("|")[1:-1]] for line in text.splitlines()]


def test_cells_have_names_of_their_own() -> None:
    assert len(CELLS) == len(list(table_cells.cells()))
    assert {"add_sub/http/32", "identity/grpc+shm/4", "mlp512/h2load/32"} <= set(CELLS)


def test_the_prototype_was_measured_in_cells_of_the_table() -> None:
    assert set(table_prototype.FIGURES) <= set(CELLS)


def test_protocol_and_memory_follow_from_the_transport() -> None:
    told = {t: (CELLS[f"add_sub/{t}/32"].protocol, CELLS[f"add_sub/{t}/32"].memory)
            for t in (*table_cells.TRANSPORTS, "h2load")}  # fmt: skip
    assert told == {
        "http": ("http", "none"),
        "grpc": ("grpc", "none"),
        "http+shm": ("http", "system"),
        "grpc+shm": ("grpc", "system"),
        "h2load": ("grpc", "none"),
    }


def test_both_servers_are_given_the_same_models(tmp_path: Path) -> None:
    table_cells.write_penstock(tmp_path / "ours")
    table_cells.write_triton(tmp_path / "theirs")
    for model in table_cells.MODELS.values():
        ours = (tmp_path / "ours" / model.name / "1" / "model.onnx").read_bytes()
        for setting in table_cells.settings(model):
            folder = tmp_path / "theirs" / (model.name + setting.suffix)
            assert (folder / "1" / "model.onnx").read_bytes() == ours
            config = (folder / "config.pbtxt").read_text()
            assert f"count: {setting.instances}" in config
            assert ("max_queue_delay" in config) == model.batched
    assert "max_queue_delay" not in (tmp_path / "ours/mlp512/config.pbtxt").read_text()


def test_a_line_for_each_server_with_the_ratio_to_the_best_triton() -> None:
    triton = dataclasses.replace(ROW, server="triton", inferences_s=1000.0)
    best = dataclasses.replace(triton, setting="-i2-d0", inferences_s=1600.0)
    again = dataclasses.replace(ROW, round=1, inferences_s=4000.0)
    _, _, ours, usual, tuned = lines(ROW, triton, best, again)
    assert ours[:3] == ["add_sub/http/1", "penstock", "3000 (2000..4000)"]
    assert ours[-2:] == ["1.88", "1.20"]
    assert usual[:3] == ["", "triton", "1000 (1000..1000)"]
    assert tuned[1] == "triton (2 instances, no delay)"


def test_without_triton_there_is_no_ratio() -> None:
    assert lines(ROW)[2][-2:] == ["", "1.20"]


def test_disturbance_is_told() -> None:
    disturbed = dataclasses.replace(ROW, others=0.3)
    assert "DISTURBED" not in table_write.disturbance([ROW])
    assert "DISTURBED: 1 of 2" in table_write.disturbance([ROW, disturbed])
    assert lines(disturbed)[2][1].endswith("\\*")
    assert not ROW.document()["disturbed"]
    assert disturbed.document()["disturbed"]


def test_a_cell_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--only", "nothing/*"]) == 2
    assert "no cell" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_cell_by_perf_analyzer(tmp_path: Path, cannot_have: Any) -> None:
    out = tmp_path / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "penstock.loadtest.table", "--quick", "--out", str(out)],
        capture_output=True, text=True, check=False, env=os.environ, timeout=240,
    )  # fmt: skip
    if done.returncode == 2:
        cannot_have(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    (row,) = document["rows"]
    assert (row["cell"], row["server"], document["problems"]) == ("add_sub/http/8", "penstock", [])
    assert row["requests"] > 0
    assert row["inferences_s"] > 0
    assert 0 < row["p50_us"] <= row["p99_us"]
    assert row["cpu_us"] > 0
    assert "| add_sub/http/8 | penstock" in done.stdout
