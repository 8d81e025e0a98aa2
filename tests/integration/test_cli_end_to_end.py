"""The ``penstock`` program as its users have it: subprocesses against a server subprocess."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from penstock.backends.fake import artefact
from penstock.server import demo

pytest.importorskip("uvloop", reason="NOT TESTED: serving needs the server extra")
pytest.importorskip("onnxruntime", reason="NOT TESTED: the demonstration needs onnxruntime")

COMMAND_S_MAX = 60

BASE_ONLY = """
import sys
for name in ("uvloop", "httptools", "google", "google.protobuf", "onnxruntime", "aiohttp"):
    sys.modules[name] = None
from penstock.server.cli import main
sys.exit(main(sys.argv[1:]))
"""


def penstock(
    *arguments: str, stdin: str = "", base_only: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """``base_only``: as if no extra were installed."""
    program = ["-c", BASE_ONLY] if base_only else ["-m", "penstock.server.cli"]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=COMMAND_S_MAX,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
        check=False,
    )


def answer(*arguments: str, **options: Any) -> str:
    """What a command that must succeed prints."""
    done = penstock(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="session")
def url(demo_server: Any) -> str:
    return demo_server.http


# --- infer


@pytest.mark.parametrize("protocol", ["graphpipe", "v2"])
@pytest.mark.parametrize("base_only", [False, True])
def test_infer_digits_draws_pictures_with_their_answers(
    url: str, protocol: str, base_only: bool
) -> None:
    text = answer(
        "infer", "digits", "--url", url, "--seed", "3", "--protocol", protocol, base_only=base_only
    )
    assert text.count("┌────────────────┐  0 ") == 3
    assert text.count("✓ right") + text.count("✗ WRONG") == 3
    assert f"of 3 right; one request over {protocol}, " in text


def test_infer_digits_in_ascii(url: str) -> None:
    text = answer("infer", "digits", "--url", url, "--index", "5", PYTHONIOENCODING="ascii")
    assert text.isascii()
    assert "+----------------+  0 " in text
    assert "picture 5: the model says 9 (" in text


def test_infer_digits_as_json_is_mostly_right(url: str) -> None:
    rows = json.loads(answer("infer", "digits", "--url", url, "--count", "599", "--output", "json"))
    assert [row["index"] for row in rows] == list(range(599))
    assert sum(row["right"] for row in rows) >= 0.97 * 599
    assert all(abs(sum(row["probabilities"]) - 1) < 1e-3 for row in rows)


def test_infer_digits_into_a_file(url: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    done = penstock("infer", "digits", "--url", url, "--count", "7", "--output", str(path))
    assert done.returncode == 0
    with np.load(path) as arrays:
        assert arrays["probabilities"].shape == (7, 10)
        assert arrays["image"].shape == (7, 1, 8, 8)


@pytest.mark.parametrize("form", ["npy", "json", "literal", "unnamed", "stdin"])
def test_infer_takes_inputs_of_every_form(url: str, tmp_path: Path, form: str) -> None:
    images, labels = demo.heldout()
    text = json.dumps(images[:2].tolist())
    (tmp_path / "x.json").write_text(text)
    np.save(tmp_path / "x.npy", images[:2].astype(np.float64))
    value = {
        "npy": f"image={tmp_path / 'x.npy'}",
        "json": f"image=@{tmp_path / 'x.json'}",
        "literal": f"image={text}",
        "unnamed": text,
        "stdin": "-",
    }[form]
    out = json.loads(
        answer(
            "infer", "digits", "--url", url, "--input", value, "--output", "json",
            stdin=f'{{"image": {text}}}' if form == "stdin" else "",
        )
    )  # fmt: skip
    (probabilities,) = out["outputs"]
    assert (probabilities["name"], probabilities["datatype"]) == ("probabilities", "FP32")
    assert probabilities["shape"] == [2, 10]
    assert np.argmax(probabilities["data"], axis=1).tolist() == labels[:2].tolist()


def test_infer_as_text_and_into_a_file(url: str, tmp_path: Path) -> None:
    picture = json.dumps(demo.heldout()[0][:1].tolist())
    path = tmp_path / "out.npz"
    text = answer("infer", "digits", "--url", url, "--input", picture, "--version", "1")
    assert text.startswith("probabilities FP32[1,10]\n  [[")
    done = penstock("infer", "digits", "--url", url, "--input", picture, "--output", str(path))
    assert done.returncode == 0
    with np.load(path) as arrays:
        assert arrays["probabilities"].shape == (1, 10)


@pytest.mark.parametrize("protocol", ["graphpipe", "v2"])
def test_infer_names_the_models_there_are(url: str, protocol: str) -> None:
    done = penstock("infer", "nope", "--url", url, "--protocol", protocol)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "penstock infer: error: Request for unknown model: 'nope' is not found\n"
        "  models there: digits\n"
    )


def test_infer_shows_what_the_server_says_about_a_shape(url: str) -> None:
    done = penstock("infer", "digits", "--url", url, "--input", "[1, 2]")
    assert done.returncode == 1
    assert "unexpected shape for input 'image'" in done.stderr
    assert "Traceback" not in done.stderr


def test_infer_says_what_a_model_takes(start_server: Any, tmp_path: Path) -> None:
    shutil.copytree(demo.model_repository() / "digits", tmp_path / "models" / "other")
    config = tmp_path / "models" / "other" / "config.pbtxt"
    config.write_text(config.read_text().replace('"digits"', '"other"'))
    server = start_server("--model-repository", tmp_path / "models")
    done = penstock("infer", "other", "--url", server.http)
    assert done.returncode == 2
    assert "other takes image FP32[-1,1,8,8]" in done.stderr


@pytest.mark.parametrize("command", [["infer", "digits"], ["models"]])
def test_no_server_there(command: list[str]) -> None:
    with socket.socket() as bound:  # bound and not listening: nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        done = penstock(*command, "--url", f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Connection refused" in done.stderr
    assert "start it with: penstock serve --demo" in done.stderr
    assert "Traceback" not in done.stderr


# --- models, version


@pytest.mark.parametrize("base_only", [False, True])
def test_models(url: str, base_only: bool) -> None:
    text = answer("models", "--url", url, base_only=base_only)
    row = " ".join(text.splitlines()[1].split())
    assert row == ("digits 1 READY onnxruntime image FP32[-1,1,8,8] → probabilities FP32[-1,10]")


def test_models_as_json(url: str) -> None:
    (model,) = json.loads(answer("models", "--url", url, "--json"))
    assert model == {
        "name": "digits",
        "version": "1",
        "state": "READY",
        "reason": "",
        "platform": "onnxruntime",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
    }


def test_version() -> None:
    found = json.loads(answer("version", "--json", base_only=True))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {
        "penstock", "python", "numpy", "onnxruntime", "uvloop", "httptools", "protobuf",
    }  # fmt: skip
    assert answer("version").startswith(f"penstock     {found['penstock']}\n")
    assert answer("--version") == f"penstock {found['penstock']}\n"


def test_a_reader_that_leaves_is_no_traceback(url: str) -> None:
    command = [sys.executable, "-m", "penstock.server.cli", "infer", "digits", "--url", url]
    with subprocess.Popen(
        [*command, "--count", "599"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(COMMAND_S_MAX) == 1


# --- serve


def test_serve_from_start_to_end(start_server: Any) -> None:
    server = start_server("--demo")
    with urlopen(f"{server.http}/v2/health/ready", timeout=10) as reply:
        assert reply.status == 200
    grpc = pytest.importorskip("grpc", reason="NOT TESTED: counting gRPC connections needs grpcio")
    with grpc.insecure_channel(server.grpc) as channel:
        grpc.channel_ready_future(channel).result(10)
        with urlopen(f"{server.metrics}/metrics", timeout=10) as reply:
            page = reply.read()
    assert b"nv_inference_count" in page
    assert b'penstock_connections{port="grpc"} 1' in page
    shown = server.stdout
    assert f"{server.http}/graphpipe/digits\n" in shown
    assert f"{server.http}/v2/models/digits/infer\n" in shown
    assert f"{server.metrics}/metrics\n" in shown
    assert "\x1b" not in shown
    assert server.stop() == 0
    assert not server.ready_file.exists()
    assert "Traceback" not in server.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT TESTED: the curl line needs curl")
@pytest.mark.parametrize("sockets_only", [False, True])
def test_the_curl_line_works(start_server: Any, tmp_path: Path, sockets_only: bool) -> None:
    flags = ["--http-port", "off", "--uds", str(tmp_path / "s.sock")] if sockets_only else []
    server = start_server("--demo", *flags)
    (line,) = [line for line in server.stdout.splitlines() if "curl -s" in line]
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=True)
    (output,) = json.loads(done.stdout)["outputs"]
    assert output["shape"] == [1, 10]
    assert int(np.argmax(output["data"])) == demo.heldout()[1][0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT TESTED: the curl line needs curl")
@pytest.mark.parametrize(
    ("dtype", "shape"), [("FP16", "3"), ("BYTES", "100"), ("FP32", "3,64,64"), ("BOOL", "2")]
)
def test_the_curl_line_works_for_every_kind_of_model(
    start_server: Any, tmp_path: Path, dtype: str, shape: str
) -> None:
    made = artefact({"kind": "identity", "dtype": dtype, "shape": shape})
    (tmp_path / "it's.fake").write_bytes(made)
    server = start_server("-m", tmp_path / "it's.fake")
    (line,) = [line for line in server.stdout.splitlines() if "curl -s" in line]
    done = subprocess.run(
        ["sh", "-c", line.replace("curl -s ", "curl -s -D - ")],
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(b"HTTP/1.1 200 OK"), done.stdout[:500]


def test_a_unix_socket_and_its_permissions(start_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "penstock.sock"
    server = start_server("--demo", "--http-port", "off", "--uds", path, "--uds-mode", "600")
    assert (server.http, server.uds) == ("", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "digits" in answer("models", "--url", f"unix:{path}")
    assert server.stop(signal.SIGINT) == 0
    assert not path.exists()


def broken_repository(folder: Path) -> Path:
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    shutil.copytree(demo.model_repository() / "digits", folder / "digits")
    with (folder / "digits" / "config.pbtxt").open("a") as config:
        config.write("optimization { priority: PRIORITY_MAX }\n")
    return folder


def test_a_broken_model_is_told_and_stops_nobody(start_server: Any, tmp_path: Path) -> None:
    server = start_server("--model-repository", broken_repository(tmp_path / "models"))
    shown = server.stdout
    assert "NOT SERVED: broken 1\n" in shown
    assert "cannot load" in shown
    assert "note: digits: config.pbtxt: optimization.priority: " in shown
    listed = answer("models", "--url", server.http)
    assert "UNAVAILABLE" in listed
    assert "broken 1: " in listed
    assert "1 of 1 right" in answer("infer", "digits", "--url", server.http, "--index", "5")


def test_exit_on_error(start_server: Any, tmp_path: Path) -> None:
    models = broken_repository(tmp_path / "models")
    server = start_server("-m", models, "--exit-on-error", "--shutdown-delay-s", "300", ready=False)
    assert server.wait() == 1
    assert "not every model could be loaded: broken" in server.stderr
    assert "Traceback" not in server.stderr
    assert not server.ready_file.exists()


@pytest.mark.parametrize("what", ["http", "metrics"])
def test_a_port_in_use(start_server: Any, demo_server: Any, what: str) -> None:
    port = demo_server.http.rpartition(":")[2]
    server = start_server("--demo", f"--{what}-port", port, ready=False)
    assert server.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in server.stderr
    assert f"--{what}-port" in server.stderr
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-m", "{tmp}/none"], "model repository {tmp}/none does not exist"),
        (["--demo", "--uds", "{tmp}/none/x"], "its folder does not exist"),
        (["--demo", "--uds", "{tmp}/file"], "a file of another kind in its place"),
        (["--demo", "--uds", "{tmp}/" + "x" * 120], "AF_UNIX path too long"),
        (["--demo", "--host", "nosuch.invalid"], "this machine has no such address"),
        (["--demo", "--ready-file", "{tmp}/none/x"], "there is no folder {tmp}/none"),
    ],
)
def test_what_cannot_start_says_why(
    start_server: Any, tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    server = start_server(*(flag.format(tmp=tmp_path) for flag in flags), ready=False)
    assert server.wait() == 1
    assert message.format(tmp=tmp_path) in server.stderr
    assert "Traceback" not in server.stderr


def test_serve_without_its_extra(tmp_path: Path) -> None:
    done = penstock("serve", "--demo", base_only=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "penstock serve: error: serving needs uvloop, httptools, protobuf, "
        "which this installation does not have\n"
        "  pip install 'penstock[server,onnx]'\n"
    )
    assert penstock("serve", "--help", base_only=True).returncode == 0


def test_json_logs_and_no_table(start_server: Any) -> None:
    server = start_server("--demo", "--log-format", "json")
    assert server.stop() == 0
    assert server.stdout == ""
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    (ready,) = [line for line in lines if line["message"] == "ready"]
    assert (ready["http"], ready["metrics"]) == (server.http, server.metrics)
    assert ready["models"] == [{"name": "digits", "version": "1", "state": "READY"}]


def test_a_stale_ready_file_is_not_believed(start_server: Any, tmp_path: Path) -> None:
    stale = tmp_path / "stale.json"
    stale.write_text("from yesterday")
    server = start_server("-m", tmp_path / "none", "--ready-file", stale, ready=False)
    assert server.wait() == 1
    assert not stale.exists()


def test_serve_goes_on_when_nobody_reads_its_table() -> None:
    command = [
        sys.executable, "-m", "penstock.server.cli", "serve", "--demo", "--http-port", "0",
        "--metrics-port", "off", "--log-format", "text",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert b"loaded in" in process.stderr.readline()
            time.sleep(0.3)
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"Traceback" not in told
