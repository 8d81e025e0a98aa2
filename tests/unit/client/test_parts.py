"""The parts around the calls: URLs, frames that are kept, the pool, forks, TLS, imports."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.client import (
    AsyncClient,
    Client,
    ClientClosed,
    Code,
    ConnectError,
    endpoint,
)
from penstock.client.errors import DeadlineExceeded
from penstock.client.exchange import retry_after_s
from penstock.client.pool import IDLE_S_MAX, Pool
from penstock.client.request import RequestBuilder
from penstock.protocol import graphpipe

IMAGE = np.arange(128, dtype=np.float32).reshape(2, 64)


@pytest.mark.parametrize(
    ("url", "authority", "host", "port", "base"),
    [
        ("http://a", "a", "a", 80, ""),
        ("http://a:8000/", "a:8000", "a", 8000, ""),
        ("https://A/b/c/", "a", "a", 443, "/b/c"),
        ("http://[::1]:80", "[::1]", "::1", 80, ""),
        ("https://10.0.0.1:80", "10.0.0.1:80", "10.0.0.1", 80, ""),
    ],
)
def test_urls(url: str, authority: str, host: str, port: int, base: str) -> None:
    found = endpoint.parse(url)
    assert (found.authority, found.host, found.port, found.base) == (authority, host, port, base)
    assert found.tls is url.startswith("https")


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("0", 0.0), ("soon", None), ("-1", None), ("9" * 99, None)]
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}) == seconds
    assert retry_after_s({}) is None


def test_kept_frames_equal_fresh_ones() -> None:
    builder, encoder = RequestBuilder(), graphpipe.RequestEncoder()
    rng = np.random.default_rng(7)
    inputs: list[dict[str, Any]] = [
        {"a": rng.random((2, 3), dtype=np.float32), "b": np.array([True, False])},
        {"a": rng.random((3, 2), dtype=np.float32)},
        {"a": np.float64(1.5)},
        {"a": np.zeros((0, 3), np.int8), "b": np.ones(3, np.int16)},
        {"a": np.array(["x", "yy"]), "b": np.ones(3, np.int64)},
        {},
    ]
    for _ in range(3):
        for named in inputs:
            for options in ({}, {"timeout_s": 2.0}, {"priority": 1}, {"id": "i"},
                            {"parameters": {"p": 1}}, {"outputs": ("y",)}):  # fmt: skip
                shaken = {k: np.flip(v) if v.ndim else v for k, v in named.items()}
                for values in (named, shaken):
                    request = builder.build("m", values, **{"timeout_s": 1.0, **options})  # type: ignore[arg-type]
                    fresh = b"".join(graphpipe.encode_request(request))
                    assert b"".join(encoder.encode(request)) == fresh


# --- the pool ---


class Link:
    def __init__(self) -> None:
        self.reusable = self.quiet = True
        self.closed = False
        self.idle_since = 0.0

    def is_quiet(self) -> bool:
        return self.quiet

    def close(self) -> None:
        self.closed = True


class Pooled:
    def __init__(self, connections_max: int = 2) -> None:
        self.now = 0.0
        self.made: list[Any] = []
        self.fails = False
        self.pool = Pool(self.connect, connections_max, lambda: self.now)

    def connect(self, deadline: float) -> Any:
        if self.fails:
            raise ConnectError("no")
        self.made.append(Link())
        return self.made[-1]


def test_the_connection_used_last_comes_first() -> None:
    pooled = Pooled()
    a, b = pooled.pool.acquire(1), pooled.pool.acquire(1)
    pooled.pool.release(a)
    pooled.pool.release(b)
    assert pooled.pool.acquire(1) is b


@pytest.mark.parametrize("why", ["quiet", "reusable", "old", "fresh"])
def test_connections_that_are_not_reused(why: str) -> None:
    pooled = Pooled(1)
    first: Any = pooled.pool.acquire(1)
    first.reusable = why != "reusable"
    pooled.pool.release(first)
    first.quiet = why != "quiet"
    if why == "old":
        pooled.now += IDLE_S_MAX + 1
    assert pooled.pool.acquire(pooled.now + 1, fresh=why == "fresh") is not first
    assert first.closed
    assert len(pooled.made) == 2


def test_the_pool_is_bounded_and_waiting_ends() -> None:
    pooled = Pooled(1)
    taken = pooled.pool.acquire(1)
    pooled.now = 2.0
    with pytest.raises(DeadlineExceeded, match="all 1"):
        pooled.pool.acquire(2)
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(pooled.pool.acquire(60)))
    waiter.start()
    pooled.pool.release(taken)
    waiter.join()
    assert got == [taken]


def test_a_failure_to_connect_gives_the_place_back() -> None:
    pooled = Pooled(1)
    pooled.fails = True
    for _ in range(3):
        with pytest.raises(ConnectError):
            pooled.pool.acquire(1)
    pooled.fails = False
    pooled.pool.acquire(1)


def test_closing_the_pool() -> None:
    pooled = Pooled(2)
    idle, busy = pooled.pool.acquire(1), pooled.pool.acquire(1)
    pooled.pool.release(idle)
    pooled.pool.close()
    assert [link.closed for link in pooled.made] == [True, False]
    pooled.pool.release(busy)
    assert pooled.made[1].closed
    with pytest.raises(ClientClosed):
        pooled.pool.acquire(1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_connections(serve: Any, wire: Any) -> None:
    server = serve(wire.good)
    with Client(server.url) as client:
        client.infer("digits", IMAGE)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.infer("digits", IMAGE)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        client.infer("digits", IMAGE)
    assert server.connections == 2


# --- the asynchronous client's own ---


async def test_cancelling_closes_the_connection(serve: Any, wire: Any) -> None:
    reached, noticed = threading.Event(), threading.Event()

    def wait(connection: Any, request: Any) -> bool:
        reached.set()
        if connection.recv(1) == b"":
            noticed.set()
        return False

    server = serve(wait)
    async with AsyncClient(server.url) as client:
        call = asyncio.create_task(client.infer("m", IMAGE, outputs=()))
        await asyncio.to_thread(reached.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(noticed.wait, 10)


async def test_closing_ends_the_calls_under_way(serve: Any, wire: Any) -> None:
    reached = threading.Event()

    def wait(connection: Any, request: Any) -> bool:
        reached.set()
        return bool(wire.silence(connection, request))

    client = AsyncClient(serve(wait).url)
    call = asyncio.create_task(client.infer("m", IMAGE, outputs=()))
    await asyncio.to_thread(reached.wait, 10)
    await client.close()
    with pytest.raises((ConnectError, ClientClosed)):
        await call


async def test_many_calls_at_once(serve: Any, wire: Any) -> None:
    server = serve(wire.good)
    async with AsyncClient(server.url, connections_max=4) as client:
        results = await asyncio.gather(*(client.infer("digits", IMAGE) for _ in range(50)))
    for result in results:
        np.testing.assert_array_equal(result["label"], wire.labels)
        assert result["label"].__array_interface__["data"][0] % 64 == 0
    assert server.connections <= 4


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("NOT TESTED: TLS needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture
def tls_server(serve: Callable[..., Any], wire: Any, certificate: tuple[Path, Path]) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = serve(wire.good)
    server.secure(context)
    server.url = server.url.replace("http:", "https:")
    return server


def test_tls(
    tls_server: Any, certificate: tuple[Path, Path], connect: Any, wire: Any, protocol: str
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    client = connect(tls_server.url, protocol=protocol, ssl_context=trusted)
    for size in (10, 3 << 20):
        image = np.ones(size, np.float32)
        result = client.infer("digits", {"image": image}, outputs=("probabilities", "label"))
        np.testing.assert_array_equal(result["probabilities"], wire.probabilities)
    assert image.tobytes() in tls_server.requests[-1].body
    assert tls_server.connections == 1


def test_a_certificate_that_nobody_vouches_for(tls_server: Any, connect: Any) -> None:
    client = connect(tls_server.url)
    with pytest.raises(ConnectError, match=r"self.signed") as caught:
        client.infer("digits", IMAGE)
    assert caught.value.code is Code.UNAUTHENTICATED
    with pytest.raises(ConnectError):
        client.is_live()
    assert tls_server.connections == 2


def test_a_context_without_tls_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="https"):
        Client("http://h", ssl_context=ssl.create_default_context())


def test_a_slow_handshake_ends(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(DeadlineExceeded):
            connect(url).infer("m", IMAGE, timeout=0.2)


# --- imports ---


def test_the_blocking_client_imports_little() -> None:
    code = (
        "import sys, penstock.client; penstock.client.Client('http://h').close();"
        "print([m for m in ('aiohttp', 'asyncio', 'ssl', 'http.client') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_unknown_names() -> None:
    import penstock.client

    assert set(penstock.client.__all__) <= {*dir(penstock.client), "AsyncClient"}
    with pytest.raises(AttributeError):
        _ = penstock.client.NoSuchThing
