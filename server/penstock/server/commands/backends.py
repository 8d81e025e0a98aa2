"""``penstock backends``: the engines that models can run on, and what this machine has of them.

Knows the catalogue. Imports no engine itself: each backend says what it would run on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from penstock.server.commands.terminal import Terminal

_HEADER: Final = ("BACKEND", "MODEL", "ENGINE", "DEVICES", "PROGRAMS")

EPILOG: Final = """\
Models of backends with PROGRAMS are served where `penstock serve --allow-code BACKEND` says so.

examples:
  penstock backends
  penstock backends --json | jq -r '.[] | select(.missing == "") | .name'"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One backend. ``missing`` says why it cannot run anything here; empty if it can."""

    name: str
    default_filename: str
    version: str
    devices: tuple[str, ...]
    missing: str
    runs_code: bool


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "backends",
        help="list the engines that models can run on, and which are installed",
        description="Lists the engines that models can run on, and what this machine has of them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="a JSON list, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from penstock.server.commands.terminal import forgive, terminal_for

    found = entries()
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in found], indent=2))
        return 0
    forgive(sys.stdout)
    print("\n".join(lines(found, terminal_for(sys.stdout))))
    return 0


def entries() -> list[Entry]:
    """Every backend but the one that is made for tests, by name."""
    from penstock.backends import catalog

    return [_entry(name, catalog.runs_code(name)) for name in catalog.offered()]


def _entry(name: str, runs_code: bool) -> Entry:
    from penstock.backends import catalog
    from penstock.backends.base import Engine, LoadError, Probing

    try:
        backend = catalog.get(name)
    except LoadError as error:
        return Entry(name, "", "", (), str(error), runs_code)
    try:
        engine = backend.engine() if isinstance(backend, Probing) else Engine()
    except Exception as error:  # Of another package: the list must not end with it.
        engine = Engine(missing=f"its engine cannot be asked: {error}")
    return Entry(
        name, backend.default_filename, engine.version, engine.devices, engine.missing, runs_code
    )


def lines(found: list[Entry], terminal: Terminal) -> list[str]:
    """The table, and below it what is missing."""
    from penstock.server.commands.terminal import Cell, table

    rows = []
    for entry in found:
        engine = entry.version or ("not here" if entry.missing else "")
        style = "dim" if entry.missing else ""
        cells = (
            entry.name,
            entry.default_filename,
            engine,
            ", ".join(entry.devices),
            "yes" if entry.runs_code else "",
        )
        rows.append([Cell((text,), style) for text in cells])
    missing = [f"{entry.name}: {entry.missing}" for entry in found if entry.missing]
    return [*table(_HEADER, rows, terminal), *(["", *missing] if missing else [])]
