"""The performance table as Markdown, from its rows.

Knows medians, spreads and how ``RESULTS.md`` looks. Pure: rows in, text out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from penstock.loadtest.machine import spread
from penstock.loadtest.table_cells import Cell
from penstock.loadtest.table_prototype import FIGURES
from penstock.loadtest.table_run import Row

_COLUMNS = ("inferences/s", "p50 µs", "p99 µs", "server CPU µs/request")
_HEAD = ("cell", "server", *_COLUMNS, "× Triton", "prototype × Triton")


def table(cells: Iterable[Cell], rows: Sequence[Row]) -> str:
    """A line for each server of each cell: median (lowest..highest) over the rounds.

    *× Triton* is Penstock's speed by that of Triton's best setting in the same cell. A star marks
    lines of which a round was disturbed.
    """
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for cell in cells:
        own = [row for row in rows if row.cell == cell.name]
        lines += [_line(words) for words in _cell_lines(cell, own)]
    return "\n".join(lines)


def _cell_lines(cell: Cell, rows: Sequence[Row]) -> Iterator[list[str]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.server, row.setting), []).append(row)
    triton = [_speed(group) for (server, _), group in groups.items() if server == "triton"]
    for (server, setting), group in groups.items():
        star = " \\*" if any(row.disturbed for row in group) else ""
        ours = server == "penstock"
        yield [
            cell.name if ours else "",
            server + setting_words(setting) + star,
            spread([row.inferences_s for row in group], 0),
            spread([row.p50_us for row in group], 0),
            spread([row.p99_us for row in group], 0),
            spread([row.cpu_us for row in group], 1),
            f"{_speed(group) / max(triton):.2f}" if ours and triton else "",
            _prototype(cell.name) if ours else "",
        ]


def setting_words(setting: str) -> str:
    """A suffix of ``table_cells.Setting`` in words."""
    words = {"i2": "2 instances", "d0": "no delay"}
    told = [words[part] for part in setting.split("-") if part]
    return f" ({', '.join(told)})" if told else ""


def _speed(rows: Sequence[Row]) -> float:
    return statistics.median(row.inferences_s for row in rows)


def _prototype(cell: str) -> str:
    figures = FIGURES.get(cell)
    if figures is None or figures.prototype_s is None:
        return ""
    return f"{figures.prototype_s / figures.triton_s:.2f}"


def disturbance(rows: Sequence[Row]) -> str:
    """What others took of the machine, in the words of ``make bench``."""
    if not rows:
        return ""
    worst, bad = max(row.others for row in rows), sum(row.disturbed for row in rows)
    told = f"Other work took at most {worst:.0%} of the cores during a measurement."
    if bad:
        told += (
            f" DISTURBED: {bad} of {len(rows)} measurements (marked \\*), "
            "repeat them before quoting figures."
        )
    return told


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"
