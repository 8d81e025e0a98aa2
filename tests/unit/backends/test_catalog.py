"""Backends are found by Triton's names, by file and by entry point; nothing is imported early."""

import subprocess
import sys
import threading
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
    with pytest.raises(LoadError, match=r"no backend 'tensorflow'; known are jax, lightgbm"):
        catalog.get("tensorflow")


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.onnx", "onnxruntime"), ("a.ONNX", "onnxruntime"), ("a.ort", "onnxruntime"), ("a", None)],
)
def test_files(file, name):
    assert catalog.for_file(Path(file)) == name


@pytest.mark.parametrize(
    ("name", "file", "reads"),
    [
        ("openvino", "model.onnx", True),
        ("tensorrt", "model.onnx", True),
        ("tvm", "model.onnx", False),
        ("openvino", "model.xml", True),
        ("openvino", "model.plan", False),
    ],
)
def test_what_a_named_backend_reads(name, file, reads):
    assert catalog.reads(name, Path(file)) is reads


@pytest.mark.parametrize(
    ("name", "takes"),
    [("onnxruntime", True), ("onnx", True), ("litert", False), ("tflite", False), ("tvm", False)],
)
def test_whose_artefacts_clients_may_send(name, takes):
    assert catalog.takes_uploads(name) is takes


class Mine(FakeBackend):
    name = "mine"


class Around:
    """A backend that is made of another one."""

    name = "around"
    default_filename = "model.around"

    def __init__(self):
        self.inner = catalog.get("onnxruntime")


def test_out_of_tree_backends(outside):
    outside(mine=f"{__name__}:Mine")
    assert "mine" in catalog.names()
    assert isinstance(catalog.get("mine"), Mine)


def test_a_backend_may_be_made_of_another_one(outside):
    outside(around=f"{__name__}:Around")
    made = []
    thread = threading.Thread(target=lambda: made.append(catalog.get("around")), daemon=True)
    thread.start()
    thread.join(30)
    assert [around.inner.name for around in made] == ["onnxruntime"]


@pytest.mark.parametrize("value", ["penstock.backends.fake:FakeBackend", "builtins:object"])
def test_a_backend_of_another_name_is_refused(outside, value):
    """What --allow-code permits goes by the name; nobody may load under that of another."""
    outside(mine=value)
    with pytest.raises(LoadError, match="must have the name 'mine'"):
        catalog.get("mine")
    assert catalog.runs_code("mine")


def test_entry_points_cannot_take_an_alias(outside):
    outside(torch=f"{__name__}:Mine")
    assert "torch" not in catalog.names()
    assert catalog.get("torch").name == "pytorch"


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
