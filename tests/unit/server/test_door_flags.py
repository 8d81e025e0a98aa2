"""The flags and variables of the other front doors."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping

import pytest

from penstock.server.commands import door_flags
from penstock.server.commands.failure import CommandError
from penstock.server.front.doors import DoorOptions


def options(*flags: str, environment: Mapping[str, str] | None = None) -> DoorOptions:
    parser = argparse.ArgumentParser()
    door_flags.add_to(parser)
    return door_flags.options_of(parser.parse_args(flags), environment or {})


def test_nothing_said() -> None:
    assert options() == DoorOptions()


def test_labels() -> None:
    made = options(
        "--version-label", "a:stable=1", "--version-label", "a:canary=02",
        "--version-label", "ns:b:x=y=3",
    )  # fmt: skip
    assert made.version_labels == {"a": {"stable": "1", "canary": "2"}, "ns:b": {"x=y": "3"}}


@pytest.mark.parametrize(
    "text", ["", "a", "a:b", "a:b=", "a:b=x", ":b=1", "a:=1", "a:b/c=1", "a=1"]
)
def test_what_is_no_label(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="MODEL:LABEL=VERSION"):
        door_flags.label(text)


def test_a_label_twice() -> None:
    with pytest.raises(CommandError, match="given twice"):
        options("--version-label", "a:x=1", "--version-label", "a:x=2")


def test_routes_of_vertex_ai() -> None:
    given = {door_flags.PREDICT_ROUTE: "/v1/endpoints/1:predict", door_flags.HEALTH_ROUTE: "/ok"}
    made = options(environment=given)
    assert (made.predict_route, made.health_route) == ("/v1/endpoints/1:predict", "/ok")


@pytest.mark.parametrize(
    ("flag", "variable", "model"), [("", "", ""), ("", "a", "a"), ("b", "", "b"), ("b", "a", "b")]
)
def test_the_default_model(flag: str, variable: str, model: str) -> None:
    arguments = argparse.Namespace(default_model=flag)
    assert door_flags.default_model(arguments, {door_flags.DEFAULT_MODEL: variable}) == model


@pytest.mark.parametrize("route", ["predict", "/a{b}", "/a?b", "/a b", "/a#b"])
def test_what_is_no_route(route: str) -> None:
    with pytest.raises(CommandError, match="not the path of a route"):
        options(environment={door_flags.PREDICT_ROUTE: route})
