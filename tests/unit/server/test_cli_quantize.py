"""``penstock quantize`` from the command line to a version that a server picks up, or to a refusal.

What is decided, and how well, is tested with ``penstock.backends.quantize``.
"""

import errno
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from penstock.backends.quantize import pipeline
from penstock.server import cli, demo
from penstock.server.commands import quantize
from penstock.server.commands.quantize import REFUSED
from penstock.server.commands.quantize_files import RECORD_FILENAME
from penstock.server.model_checksums import SUMS_FILENAME, verify, write_sums
from penstock.server.repository_layout import scan

QUICK = ("--quiet", "--no-comparisons", "--method", "minmax", "--batch", "1")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder to work in: a repository with the shipped model, and samples with labels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copytree(demo.model_repository() / "digits", tmp_path / "models" / "digits")
    shutil.copy(tmp_path / "models" / "digits" / "1" / "model.onnx", tmp_path / "net.onnx")
    images, labels = demo.heldout()
    np.savez(tmp_path / "data.npz", image=images[:300], labels=labels[:300].astype(np.int64))
    np.savez(tmp_path / "eval.npz", image=images[300:], labels=labels[300:].astype(np.int64))
    return tmp_path


@pytest.fixture
def places(site, monkeypatch):
    """The same, where it matters what is written where: no pictures are drawn, nothing is timed."""
    monkeypatch.setattr(quantize, "_page", lambda result: "<!doctype html>")
    monkeypatch.setattr(pipeline, "latency", lambda *args, **options: ())
    return site


def run(*arguments):
    return cli.main(["quantize", *map(str, arguments), *QUICK])


def operators(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def test_a_model_of_a_repository_becomes_its_next_version(site, capsys):
    assert run("models/digits", "--data", "data.npz", "--eval", "eval.npz") == 0
    made = site / "models" / "digits" / "2"
    assert "QuantizeLinear" in operators(made / "model.onnx")
    assert [model.versions for model in scan([site / "models"])] == [(1, 2)]
    record = json.loads((made / RECORD_FILENAME).read_text())
    assert record["passed"]
    assert "299 evaluation samples" in record["evaluated_on"]
    told = capsys.readouterr()
    assert "passed: " in told.out
    assert "models/digits/2/model.onnx" in told.out
    assert "digits-int8.html, digits-int8.json" in told.out
    assert told.err == ""
    written = json.loads((site / "digits-int8.json").read_text())
    assert written["written"].endswith("models/digits/2/model.onnx")
    assert (site / "digits-int8.html").read_text().startswith("<!doctype html>")


def test_the_version_in_a_file_name_is_enough(places):
    assert run("models/digits/1/model.onnx", "--data", "data.npz") == 0
    assert (places / "models" / "digits" / "2" / "model.onnx").is_file()


def test_a_loose_file_becomes_another_beside_it(places):
    assert run("net.onnx", "--data", "data.npz", "--report", "out") == 0
    assert "QuantizeLinear" in operators(places / "net.int8.onnx")
    assert (places / "out.html").is_file()
    assert (places / "out.json").is_file()


def test_into_makes_a_new_model(places):
    assert run("net.onnx", "--data", "data.npz", "--into", "models/small") == 0
    assert (places / "models" / "small" / "1" / "model.onnx").is_file()


def test_a_refused_model_leaves_a_report_and_nothing_else(site, capsys):
    images = demo.heldout()[0]
    np.savez(site / "bare.npz", image=images[:200])
    status = run("models/digits", "--data", "bare.npz", "--min-sqnr", "300")
    assert status == REFUSED
    assert sorted(p.name for p in (site / "models" / "digits").iterdir()) == [
        "1", "config.pbtxt", "labels.txt",
    ]  # fmt: skip
    assert "refused: nothing was written" in capsys.readouterr().out
    written = json.loads((site / "digits-int8.json").read_text())
    assert not written["passed"]
    assert written["written"] is None
    assert "Refused" in (site / "digits-int8.html").read_text()


def test_json_is_all_that_is_printed(site, capfd):
    assert cli.main(
        ["quantize", "net.onnx", "--data", "data.npz", "--json", "--quiet", "--method", "minmax",
         "--batch", "1"]
    ) == 0  # fmt: skip
    told = capfd.readouterr()
    result = json.loads(told.out)
    assert result["written"] == "net.int8.onnx"
    assert {row["variant"] for row in result["accuracy"]} > {"float", "INT8"}
    assert told.err == ""


def test_layers_that_must_stay_float_do(places, capsys):
    assert run("net.onnx", "--data", "data.npz", "--keep-float", "conv1") == 0
    assert "1 of 4 layers stay in float: conv1" in capsys.readouterr().out
    assert run("net.onnx", "--data", "data.npz", "--keep-float", "conv9") == 1
    assert "there is no layer 'conv9'" in capsys.readouterr().err


def test_outliers_are_smoothed_if_asked_for(places, capsys):
    assert run("net.onnx", "--data", "data.npz", "--smooth", "0.5") == 0
    assert "note: SmoothQuant with alpha 0.5 on " in capsys.readouterr().out


def test_a_model_for_tensorrt_has_no_zero_points(places):
    assert run("net.onnx", "--data", "data.npz", "--target", "tensorrt") == 0
    graph = onnx.load(places / "net.int8.onnx").graph
    zeros = [t for t in graph.initializer if "zero_point" in t.name]
    assert all(not onnx.numpy_helper.to_array(t).any() for t in zeros)
    assert all(t.data_type != onnx.TensorProto.UINT8 for t in graph.initializer)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("missing.onnx", "--data", "data.npz"), 1, "there is no file missing.onnx"),
        (("models", "--data", "data.npz"), 1, "has no versions"),
        (("net.onnx", "--data", "missing.npz"), 1, "there is no file or folder missing.npz"),
        (("data.npz", "--data", "data.npz"), 1, "is no ONNX model"),
        (("net.onnx",), 2, "--data"),
        (("net.onnx", "--data", "x", "--min-cosine", "2"), 2, "from 0 to 1"),
        (("net.onnx", "--data", "x", "--max-drop", "-1"), 2, "at least 0"),
        (("net.onnx", "--data", "x", "--output", "a", "--into", "b"), 2, "not allowed with"),
        (("net.onnx", "--data", "x", "--output", "net.onnx"), 2, "is the float model itself"),
        (("net.onnx", "--data", "x", "--output", "models"), 2, "models is a directory"),
        (("net.onnx", "--data", "data.npz", "--eval", "./data.npz"), 2, "cannot judge"),
        (("net.onnx", "--data", "x", "--threads", "100000"), 2, "this machine has"),
        (("net.onnx", "--data", "x", "--batch", "100000"), 2, "4096 is the largest"),
        (("net.onnx", "--data", "x", "--into", "models"), 2, "name the model: --into models/net"),
        (("net.onnx", "--data", "x", "--output", "/proc/x.onnx"), 1, "cannot write to /proc"),
        (("net.onnx", "--data", "x", "--report", "/proc/x"), 1, "cannot write to /proc"),
    ],
)
def test_mistakes_are_told_in_a_line(places, capsys, arguments, status, said):
    assert run(*arguments) == status
    assert said in capsys.readouterr().err


def test_a_model_of_another_backend_is_left_alone(places, capsys):
    config = places / "models" / "other" / "config.pbtxt"
    config.parent.mkdir()
    config.write_text('backend: "tvm"')
    assert run("net.onnx", "--data", "data.npz", "--into", "models/other") == 1
    assert "is a model of backend 'tvm'" in capsys.readouterr().err


def test_progress_is_told_on_the_error_stream(places, capsys):
    assert cli.main(["quantize", "net.onnx", "--data", "data.npz", "--no-comparisons"]) == 0
    steps = capsys.readouterr().err
    assert "calibration" in steps
    assert "sensitivity of conv1" in steps


def test_a_repository_of_links_stays_one(places):
    """A store links files and versions to places of any name, numbers among them."""
    store, model = places / "store" / "42", places / "models" / "linked"
    store.mkdir(parents=True)
    (places / "net.onnx").rename(store / "blob")
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").symlink_to(store / "blob")
    assert run("models/linked", "--data", "data.npz") == 0
    assert (model / "2" / "model.onnx").is_file()
    assert [p.name for p in (places / "store").iterdir()] == ["42"]


def test_a_folder_called_by_a_number_is_no_version_yet(places):
    (places / "2024").mkdir()
    (places / "net.onnx").rename(places / "2024" / "resnet.onnx")
    assert run("2024/resnet.onnx", "--data", "data.npz") == 0
    assert (places / "2024" / "resnet.int8.onnx").is_file()
    assert (places / "resnet-int8.html").is_file()


def test_the_file_is_called_as_the_configuration_says(places):
    model = places / "models" / "digits"
    (model / "1" / "model.onnx").rename(model / "1" / "net.onnx")
    with (model / "config.pbtxt").open("a") as file:
        file.write('\ndefault_model_filename: "net.onnx"\n')
    assert run("models/digits", "--data", "data.npz") == 0
    assert (model / "2" / "net.onnx").is_file()
    assert json.loads((places / "digits-int8.json").read_text())["written"].endswith("2/net.onnx")


def test_a_configured_file_that_is_not_onnx_is_left_alone(places, capsys):
    config = places / "models" / "digits" / "config.pbtxt"
    config.write_text('default_model_filename: "model.ort"')
    assert run("models/digits/1/model.onnx", "--data", "data.npz") == 1
    assert "default_model_filename 'model.ort'" in capsys.readouterr().err


def test_the_float_version_is_taken_again(places, capsys):
    assert run("models/digits", "--data", "data.npz") == 0
    assert run("models/digits", "--data", "data.npz") == 0
    assert (places / "models" / "digits" / "3" / RECORD_FILENAME).is_file()
    shutil.rmtree(places / "models" / "digits" / "1")
    assert run("models/digits", "--data", "data.npz") == 1
    assert "are quantised already" in capsys.readouterr().err


def test_a_version_with_checksums_is_followed_by_one(places):
    model = places / "models" / "digits"
    write_sums(model / "1")
    assert run("models/digits", "--data", "data.npz") == 0
    verify(model / "2" / "model.onnx", folder=model, required=True)
    listed = (model / "2" / SUMS_FILENAME).read_text().split()[1::2]
    assert listed == ["model.onnx", RECORD_FILENAME]


def test_a_dry_run_reports_and_writes_no_model(places, capsys):
    before = sorted(places.rglob("*"))
    assert run("models/digits", "--data", "data.npz", "--dry-run") == 0
    assert sorted(p.name for p in set(places.rglob("*")) - set(before)) == [
        "digits-int8.html", "digits-int8.json",
    ]  # fmt: skip
    assert "passed: nothing was written, as asked" in capsys.readouterr().out
    assert json.loads((places / "digits-int8.json").read_text())["written"] is None


@pytest.mark.parametrize(
    ("report", "page"),
    [(".", "net-int8.html"), ("out/new/x", "out/new/x.html"), ("x.html", "x.html")],
)
def test_reports_go_where_they_are_wanted(places, report, page):
    assert run("net.onnx", "--data", "data.npz", "--dry-run", "--report", report) == 0
    assert (places / page).is_file()


def test_missing_packages_are_told_before_the_work(places, capsys, monkeypatch):
    monkeypatch.setattr(quantize, "_NEEDED", {"no.such": "a-package", "numpy": "numpy"})
    assert run("models/digits", "--data", "data.npz") == 2
    told = capsys.readouterr().err
    assert "needs a-package, which" in told
    assert "penstock[server,quantize]" in told


def test_a_full_disk_is_told_and_leaves_nothing(places, capsys, monkeypatch):
    def full(path, write):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(pipeline, "write_whole", full)
    assert run("models/digits", "--data", "data.npz") == 1
    told = capsys.readouterr().err
    assert told.startswith("penstock quantize: error: cannot write ")
    assert told.endswith("model.onnx: No space left on device\n")
    assert [p.name for p in (places / "models" / "digits").glob("[.12]*")] == ["1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_it_finds_nothing_half_made(site, number):
    child = subprocess.Popen(
        [sys.executable, "-m", "penstock.server.cli", "quantize", "models/digits",
         "--data", "data.npz", "--cache", "cache.npz"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # Tests may run under nohup.
    )  # fmt: skip
    with child:
        assert child.stderr is not None
        assert any("sensitivity" in line for line in child.stderr)
        assert list((site / "models" / "digits").glob(".making-*"))
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert [p.name for p in (site / "models" / "digits").glob("[.12]*")] == ["1"]
