"""The result of a quantisation for a terminal: the verdict, two short tables, where the rest is.

Pure. Knows the records of ``penstock.backends.quantize.result``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.server.commands.terminal import Cell, Terminal, printable, table

if TYPE_CHECKING:
    from penstock.backends.quantize.result import AccuracyRow, LatencyRow, Result

_NOTES_MAX = 8
_OWN = "INT8"
_HEAD = ("VARIANT", "TOP-1", "LOST", "SQNR", "COSINE", "SIZE")


def lines(result: Result, pages: Sequence[Path], terminal: Terminal) -> list[str]:
    """What is printed."""
    return [
        *_tables(result, terminal),
        *_verdict(result, terminal),
        *(f"note: {printable(note)}" for note in result.notes[:_NOTES_MAX]),
        f"report: {', '.join(map(str, pages))}",
    ]


def _tables(result: Result, terminal: Terminal) -> list[str]:
    """Accuracy and speed side by side, or below each other where the screen is narrow."""
    if not result.accuracy:
        return []
    batches = sorted({row.batch for row in result.latency})
    found = {(row.variant, row.batch): row for row in result.latency}
    speed = [[_speed(found.get((r.variant, n))) for n in batches] for r in result.accuracy]
    accuracy = [[r.variant, *_accuracy(r)] for r in result.accuracy]
    heads = [f"BATCH {batch}" for batch in batches]
    whole = ([*_HEAD, *heads], [[*one, *other] for one, other in zip(accuracy, speed, strict=True)])
    if batches and max(map(len, _table(*whole, Terminal()))) > terminal.columns:
        times = [[one[0], *other] for one, other in zip(accuracy, speed, strict=True)]
        shown = [*_table(_HEAD, accuracy, terminal), ""]
        shown += _table([_HEAD[0], *heads], times, terminal)
    else:
        shown = _table(*whole, terminal)
    told = (r for r in result.accuracy if r.measure is None and r.note)
    return [*shown, *(f"{r.variant}: {printable(r.note)}" for r in told), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], terminal: Terminal) -> list[str]:
    """Rows begin with the variant; ours stands out."""
    return table(
        head,
        [[Cell((text,), "bold" if row[0] == _OWN else "") for text in row] for row in rows],
        terminal,
    )


def _speed(row: LatencyRow | None) -> str:
    return f"{_time(row.median_us)} {row.speedup:.2f}x" if row else ""


def _accuracy(row: AccuracyRow) -> list[str]:
    m = row.measure
    if m is None:
        return ["-", "", "", "", ""]
    return [
        "" if m.top1 is None else f"{100 * m.top1:.2f} %",
        "" if m.drop_points is None else f"{m.drop_points:+.2f}",
        "equal" if m.sqnr_db is None else f"{m.sqnr_db:.1f} dB",
        f"{m.cosine:.5f}",
        _size(row.size_bytes),
    ]


def _verdict(result: Result, terminal: Terminal) -> list[str]:
    said = []
    for reason in result.verdict.reasons:
        said.append(f"  {printable(reason)}")
    kept = result.kept_float
    if kept:
        said.append(f"  {len(kept)} of {len(result.layers)} layers stay in float: {_some(kept)}")
    else:
        said.append(f"  all {len(result.layers)} layers are INT8")
    mark = "✓ " if terminal.unicode else ""
    if result.passed:
        where = result.written or "nothing was written, as asked"
        return [terminal.paint(f"{mark}passed: {where}", "green"), *said]
    mark = "✗ " if terminal.unicode else ""
    return [terminal.paint(f"{mark}refused: nothing was written", "red"), *said]


def _some(names: Sequence[str]) -> str:
    shown = printable(", ".join(names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.0f} us"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"
