"""The flags of the commands that ask a running server: which one, and how long to wait."""

from __future__ import annotations

import argparse
from typing import Any, Final

from penstock.server.commands import values

URL: Final = "http://127.0.0.1:8000"
TIMEOUT_S: Final = 30.0


def add_target(parser: Any, *, inherited: bool = False) -> None:
    """``inherited``: the command around this one has the flags as well, and their defaults."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", metavar="URL", default=argparse.SUPPRESS if inherited else URL,
        help=f"http://HOST:PORT, https://... or unix:/path/to.sock (default: {URL})",
    )  # fmt: skip
    group.add_argument(
        "--timeout", metavar="S", type=values.positive_seconds,
        default=argparse.SUPPRESS if inherited else TIMEOUT_S,
        help=f"seconds for the whole call, with retries (default: {TIMEOUT_S:g})",
    )  # fmt: skip
