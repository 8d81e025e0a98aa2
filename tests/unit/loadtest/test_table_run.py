"""How a cell is measured: what the load generators are told, what is read beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from typing import Any

import pytest

from penstock.loadtest import table_run
from penstock.loadtest.perf_analyzer import Load, Report
from penstock.loadtest.table_cells import MODELS, USUAL, Cell
from penstock.loadtest.table_run import Measurement, Server


class Analyzer:
    """Stands for perf_analyzer: notes loads, and is as fast as ``speeds`` says of a model."""

    def __init__(self, speeds: dict[str, float] | None = None) -> None:
        self.loads: list[Load] = []
        self._speeds = speeds or {}

    def run(self, load: Load) -> Report:
        self.loads.append(load)
        return Report(self._speeds.get(load.model, 100.0), 5.0, 9.0, {})


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers' statistics count ten requests more each time; gives what was asked."""
    urls: list[str] = []

    def urlopen(url: str, timeout: float) -> Any:
        urls.append(url)
        success = {"success": {"count": 10 * len(urls)}}
        document = {"model_stats": [{"inference_stats": success}]}
        return contextlib.closing(io.BytesIO(json.dumps(document).encode()))

    monkeypatch.setattr(table_run, "urlopen", urlopen)
    return urls


PENSTOCK = Server("penstock", 1000, 1001, lambda: [os.getpid()])
TRITON = dataclasses.replace(PENSTOCK, name="triton", http=2000, grpc=2001, tuned=True)


def measurement(analyzer: Analyzer) -> Measurement:
    return Measurement(analyzer, 1.0)  # type: ignore[arg-type]


def test_a_row(asked: list[str]) -> None:
    analyzer = Analyzer()
    cell = Cell(MODELS["identity"], "grpc+shm", 4)
    row = measurement(analyzer).row(cell, PENSTOCK, USUAL, 2)
    (load,) = analyzer.loads
    assert (load.model, load.authority, load.protocol) == ("identity", "127.0.0.1:1001", "grpc")
    assert (load.concurrency, load.memory) == (4, "system")
    assert load.output_bytes == 16 * 1024**2
    assert load.shape == "INPUT0:4194304"
    assert (row.cell, row.server, row.round) == ("identity/grpc+shm/4", "penstock", 2)
    assert (row.inferences_s, row.p50_us, row.p99_us, row.requests) == (100.0, 5.0, 9.0, 10)
    assert row.cpu_us > 0
    assert asked == ["http://127.0.0.1:1000/v2/models/identity/stats"] * 2


def test_triton_has_a_copy_of_a_model_for_each_setting() -> None:
    analyzer = Analyzer({"mlp512-d0": 130.0, "mlp512-i2-d0": 120.0})
    cell = Cell(MODELS["mlp512"], "http", 8)
    best = measurement(analyzer).best(cell, TRITON)
    assert best.suffix == "-d0"
    assert [load.model for load in analyzer.loads] == [
        "mlp512", "mlp512-i2", "mlp512-d0", "mlp512-i2-d0"
    ]  # fmt: skip
    assert measurement(analyzer).row(cell, TRITON, best, 0).setting == "-d0"


def test_the_usual_setting_stays_where_others_are_hardly_faster() -> None:
    cell = Cell(MODELS["add_sub"], "http", 8)
    assert measurement(Analyzer({"add_sub-i2": 101.0})).best(cell, TRITON) is USUAL
