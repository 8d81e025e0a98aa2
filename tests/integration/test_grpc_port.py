"""The gRPC port of a whole server: addresses, TLS on both ports, new certificates, the end."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from penstock.backends.fake import artefact

RUN_S = 1.0
LEAVING = "GRPC server is shutting down and has stopped accepting new requests"
StartServer = Callable[..., Any]


def live(channel: grpc.Channel, timeout_s: float = 10) -> bool:
    """ServerLive, of which the reply is field 1."""
    call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    return bool(call(b"", timeout=timeout_s) == b"\x08\x01")


def turned_away(channel: grpc.Channel) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        live(channel, 2)
    return caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
    )  # fmt: skip


def test_every_address(start_server: StartServer, tmp_path: Path) -> None:
    socket = tmp_path / "g.sock"
    server = start_server("--demo", "--grpc-uds", socket, "--grpc-uds-mode", "600")
    assert f"gRPC       {server.grpc}" in server.stdout
    assert f"gRPC       unix:{socket}" in server.stdout
    assert socket.stat().st_mode & 0o777 == 0o600
    for address in (server.grpc, f"unix:{socket}"):
        with grpc.insecure_channel(address) as channel:
            assert live(channel)
    assert server.stop() == 0
    assert not socket.exists()


def test_grpc_alone_and_not_at_all(start_server: StartServer) -> None:
    alone = start_server("--demo", "--http-port", "off")
    with grpc.insecure_channel(alone.grpc) as channel:
        assert live(channel)
    assert start_server("--demo", "--grpc-port", "off").grpc == ""


def test_grpcio_as_the_transport(start_server: StartServer) -> None:
    server = start_server("--demo", "--grpc-transport", "grpcio")
    with grpc.insecure_channel(server.grpc) as channel:
        assert live(channel)
    assert server.stop() == 0


def test_a_port_that_is_taken(start_server: StartServer) -> None:
    port = start_server("--demo").grpc.rpartition(":")[2]
    second = start_server("--demo", "--grpc-port", port, ready=False)
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in second.stderr
    assert "--grpc-port" in second.stderr


# --- TLS


def tls_flags(folder: Path, *, mutual: bool = False) -> list[Any]:
    cert, key, ca = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    flags = ["--grpc-use-ssl", "--grpc-server-cert", cert, "--grpc-server-key", key]
    flags += ["--http-tls-cert", cert, "--http-tls-key", key]
    if mutual:
        flags += ["--grpc-use-ssl-mutual", "--grpc-root-cert", ca, "--http-tls-ca", ca]
    return flags


def secure(address: str, trusted: Path, client: Path | None = None) -> grpc.Channel:
    own = [(client / f"client.{kind}").read_bytes() for kind in ("key", "pem")] if client else []
    credentials = grpc.ssl_channel_credentials((trusted / "ca.pem").read_bytes(), *own)
    return grpc.secure_channel(address, credentials)


def https_ready(url: str, trusted: Path, client: Path | None = None) -> Any:
    context = ssl.create_default_context(cafile=trusted / "ca.pem")
    if client is not None:
        context.load_cert_chain(client / "client.pem", client / "client.key")
    url = url.replace("http://", "https://") + "/v2/health/ready"
    with urllib.request.urlopen(url, context=context, timeout=10) as reply:
        return json.load(reply)


def test_tls(start_server: StartServer, pki: Path) -> None:
    server = start_server("--demo", *tls_flags(pki))
    assert f"gRPC       {server.grpc} (TLS)" in server.stdout
    assert "https://127.0.0.1:" in server.stdout
    with secure(server.grpc, pki) as channel:
        assert live(channel)
    assert https_ready(server.http, pki) == {"ready": True}
    with grpc.insecure_channel(server.grpc) as channel:
        assert turned_away(channel)


def test_mutual_tls(start_server: StartServer, pki: Path) -> None:
    server = start_server("--demo", *tls_flags(pki, mutual=True))
    with secure(server.grpc, pki, pki) as channel:
        assert live(channel)
    assert https_ready(server.http, pki, pki) == {"ready": True}
    with secure(server.grpc, pki) as channel:
        assert turned_away(channel)
    with pytest.raises(OSError):
        https_ready(server.http, pki)


def test_new_certificates_on_sighup(
    start_server: StartServer, make_pki: Callable[[], Path], tmp_path: Path
) -> None:
    old, new = make_pki(), make_pki()
    shutil.copytree(old, tmp_path / "live")
    server = start_server("--demo", *tls_flags(tmp_path / "live"))
    shutil.copytree(new, tmp_path / "live", dirs_exist_ok=True)
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 20
    while "certificates reloaded" not in server.stderr:
        assert time.monotonic() < end
        time.sleep(0.02)
    with secure(server.grpc, new) as channel:
        assert live(channel)
    assert https_ready(server.http, new) == {"ready": True}
    with secure(server.grpc, old) as channel:
        assert turned_away(channel)


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        (["--grpc-use-ssl"], 2, "TLS needs --grpc-server-cert"),
        (["--grpc-server-cert", "x"], 2, "TLS is off: add --grpc-use-ssl"),
        (["--grpc-use-ssl-mutual"], 2, "--grpc-use-ssl-mutual needs --grpc-root-cert"),
        (["--http-tls-cert", "x"], 2, "TLS needs --http-tls-key"),
        (
            ["--http-tls-cert", "no.pem", "--http-tls-key", "no.key"],
            1,
            "TLS: cannot read no.pem: No such file or directory",
        ),
    ],
)
def test_flags_of_tls_that_do_not_do(
    start_server: StartServer, flags: list[str], status: int, text: str
) -> None:
    server = start_server("--demo", *flags, ready=False)
    assert server.wait() == status
    assert text in server.stderr
    assert "Traceback" not in server.stderr


# --- the end


def test_what_runs_is_answered(start_server: StartServer, tmp_path: Path) -> None:
    """After SIGTERM: the call in progress ends well, and a new one is told why it is refused."""
    folder = tmp_path / "models" / "slow" / "1"
    folder.mkdir(parents=True)
    options = {"shape": "2", "delay_ms": str(round(RUN_S * 1000)), "fail_runs": "1"}
    (folder / "model.fake").write_bytes(artefact(options))
    server = start_server("-m", tmp_path / "models")
    client = triton.InferenceServerClient(server.grpc)
    value = triton.InferInput("INPUT0", [1, 2], "INT32")
    value.set_data_from_numpy(np.array([[1, 2]], np.int32))
    answers: list[Any] = []

    def done(result: Any, error: Any) -> None:
        answers.append(error or result.as_numpy("OUTPUT0").tolist())

    client.async_infer("slow", [value], done)
    stream = grpc.insecure_channel(server.grpc)
    assert live(stream)
    opened = stream.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    hold = threading.Event()
    chat = opened(_until(hold))
    time.sleep(RUN_S / 4)  # The call is in the server now, and runs for a while yet.
    assert server.stop() == 0
    hold.set()
    end = time.monotonic() + 10
    while not answers:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert answers == [[[1, 2]]]
    assert chat.code() is grpc.StatusCode.UNAVAILABLE
    assert chat.details() == LEAVING
    client.close()
    stream.close()


def _until(event: threading.Event) -> Any:
    event.wait(30)
    yield from ()
