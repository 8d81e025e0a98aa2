"""Backends are found by Triton's names, by file and by entry point; nothing is imported early."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from penstock.backends import catalog
from penstock.backends.base import LoadError
from penstock.backends.fake import FakeBackend


@pytest.fixture
def outside(monkeypatch):
    """Installs entry points for one test."""

    def install(**points):
        group = catalog.GROUP
        found = [EntryPoint(name, value, group) for name, value in points.items()]
        monkeypatch.setattr(catalog, "entry_points", lambda group: found)
        catalog._outside.cache_clear()
        monkeypatch.setattr(catalog, "_made", {})

    yield install
    monkeypatch.undo()
    catalog._outside.cache_clear()


@pytest.mark.parametrize("name", catalog.names())
def test_every_known_backend_has_the_name_it_is_known_by(name):
    backend = catalog.get(name)
    assert backend.name == name
    assert backend is catalog.get(name)
    assert catalog.for_file(Path("1") / backend.default_filename) == name


@pytest.mark.parametrize("alias", ["onnxruntime_onnx", "onnx", "onnxruntime"])
def test_tritons_platforms(alias):
    assert catalog.canonical(alias) == "onnxruntime"
    assert catalog.get(alias).name == "onnxruntime"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(LoadError, match=r"no backend 'tensorflow'; known are onnxruntime"):
        catalog.get("tensorflow")


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.onnx", "onnxruntime"), ("a.ONNX", "onnxruntime"), ("a.ort", "onnxruntime"), ("a", None)],
)
def test_files(file, name):
    assert catalog.for_file(Path(file)) == name


def test_out_of_tree_backends(outside):
    outside(mine="penstock.backends.fake:FakeBackend")
    assert "mine" in catalog.names()
    assert isinstance(catalog.get("mine"), FakeBackend)


def test_entry_points_cannot_replace_what_is_built_in(outside):
    outside(onnxruntime="penstock.backends.fake:FakeBackend")
    assert catalog.get("onnxruntime").name == "onnxruntime"


@pytest.mark.parametrize("value", ["no_such_module:X", "penstock.backends.fake:Missing"])
def test_a_backend_that_cannot_be_imported_is_named(outside, value):
    outside(broken=value)
    with pytest.raises(LoadError, match="backend 'broken' cannot be imported"):
        catalog.get("broken")


def test_no_engine_is_imported_before_a_model_is_loaded():
    code = (
        "import sys; from penstock.backends import catalog; catalog.names();"
        "assert not [m for m in sys.modules if m.startswith('penstock.backends.onnx')];"
        "catalog.get('onnxruntime'); assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
