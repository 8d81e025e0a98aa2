"""The HTTP flags, as the server takes them."""

from __future__ import annotations

import re

import pytest

from penstock.server import cli
from penstock.server.commands.failure import CommandError
from penstock.server.commands.http_flags import options_of
from penstock.server.front.cors import CorsOptions
from penstock.server.front.http_options import HttpFrontOptions
from penstock.server.front.restriction import Rule


def options(*argv: str) -> HttpFrontOptions:
    return options_of(cli.build_parser().parse_args(["serve", "-m", "x", *argv]))


def test_the_defaults_are_the_servers() -> None:
    assert options() == HttpFrontOptions()
    assert options().cross_origin is None
    assert options().limits.json_bytes_max == 64 << 20


def test_every_flag_arrives() -> None:
    made = options(
        "--http-max-input-size", "1MiB", "--http-header-forward-pattern", "^x-",
        "--http-restricted-api", "health,trace:k=v", "--http-restricted-api", "logging:l=w",
        "--http-cors-allow-origin", "https://a.b", "--http-cors-allow-origin", "*",
        "--http-cors-allow-method", "get", "--http-cors-allow-header", "X-One",
        "--http-cors-max-age-s", "0",
    )  # fmt: skip
    assert made.limits.json_bytes_max == 1 << 20
    assert made.forward == re.compile("^x-", re.IGNORECASE)
    assert made.rules == {
        "health": Rule("k", "v"), "trace": Rule("k", "v"), "logging": Rule("l", "w")
    }  # fmt: skip
    assert made.cors == CorsOptions(("https://a.b", "*"), ("GET",), ("X-One",), 0)
    assert made.cross_origin is not None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--http-restricted-api", "x"),
        ("--http-header-forward-pattern", "["),
        ("--http-cors-allow-origin", "a"),
        ("--http-cors-allow-method", ""),
        ("--http-cors-allow-header", ":"),
    ],
)
def test_mistakes_name_their_flag(flag: str, value: str) -> None:
    with pytest.raises(CommandError, match=f"^{flag}: "):
        options(flag, value)
