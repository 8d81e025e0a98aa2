"""A real server as a subprocess, on free ports, ended by its own pid.

    def test_x(start_server):
        server = start_server("--demo")
        urlopen(f"{server.http}/v2/health/ready")

``start_server(*flags)`` adds ports, a ready file and the command itself; flags given win. Every
server is stopped at the end of its test; ``stop()`` does it earlier and gives the exit status.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

READY_S_MAX = 60.0
STOP_S_MAX = 30.0


class ServerProcess:
    """``http`` and ``metrics`` are base URLs, ``grpc`` is host:port, empty for what is off. ``uds``
    is a path."""

    def __init__(self, folder: Path, flags: tuple[str, ...], env: dict[str, str] | None) -> None:
        self.ready_file = folder / "ready.json"
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        self.command = [
            sys.executable, "-m", "penstock.server.cli", "serve",
            "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
            "--ready-file", str(self.ready_file), *flags,
        ]  # fmt: skip
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},
            )
        self.pid = self.process.pid
        self.http = self.metrics = self.uds = self.grpc = ""

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> None:
        """Until the ready file is there; fails with what the server said."""
        end = time.monotonic() + READY_S_MAX
        while time.monotonic() < end and self.process.poll() is None:
            if self.ready_file.exists():
                told = json.loads(self.ready_file.read_text())  # it is never half written
                assert told["pid"] == self.pid
                self.http, self.metrics = map(_url, (told["http"], told["metrics"]))
                self.uds = told["uds"] or ""
                self.grpc = "" if told["grpc"] is None else f"127.0.0.1:{told['grpc']}"
                return
            time.sleep(0.02)
        pytest.fail(f"no server (status {self.process.poll()})\n{self.stdout}\n{self.stderr}")

    def wait(self, timeout_s: float = STOP_S_MAX) -> int:
        """The exit status, once the server has ended by itself."""
        return self.process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks the server to end and gives its exit status; kills one that does not."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not end in {STOP_S_MAX:g} s\n{self.stderr}")


def _url(port: int | None) -> str:
    return "" if port is None else f"http://127.0.0.1:{port}"


StartServer = Callable[..., ServerProcess]


def _starter(folder: Path, servers: list[ServerProcess]) -> StartServer:
    numbers = itertools.count()

    def start(*flags: str, env: dict[str, str] | None = None, ready: bool = True) -> ServerProcess:
        own = folder / f"server-{next(numbers)}"
        own.mkdir()
        server = ServerProcess(own, tuple(map(str, flags)), env)
        servers.append(server)
        if ready:
            server.wait_ready()
        return server

    return start


@contextlib.contextmanager
def _ended(servers: list[ServerProcess]) -> Iterator[None]:
    try:
        yield
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.terminate()
        for server in servers:
            try:
                server.process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts ``penstock serve`` with these flags and waits until it is ready.

    ``ready=False`` does not wait; ``env`` adds to the environment.
    """
    servers: list[ServerProcess] = []
    with _ended(servers):
        yield _starter(tmp_path, servers)


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with the demonstration, for tests that only ask it things."""
    servers: list[ServerProcess] = []
    with _ended(servers):
        yield _starter(tmp_path_factory.mktemp("demo"), servers)("--demo")
