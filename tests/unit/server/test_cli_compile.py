"""``penstock compile``: where artefacts go, what is refused, what is told. No engine compiles here;
``tests/integration/test_compile.py`` has real ones."""

import json
import shutil
from pathlib import Path

import pytest

from penstock.backends import catalog
from penstock.backends.base import CompileTask, Engine, LoadError
from penstock.loadtest.models import write_identity, write_mlp
from penstock.server import cli
from penstock.server.repository_layout import scan


class Maker:
    """Compiles by copying; keeps its tasks."""

    name = "maker"
    default_filename = "model.made"

    def __init__(self):
        self.tasks: list[CompileTask] = []
        self.version, self.missing = "1.0", ""
        self.error = ""

    def engine(self):
        return Engine(self.version, (), self.missing)

    def load(self, source):
        raise AssertionError("nothing is loaded to compile it")

    def compile(self, task):
        self.tasks.append(task)
        task.progress("thinking", 0.5)
        shutil.copy(task.model, task.into / self.default_filename)
        (task.into / "model.json").write_text("{}")
        if self.error:
            raise LoadError(self.error)
        return task.into / self.default_filename


@pytest.fixture
def maker(monkeypatch):
    made = Maker()
    real = catalog.get
    monkeypatch.setattr(catalog, "get", lambda name: made if name == "maker" else real(name))
    return made


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mlp(tmp_path / "net.onnx", 8, 0)
    (tmp_path / "models").mkdir()
    return tmp_path


def run(*arguments, backend="maker"):
    return cli.main(["compile", "net.onnx", "--backend", backend, *map(str, arguments)])


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_into_a_repository_version_after_version(maker, site, capsys):
    assert run("--repository", "models", "--name", "net") == 0
    assert run("--repository", "models", "--name", "net", "--json") == 0
    assert files("models/net") == [
        "1/model.json", "1/model.made", "2/model.json", "2/model.made", "config.pbtxt",
    ]  # fmt: skip
    config = Path("models/net/config.pbtxt").read_text()
    assert config == 'backend: "maker"\nmax_batch_size: 64\n'
    out = capsys.readouterr().out
    assert "penstock serve --model-repository models --allow-code maker" in out
    told = json.loads(out[out.index("{") :])
    size = Path("net.onnx").stat().st_size
    assert told == {
        "backend": "maker", "artefact": "models/net/2/model.made", "bytes": size, "version": 2,
    }  # fmt: skip
    assert [model.name for model in scan([Path("models")])] == ["net"]


def test_the_name_is_the_files_and_the_backends(maker, site):
    assert run("--repository", "models") == 0
    assert files("models") == [
        "net-maker/1/model.json", "net-maker/1/model.made", "net-maker/config.pbtxt",
    ]  # fmt: skip


def test_into_a_directory_over_what_was_there(maker, site, capsys):
    Path("out").mkdir()
    Path("out/model.made").write_text("old")
    Path("out/other").write_text("kept")
    assert run("--output", "out", "--quiet") == 0
    assert files("out") == ["model.json", "model.made", "other"]
    assert Path("out/model.made").read_bytes() == Path("net.onnx").read_bytes()
    printed = capsys.readouterr()
    assert "wrote out/model.made" in printed.out
    assert printed.err == ""


def test_what_the_backend_is_asked_for(maker, site, capsys):
    wishes = ("--target", "chip", "--max-batch", "7", "--budget", "2.5s")
    options = ("--option", "a=1", "--option", "b=x=y")
    assert run("--output", "out", *wishes, *options) == 0
    (task,) = maker.tasks
    assert (task.target, task.rows_max, task.budget_s) == ("chip", 7, 2.5)
    assert task.options == {"a": "1", "b": "x=y"}
    assert "thinking (50%)" in capsys.readouterr().err


def test_a_fixed_batch_is_none(maker, site):
    write_identity(Path("net.onnx"), shape=(3, "M"))
    assert run("--repository", "models", "--name", "net", "--quiet") == 0
    assert maker.tasks[0].rows_max == 0
    assert Path("models/net/config.pbtxt").read_text() == 'backend: "maker"\n'


def test_a_failure_leaves_nothing(maker, site, capsys):
    maker.error = "the layer Foo is not known"
    assert run("--repository", "models", "--name", "net", "--quiet") == 1
    assert run("--output", "out", "--quiet") == 1
    assert files("models") == []
    assert not Path("out").exists()
    assert capsys.readouterr().err.splitlines() == [
        "penstock compile: error: the layer Foo is not known"
    ] * 2  # fmt: skip


@pytest.mark.parametrize(
    ("config", "version_file", "said"),
    [
        ('backend: "onnxruntime"', "model.onnx", "says backend 'onnxruntime'"),
        ("", "model.onnx", "version 1 has no model.made"),
        ("max_batch_size: 4", "model.onnx", "version 1 has no model.made"),
        ('backend: "', "model.made", "cannot read"),
    ],
)
def test_models_of_other_backends_stay_as_they_are(maker, site, capsys, config, version_file, said):
    (site / "models" / "net" / "1").mkdir(parents=True)
    (site / "models" / "net" / "1" / version_file).write_text("x")
    if config:
        (site / "models" / "net" / "config.pbtxt").write_text(config)
    before = files("models")
    assert run("--repository", "models", "--name", "net", "--quiet") == 1
    assert files("models") == before
    assert said in capsys.readouterr().err
    assert maker.tasks == []


def test_an_existing_configuration_of_the_same_backend_is_kept(maker, site):
    (site / "models" / "net").mkdir()
    config = site / "models" / "net" / "config.pbtxt"
    config.write_text('backend: "maker"\nmax_batch_size: 3\n')
    assert run("--repository", "models", "--name", "net", "--quiet") == 0
    assert config.read_text() == 'backend: "maker"\nmax_batch_size: 3\n'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--repository"),
        (("--repository", "models", "--output", "out"), "not allowed with"),
        (("--output", "out", "--name", "x"), "--name is for --repository"),
        (("--repository", "nowhere"), "there is no directory nowhere"),
        (("--repository", "models", "--name", ".x"), "no name for a model"),
        (("--repository", "models", "--name", "../x"), "no name for a model"),
        (("--output", "out", "--option", "a"), "expected KEY=VALUE"),
        (("--output", "out", "--budget", "-1"), "is not a time"),
        (("--output", "out", "--max-batch", "x"), "is not a whole number"),
    ],
)
def test_wrong_usage(maker, site, capsys, arguments, said):
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err
    assert maker.tasks == []


def test_backends_that_cannot(maker, site, capsys):
    assert run("--output", "out", backend="fake") == 2
    assert "those that compile are openvino, tensorrt, tvm" in capsys.readouterr().err
    assert run("--output", "out", backend="nothing") == 2
    assert "there is no backend 'nothing'" in capsys.readouterr().err
    maker.version, maker.missing = "", "install maker"
    assert run("--output", "out") == 1
    assert "error: install maker" in capsys.readouterr().err


def test_an_engine_that_misses_something_to_run_may_compile(maker, site):
    maker.missing = "there is no GPU"
    assert run("--output", "out", "--quiet") == 0


def test_what_is_no_model(maker, site, capsys):
    Path("net.onnx").write_bytes(b"\x93not a model" * 9)
    assert run("--output", "out") == 1
    assert "net.onnx is not an ONNX model" in capsys.readouterr().err
    Path("net.onnx").unlink()
    assert run("--output", "out") == 2
    assert "there is no file net.onnx" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(maker, site, capsys):
    Path("out").write_text("a file")
    assert run("--output", "out", "--quiet") == 1
    assert "cannot write to out" in capsys.readouterr().err


def test_the_command_to_serve_can_be_pasted(maker, site, capsys):
    Path("my models").mkdir()
    assert run("--repository", "my models", "--quiet") == 0
    assert "--model-repository 'my models' --allow-code" in capsys.readouterr().out


def test_help_has_examples(capsys):
    assert cli.main(["compile", "--help"]) == 0
    assert "penstock compile model.onnx --backend tvm --repository" in capsys.readouterr().out
