"""TensorFlow Serving's REST API and KServe v1 over HTTP."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol.errors import Code, InferError
from penstock.protocol.limits import WireLimits
from penstock.server.front.doors import DoorOptions

SERVED = {
    "add/1": {"kind": "add_sub"},
    "add/3": {"kind": "add_sub"},
    "float/1": {"dtype": "FP32", "shape": "2"},
    "wide/1": {"dtype": "FP32", "shape": "100"},
    "image/1": {"dtype": "FP32", "shape": "1,2,2"},
    "bytes/1": {"dtype": "BYTES", "shape": "1"},
    "fail/1": {"kind": "fail"},
    "odd name/1": {"shape": "2"},
    "gone/1": {"load_error": "no luck"},
}
ROW = list(range(16))
ADD = {"instances": [{"INPUT0": ROW, "INPUT1": ROW}]}


@pytest.fixture
async def v1(serve: Any, doors: Any) -> Any:
    served = await serve(SERVED)
    doors(DoorOptions({"add": {"stable": "1", "later": "2"}}), of=served)
    return served


async def post(v1: Any, path: str, body: Any) -> Any:
    reply = await v1.ask("POST", path, body)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json"), reply
    return json.loads(reply.body)


@pytest.mark.parametrize(
    "path", ["add", "add/versions/1", "add/versions/3", "add/labels/stable", "add?x=1"]
)
async def test_rows(v1: Any, path: str) -> None:
    name, question, query = path.partition("?")
    told = await post(v1, f"/v1/models/{name}:predict{question}{query}", ADD)
    assert told == {"predictions": [{"OUTPUT0": [2 * i for i in ROW], "OUTPUT1": [0] * 16}]}


async def test_columns(v1: Any) -> None:
    body = {"signature_name": "serving_default", "inputs": {"INPUT0": [ROW], "INPUT1": [ROW]}}
    told = await post(v1, "/v1/models/add:predict", body)
    assert told == {"outputs": {"OUTPUT0": [[2 * i for i in ROW]], "OUTPUT1": [[0] * 16]}}


async def test_bare_lists(v1: Any) -> None:
    assert await post(v1, "/v1/models/float:predict", {"instances": [[1, 2], [3, 4]]}) == {
        "predictions": [[1, 2], [3, 4]]
    }
    assert await post(v1, "/v1/models/float:predict", {"inputs": [[1, 2]]}) == {"outputs": [[1, 2]]}
    assert await post(v1, "/v1/models/image:predict", {"instances": [[1, 2, 3, 4]]}) == {
        "predictions": [[[[1, 2], [3, 4]]]]
    }
    assert await post(v1, "/v1/models/odd%20name:predict", {"instances": [[1, 2]]}) == {
        "predictions": [[1, 2]]
    }


async def test_bytes(v1: Any) -> None:
    told = await post(v1, "/v1/models/bytes:predict", {"instances": ["é", {"b64": "/w=="}]})
    assert told == {"predictions": [["é"], [{"b64": "/w=="}]]}


async def test_not_finite(v1: Any) -> None:
    reply = await v1.ask("POST", "/v1/models/float:predict", b'{"instances":[[NaN,-Infinity]]}')
    assert reply.body == b'{"predictions":[[NaN,-Infinity]]}'


async def test_classify_and_regress(v1: Any) -> None:
    rows = {"context": {"INPUT0": [0.5, 2]}, "examples": [{}, {"INPUT0": [1, 2]}]}
    assert await post(v1, "/v1/models/float/versions/1:classify", rows) == {
        "results": [[["0", 0.5], ["1", 2]], [["0", 1], ["1", 2]]]
    }
    reply = await v1.ask("POST", "/v1/models/float:regress", rows)
    assert (reply.status, b"cannot regress" in reply.body) == (400, True)


REFUSED: dict[str, tuple[str, Any, Code, str]] = {
    "empty": ("add:predict", b"", Code.INVALID_ARGUMENT, "JSON Parse error"),
    "garbage": ("add:predict", b"{", Code.INVALID_ARGUMENT, "JSON Parse error"),
    "deep": ("add:predict", b'{"instances":' + b"[" * 9999, Code.INVALID_ARGUMENT, ""),
    "neither": ("add:predict", {}, Code.INVALID_ARGUMENT, "Missing 'inputs' or 'instances' key"),
    "one of two": ("add:predict", {"inputs": {"INPUT0": [ROW]}}, Code.INVALID_ARGUMENT, "INPUT1"),
    "shape": ("float:predict", {"instances": [[1]]}, Code.INVALID_ARGUMENT, "unexpected shape"),
    "uneven": ("float:predict", {"instances": [[1, 2], [1]]}, Code.INVALID_ARGUMENT, "length"),
    "type": ("float:predict", {"instances": [["a", "b"]]}, Code.INVALID_ARGUMENT, "FP32"),
    "signature": ("add:predict", {"signature_name": "x"}, Code.INVALID_ARGUMENT, "signature"),
    "unknown model": ("nope:predict", ADD, Code.NOT_FOUND, "'nope' is not found"),
    "unknown version": ("add/versions/2:predict", ADD, Code.NOT_FOUND, "version 2 is not found"),
    "unknown label": ("add/labels/x:predict", ADD, Code.NOT_FOUND, "label: x"),
    "label of nothing": ("add/labels/later:predict", ADD, Code.NOT_FOUND, "version 2"),
    "not loaded": ("gone:predict", ADD, Code.UNAVAILABLE, "no luck"),
    "the model fails": ("fail:predict", {"instances": [ROW]}, Code.INTERNAL, "always fails"),
    "explain": ("add:explain", ADD, Code.UNIMPLEMENTED, "no explainer"),
    "no examples": ("float:classify", {"examples": []}, Code.INVALID_ARGUMENT, "empty array"),
}


@pytest.mark.parametrize(("path", "body", "code", "text"), REFUSED.values(), ids=REFUSED)
async def test_errors(v1: Any, path: str, body: Any, code: Code, text: str) -> None:
    reply = await v1.ask("POST", f"/v1/models/{path}", body)
    assert reply.status == code.http_status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["penstock-code"] == code.name
    told = json.loads(reply.body)
    assert set(told) == {"error"}
    assert text in told["error"]
    assert (await v1.ask("POST", "/v1/models/add:predict", ADD)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/add/versions/x:predict", 404),
        ("POST", "/v1/models/add", 405),
        ("PUT", "/v1/models/add:predict", 405),
        ("POST", "/v1/models/a/b:predict", 404),
        ("GET", "/v1", 404),
    ],
)
async def test_routes_that_are_none(v1: Any, method: str, path: str, status: int) -> None:
    reply = await v1.ask(method, path, b"{}" if method != "GET" else b"")
    assert reply.status == status
    assert set(json.loads(reply.body)) == {"error"}


async def test_a_full_queue_is_too_many_requests(v1: Any, monkeypatch: Any) -> None:
    def full(*arguments: Any) -> Any:
        raise InferError(Code.RESOURCE_EXHAUSTED, "Exceeds maximum queue size")

    monkeypatch.setattr(v1.gateway, "infer", full)
    reply = await v1.ask("POST", "/v1/models/add:predict", ADD)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")


async def test_content_codings(v1: Any) -> None:
    rows = {"instances": np.zeros((400, 2)).tolist()}
    packed = gzip.compress(json.dumps(rows).encode())
    fields = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    reply = await v1.ask("POST", "/v1/models/float:predict", packed, fields)
    assert (reply.status, reply.headers["content-encoding"]) == (200, "gzip")
    assert json.loads(gzip.decompress(reply.body)) == {"predictions": rows["instances"]}
    for coding, status in (("br", 501), ("gzip", 400)):
        bad = await v1.ask("POST", "/v1/models/float:predict", b"x", {"Content-Encoding": coding})
        assert (bad.status, set(json.loads(bad.body))) == (status, {"error"})


# --- large bodies ---------------------------------------------------------------------------------

MANY = np.arange(20_000, dtype="f4").reshape(-1, 100)
"""More numbers than are read and written on the event loop."""


@pytest.mark.parametrize("path", ["/v1/models/wide:predict", "/invocations"])
@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_large_bodies(v1: Any, path: str, coding: str) -> None:
    text = json.dumps({"instances": MANY.tolist()}).encode()
    fields = {"X-Amzn-SageMaker-Target-Model": "wide"}
    if coding:
        text = gzip.compress(text)
        fields |= {"Content-Encoding": coding, "Accept-Encoding": coding}
    reply = await v1.ask("POST", path, text, fields)
    assert (reply.status, reply.headers.get("content-encoding", "")) == (200, coding)
    body = gzip.decompress(reply.body) if coding else reply.body
    assert json.loads(body) == {"predictions": MANY.tolist()}


async def test_large_v2_bodies_through_invocations(v1: Any) -> None:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": MANY.shape, "data": MANY.tolist()}
    fields = {"X-Amzn-SageMaker-Target-Model": "wide"}
    reply = await v1.ask("POST", "/invocations", {"inputs": [tensor]}, fields)
    assert reply.status == 200
    assert json.loads(reply.body)["outputs"][0]["data"] == MANY.ravel().tolist()


@pytest.mark.parametrize("bad", ["x", None, [1]])
async def test_large_bad_bodies(v1: Any, bad: Any) -> None:
    rows = {"instances": [*MANY.tolist(), bad]}
    reply = await v1.ask("POST", "/v1/models/wide:predict", rows)
    assert (reply.status, set(json.loads(reply.body))) == (400, {"error"})
    unknown = await v1.ask("POST", "/v1/models/nope:predict", rows)
    assert unknown.status == 404


async def test_the_limit_of_json(serve: Any, doors: Any) -> None:
    served = await serve(SERVED)
    doors(of=served, limits=WireLimits(json_bytes_max=1000))
    rows = {"instances": np.zeros((200, 2)).tolist()}
    text = json.dumps(rows).encode()
    for body, fields in ((text, {}), (gzip.compress(text), {"Content-Encoding": "gzip"})):
        reply = await served.ask("POST", "/v1/models/float:predict", body, fields)
        assert reply.status == 413
    assert (await served.ask("POST", "/v1/models/add:predict", ADD)).status == 200


async def test_a_time_limit_of_the_client(v1: Any) -> None:
    for text, status in (("60000", 200), ("0", 400), ("x", 400)):
        reply = await v1.ask("POST", "/v1/models/add:predict", json.dumps(ADD).encode(),
                             {"Penstock-Timeout-Ms": text})  # fmt: skip
        assert reply.status == status


# --- documents ------------------------------------------------------------------------------------


async def test_models(v1: Any) -> None:
    told = await v1.json("GET", "/v1/models")
    assert told == {"models": sorted({name.partition("/")[0] for name in SERVED})}


async def test_status_for_both_kinds_of_clients(v1: Any) -> None:
    ready = {"error_code": "OK", "error_message": ""}
    versions = [{"version": v, "state": "AVAILABLE", "status": ready} for v in ("3", "1")]
    told = await v1.json("GET", "/v1/models/add")
    assert told == {"name": "add", "ready": True, "model_version_status": versions}
    for path in ("/v1/models/add/versions/1", "/v1/models/add/labels/stable"):
        assert (await v1.json("GET", path))["model_version_status"] == versions[1:]


async def test_status_of_what_is_not_ready(v1: Any) -> None:
    reply = await v1.ask("GET", "/v1/models/gone")
    told = json.loads(reply.body)
    assert (reply.status, told["ready"]) == (503, False)
    (version,) = told["model_version_status"]
    assert version["state"] == "END"
    assert "no luck" in version["status"]["error_message"]
    for path in ("nope", "add/versions/2", "add/labels/x", "add/labels/later"):
        missing = await v1.ask("GET", f"/v1/models/{path}")
        assert (missing.status, set(json.loads(missing.body))) == (404, {"error"})


async def test_metadata(v1: Any) -> None:
    told = await v1.json("GET", "/v1/models/add/labels/stable/metadata")
    assert told["model_spec"] == {"name": "add", "signature_name": "", "version": "1"}
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["INPUT0"] == {
        "dtype": "DT_INT32",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "16", "name": ""}],
            "unknown_rank": False,
        },
        "name": "INPUT0:0",
    }
    assert set(signature["outputs"]) == {"OUTPUT0", "OUTPUT1"}
    assert (await v1.ask("GET", "/v1/models/gone/metadata")).status == 503
