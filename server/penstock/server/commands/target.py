"""The flags of the commands that ask a running server: which one, and how long to wait."""

from __future__ import annotations

from typing import Any, Final

from penstock.server.commands import values

URL: Final = "http://127.0.0.1:8000"


def add_target(parser: Any) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", metavar="URL", default=URL,
        help="http://HOST:PORT, https://... or unix:/path/to.sock (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--timeout", metavar="S", type=values.positive_seconds, default=30.0,
        help="seconds for the whole call, with retries (default: %(default)g)",
    )  # fmt: skip
