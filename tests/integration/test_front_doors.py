"""The other front doors on a whole server: flags, ports, variables, and what many doors share."""

from __future__ import annotations

import contextlib
import json
import socket
from http.client import HTTPConnection
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from penstock.server.demo import heldout


def ask(url: str, body: Any = None, **headers: str) -> Any:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    with urlopen(Request(url, data, {k.replace("_", "-"): v for k, v in headers.items()})) as reply:
        return json.load(reply)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port: int = opened.getsockname()[1]
    return port


def test_one_answer_through_every_door(demo_server: Any) -> None:
    images = heldout()[0][:3]
    url = demo_server.http
    tensor = {"name": "image", "datatype": "FP32", "shape": [3, 1, 8, 8], "data": images.tolist()}
    v2 = ask(f"{url}/v2/models/digits/infer", {"inputs": [tensor]})["outputs"][0]["data"]
    expected = np.reshape(v2, (3, 10))
    rows = {"instances": images.tolist()}
    flat = images.reshape(3, 64)
    split = {"columns": [f"p{i}" for i in range(64)], "data": flat.tolist()}
    csv = "\n".join(",".join(map(repr, row)) for row in flat.tolist()).encode()
    answers = [
        ask(f"{url}/v1/models/digits:predict", rows)["predictions"],
        ask(f"{url}/v1/models/digits:predict", {"inputs": images.tolist()})["outputs"],
        ask(f"{url}/invocations", rows, Content_Type="application/json")["predictions"],
        ask(f"{url}/invocations", {"dataframe_split": split})["predictions"],
        ask(f"{url}/invocations", csv, Content_Type="text/csv")["predictions"],
    ]
    for answer in answers:
        np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_port_and_routes_for_hosting_platforms(start_server: Any) -> None:
    port = free_port()
    server = start_server(
        "--demo", "--sagemaker-port", str(port), "--version-label", "digits:stable=1",
        env={"AIP_PREDICT_ROUTE": "/vertex", "AIP_HEALTH_ROUTE": "/vertex/health"},
    )  # fmt: skip
    rows = {"instances": heldout()[0][:1].tolist()}
    for base in (server.http, f"http://127.0.0.1:{port}"):
        for path in ("/ping", "/vertex/health"):
            with urlopen(base + path) as reply:
                assert reply.status == 200
        assert len(ask(f"{base}/vertex", rows)["predictions"][0]) == 10
        assert ask(f"{base}/v1/models/digits/labels/stable:predict", rows)["predictions"]
    assert server.stop() == 0


def test_a_port_that_is_taken(start_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server("--demo", "--sagemaker-port", str(port), ready=False)
        assert server.wait() != 0
        assert "--sagemaker-port" in server.stderr


def test_a_route_that_is_none(start_server: Any) -> None:
    server = start_server("--demo", env={"AIP_PREDICT_ROUTE": "nowhere"}, ready=False)
    assert server.wait() == 2
    assert "AIP_PREDICT_ROUTE" in server.stderr


def test_restrictions_hold_for_all_doors(start_server: Any) -> None:
    server = start_server("--demo", "--http-restricted-api", "inference:key=secret")
    rows = json.dumps({"instances": heldout()[0][:1].tolist()})
    connection = HTTPConnection(server.http.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        for path in ("/v1/models/digits:predict", "/invocations"):
            for headers, status in (({}, 403), ({"key": "secret"}, 200)):
                connection.request("POST", path, rows, headers)
                reply = connection.getresponse()
                assert (reply.status, bool(reply.read())) == (status, True), path


def test_routes_are_described(demo_server: Any) -> None:
    paths = ask(f"{demo_server.http}/openapi.json")["paths"]
    for path, method in (
        ("/v1/models/{model}:predict", "post"), ("/v1/models/{model}", "get"),
        ("/invocations", "post"), ("/ping", "get"), ("/models/{model}", "delete"),
    ):  # fmt: skip
        assert method in paths[path], path
