"""``penstock backends`` tells what runs here, and what is missing where something does not."""

import json

import pytest

from penstock.backends import catalog
from penstock.backends.base import Engine
from penstock.server import cli
from penstock.server.commands.backends import Entry, entries, lines
from penstock.server.commands.terminal import Terminal

PLAIN = Terminal()


class Absent:
    name = "absent"
    default_filename = "model.abs"

    def load(self, source):
        raise AssertionError("nothing is loaded for a list")

    def engine(self):
        return Engine(missing="it needs a card; buy one")


class Failing(Absent):
    name = "failing"

    def engine(self):
        raise RuntimeError("the driver is gone")


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(catalog, "_made", {**catalog._made, "absent": Absent()})
    monkeypatch.setattr(catalog, "_outside", lambda: {
        "absent": Absent, "failing": lambda: Failing, "gone": None
    })  # fmt: skip


def test_every_backend_is_listed_as_it_describes_itself(absent, capsys):
    assert cli.main(["backends", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(found) == set(catalog.offered()) >= {"onnxruntime", "python", "absent", "gone"}
    assert "fake" not in found
    onnx = found["onnxruntime"]
    assert onnx["missing"] == ""
    assert "cpu" in onnx["devices"]
    assert onnx["version"]
    assert not onnx["runs_code"]
    assert found["python"]["runs_code"]
    assert found["absent"]["missing"] == "it needs a card; buy one"
    assert found["failing"]["missing"] == "its engine cannot be asked: the driver is gone"
    assert found["gone"]["missing"].startswith("backend 'gone' cannot be imported")


def test_the_table_ends_with_what_is_missing():
    shown = lines(
        [
            Entry("one", "model.one", "1.2", ("cpu", "cuda:0"), "", False),
            Entry("two", "model.two", "", (), "pip install it", True),
        ],
        PLAIN,
    )
    assert [line.split() for line in shown[:3]] == [
        ["BACKEND", "MODEL", "ENGINE", "DEVICES", "PROGRAMS"],
        ["one", "model.one", "1.2", "cpu,", "cuda:0"],
        ["two", "model.two", "not", "here", "yes"],
    ]
    assert shown[3:] == ["", "two: pip install it"]


def test_no_backend_raises_when_it_is_asked():
    assert [entry.name for entry in entries()] == list(catalog.offered())
