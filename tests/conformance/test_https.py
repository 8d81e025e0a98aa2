"""HTTPS with clients that others wrote: tritonclient, sync and aio, Python's own, and curl."""

from __future__ import annotations

import ssl
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from penstock.loadtest.models import write_add_sub

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    http = pytest.importorskip("tritonclient.http")
    aio = pytest.importorskip("tritonclient.http.aio")

VALUES = np.arange(16, dtype=np.int32).reshape(1, 16)


@pytest.fixture(scope="module")
def authority(
    pki: Path, model_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> str:
    root = tmp_path_factory.mktemp("models")
    write_add_sub(root / "simple" / "1" / "model.onnx")
    flags = ("--http-tls-cert", str(pki / "server.pem"), "--http-tls-key", str(pki / "server.key"))
    port: int = model_server(root, *flags).http
    return f"localhost:{port}"


def inputs(module: Any) -> list[Any]:
    made = [module.InferInput(name, VALUES.shape, "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor in made:
        tensor.set_data_from_numpy(VALUES)
    return made


def test_tritonclient(authority: str, pki: Path) -> None:
    options = {"ca_certs": str(pki / "ca.pem")}
    with http.InferenceServerClient(authority, ssl=True, ssl_options=options) as client:
        assert client.is_server_ready()
        for _ in range(3):
            reply = client.infer("simple", inputs(http))
            np.testing.assert_array_equal(reply.as_numpy("OUTPUT0"), VALUES + VALUES)


async def test_tritonclient_aio(authority: str, pki: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    client = aio.InferenceServerClient(authority, ssl=True, ssl_context=trusted)
    try:
        reply = await client.infer("simple", inputs(aio))
        np.testing.assert_array_equal(reply.as_numpy("OUTPUT0"), VALUES + VALUES)
    finally:
        await client.close()


def test_who_does_not_trust_us_does_not_come(authority: str, pki: Path) -> None:
    with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urlopen(f"https://{authority}/v2/health/live", context=ssl.create_default_context())
    trusted = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    with urlopen(f"https://{authority}/v2/health/live", context=trusted, timeout=10) as reply:
        assert reply.read() == b'{"live":true}'


def test_large_bodies_and_streams_by_curl(authority: str, pki: Path, tmp_path: Path) -> None:
    rows = ",".join(["7"] * 16)
    body = f'{{"INPUT0":[{rows}],"INPUT1":[{rows}]' + " " * 3_000_000 + "}"
    (tmp_path / "body").write_text(body)
    command = ["curl", "-sN", "--cacert", str(pki / "ca.pem"), "--data-binary", "@body"]
    for path in ("generate", "generate_stream"):
        url = f"https://{authority}/v2/models/simple/{path}"
        done = subprocess.run([*command, url], cwd=tmp_path, capture_output=True, check=True)
        assert b'"OUTPUT0":[14,14,' in done.stdout
        assert done.stdout.startswith(b"data: ") == (path == "generate_stream")
