"""Models that come and go while a server serves, driven by Triton's own client."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.loadtest.models import write_add_sub, write_mlp
from penstock.protocol import dtype as dt
from penstock.server import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    tritonclient = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
pytest.importorskip("onnxruntime")

Refused = utils.InferenceServerException
EXPLICIT = ("--model-control-mode", "explicit")
RELOADS = 20


def client_of(server: Any, **options: Any) -> Any:
    return tritonclient.InferenceServerClient(server.http.removeprefix("http://"), **options)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def add_sub(client: Any, model: str = "m", value: int = 1, kind: str = "INT32") -> Any:
    array = np.full((1, 16), value, dt.BY_NAME[kind].numpy)
    inputs = [tritonclient.InferInput(f"INPUT{i}", [1, 16], kind) for i in range(2)]
    for tensor in inputs:
        tensor.set_data_from_numpy(array)
    return client.infer(model, inputs).as_numpy("OUTPUT0")


def states(client: Any) -> dict[tuple[str, str], str]:
    index = client.get_model_repository_index()
    return {(e["name"], e.get("version", "")): e.get("state", "") for e in index}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for name in ("m", "n"):
        write_add_sub(root / name / "1" / "model.onnx")
    return root


def test_stock_client_loads_and_unloads(start_server: Any, repository: Path) -> None:
    server = start_server("-m", repository, *EXPLICIT, "--load-model", "n")
    with client_of(server) as client:
        assert client.is_server_ready()
        assert states(client) == {("m", ""): "", ("n", "1"): "READY"}
        assert not client.is_model_ready("m")
        client.load_model("m")
        assert client.is_model_ready("m")
        assert add_sub(client).tolist() == [[2] * 16]
        client.unload_model("m", unload_dependents=True)
        assert not client.is_model_ready("m")
        until(lambda: states(client)["m", "1"] == "UNAVAILABLE", "not unloaded")
        (entry,) = [e for e in client.get_model_repository_index() if e["name"] == "m"]
        assert entry["reason"] == "unloaded"
        with pytest.raises(Refused, match="has no available versions"):
            add_sub(client)
        with pytest.raises(Refused, match="failed to poll from model repository"):
            client.load_model("nobody")
        client.unload_model("nobody")
        client.load_model("m")
        assert add_sub(client).tolist() == [[2] * 16]


def test_stock_client_brings_configuration_and_files(
    start_server: Any, repository: Path, tmp_path: Path
) -> None:
    server = start_server("-m", repository, *EXPLICIT, env={"TMPDIR": str(tmp_path)})
    other = tmp_path / "fp32.onnx"
    write_add_sub(other, dtype=dt.FP32)
    config = {"backend": "onnxruntime", "max_batch_size": "16"}
    with client_of(server) as client:
        client.load_model("m", config=json.dumps({**config, "max_batch_size": 3}))
        assert client.get_model_config("m")["max_batch_size"] == 3
        client.load_model(
            "m", config=json.dumps(config), files={"file:7/model.onnx": other.read_bytes()}
        )
        assert client.get_model_config("m")["max_batch_size"] == 16
        assert client.get_model_metadata("m")["versions"] == ["7"]
        assert add_sub(client, kind="FP32").tolist() == [[2.0] * 16]
        with pytest.raises(Refused, match="Invalid config override"):
            client.load_model("m", config='{"parameters": 7}')
        with pytest.raises(Refused, match="'config' must be specified"):
            client.load_model("m", files={"file:1/model.onnx": b"x"})
        with pytest.raises(Refused, match="load failed for model 'm'"):
            client.load_model("m", config=json.dumps(config), files={"file:1/model.onnx": b"x"})
        assert add_sub(client, kind="FP32").tolist() == [[2.0] * 16]
        client.load_model("m")
        assert add_sub(client).tolist() == [[2] * 16]
        assert client.get_model_metadata("m")["versions"] == ["1"]
    assert server.stop() == 0
    assert not list(tmp_path.glob("penstock-model-*"))


def test_the_command_line_loads_and_unloads(
    start_server: Any, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server("-m", repository, *EXPLICIT)
    where = ["--url", server.http]

    def run(*argv: str) -> tuple[int, str]:
        status = cli.main(["models", *argv])
        shown = capsys.readouterr()
        return status, shown.out + shown.err

    assert run("load", "m", *where) == (0, "m is loaded\n")
    assert "READY" in run(*where)[1]
    config = tmp_path / "m.json"
    config.write_text('{"backend": "onnxruntime", "max_batch_size": 3}')
    file = f"9/model.onnx={repository / 'n' / '1' / 'model.onnx'}"
    # The server that is named first is the one that is asked.
    assert run(*where, "load", "m", "--config", str(config), "--file", file)[0] == 0
    (entry,) = [e for e in json.loads(run("--json", *where)[1]) if e["state"] == "READY"]
    assert (entry["name"], entry["version"]) == ("m", "9")
    assert run("unload", "m", *where) == (0, "m is unloaded\n")
    status, text = run("load", "nobody", *where)
    assert (status, "failed to load 'nobody'" in text) == (1, True)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_stock_client_without_explicit_control(
    start_server: Any, repository: Path, mode: str
) -> None:
    server = start_server("-m", repository, "--model-control-mode", mode)
    with client_of(server) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(Refused, match="not allowed if polling is enabled"):
                change("m")
        assert add_sub(client).tolist() == [[2] * 16]


class Traffic:
    """Asks without a pause from several threads; counts answers and keeps what went wrong."""

    def __init__(self, server: Any, threads: int = 3) -> None:
        self.answers = 0
        self.failures: list[BaseException] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server,)) for _ in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, server: Any) -> None:
        try:
            with client_of(server) as client:
                while not self._ended.is_set():
                    assert add_sub(client, value=3).tolist() == [[6] * 16]
                    self.answers += 1
        except BaseException as error:
            self.failures.append(error)


def test_no_request_fails_while_its_model_is_loaded_again(
    start_server: Any, repository: Path
) -> None:
    server = start_server("-m", repository, *EXPLICIT, "--load-model", "*")
    with client_of(server, network_timeout=60.0) as client, Traffic(server) as traffic:
        for i in range(RELOADS):
            seen = traffic.answers
            config = {"backend": "onnxruntime", "max_batch_size": 8 + i}
            client.load_model("m", config=json.dumps(config))
            assert client.get_model_config("m")["max_batch_size"] == 8 + i
            until(lambda seen=seen: traffic.answers > seen or traffic.failures, "no answers")
    assert traffic.failures == []
    assert traffic.answers >= RELOADS


def test_polling_serves_what_was_put_there(start_server: Any, repository: Path) -> None:
    server = start_server(
        "-m", repository, "--model-control-mode", "poll", "--repository-poll-secs", "0.1"
    )
    with client_of(server) as client, Traffic(server) as traffic:
        write_add_sub(repository / "late" / "1" / "model.onnx")
        until(lambda: client.is_model_ready("late"), "not loaded")
        (repository / "m" / "config.pbtxt").write_text("max_batch_size: 5")
        until(lambda: client.get_model_config("m")["max_batch_size"] == 5, "not loaded again")
        (repository / "late").rename(repository.parent / "away")
        until(lambda: not client.is_model_ready("late"), "not unloaded")
        until(lambda: ("late", "1") not in states(client), "still shown")
        broken = repository / "n" / "1" / "model.onnx"
        broken.write_bytes(b"garbage")

        def reason() -> str:
            index = client.get_model_repository_index()
            return str(next(e.get("reason", "") for e in index if e["name"] == "n"))

        until(lambda: "reload failed" in reason(), "no reason")
        assert add_sub(client, "n").tolist() == [[2] * 16]
    assert traffic.failures == []


def resident_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


@pytest.mark.slow
def test_memory_comes_back(start_server: Any, tmp_path: Path) -> None:
    """Some 64 MiB of weights, loaded and unloaded many times: what is kept does not add up."""
    root = tmp_path / "models"
    write_mlp(root / "big" / "1" / "model.onnx", 4096, 2)
    size_mib = (root / "big" / "1" / "model.onnx").stat().st_size / (1 << 20)
    assert size_mib > 60
    server = start_server("-m", root, *EXPLICIT)
    seen = []
    with client_of(server, network_timeout=60.0) as client:
        for _ in range(8):
            client.load_model("big")
            client.unload_model("big")
            until(lambda: states(client)["big", "1"] == "UNAVAILABLE", "not unloaded")
            seen.append(resident_mib(server.pid))
    assert seen[-1] < seen[1] + size_mib / 2, seen
