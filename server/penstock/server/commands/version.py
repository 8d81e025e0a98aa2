"""``penstock version``: what is installed, for people and for bug reports.

Reads package metadata and imports none of the packages, so that a broken one can be reported too.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

_PACKAGES: Final[tuple[tuple[str, tuple[str, ...], str], ...]] = (
    ("numpy", ("numpy",), ""),
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "onnx"),
    ("uvloop", ("uvloop",), "server"),
    ("httptools", ("httptools",), "server"),
    ("protobuf", ("protobuf",), "server"),
)
"""(what it is called, the distributions that bring it, the extra of ours that installs it)"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "version",
        help="show the versions of Penstock and of what it runs on",
        description="Shows the versions of Penstock and of what it runs on.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="a JSON object; null: not installed")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    found = versions()
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines(found)))
    return 0


def own_version() -> str:
    """Penstock's own version; ``0`` where it runs without being installed."""
    return _installed(("penstock",)) or "0"


def versions() -> dict[str, str | None]:
    """Name to version; None for what is not installed."""
    found: dict[str, str | None] = {"penstock": own_version(), "python": platform.python_version()}
    for name, distributions, _ in _PACKAGES:
        found[name] = _installed(distributions)
    return found


def lines(found: dict[str, str | None]) -> list[str]:
    """One aligned line each, with what to do about the missing ones."""
    extras = {name: extra for name, _, extra in _PACKAGES}
    width = max(map(len, found))
    return [
        f"{name:<{width}}  {number or _missing(extras[name])}" for name, number in found.items()
    ]


def _missing(extra: str) -> str:
    package = f"penstock[{extra}]" if extra else "penstock"
    return f"not installed (pip install '{package}')"


def _installed(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
