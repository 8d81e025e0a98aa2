"""Every route of a whole server, given everything that it does not want: each answer is an error in
words and in the form of its protocol, or harmless; and the server still works.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.loadtest.models import write_add_sub, write_identity
from penstock.protocol import dtype as dt
from penstock.server.app import App, ServeOptions
from penstock.server.front.openapi import document
from penstock.server.transport.fake import Reply, Wire, parse_replies
from penstock.server.transport.grpc.options import GrpcOptions

pytest.importorskip("onnxruntime")

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")
DEEP = 20_000
WRONG: Any = {
    "inputs": 5, "outputs": "x", "parameters": [None], "id": {}, "instances": 5, "examples": 5,
    "signature_name": 5, "dataframe_split": 5, "dataframe_records": 5, "ready": "x", "key": 5,
    "offset": -1, "byte_size": "x", "device_id": 1.5, "raw_handle": 5, "trace_level": 5,
    "trace_rate": "x", "log_verbose_level": "x", "log_info": 5, "url": 5, "model_name": 5,
}  # fmt: skip
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "bytes": bytes(range(256)),
    "zeros": bytes(64),
    "not utf-8": b'{"inputs":"\xff\xfe"}',
    "half": b'{"inputs":[{"name":',
    "a number": b"5",
    "null": b"null",
    "a string": b'"x"',
    "a list": b"[]",
    "a list of lists": b"[[[]]]",
    "an object": b"{}",
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep data": b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"INT32","data":'
    + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "deep parameters": b'{"parameters":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    "huge numbers": b'{"inputs":[{"name":"INPUT0","shape":[1' + b"0" * 400
    + b'],"datatype":"INT32","data":[1e999]}],"parameters":{"n":' + b"9" * 5000 + b"}}",
    "huge shape": b'{"inputs":[{"name":"INPUT0","shape":[9223372036854775807,2],'
    b'"datatype":"FP64","data":[1]}]}',
    "wrong types": json.dumps(WRONG).encode(),
    "nulls": json.dumps(dict.fromkeys(WRONG)).encode(),
    "wrong rows": b'{"inputs":[5],"instances":[{"a":[[]]},5,"x"],"examples":[5]}',
    "wrong pieces": b'{"inputs":[{"name":5,"shape":"x","datatype":[]}],"outputs":[{"name":{}}]}',
    "surrogates": rb'{"inputs":[{"name":"\ud800","shape":[1],"datatype":"INT32","data":[1]}]}',
}  # fmt: skip
FIELDS: dict[str, dict[str, str]] = {
    "plain": {},
    "json": {"Content-Type": "application/json"},
    "csv": {"Content-Type": "text/csv"},
    "a length beyond": {"Inference-Header-Content-Length": "99999999999"},
    "no length": {"Inference-Header-Content-Length": "x"},
    "gzip": {"Content-Encoding": "gzip"},
    "br": {"Content-Encoding": "br"},
    "no time": {"Penstock-Timeout-Ms": "-1"},
}
NAMES = {
    "model": ("simple", "nope", "%2e%2e%2f..", "a%00b", "%ff", "x" * 300),
    "version": ("1", "99999999999999999999999999"),
    "region": ("r", "%2f"),
    "repository": ("x",),
    "label": ("stable",),
}
AS_TRITON = ("Unable to parse 'shape': ", "Unable to set 'classification': ")


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    write_add_sub(tmp_path / "m" / "simple" / "1" / "model.onnx")
    write_identity(tmp_path / "m" / "text" / "1" / "model.onnx", dt.BYTES)
    options = ServeOptions(
        (tmp_path / "m",), http_port=None, metrics_port=None, grpc=GrpcOptions(port=None),
        allow_client_shm=True, default_model="simple",
    )  # fmt: skip
    app = App(options)
    await app.start()
    yield app
    await app.stop(at_once=True)


async def ask(
    app: App, method: str, path: str, body: bytes = b"", fields: dict[str, str] | None = None
) -> Reply:
    wire = Wire(app._http)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (fields or {}).items())
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    wire.feed(head.encode("latin-1") + body)
    async with asyncio.timeout(30):
        while not (found := parse_replies(bytes(wire.transport.sent), [method])[0]):
            await asyncio.sleep(0.0005)
    wire.end()
    return found[0]


async def probe(app: App) -> None:
    data = list(range(16))
    tensor = {"shape": [1, 16], "datatype": "INT32", "data": data}
    body = {"inputs": [{"name": "INPUT0", **tensor}, {"name": "INPUT1", **tensor}]}
    reply = await ask(app, "POST", "/v2/models/simple/infer", json.dumps(body).encode())
    outputs = {o["name"]: o["data"] for o in json.loads(reply.body)["outputs"]}
    assert outputs == {"OUTPUT0": [2 * n for n in data], "OUTPUT1": [0] * 16}


def paths(template: str) -> list[str]:
    """The path with each name in turn that a request may have there."""
    found = [template]
    for key, names in NAMES.items():
        place = f"{{{key}}}"
        found = [p.replace(place, name) for p in found for name in (names if place in p else [""])]
    return found


def check(reply: Reply, method: str, path: str) -> None:
    where = f"{method} {path}: {reply.status} {reply.body[:300]!r}"
    assert reply.status in (200, 400, 404, 405, 409, 413, 415, 500, 501, 503, 504), where
    assert b"internal error" not in reply.body, where
    if reply.status == 200 or method == "HEAD":
        return
    kind = reply.headers["content-type"].partition(";")[0]
    if kind in ("application/json", "text/event-stream"):
        text = json.loads(reply.body)["error"]
        if isinstance(text, dict):  # MLflow's
            text = text["message"]
    else:
        assert kind == "text/plain", where
        text = reply.body.decode().strip()
    assert text, where
    assert isinstance(text, str), where
    if reply.status == 500:
        assert any(known in text for known in AS_TRITON), where
    if reply.status == 405:
        assert reply.headers["allow"], where


@pytest.mark.parametrize("name", BODIES)
async def test_every_route_survives(app: App, name: str) -> None:
    body = BODIES[name]
    for route in app.http_routes:
        for path in paths(route.path)[:2]:
            check(await ask(app, route.method, path, body), route.method, path)
    await probe(app)


@pytest.mark.parametrize("name", FIELDS)
async def test_odd_headers(app: App, name: str) -> None:
    for route in app.http_routes:
        path = paths(route.path)[0]
        for body in (b"", b"{}", b"x"):
            check(await ask(app, route.method, path, body, FIELDS[name]), route.method, path)
    await probe(app)


async def test_odd_names(app: App) -> None:
    for route in app.http_routes:
        for path in paths(route.path):
            check(await ask(app, route.method, path, b"{}"), route.method, path)
    await probe(app)


async def test_every_other_method_is_refused(app: App) -> None:
    served: dict[str, set[str]] = {}
    for route in app.http_routes:
        served.setdefault(paths(route.path)[0], set()).add(route.method)
    for path, methods in served.items():
        for method in METHODS:
            reply = await ask(app, method, path, b"{}" if method != "HEAD" else b"")
            check(reply, method, path)
            known = methods | ({"HEAD"} if "GET" in methods else set())
            if method not in known and ":" not in path:
                assert reply.status == 405, f"{method} {path}"
                assert set(reply.headers["allow"].split(", ")) == known
    await probe(app)


@pytest.mark.parametrize(
    "path",
    ["/v2/", "/v2/health", "/v2/health/live/", "/v2/models/simple/", "/v2/models", "/v2/models/",
     "/v2/models/simple/versions/x/infer", "/v2/models/simple/versions/x", "/v2/models//infer",
     "/v2/models/stats/", "/v2/nothing", "/v2/models/a/b/infer", "/v2//health/live"],
)  # fmt: skip
async def test_paths_that_triton_does_not_know_either(app: App, path: str) -> None:
    for method in ("GET", "POST"):
        reply = await ask(app, method, path)
        assert (reply.status, reply.body) == (404, b'{"error":"Not Found"}')
        assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("query", ["?", "?x=1", "?x=/v2", "?%", "?a=b&c#d"])
async def test_queries_are_ignored(app: App, query: str) -> None:
    reply = await ask(app, "GET", "/v2/health/live" + query)
    assert (reply.status, reply.body) == (200, b'{"live":true}')


# ---------------------------------------------------------------------- the description


async def test_every_route_is_described(app: App) -> None:
    routes = app.http_routes
    silent = [f"{r.method} {r.path}" for r in routes if r.describe is None]
    assert silent == []


async def test_the_description_is_whole(app: App) -> None:
    told = json.loads((await ask(app, "GET", "/openapi.json")).body)
    assert told == document(app.http_routes, told["info"]["version"])
    names = [op["operationId"] for path in told["paths"].values() for op in path.values()]
    assert len(set(names)) == len(names) > 60
    text = json.dumps(told)
    schemas = told["components"]["schemas"]
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used == set(schemas)
