"""The flags of ``penstock serve`` for what the HTTP routes let in, and what for.

Ports, connections and times are with the other addresses and limits.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.server.commands import values
from penstock.server.commands.failure import USAGE, CommandError

if TYPE_CHECKING:
    from penstock.server.front.http_options import HttpFrontOptions


def add_to(parser: argparse.ArgumentParser) -> None:
    _add_requests(parser.add_argument_group("HTTP requests"))
    _add_cors(
        parser.add_argument_group("HTTP from web pages", "off unless an origin is named (CORS)")
    )


def _add_requests(group: Any) -> None:
    group.add_argument(
        "--http-max-input-size", metavar="SIZE", type=values.size, default=64 << 20,
        help="the largest JSON, and what a compressed request may grow to; binary tensors are "
        "not counted (default: 64MiB)",
    )  # fmt: skip
    group.add_argument(
        "--http-header-forward-pattern", metavar="REGEX", default="",
        help="headers that become string parameters of their inference request (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--http-restricted-api", metavar="APIS:KEY=VALUE", action="append", default=[],
        help="serve these groups of the API only to requests whose header KEY is VALUE; health, "
        "metadata, inference, shared-memory, model-config, model-repository, statistics, trace, "
        "logging; may be given several times",
    )  # fmt: skip


def _add_cors(group: Any) -> None:
    group.add_argument(
        "--http-cors-allow-origin", metavar="ORIGIN", action="append", default=[],
        help="pages that may send requests, such as https://example.org, or * for all; may be "
        "given several times",
    )  # fmt: skip
    group.add_argument(
        "--http-cors-allow-method", metavar="METHOD", action="append", default=[],
        help="may be given several times (default: GET, HEAD and POST)",
    )  # fmt: skip
    group.add_argument(
        "--http-cors-allow-header", metavar="NAME", action="append", default=[],
        help="headers that they may send; may be given several times (default: any)",
    )  # fmt: skip
    group.add_argument(
        "--http-cors-max-age-s", metavar="S", type=values.index, default=600,
        help="how long a browser may remember that it may (default: %(default)s)",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> HttpFrontOptions:
    """The flags as the server takes them.

    Raises:
        CommandError: a rule, a pattern or an origin that cannot be.
    """
    from penstock.protocol.limits import DEFAULT
    from penstock.server.front.cors import CorsOptions, check_origin, check_token
    from penstock.server.front.http_options import HttpFrontOptions
    from penstock.server.front.restriction import parse_rules
    from penstock.server.front.target import forward_pattern

    plain = CorsOptions()
    flag = ""
    try:
        flag = "--http-restricted-api"
        rules = parse_rules(arguments.http_restricted_api)
        flag = "--http-header-forward-pattern"
        forward = forward_pattern(arguments.http_header_forward_pattern)
        flag = "--http-cors-allow-origin"
        origins = tuple(map(check_origin, arguments.http_cors_allow_origin))
        flag = "--http-cors-allow-method"
        methods = tuple(check_token(m).upper() for m in arguments.http_cors_allow_method)
        flag = "--http-cors-allow-header"
        headers = tuple(map(check_token, arguments.http_cors_allow_header))
    except ValueError as error:
        raise CommandError(f"{flag}: {error}", status=USAGE) from None
    return HttpFrontOptions(
        replace(DEFAULT, json_bytes_max=arguments.http_max_input_size),
        forward,
        rules,
        CorsOptions(
            origins,
            methods or plain.methods,
            headers or plain.headers,
            arguments.http_cors_max_age_s,
        ),
    )
