"""Starts the servers that are measured, waits until they answer, and always ends them.

Knows commands, ready signals and process ids. Must not know what is measured. Each context manager
owns its process: terminated by its pid on the way out, killed if it does not go.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from penstock.loadtest.blast_cli import host_port_path
from penstock.loadtest.models import write_add_sub

READY_S_MAX = 60.0
_GOING_S_MAX = 10.0
_ADD_SUB = 'name: "add_sub"\nbackend: "onnxruntime"\nmax_batch_size: 64\ndynamic_batching { }\n'


@dataclass(frozen=True, slots=True)
class Child:
    """A running server; ``grpc`` is 0 where it does not listen for that."""

    pid: int
    port: int
    grpc: int = 0


def leave_on_sigterm() -> None:
    """For commands: unwind when terminated, else the servers started here would outlive us."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def echo() -> Iterator[Child]:
    """The yardstick server of ``penstock.loadtest.echo``."""
    command = [sys.executable, "-m", "penstock.loadtest.echo", "--port", "0"]
    with _process(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 2:
            raise RuntimeError("the echo server did not start")
        yield Child(process.pid, int(words[1]))


@contextmanager
def gateway(models: Path, *flags: str) -> Iterator[Child]:
    """The gateway over a model repository, on free ports of 127.0.0.1.

    Raises:
        RuntimeError: it ended or was not ready within ``READY_S_MAX``; tells what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-gateway-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "log")
        command = [
            sys.executable, "-m", "penstock.server.cli", "serve",
            "--model-repository", str(models), "--host", "127.0.0.1",
            "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0",
            "--ready-file", str(ready), *flags,
        ]  # fmt: skip
        with log.open("wb") as out, _process(command, stdout=out, stderr=out) as process:
            told = _wait_ready(process, ready, log)
            yield Child(told["pid"], told["http"], told.get("grpc") or 0)


@contextmanager
def add_sub_gateway(*flags: str) -> Iterator[Child]:
    """A gateway that serves add_sub, batching up to 64 rows."""
    with tempfile.TemporaryDirectory(prefix="penstock-models-") as folder:
        write_add_sub(Path(folder, "add_sub", "1", "model.onnx"))
        Path(folder, "add_sub", "config.pbtxt").write_text(_ADD_SUB)
        with gateway(Path(folder), *flags) as child:
            yield child


@contextmanager
def at(url: str | None, pid: int) -> Iterator[tuple[str, int, int]]:
    """(host, port, pid) of the server at ``url``, or of a gateway of our own with add_sub."""
    if url:
        host, port, _ = host_port_path(url)
        yield host, port, pid
    else:
        with add_sub_gateway() as gateway:
            yield "127.0.0.1", gateway.port, gateway.pid


def _wait_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, int]:
    end = time.monotonic() + READY_S_MAX
    while time.monotonic() < end and process.poll() is None:
        try:
            told: dict[str, int] = json.loads(ready.read_text())
            return told
        except (FileNotFoundError, ValueError):  # not there yet, or half written
            time.sleep(0.02)
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"the gateway did not get ready (status {process.poll()}):\n{tail}")


@contextmanager
def _process(
    command: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GOING_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
