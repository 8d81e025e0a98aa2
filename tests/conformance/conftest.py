"""The held-out digits, which every client is measured on; and a gRPC server of echoes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.server import demo
from penstock.server.grpc_seam import Methods
from penstock.server.transport.grpc.listener import GrpcLimits, GrpcListener
from penstock.server.transport.grpcio import GrpcioListener
from penstock.server.transport.tls import Certificates, PemFiles

ACCURACY_MIN = 0.97
PATIENCE_S = 30.0


@pytest.fixture(scope="session")
def heldout() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    return demo.heldout()


@pytest.fixture(scope="session")
def batches(heldout: tuple[NDArray[Any], NDArray[Any]]) -> Callable[[int], Iterator[NDArray[Any]]]:
    """``batches(n)``: the images in portions of ``n``."""

    def cut(size: int) -> Iterator[NDArray[Any]]:
        images = heldout[0]
        return (images[i : i + size] for i in range(0, len(images), size))

    return cut


@pytest.fixture(scope="session")
def check_accuracy(heldout: tuple[NDArray[Any], NDArray[Any]]) -> Callable[[NDArray[Any]], None]:
    """Holds the probabilities of all held-out images against their labels."""

    def check(probabilities: NDArray[Any]) -> None:
        labels = heldout[1]
        assert probabilities.shape == (len(labels), 10)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
        accuracy = (probabilities.argmax(axis=1) == labels).mean()
        assert accuracy >= ACCURACY_MIN

    return check


@pytest.fixture(scope="session")
def cache() -> Path:
    """What is built once and used again in later runs."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("PENSTOCK_TEST_CACHE") or root / ".cache")


@pytest.fixture(scope="session")
def grpc_echo() -> Iterator[Callable[..., int]]:
    """``grpc_echo(*flags)`` starts ``grpc_echo_server.py`` and gives its port."""
    servers: list[subprocess.Popen[str]] = []
    program = Path(__file__).with_name("grpc_echo_server.py")

    def start(*flags: object) -> int:
        command = [sys.executable, str(program), *map(str, flags)]
        pipe = subprocess.PIPE
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        servers.append(server)
        assert server.stdout is not None
        return int(server.stdout.readline())

    yield start
    for server in servers:
        server.communicate(timeout=20)
        assert server.returncode == 0


class GrpcHost:
    """A listener on a loop in a thread of its own, so that clients may block."""

    def __init__(self, kind: str, methods: Methods) -> None:
        self.service: Any = None
        """The test's own."""
        self.kind = kind
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.listener: Any = self.run(self._make(methods))
        self.port = 0

    async def _make(self, methods: Methods) -> Any:
        if self.kind == "own":
            return GrpcListener(methods, GrpcLimits())
        return GrpcioListener(methods)

    def run(self, work: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE_S):
                return await work

        return asyncio.run_coroutine_threadsafe(bounded(), self.loop).result(PATIENCE_S + 5)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def inside() -> Any:
            return function(*arguments)

        return self.run(inside())

    def listen(self, tls: PemFiles | None = None) -> str:
        certificates = Certificates(tls, ["h2"]) if tls is not None else None
        self.port = self.run(self.listener.listen("127.0.0.1", 0, certificates))
        return f"127.0.0.1:{self.port}"

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    def close(self) -> None:
        self.run(self.listener.close(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def grpc_host() -> Iterator[Callable[[str, Methods], GrpcHost]]:
    """``grpc_host(transport, methods)``: "own" or "grpcio"; call its ``listen``."""
    hosts: list[GrpcHost] = []

    def make(kind: str, methods: Methods) -> GrpcHost:
        hosts.append(GrpcHost(kind, methods))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()
