"""What hosting platforms ask: SageMaker's, MLflow's and Vertex AI's forms on one route."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol.errors import Code
from penstock.server.front.doors import DoorOptions
from penstock.server.front.invocations import SAGEMAKER
from penstock.server.model_control import ControlMode

SERVED = {
    "add/1": {"kind": "add_sub"},
    "table/1": {"dtype": "FP32", "shape": "3"},
    "fail/1": {"kind": "fail"},
    "gone/1": {"load_error": "no luck"},
}
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
V2 = {
    "inputs": [
        {"name": n, "datatype": "INT32", "shape": [1, 16], "data": ROW.ravel().tolist()}
        for n in ("INPUT0", "INPUT1")
    ]
}
TARGET = "X-Amzn-SageMaker-Target-Model"


@pytest.fixture
async def host(serve: Any, doors: Any) -> Any:
    served = await serve(SERVED, "table")
    doors(DoorOptions(predict_route="/predict", health_route="/healthz"), of=served)
    return served


async def invoke(host: Any, body: Any, kind: str = "application/json", **fields: str) -> Any:
    head = {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in fields.items()}}
    reply = await host.ask("POST", "/invocations", body, head if kind else {})
    assert reply.status == 200, reply
    return json.loads(reply.body)


ROWS = {"predictions": [[1, 2, 3], [4, 5, 6]]}
DATA = [[1, 2, 3], [4, 5, 6]]
BODIES: dict[str, tuple[Any, str]] = {
    "instances": ({"instances": DATA}, "application/json"),
    "instances of Vertex AI": ({"instances": DATA, "parameters": {"x": 1}}, "application/json"),
    "inputs": ({"inputs": DATA}, "application/json; charset=utf-8"),
    "inputs by name": ({"inputs": {"INPUT0": DATA}}, "application/json"),
    "split": (
        {"dataframe_split": {"columns": ["a", "b", "c"], "index": [0, 1], "data": DATA}},
        "application/json",
    ),
    "records": (
        {"dataframe_records": [dict(zip("abc", row, strict=True)) for row in DATA]}, "",
    ),
    "csv": (b"a,b,c\n1,2,3\n4,5,6\n", "text/csv"),
    "csv without names": (b"1,2,3\n4,5,6\n", "text/csv; charset=utf-8"),
    "csv that says so": (b"1,2,3\n4,5,6\n", "text/csv; header=absent"),
    "csv with numbers for names": (b"7,8,9\n1,2,3\n4,5,6\n", "text/csv;header=present"),
    "what curl says": ({"instances": DATA}, "application/x-www-form-urlencoded"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "kind"), BODIES.values(), ids=BODIES)
async def test_rows_and_tables(host: Any, body: Any, kind: str) -> None:
    assert await invoke(host, body, kind) == ROWS


async def test_further_routes(host: Any) -> None:
    assert await host.json("POST", "/predict", {"instances": DATA}) == ROWS
    for path in ("/ping", "/health", "/healthz"):
        assert (await host.ask("GET", path)).status == 200
    host.gateway.leaving = True
    for path in ("/ping", "/health", "/healthz"):
        assert (await host.ask("GET", path)).status == 503
    assert (await host.ask("GET", "/version")).body == b"1.2.3"


@pytest.mark.parametrize("named", ["add", "add.tar.gz"])
async def test_v2_json(host: Any, named: str) -> None:
    reply = await host.ask("POST", "/invocations", V2, {TARGET: named})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    told = json.loads(reply.body)
    assert told["outputs"][0]["data"] == (ROW + ROW).ravel().tolist()


def binary(outputs: bool = True) -> tuple[bytes, str]:
    """A body in Triton's form for SageMaker, and its content type."""
    inputs = [
        {
            "name": n, "datatype": "INT32", "shape": [1, 16],
            "parameters": {"binary_data_size": 64},
        }
        for n in ("INPUT0", "INPUT1")
    ]  # fmt: skip
    parameters = {"binary_data_output": outputs}
    text = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    return text + ROW.tobytes() * 2, f"{SAGEMAKER.decode()}{len(text)}"


async def test_v2_binary(host: Any) -> None:
    body, kind = binary()
    reply = await host.ask("POST", "/invocations", body, {TARGET: "add", "Content-Type": kind})
    assert reply.status == 200
    prefix, _, size = reply.headers["content-type"].rpartition("=")
    assert prefix + "=" == SAGEMAKER.decode()
    assert "inference-header-content-length" not in reply.headers
    told = json.loads(reply.body[: int(size)])
    assert [o["name"] for o in told["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    found = np.frombuffer(reply.body[int(size) :], np.int32).reshape(2, 1, 16)
    np.testing.assert_array_equal(found, [ROW + ROW, ROW - ROW])
    body, kind = binary(outputs=False)
    plain = await host.ask("POST", "/invocations", body, {TARGET: "add", "Content-Type": kind})
    assert (plain.status, plain.headers["content-type"]) == (200, "application/json")


REFUSED: dict[str, tuple[Any, dict[str, str], int, str]] = {
    "empty": (b"", {}, 400, "JSON Parse error"),
    "no object": (b"[[1,2,3]]", {}, 400, "JSON Parse error"),
    "nothing known": ({"messages": []}, {}, 400, "got none of them"),
    "two": ({"instances": DATA, "dataframe_records": []}, {}, 400, "exactly one"),
    "media": (b"x", {"Content-Type": "image/png"}, 415, "'image/png' is not supported"),
    "split": ({"dataframe_split": {"data": []}}, {}, 400, "no rows"),
    "ragged": (b"1,2,3\n1", {"Content-Type": "text/csv"}, 400, "not all 3 columns"),
    "width": (b"1,2", {"Content-Type": "text/csv"}, 400, "unexpected shape"),
    "unknown model": ({"instances": DATA}, {TARGET: "nope"}, 404, "'nope' is not found"),
    "not loaded": ({"instances": DATA}, {TARGET: "gone"}, 503, "no luck"),
    "the model fails": ({"instances": ROW.tolist()}, {TARGET: "fail"}, 500, "always fails"),
}


@pytest.mark.parametrize(("body", "fields", "status", "text"), REFUSED.values(), ids=REFUSED)
async def test_errors(host: Any, body: Any, fields: Any, status: int, text: str) -> None:
    reply = await host.ask("POST", "/invocations", body, fields)
    assert reply.status == status
    told = json.loads(reply.body)
    assert set(told) == {"error", "error_code", "message"}
    assert text in told["error"]
    assert told["error"] == told["message"]
    assert await invoke(host, {"instances": DATA}) == ROWS


@pytest.mark.parametrize(
    "kind", [SAGEMAKER.decode() + "x", SAGEMAKER.decode(), SAGEMAKER.decode() + "99999"]
)
async def test_bad_binary_bodies(host: Any, kind: str) -> None:
    reply = await host.ask("POST", "/invocations", binary()[0], {"Content-Type": kind})
    assert (reply.status, "error" in json.loads(reply.body)) == (400, True)


# --- several models -------------------------------------------------------------------------------


@pytest.fixture
async def multi(serve: Any, doors: Any) -> Any:
    served = await serve({"add/1": {"kind": "add_sub"}, "table/1": SERVED["table/1"]},
                         mode=ControlMode.EXPLICIT)  # fmt: skip
    doors(of=served)
    for name in ("add", "table"):
        await served.control.unload(name)
    return served


async def load(multi: Any, name: str, **fields: str) -> Any:
    body = {"model_name": name, "url": f"/opt/ml/models/{name}/model"}
    return await multi.ask("POST", "/models", body, fields)


async def test_a_model_comes_serves_and_goes(multi: Any) -> None:
    assert await multi.json("GET", "/models") == {"models": []}
    assert (await load(multi, "hash1", **{TARGET: "table.tar.gz"})).status == 200
    told = {"modelName": "hash1", "modelUrl": "/opt/ml/models/hash1/model"}
    assert await multi.json("GET", "/models") == {"models": [told]}
    assert await multi.json("GET", "/models/hash1") == told
    again = await load(multi, "hash1")
    assert (again.status, again.headers["penstock-code"]) == (409, Code.ALREADY_EXISTS.name)
    assert await multi.json("POST", "/models/hash1/invoke", {"instances": DATA}) == ROWS
    assert (await multi.ask("DELETE", "/models/hash1")).status == 200
    assert not multi.gateway.model_ready("table")
    for method, path in (
        ("GET", "/models/hash1"), ("DELETE", "/models/hash1"), ("POST", "/models/hash1/invoke"),
    ):  # fmt: skip
        assert (await multi.ask(method, path)).status == 404


async def test_a_model_with_two_names_goes_with_the_second(multi: Any) -> None:
    for name in ("one", "two"):
        assert (await load(multi, name, **{TARGET: "table.tar.gz"})).status == 200
    assert (await multi.ask("DELETE", "/models/one")).status == 200
    assert await multi.json("POST", "/models/two/invoke", {"instances": DATA}) == ROWS
    assert (await multi.ask("DELETE", "/models/two")).status == 200
    assert not multi.gateway.model_ready("table")


async def test_models_that_cannot_be_loaded(multi: Any, host: Any) -> None:
    missing = await load(multi, "nope")
    assert (missing.status, "nope" in json.loads(missing.body)["error"]) == (500, True)
    assert (await multi.ask("POST", "/models", b"{}")).status == 400
    assert (await load(multi, "../up")).status == 400
    assert await multi.json("GET", "/models") == {"models": []}
    fixed = await load(host, "add")
    assert (fixed.status, fixed.headers["penstock-code"]) == (503, Code.UNAVAILABLE.name)
