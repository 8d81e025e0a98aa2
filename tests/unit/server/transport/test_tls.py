"""Certificates: what is refused and how it is said, mutual TLS, and files that change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop

from penstock.server.transport.grpc.fake import PREFACE, EchoMethods, frames_of, settings
from penstock.server.transport.port import Port
from penstock.server.transport.tls import CertificateError, Certificates, PemFiles, context_of

LOOPS = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def files_of(folder: Path, *, mutual: bool = False) -> PemFiles:
    ca = folder / "ca.pem" if mutual else None
    return PemFiles(folder / "server.pem", folder / "server.key", ca)


@pytest.mark.parametrize("missing", ["server.pem", "server.key", "ca.pem"])
def test_missing_files(pki: Path, tmp_path: Path, missing: str) -> None:
    for name in {"server.pem", "server.key", "ca.pem"} - {missing}:
        shutil.copy(pki / name, tmp_path)
    with pytest.raises(CertificateError, match=rf"cannot read .*{missing}: No such file"):
        context_of(files_of(tmp_path, mutual=True), ["h2"])


def test_files_that_are_not_what_they_should_be(pki: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.pem"
    noise.write_text("not PEM")
    key = pki / "server.key"
    with pytest.raises(CertificateError, match=r"noise\.pem and .*server\.key are not a PEM"):
        context_of(PemFiles(noise, key), [])
    with pytest.raises(CertificateError, match=r"client\.key are not a PEM"):
        context_of(PemFiles(pki / "server.pem", pki / "client.key"), [])
    with pytest.raises(CertificateError, match=r"noise\.pem holds no PEM certificates"):
        context_of(PemFiles(pki / "server.pem", key, noise), [])


def test_a_key_with_a_pass_phrase_is_refused(pki: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    done = os.spawnlp(
        os.P_WAIT, "openssl", "openssl", "ec", "-in", str(pki / "server.key"), "-aes128",
        "-passout", "pass:secret", "-out", str(locked),
    )  # fmt: skip
    assert done == 0
    with pytest.raises(CertificateError, match="without a pass phrase"):
        context_of(PemFiles(pki / "server.pem", locked), [])


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"hello")


class GreetingPort(Port):
    def connect(self) -> asyncio.BaseProtocol:
        return Greeter()


class Limits:
    connections_max = 10
    bodies_bytes_max = 10


@contextlib.asynccontextmanager
async def greeting(certificates: Certificates) -> AsyncIterator[tuple[GreetingPort, int]]:
    port = GreetingPort(Limits())
    try:
        yield port, await port.listen("127.0.0.1", 0, certificates)
    finally:
        await port.close(0)


async def greeted(port: int, trusted: Path, client: Path | None = None, name: str = "localhost"
                  ) -> bytes:  # fmt: skip
    """What a client gets that trusts one authority; b"" if it is turned away."""
    context = ssl.create_default_context(cafile=trusted / "ca.pem")
    if client is not None:
        context.load_cert_chain(client / "client.pem", client / "client.key")
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name
        )
    except (ssl.SSLError, OSError):
        return b""
    try:
        writer.write(b"?")
        return await reader.read(5)
    except (ssl.SSLError, OSError):
        return b""
    finally:
        writer.transport.abort()


def copy(source: Path, target: Path) -> None:
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(source / name, target / name)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_new_files_are_used_from_the_next_handshake(
    make_pki: Callable[[], Path], tmp_path: Path, loop: str, name: str
) -> None:
    """The server's certificate, and the authorities whose clients are let in."""
    old, new = make_pki(), make_pki()
    copy(old, tmp_path)
    certificates = Certificates(files_of(tmp_path, mutual=True), ["h2"])

    async def scenario() -> None:
        async with greeting(certificates) as (port, number):
            assert await greeted(number, old, old, name) == b"hello"
            assert await greeted(number, old, new, name) == b""
            assert await greeted(number, old, None, name) == b""
            copy(new, tmp_path)
            port.tick = 9
            port._sweep(asyncio.get_running_loop())
            assert await greeted(number, new, new, name) == b"hello"
            assert await greeted(number, new, old, name) == b""
            assert await greeted(number, old, new, name) == b""

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario())


async def test_bad_new_files_change_nothing(
    pki: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy(pki, tmp_path)
    certificates = Certificates(files_of(tmp_path), ["h2"])
    (tmp_path / "server.pem").write_text("half wri")
    with caplog.at_level(logging.ERROR):
        certificates.refresh()
        certificates.refresh()
    assert len(caplog.records) == 1
    assert "the former ones stay" in caplog.text
    async with greeting(certificates) as (_, number):
        assert await greeted(number, pki) == b"hello"


@pytest.mark.parametrize("loop", LOOPS)
def test_grpc_inside_tls(pki: Path, loop: str) -> None:
    async def scenario() -> None:
        listener = EchoMethods().listener()
        number = await listener.listen("localhost", 0, Certificates(files_of(pki), ["h2"]))
        context = ssl.create_default_context(cafile=pki / "ca.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        reader, writer = await asyncio.open_connection("localhost", number, ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        writer.write(PREFACE + settings({}))
        data = b""
        while len(frames_of(data)[0]) < 3:
            data += await reader.read(1000)
        assert [frame.kind for frame in frames_of(data)[0]] == [4, 8, 4]
        writer.transport.abort()
        await listener.close(1)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario())
