"""The flags of ``penstock serve`` for the front doors beside KServe v2 and GraphPipe.

Vertex AI tells a container its routes by environment variables, not by flags, and users of Triton
on SageMaker name the default model so; they are read here.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from penstock.server.commands import values
from penstock.server.commands.failure import USAGE, CommandError

if TYPE_CHECKING:
    from penstock.server.front.doors import DoorOptions

PREDICT_ROUTE: Final = "AIP_PREDICT_ROUTE"
HEALTH_ROUTE: Final = "AIP_HEALTH_ROUTE"
DEFAULT_MODEL: Final = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"


class Label(NamedTuple):
    model: str
    label: str
    version: str


def label(text: str) -> Label:
    """``MODEL:LABEL=VERSION``."""
    named, _, version = text.rpartition("=")
    model, _, name = named.rpartition(":")
    if not (model and name and version.isascii() and version.isdigit()) or "/" in name:
        raise ArgumentTypeError(f"{text!r} is not MODEL:LABEL=VERSION, such as digits:stable=3")
    return Label(model, name, str(int(version)))


def add_to(group: Any) -> None:
    group.add_argument(
        "--sagemaker-port", metavar="PORT", type=values.port, default=None,
        help="listen here too, with the same routes; SageMaker and Vertex AI expect 8080 "
        "(default: off)",
    )  # fmt: skip
    group.add_argument(
        "--version-label", metavar="MODEL:LABEL=VERSION", type=label, action="append", default=[],
        help="a name for a version in TensorFlow Serving's requests, such as digits:stable=3; may "
        "be given several times",
    )  # fmt: skip


def default_model(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """The flag's, else what SageMaker's users say."""
    return str(arguments.default_model or environment.get(DEFAULT_MODEL, ""))


def options_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> DoorOptions:
    """The flags, and Vertex AI's variables, as the server takes them.

    Raises:
        CommandError: a label is given twice, or a variable is no route.
    """
    from penstock.server.front.doors import DoorOptions

    labels: dict[str, dict[str, str]] = {}
    for given in arguments.version_label:
        named = labels.setdefault(given.model, {})
        if named.setdefault(given.label, given.version) != given.version:
            raise CommandError(
                f"--version-label: '{given.label}' of model '{given.model}' is given twice",
                status=USAGE,
            )
    return DoorOptions(labels, *(_route(environment, n) for n in (PREDICT_ROUTE, HEALTH_ROUTE)))


def _route(environment: Mapping[str, str], name: str) -> str:
    route = environment.get(name, "")
    if route and (not route.startswith("/") or set(route) & set("{}?# ")):
        raise CommandError(f"{name}: {route!r} is not the path of a route", status=USAGE)
    return route
