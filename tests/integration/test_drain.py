"""The end of a server: what runs is answered, what is late is told, nothing waits for nobody."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from penstock.backends.fake import artefact

RUN_S = 1.0
BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}]}
)
DRAINING = "the server is shutting down and accepts no new requests"
StartServer = Callable[..., Any]


def write_models(root: Path, **run_s: float) -> Path:
    """A repository of identity models that take so long to run."""
    for name, delay_s in run_s.items():
        folder = root / "models" / name / "1"
        folder.mkdir(parents=True)
        # The first run fails, at load: so the server does not spend several on learning the time.
        options = {"shape": "2", "delay_ms": str(round(delay_s * 1000)), "fail_runs": "1"}
        (folder / "model.fake").write_bytes(artefact(options))
    return root / "models"


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    return write_models(tmp_path, fast=0)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return write_models(tmp_path, fast=0, slow=RUN_S)


@contextmanager
def connected(server: Any) -> Iterator[http.client.HTTPConnection]:
    url = urlsplit(server.http)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, Any]:
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read()


def infer(connection: http.client.HTTPConnection, model: str) -> tuple[int, Any]:
    begin(connection, model)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def begin(connection: http.client.HTTPConnection, model: str) -> None:
    connection.request("POST", f"/v2/models/{model}/infer", BODY)


def busy(server: Any, running: http.client.HTTPConnection, other: Any) -> None:
    """``running`` has a slow request in the server; ``other`` was opened and is kept alive."""
    begin(running, "slow")
    # Answered after the server has seen what was sent before.
    assert ask(other, "/v2/health/ready")[0] == 200


def until_not_ready(connection: http.client.HTTPConnection) -> None:
    end = time.monotonic() + 20
    while ask(connection, "/v2/health/ready")[0] != 400:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_answered_and_what_is_late_is_told(
    start_server: StartServer, slow: Path, number: int
) -> None:
    server = start_server("-m", slow)
    with connected(server) as running, connected(server) as other:
        busy(server, running, other)
        server.process.send_signal(number)
        until_not_ready(other)
        assert ask(other, "/control/is_ready")[0] == 503
        assert ask(other, "/v2/health/live")[0] == 200
        assert ask(other, "/v2/models/fast/ready")[0] == 400
        status, document = infer(other, "fast")
        assert (status, document) == (503, {"error": DRAINING})
        other.request("POST", "/graphpipe/fast", b"")
        reply = other.getresponse()
        assert reply.status == 400  # not a frame: that is said first
        reply.read()
        done = running.getresponse()
        assert done.status == 200
        assert json.loads(done.read())["outputs"][0]["data"] == [1, 2]
    assert server.wait() == 0


def test_idle_connections_do_not_delay_the_end(start_server: StartServer, fast: Path) -> None:
    server = start_server("-m", fast, "--exit-timeout-s", "25")
    url = urlsplit(server.http)
    idle = [socket.create_connection((url.hostname, url.port)) for _ in range(20)]
    with connected(server) as used:
        assert infer(used, "fast")[0] == 200
        started = time.monotonic()
        assert server.stop() == 0
        # Of the idle timeout of 600 s and the exit timeout of 25 s nothing was waited for.
        assert time.monotonic() - started < 20
        for sock in idle:
            assert sock.recv(1) == b""
            sock.close()


def test_a_second_signal_ends_at_once(start_server: StartServer, slow: Path) -> None:
    server = start_server("-m", slow)
    with connected(server) as running, connected(server) as other:
        busy(server, running, other)
        server.process.send_signal(signal.SIGTERM)
        until_not_ready(other)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            running.getresponse()
    assert server.wait() == 1
    assert "second signal" in server.stderr
    assert "Traceback" not in server.stderr


def test_requests_beyond_the_exit_timeout_are_given_up(
    start_server: StartServer, slow: Path
) -> None:
    server = start_server("-m", slow, "--exit-timeout-s", "0.1")
    with connected(server) as running, connected(server) as other:
        busy(server, running, other)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            running.getresponse()
    assert server.wait() == 0
    assert "given up" in server.stderr


def test_the_delay_serves_while_load_balancers_notice(
    start_server: StartServer, fast: Path
) -> None:
    server = start_server("-m", fast, "--shutdown-delay-s", "0.5")
    with connected(server) as other:
        assert infer(other, "fast")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        until_not_ready(other)
        assert infer(other, "fast")[0] == 200
    assert server.wait() == 0


def test_a_signal_under_load(start_server: StartServer, fast: Path) -> None:
    server = start_server("-m", fast)
    found: list[Any] = []
    going = threading.Semaphore(0)

    def load() -> None:
        with connected(server) as connection:
            try:
                while True:
                    found.append(infer(connection, "fast"))
                    going.release()
            except (OSError, http.client.HTTPException) as error:
                found.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        going.acquire(timeout=20)
    assert server.stop() == 0
    for thread in threads:
        thread.join(20)
    answers = [answer for answer in found if isinstance(answer, tuple)]
    assert {status for status, _ in answers} <= {200, 503}
    assert all(document["error"] for status, document in answers if status == 503)
    # The one way to end: the connection is closed between two requests, or refused to a new one.
    ends = [answer for answer in found if not isinstance(answer, tuple)]
    assert len(ends) == 4
    assert {type(end) for end in ends} <= {
        http.client.RemoteDisconnected, ConnectionResetError, ConnectionRefusedError,
        BrokenPipeError,
    }  # fmt: skip


def test_a_signal_while_models_load(start_server: StartServer, slow: Path) -> None:
    server = start_server("-m", slow, "--log-level", "debug", ready=False)
    end = time.monotonic() + 20
    while "fast" not in server.stderr + server.stdout and time.monotonic() < end:
        time.sleep(0.01)
    assert server.stop() == 0
    assert "Traceback" not in server.stderr


def test_nobody_listens_after_the_end(start_server: StartServer, fast: Path) -> None:
    server = start_server("-m", fast)
    assert server.stop() == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.http}/v2/health/live", timeout=5)
