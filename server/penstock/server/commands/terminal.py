"""What the text goes to, and text laid out for it: columns, colours, characters.

Knows terminals. Must not know servers or models. ``Terminal`` is a value, so everything that draws
is a pure function of it and can be tested against fixed strings.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_BEYOND_ASCII: Final = "→✓✗█▉▊▋▌▍▎▏░▒▓─│┌┐└┘"
_GAP: Final = "  "
_COLUMNS: Final = 120
"""Where nobody says how wide the screen is."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the reader can see."""

    color: bool = False
    unicode: bool = True
    columns: int = _COLUMNS

    @property
    def arrow(self) -> str:
        return "→" if self.unicode else "->"

    def paint(self, text: str, style: str) -> str:
        """``text`` in one of the styles, where there are colours."""
        if not self.color or not style or not text:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: its lines, all in one style."""

    lines: tuple[str, ...]
    style: str = ""


def terminal_for(stream: TextIO, environment: Mapping[str, str] | None = None) -> Terminal:
    """What ``stream`` can show. Colours only on a terminal, and never where NO_COLOR is set."""
    env = os.environ if environment is None else environment
    screen = stream.isatty()
    color = screen and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
    columns = shutil.get_terminal_size((_COLUMNS, 24)).columns if screen else _COLUMNS
    try:
        _BEYOND_ASCII.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return Terminal(color, False, columns)
    return Terminal(color, True, columns)


def forgive(stream: TextIO) -> None:
    """Makes ``stream`` write what its encoding lacks as escapes, instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """``text`` with escapes for what would command a terminal: names in a model are anybody's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], terminal: Terminal) -> list[str]:
    """Aligned columns, two spaces apart; a row is as high as its highest cell."""
    body = [list(row) for row in rows]
    widths = [len(title) for title in header]
    for row in body:
        for i, cell in enumerate(row):
            widths[i] = max(widths[i], *map(len, cell.lines), 0)
    lines = _row_lines([Cell((title,), "bold") for title in header], widths, terminal)
    for row in body:
        lines += _row_lines(row, widths, terminal)
    return lines


def _row_lines(row: Sequence[Cell], widths: Sequence[int], terminal: Terminal) -> list[str]:
    lines = []
    for at in range(max(len(cell.lines) for cell in row)):
        parts, pending = [], ""
        for cell, width in zip(row, widths, strict=True):
            text = cell.lines[at] if at < len(cell.lines) else ""
            if text:
                parts.append(pending + terminal.paint(text, cell.style))
                pending = ""
            pending += " " * (width - len(text)) + _GAP
        lines.append("".join(parts))
    return lines
