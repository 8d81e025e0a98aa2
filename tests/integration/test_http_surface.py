"""What an operator can choose about HTTP, and streamed answers, with clients that others wrote."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import aiohttp
import pytest

from penstock.backends.fake import artefact

Start = Callable[..., Any]
LABELLED = (
    'backend: "fake" max_batch_size: 4 '
    'input { name: "INPUT0" data_type: TYPE_FP32 dims: [3] } '
    'output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }'
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for name, options, config in (
        ("parts", {"kind": "repeat", "shape": "1", "times": "-1"},
         'backend: "fake" model_transaction_policy { decoupled: true }'),
        ("scores", {"dtype": "FP32", "shape": "3"}, LABELLED),
    ):  # fmt: skip
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.fake").write_bytes(artefact(options))
        (root / name / "config.pbtxt").write_text(config)
    (root / "scores" / "labels.txt").write_text("cat\ndog\ncow\n")
    return root


EVENT = b'data: {"OUTPUT0":500,"model_name":"parts","model_version":"1"}\n\n'


def ask(url: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(url, data, fields), timeout=30) as reply:
            return reply.status, json.load(reply), reply.headers
    except HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def test_classes_with_labels(models: Path, start_server: Start) -> None:
    server = start_server("-m", models, "--grpc-port", "off")
    tensor = {"name": "INPUT0", "shape": [2, 3], "datatype": "FP32", "data": [1, 9, 5, 0, -1, 0.5]}
    wish = {"name": "OUTPUT0", "parameters": {"classification": 2}}
    url = f"{server.http}/v2/models/scores/infer"
    status, reply, _ = ask(url, {"inputs": [tensor], "outputs": [wish]})
    assert status == 200
    (output,) = reply["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == [
        "9.000000:1:dog", "5.000000:2:cow", "0.500000:2:cow", "0.000000:0:cat"
    ]  # fmt: skip
    status, reply, _ = ask(url, {"inputs": [tensor]})
    assert reply["outputs"][0]["data"] == [1, 9, 5, 0, -1, 0.5]


async def test_streams(models: Path, start_server: Start) -> None:
    server = start_server("-m", models, "--grpc-port", "off")
    url = f"{server.http}/v2/models/parts/generate_stream"
    split = urlsplit(server.http)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=30)
    for _ in range(2):  # the connection stays
        connection.request("POST", urlsplit(url).path, b'{"INPUT0":500}')
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, EVENT * 500)
    connection.close()

    async with aiohttp.ClientSession() as session:
        async with session.post(url, json={"INPUT0": 500}) as streamed:
            lines = [line async for line in streamed.content]
        assert b"".join(lines) == EVENT * 500
        async with session.post(url, json={"INPUT0": 1_000_000_000}) as endless:
            assert await endless.content.readline() == EVENT[:-1].replace(b"500", b"1000000000")
        async with session.post(url, json={"INPUT0": 0}) as empty:
            assert (empty.status, await empty.read()) == (200, b"")

    # The endless one has ended with its client, or this would wait for ever.
    assert ask(url.removesuffix("_stream"), {"INPUT0": 1})[1]["OUTPUT0"] == 1
    assert server.stop() == 0


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
def test_streams_by_curl(models: Path, start_server: Start, version: str) -> None:
    server = start_server("-m", models, "--grpc-port", "off")
    url = f"{server.http}/v2/models/parts/generate_stream"
    command = ["curl", "-sN", version, "-d", '{"INPUT0":500}', url]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert done.stdout == EVENT * 500


def test_restrictions_pages_and_limits(models: Path, start_server: Start) -> None:
    server = start_server(
        "-m", models, "--grpc-port", "off",
        "--http-restricted-api", "metadata,model-config:X-Key=open sesame",
        "--http-restricted-api", "trace:x-other=1",
        "--http-cors-allow-origin", "https://page.example", "--http-cors-max-age-s", "5",
        "--http-max-input-size", "1KiB",
    )  # fmt: skip
    status, reply, _ = ask(f"{server.http}/v2")
    assert (status, reply) == (403, {"error": "This API is restricted, expecting header 'X-Key'"})
    assert ask(f"{server.http}/v2", X_Key="open sesame")[0] == 200
    assert ask(f"{server.http}/v2/models/scores/config", x_key="open sesame")[0] == 200
    assert ask(f"{server.http}/v2/trace/setting")[0] == 403
    status, _, headers = ask(f"{server.http}/v2/health/live", Origin="https://page.example")
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")
    asked = Request(f"{server.http}/v2/models/scores/infer", method="OPTIONS")
    asked.add_header("Origin", "https://page.example")
    asked.add_header("Access-Control-Request-Method", "POST")
    with urlopen(asked, timeout=10) as preflight:
        assert (preflight.status, preflight.headers["Access-Control-Max-Age"]) == (200, "5")
    status, reply, _ = ask(f"{server.http}/v2/models/scores/infer", {"x": "y" * 2000})
    assert status == 400
    assert "exceeds the maximum allowed input size of 1024 bytes" in reply["error"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--http-restricted-api", "nothing:k=v"), "--http-restricted-api: unknown restricted api"),
        (("--http-restricted-api", "health"), "is not a rule"),
        (("--http-header-forward-pattern", "("), "is not a regular expression"),
        (("--http-cors-allow-origin", "example.org"), "is not an origin"),
        (("--http-cors-allow-method", "A B"), "is not a word of HTTP"),
        (("--http-cors-allow-header", ""), "is not a word of HTTP"),
    ],
)
def test_flags_that_cannot_be(
    models: Path, start_server: Start, flags: Any, complaint: str
) -> None:
    server = start_server("-m", models, *flags, ready=False)
    assert server.wait() == 2
    assert complaint in server.stderr
