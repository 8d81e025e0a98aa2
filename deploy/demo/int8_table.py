#!/usr/bin/env python3
"""Measures INT8 on this machine: float, ONNX Runtime's quantisers and Penstock's, in one run each.

Knows the models of ``int8_models``, how the table is laid out, and the command line. Everything
that is measured comes from ``penstock.backends.quantize``: calibration and choice on training
pictures, figures on the held-out ones, speed in turns with the threads that are asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from int8_models import SUBJECTS, Subject

from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.gate import Bounds
from penstock.backends.quantize.pipeline import Task, quantize
from penstock.backends.quantize.result import AccuracyRow, Measure, Result

OURS = "INT8"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure INT8 models beside float ones.")
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        default=list(SUBJECTS),
        help=f"which to measure: {', '.join(SUBJECTS)} (default: all)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each session (default: 1)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path, help="write every figure there as well")
    options = parser.parse_args(arguments)
    unknown = set(options.models) - SUBJECTS.keys()
    if unknown:
        parser.error(f"no model is called {', '.join(sorted(unknown))}")
    return options


def measured(subject: Subject, options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(subject.model, path)
        return quantize(
            Task(
                path,
                Path(folder) / "int8.onnx",
                samples_of({subject.input: subject.calibration}, subject.calibration_labels),
                evaluation=samples_of(
                    {subject.input: subject.evaluation}, subject.evaluation_labels
                ),
                bounds=Bounds(),
                threads=options.threads,
                batches=tuple(options.batches),
                progress=show,
            )
        )


def show(step: str, share: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{share:4.0%} {step}"[:100], end="", file=sys.stderr, flush=True)


def table(title: str, result: Result) -> str:
    """One model's rows in Markdown."""
    batches = tuple(dict.fromkeys(row.batch for row in result.latency))
    heads = ["variant", "KB", _accuracy_head(result), "SQNR dB"]
    heads += [f"µs, batch {batch} (quartiles)" for batch in batches]
    heads += [f"× float, batch {batch}" for batch in batches]
    lines = [f"#### {title}", "", _line(heads), "|" + "---|" * len(heads)]
    for row in result.accuracy:
        lines.append(_line(_cells(result, row, batches)))
    chosen = f"Ranges by {result.method}; in float: {', '.join(result.kept_float) or 'no layer'}; "
    return "\n".join([*lines, "", chosen + "; ".join(result.verdict.reasons) + "."])


def _cells(result: Result, row: AccuracyRow, batches: Sequence[int]) -> list[str]:
    name = (
        f"**Penstock, {result.verdict and _word(result)}**" if row.variant == OURS else row.variant
    )
    if row.measure is None:
        return [name, "", f"failed: {row.note}"[:80], "", *[""] * (2 * len(batches))]
    timed = {r.batch: r for r in result.latency if r.variant == row.variant}
    times = [f"{t.median_us:.0f} ({t.low_us:.0f}..{t.high_us:.0f})" for t in timed.values()]
    ratios = [f"{t.speedup:.2f}" for t in timed.values()]
    sqnr = row.measure.sqnr_db
    return [
        name,
        f"{row.size_bytes / 1000:,.0f}",
        _accuracy(row.measure),
        "equal" if sqnr is None else f"{sqnr:.1f}",
        *times,
        *ratios,
    ]


def _word(result: Result) -> str:
    return "passed" if result.passed else "refused"


def _accuracy_head(result: Result) -> str:
    return "right answers" if result.measure.top1 is not None else "cosine"


def _accuracy(measure: Measure) -> str:
    if measure.top1 is None:
        return f"{measure.cosine:.5f}"
    return f"{round(measure.top1 * measure.rows)} of {measure.rows} ({measure.top1:.2%})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results: dict[str, object] = {}
    for number, name in enumerate(options.models):
        subject = SUBJECTS[name]()
        result = measured(subject, options)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        if not number:
            versions = ", ".join(f"{package} {version}" for package, version in result.versions)
            print(f"{result.machine}; {options.threads} thread(s) a session; {versions}\n")
        print(table(subject.title, result) + "\n", flush=True)
        results[name] = json.loads(result.to_json())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
