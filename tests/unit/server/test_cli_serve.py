"""``penstock serve`` without serving: options, the start-up text, logs, the ready file."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import resource
import socket
import subprocess
from pathlib import Path

import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec
from penstock.server import cli, demo
from penstock.server.commands import logs, process
from penstock.server.commands.curl import curl_line
from penstock.server.commands.failure import CommandError
from penstock.server.commands.signature import signature_lines
from penstock.server.commands.startup import (
    MODELS_URLS_MAX,
    Addresses,
    ModelLine,
    startup_lines,
)
from penstock.server.commands.terminal import Terminal

pytest.importorskip("uvloop", reason="NOT TESTED: serving needs the server extra")

from penstock.server.app import ServeOptions
from penstock.server.commands.listening import listen_failure
from penstock.server.commands.serving import options_of
from penstock.server.model_control import ControlMode
from penstock.server.ports import ListenError
from penstock.server.transport.grpc.listener import GrpcLimits
from penstock.server.transport.grpc.options import GrpcOptions
from penstock.server.transport.tls import PemFiles

IMAGE = TensorSpec("image", dt.FP32, (-1, 1, 8, 8))
PROBABILITIES = TensorSpec("probabilities", dt.FP32, (-1, 10))
PAIR = tuple(TensorSpec(f"INPUT{i}", dt.INT32, (-1, 16)) for i in range(2))
SUMS = tuple(TensorSpec(f"OUTPUT{i}", dt.INT32, (-1, 16)) for i in range(2))
ADDRESSES = Addresses("http://127.0.0.1:8000", "http://127.0.0.1:8002")
DIGITS = ModelLine(
    "digits", "1", "READY", (IMAGE,), (PROBABILITIES,), 1024, "onnxruntime", "inline", 0.081
)


def options(*argv: str) -> ServeOptions:
    return options_of(cli.build_parser().parse_args(["serve", *argv]))


# --- options


def test_the_defaults_are_those_of_the_server() -> None:
    assert options("-m", "x") == ServeOptions((Path("x"),))


def test_every_flag_arrives() -> None:
    made = options(
        "-m", "a", "--model-repository", "b", "--demo", "--http-address", "::1",
        "--http-port", "off", "--metrics-port", "0", "--uds", "s", "--uds-mode", "600",
        "--default-model", "d", "--queue-max", "1", "--load-threads", "3",
        "--shutdown-delay-s", "4.5", "--exit-timeout-secs", "5", "--http-max-connections", "6",
        "--http-max-body-bytes", "16GiB", "--http-idle-timeout-s", "8",
        "--http-read-timeout-s", "9", "--http-write-timeout-s", "10",
    )  # fmt: skip
    limits = made.http
    assert dataclasses.replace(made, http=ServeOptions(()).http) == ServeOptions(
        (Path("a"), Path("b"), demo.model_repository()),
        "::1", None, 0, Path("s"), 0o600, "d", 1, 3, 4.5, 5.0,
    )  # fmt: skip
    assert (limits.connections_max, limits.body_bytes_max) == (6, 16 << 30)
    assert limits.bodies_bytes_max >= limits.body_bytes_max
    assert (limits.idle_timeout_s, limits.read_timeout_s, limits.write_timeout_s) == (8, 9, 10)


def test_every_flag_of_grpc_arrives() -> None:
    made = options(
        "-m", "a", "--grpc-port", "9", "--grpc-address", "::1", "--grpc-uds", "g",
        "--grpc-uds-mode", "600", "--grpc-transport", "grpcio", "--grpc-max-connections", "1",
        "--grpc-max-concurrent-streams", "2", "--grpc-max-message-bytes", "16GiB",
        "--grpc-idle-timeout-s", "4", "--grpc-read-timeout-s", "5", "--grpc-write-timeout-s", "6",
        "--grpc-keepalive-time", "7000", "--grpc-keepalive-timeout", "7001",
        "--grpc-keepalive-permit-without-calls", "true",
        "--grpc-http2-min-recv-ping-interval-without-data", "9000",
        "--grpc-http2-max-ping-strikes", "10", "--grpc-max-connection-age", "11000",
        "--grpc-max-connection-age-grace", "1", "--grpc-use-ssl-mutual", "--grpc-server-cert", "c",
        "--grpc-server-key", "k", "--grpc-root-cert", "r", "--http-tls-cert", "hc",
        "--http-tls-key", "hk", "--http-tls-ca", "hr",
    )  # fmt: skip
    assert made.http_tls == PemFiles(Path("hc"), Path("hk"), Path("hr"))
    assert made.grpc == GrpcOptions(
        9, "::1", Path("g"), 0o600, PemFiles(Path("c"), Path("k"), Path("r")), "grpcio",
        GrpcLimits(
            connections_max=1, streams_max=2, message_bytes_max=16 << 30,
            bodies_bytes_max=16 << 30, idle_timeout_s=4, read_timeout_s=5, write_timeout_s=6,
            keepalive_time_s=7, keepalive_timeout_s=8, keepalive_without_calls=True,
            ping_interval_s_min=9, ping_strikes_max=10, connection_age_s_max=11,
            connection_grace_s=1,
        ),
    )  # fmt: skip


def test_every_flag_of_model_control_arrives() -> None:
    made = options(
        "-m", "a", "--model-control-mode", "explicit", "--load-model", "x", "--load-model", "y",
        "--load-model", "x", "--repository-poll-secs", "2.5", "--model-load-retry-count", "3",
        "--model-config-name", "h100", "--disable-auto-complete-config", "--allow-code-upload",
        "--strict-readiness", "true", "--model-load-thread-count", "4",
        "--allow-code", "python,torch", "--allow-code", "tvm", "--require-checksums",
    )  # fmt: skip
    assert made == ServeOptions(
        (Path("a"),),
        load_threads=4,
        model_control_mode=ControlMode.EXPLICIT,
        repository_poll_s=2.5,
        load_models=("x", "y"),
        model_load_retries=3,
        model_config_name="h100",
        complete_configs=False,
        allow_code_upload=True,
        allow_code=frozenset({"python", "pytorch", "tvm"}),
        require_checksums=True,
        strict_readiness=True,
    )


def test_all_programs_may_be_allowed() -> None:
    allowed = options("-m", "a", "--allow-code", "all").allow_code
    assert {"python", "pytorch", "tensorrt", "tvm"} <= set(allowed)
    assert "onnxruntime" not in allowed


def test_an_unknown_backend_cannot_be_allowed() -> None:
    with pytest.raises(CommandError, match="no backend 'pyton'") as caught:
        options("-m", "a", "--allow-code", "pyton")
    assert "python" in caught.value.hint


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_are_named_under_explicit_control_only(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["serve", "-m", "a", "--model-control-mode", mode, "--load-model", "x"]
    assert cli.main(argv) == 2
    assert "--load-model needs --model-control-mode explicit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "value"),
    [([], False), (["--exit-on-error"], True), (["--exit-on-error=false"], False)],
)
def test_exit_on_error_as_in_triton(argv: list[str], value: bool) -> None:
    assert cli.build_parser().parse_args(["serve", *argv]).exit_on_error is value


# --- the start-up text


def test_the_text_of_the_demonstration() -> None:
    lines = startup_lines([DIGITS], ADDRESSES, Terminal(), example={"image": [0, 0.5] * 32})
    data = ",".join(["0", "0.5"] * 32)
    head = f"MODEL   VERSION  STATE  INPUTS → OUTPUTS{' ' * 34}BATCH  RUNS ON              LOADED"
    row = (
        "digits  1        READY  image FP32[-1,1,8,8] → probabilities FP32[-1,10]  "
        "1024   onnxruntime, inline  0.08 s"
    )
    assert (
        "\n".join(lines)
        == f"""\
{head}
{row}

GraphPipe  http://127.0.0.1:8000/graphpipe/digits
GraphPipe  http://127.0.0.1:8000/  (default model: digits)
KServe v2  http://127.0.0.1:8000/v2/models/digits/infer
Metrics    http://127.0.0.1:8002/metrics

Try it:
  curl -s http://127.0.0.1:8000/v2/models/digits/infer -d '{{"inputs":[{{"name":"image",\
"shape":[1,1,8,8],"datatype":"FP32","data":[{data}]}}]}}'"""
    )


def test_several_models_and_what_is_wrong_with_them() -> None:
    sums = ModelLine(
        "add_sub", "3", "READY", PAIR, SUMS, 0, "onnxruntime", "threads", 1.5,
        ignored=("optimization.priority: it steers Triton's TensorRT backend only",),
    )  # fmt: skip
    broken = ModelLine("broken", "1", "UNAVAILABLE", reason="cannot load it:\nno such file")
    absent = ModelLine("other", "", "UNAVAILABLE", reason="No module named 'onnxruntime'")
    lines = startup_lines([sums, broken, absent], ADDRESSES, Terminal(unicode=False))
    zeros = ",".join(["0"] * 16)
    inputs = [
        f'{{"name":"INPUT{i}","shape":[1,16],"datatype":"INT32","data":[{zeros}]}}' for i in (0, 1)
    ]
    assert (
        "\n".join(lines)
        == f"""\
MODEL    VERSION  STATE        INPUTS -> OUTPUTS        BATCH  RUNS ON               LOADED
add_sub  3        READY        INPUT0 INT32[-1,16]      none   onnxruntime, threads  1.50 s
                               INPUT1 INT32[-1,16]
                               -> OUTPUT0 INT32[-1,16]
                                  OUTPUT1 INT32[-1,16]
broken   1        UNAVAILABLE
other             UNAVAILABLE

GraphPipe  http://127.0.0.1:8000/graphpipe/add_sub
KServe v2  http://127.0.0.1:8000/v2/models/add_sub/infer
Metrics    http://127.0.0.1:8002/metrics

Try it:
  curl -s http://127.0.0.1:8000/v2/models/add_sub/infer -d '{{"inputs":[{",".join(inputs)}]}}'

NOT SERVED: broken 1
  cannot load it:
  no such file
  What to do: correct it and start again; every other model is served meanwhile

NOT SERVED: other
  No module named 'onnxruntime'
  What to do: install the backend's engine (for ONNX: pip install 'penstock[onnx]'), start again

note: add_sub: config.pbtxt: optimization.priority: it steers Triton's TensorRT backend only"""
    )


def test_over_a_socket_alone() -> None:
    lines = startup_lines([DIGITS], Addresses(socket="/run/a b.sock"), Terminal())
    text = "\n".join(lines)
    assert "GraphPipe  http://localhost/graphpipe/digits\n" in text
    assert "Socket     unix:/run/a b.sock\n" in text
    assert "Metrics" not in text
    assert "  curl -s --unix-socket '/run/a b.sock' http://localhost/v2/models/digits/infer" in text


def test_an_empty_repository() -> None:
    text = "\n".join(startup_lines([], ADDRESSES, Terminal()))
    assert "NO MODELS: the repository is empty\n  What to do: put each model at " in text
    assert "curl" not in text


def test_when_nothing_is_served() -> None:
    lines = startup_lines([], ADDRESSES, Terminal())
    assert lines[:3] == [
        "HTTP       http://127.0.0.1:8000",
        "Metrics    http://127.0.0.1:8002/metrics",
        "",
    ]
    gpu = ModelLine("m", "1", "UNAVAILABLE", reason="without CUDA; pip install onnxruntime-gpu")
    text = "\n".join(startup_lines([gpu], ADDRESSES, Terminal()))
    assert text.endswith(
        "What to do: correct it and start again; the server runs without any model meanwhile"
    )


def test_many_models_share_a_pattern() -> None:
    models = [dataclasses.replace(DIGITS, name=f"m{i}") for i in range(MODELS_URLS_MAX + 1)]
    text = "\n".join(startup_lines(models, ADDRESSES, Terminal(), default_model="m3"))
    assert "GraphPipe  http://127.0.0.1:8000/graphpipe/MODEL\n" in text
    assert "GraphPipe  http://127.0.0.1:8000/  (default model: m3)\n" in text
    assert "KServe v2  http://127.0.0.1:8000/v2/models/MODEL/infer\n" in text


def test_names_are_quoted_for_urls_and_shells() -> None:
    odd = dataclasses.replace(DIGITS, name="it's 100%/ü")
    text = "\n".join(startup_lines([odd], ADDRESSES, Terminal()))
    assert "/graphpipe/it%27s%20100%25%2F%C3%BC\n" in text


def test_colours() -> None:
    broken = ModelLine("broken", "1", "UNAVAILABLE", reason="why")
    text = "\n".join(startup_lines([DIGITS, broken], ADDRESSES, Terminal(color=True)))
    assert "\x1b[32mREADY\x1b[0m" in text
    assert "\x1b[31mNOT SERVED: broken 1\x1b[0m" in text


def test_signatures_without_tensors() -> None:
    assert signature_lines((), (), "→", 99) == ("",)
    only_out = ("nothing → probabilities FP32[-1,10]",)
    assert signature_lines((), (PROBABILITIES,), "→", 99) == only_out


def test_a_narrow_screen_gets_a_line_for_each_tensor() -> None:
    lines = startup_lines([DIGITS], ADDRESSES, Terminal(columns=80))
    assert lines[:3] == [
        "MODEL   VERSION  STATE  INPUTS → OUTPUTS             BATCH  RUNS ON              LOADED",
        "digits  1        READY  image FP32[-1,1,8,8]         1024   onnxruntime, inline  0.08 s",
        "                        → probabilities FP32[-1,10]",
    ]


# --- curl


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        (dt.FP16, (-1, 3), 6),
        (dt.BF16, (-1,), 2),
        (dt.FP32, (-1, 3, 224, 224), 602_112),
        (dt.BYTES, (-1, 100), 400),
    ],
)
def test_large_inputs_are_zero_bytes(dtype: dt.DType, shape: tuple[int, ...], nbytes: int) -> None:
    spec = TensorSpec("it's", dtype, shape)
    line = curl_line("http://h", "m", [spec, IMAGE])
    sent = subprocess.run(
        ["sh", "-c", f'curl() {{ echo "$@" >&2; cat; }}; {line}'],
        capture_output=True,
        timeout=10,
        check=True,
    )
    flags = sent.stderr.decode()
    length = int(flags.partition("Inference-Header-Content-Length: ")[2].split()[0])
    document = json.loads(sent.stdout[:length])
    assert document["inputs"][0] == {
        "name": "it's",
        "shape": [1, *shape[1:]],
        "datatype": dtype.name,
        "parameters": {"binary_data_size": nbytes},
    }
    assert sent.stdout[length:] == bytes(nbytes + 256)


@pytest.mark.parametrize(("dtype", "zero"), [(dt.BYTES, ""), (dt.BOOL, False), (dt.INT8, 0)])
def test_small_inputs_are_json(dtype: dt.DType, zero: object) -> None:
    line = curl_line("http://h", "m", [TensorSpec("x", dtype, (-1, 2))])
    assert json.loads(line.partition("'")[2][:-1])["inputs"][0]["data"] == [zero, zero]


def test_outputs_without_a_json_form_go_into_a_file() -> None:
    line = curl_line("http://h", "m", [IMAGE], [TensorSpec("y", dt.FP16, (-1,))])
    assert "-D - -o reply.bin" in line
    assert '"parameters":{"binary_data_output":true}' in line


# --- addresses that cannot be had


@pytest.mark.parametrize(
    ("what", "error", "message", "hint"),
    [
        ("http", OSError(errno.EADDRINUSE, ""), "h:1: the port is in use", "--http-port 0"),
        ("metrics", OSError(errno.EADDRINUSE, ""), "the port is in use", "--metrics-port 0"),
        ("http", OSError(errno.EACCES, ""), "h:1: no permission", "ports below 1024"),
        ("http", OSError(errno.EADDRNOTAVAIL, ""), "no such address", "--host takes"),
        ("http", socket.gaierror(-2, "Name or service"), "no such address", "--host takes"),
        ("http", OSError(errno.EMFILE, "too many files"), "too many files", "--http-port"),
        ("uds", OSError(errno.ENOENT, ""), "its folder does not exist", "--uds takes"),
        ("uds", PermissionError(errno.EACCES, ""), "socket h:1: no permission", "--uds takes"),
        ("uds", OSError(errno.EADDRINUSE, ""), "a file of another kind", "--uds takes"),
        ("uds", OSError("AF_UNIX path too long"), "AF_UNIX path too long", "107 bytes"),
    ],
)
def test_listen_failures(what: str, error: OSError, message: str, hint: str) -> None:
    failure = ListenError(what, "h:1", error)
    failure.__cause__ = error
    told = listen_failure(failure)
    assert message in told.message
    assert hint in told.hint
    assert told.status == 1


# --- the process


def test_ready_file(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.write_text("stale")
    with process.ReadyFile(path) as file:
        assert not path.exists()
        file.write(8000, None, Path("/run/s"))
        assert json.loads(path.read_text()) == {
            "http": 8000, "metrics": None, "uds": "/run/s", "grpc": None, "grpc_uds": None,
                "pid": os.getpid(),
        }  # fmt: skip
        assert os.listdir(tmp_path) == ["ready"]
    assert not path.exists()


def test_ready_file_that_cannot_be(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match="there is no folder"),
        process.ReadyFile(tmp_path / "none" / "x"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(CommandError, match="cannot replace --ready-file"),
        process.ReadyFile(tmp_path / "folder"),
    ):
        pass


def test_no_ready_file() -> None:
    with process.ReadyFile(None) as file:
        file.write(1, 2, None)


def test_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.__setitem__(0, pair[0]))
    process.raise_descriptor_limit(100)
    assert limits == [1024, 4096]
    process.raise_descriptor_limit(2000)
    assert limits == [2256, 4096]
    assert not caplog.records
    process.raise_descriptor_limit(10_000)
    assert limits == [4096, 4096]
    assert "4096 open files are allowed, too few for 10000 connections" in caplog.text


def test_json_log_lines() -> None:
    record = logging.LogRecord("a.b", logging.INFO, "f", 1, "model %s\n", ("ü",), None)
    record.created, record.msecs = 1.5, 500.0
    record.fields = {"port": 1}
    line = logs.JsonFormatter().format(record)
    assert line.isascii()
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "info",
        "logger": "a.b",
        "message": "model ü\n",
        "port": 1,
    }
    assert "\n" not in line


def test_json_log_lines_with_a_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "m", (), info)
    assert json.loads(logs.JsonFormatter().format(record))["exception"].endswith("ValueError: no")
