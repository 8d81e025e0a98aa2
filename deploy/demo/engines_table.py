#!/usr/bin/env python3
"""Measures the engines of this machine beside ONNX Runtime: the same models, in turns, in one run.

Knows the models of ``int8_models`` and the contract of backends; each engine that can compile ONNX,
or read it, is taken as the catalogue gives it. What is timed is ``Session.run``: no gateway, no
batching. Answers are compared first, so that nothing is timed that does not compute the model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from int8_models import SUBJECTS, Subject
from numpy.typing import NDArray

from penstock.backends import catalog
from penstock.backends.base import (
    CompileTask,
    Compiling,
    LoadError,
    ModelSource,
    Probing,
    Session,
)

BASE = "onnxruntime"
ENGINES = (BASE, "openvino", "tvm")
ROUNDS = 9
TURN_S = 0.05
"""An engine runs for so long before the next one's turn."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure engines beside ONNX Runtime.")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["digits", "large", "dense"])
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path, help="write every figure there as well")
    options = parser.parse_args(arguments)
    unknown = set(options.models) - SUBJECTS.keys()
    if unknown:
        parser.error(f"no model is called {', '.join(sorted(unknown))}: {', '.join(SUBJECTS)}")
    return options


def loaded(name: str, model: Path, folder: Path, rows_max: int, threads: int) -> Session:
    """The model on one engine, compiled before if that engine compiles.

    Raises:
        LoadError: it cannot be had on this machine, or not for this model.
    """
    backend = catalog.get(name)
    if isinstance(backend, Probing) and (missing := backend.engine().missing):
        raise LoadError(missing)
    path = model
    if name != BASE and isinstance(backend, Compiling):
        folder.mkdir()
        path = backend.compile(CompileTask(model, folder, rows_max=rows_max, budget_s=60))
    return backend.load(ModelSource(name, path, threads=threads, rows_max=rows_max))


def agree(sessions: Mapping[str, Session], feed: list[NDArray[Any]]) -> None:
    """Ends the program where an engine computes something else."""
    wanted = sessions[BASE].run(feed)
    for name, session in sessions.items():
        for mine, right in zip(session.run(feed), wanted, strict=True):
            if not np.allclose(mine, right, rtol=1e-3, atol=1e-4):
                sys.exit(f"{name} does not compute what {BASE} computes")


def times_us(sessions: Mapping[str, Session], feed: list[NDArray[Any]]) -> dict[str, list[float]]:
    """Microseconds a run, for each engine and round; every other round in the opposite order."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(ROUNDS):
        order = list(sessions.items())
        for name, session in reversed(order) if number % 2 else order:
            runs, began_s = 0, time.perf_counter()
            while time.perf_counter() - began_s < TURN_S:
                session.run(feed)
                runs += 1
            taken[name].append(1e6 * (time.perf_counter() - began_s) / runs)
    return taken


def measured(subject: Subject, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        onnx.save(subject.model, model)
        sessions: dict[str, Session] = {}
        for name in ENGINES:
            try:
                sessions[name] = loaded(
                    name, model, Path(folder) / name, max(options.batches), options.threads
                )
            except LoadError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        for batch in options.batches:
            feed = [np.ascontiguousarray(np.resize(subject.evaluation, (batch, *_row(subject))))]
            agree(sessions, feed)
            for name, taken in times_us(sessions, feed).items():
                rows.append({"model": subject.title, "engine": name, "batch": batch, "us": taken})
        for session in sessions.values():
            session.close()
    return rows


def _row(subject: Subject) -> tuple[int, ...]:
    return subject.evaluation.shape[1:]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: median time of a run, and how many times as fast as ONNX Runtime (the range)."""
    batches = sorted({row["batch"] for row in rows})
    lines = [
        "| model | engine | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|---|" + "---|" * len(batches),
    ]
    found = {(row["model"], row["engine"], row["batch"]): row["us"] for row in rows}
    for model in dict.fromkeys(row["model"] for row in rows):
        for engine in dict.fromkeys(row["engine"] for row in rows if row["model"] == model):
            cells = [
                _cell(found[model, engine, batch], found[model, BASE, batch]) for batch in batches
            ]
            lines.append(f"| {model} | {engine} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(taken: list[float], base: list[float]) -> str:
    ratios = sorted(b / t for b, t in zip(base, taken, strict=True))
    median = statistics.median(ratios)
    return f"{statistics.median(taken):,.0f} µs, {median:.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    rows = [row for name in options.models for row in measured(SUBJECTS[name](), options)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    engines = ", ".join(
        f"{name} {backend.engine().version}"
        for name in ENGINES
        if isinstance(backend := catalog.get(name), Probing)
    )
    print(f"{platform.machine()}, {options.threads} thread(s) a run; {engines}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
