"""The documents of the Open Inference Protocol: shapes, versions, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

INPUTS = [
    {"name": name, "shape": [2, 16], "datatype": "INT32", "data": [1] * 32}
    for name in ("INPUT0", "INPUT1")
]


async def test_server_metadata(served: Any) -> None:
    document = await served.json("GET", "/v2")
    assert set(document) == {"name", "version", "extensions"}
    assert (document["name"], document["version"]) == ("triton", "1.2.3")
    assert "binary_tensor_data" in document["extensions"]


async def test_health(served: Any) -> None:
    assert await served.json("GET", "/v2/health/live") == {"live": True}
    assert await served.json("GET", "/v2/health/ready") == {"ready": True}
    served.gateway.leaving = True
    assert await served.json("GET", "/v2/health/live") == {"live": True}
    reply = await served.ask("GET", "/v2/health/ready")
    assert (reply.status, json.loads(reply.body)) == (400, {"ready": False})


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("add", 200),
        ("add/versions/1", 200),
        ("add/versions/3", 200),
        ("odd%20name", 200),
        ("add/versions/2", 400),
        ("gone", 400),
        ("nope", 400),
        ("nope/versions/1", 400),
    ],
)
async def test_model_ready(served: Any, path: str, status: int) -> None:
    reply = await served.ask("GET", f"/v2/models/{path}/ready")
    assert reply.status == status
    if status == 200:
        assert json.loads(reply.body)["ready"] is True
    else:
        assert json.loads(reply.body) == {"error": "Model version not ready"}


async def test_no_model_is_ready_while_draining(served: Any) -> None:
    served.gateway.draining = True
    assert (await served.ask("GET", "/v2/models/add/ready")).status == 400


@pytest.mark.parametrize("path", ["add", "add/versions/1", "add?x=y"])
async def test_model_metadata(served: Any, path: str) -> None:
    document = await served.json("GET", f"/v2/models/{path}")
    assert document == {
        "name": "add",
        "versions": ["1"] if "versions" in path else ["1", "3"],
        "platform": "fake",
        "inputs": [
            {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]},
            {"name": "INPUT1", "datatype": "INT32", "shape": [-1, 16]},
        ],
        "outputs": [
            {"name": "OUTPUT0", "datatype": "INT32", "shape": [-1, 16]},
            {"name": "OUTPUT1", "datatype": "INT32", "shape": [-1, 16]},
        ],
    }


async def test_model_config(served: Any) -> None:
    for path in ("/v2/models/add/config", "/v2/models/add/versions/3/config"):
        document = await served.json("GET", path)
        assert (document["name"], document["backend"]) == ("add", "fake")
        assert document["max_batch_size"] > 0
        assert document["input"][0]["name"] == "INPUT0"
        assert document["input"][0]["data_type"] == "TYPE_INT32"
        assert document["input"][0]["dims"] == [16]
        assert document["version_policy"] == {"all": {}}


DURATIONS = {
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    "cache_hit", "cache_miss",
}  # fmt: skip


async def test_statistics(served: Any) -> None:
    before = await served.json("GET", "/v2/models/add/versions/1/stats")
    assert before["model_stats"][0]["inference_count"] == 0
    for _ in range(2):
        await served.json("POST", "/v2/models/add/versions/1/infer", {"inputs": INPUTS})
    (stats,) = (await served.json("GET", "/v2/models/add/versions/1/stats"))["model_stats"]
    assert (stats["name"], stats["version"]) == ("add", "1")
    assert (stats["inference_count"], stats["execution_count"]) == (4, 2)
    assert stats["last_inference"] > 1_600_000_000_000
    assert set(stats["inference_stats"]) == DURATIONS
    success = stats["inference_stats"]["success"]
    assert success["count"] == 2
    assert success["ns"] >= stats["inference_stats"]["compute_infer"]["ns"] > 0
    (batch,) = stats["batch_stats"]
    assert batch["batch_size"] == 2
    assert batch["compute_infer"]["count"] == 2


async def test_statistics_of_failures(served: Any) -> None:
    assert (await served.ask("POST", "/v2/models/fail/infer", {"inputs": INPUTS[:1]})).status == 500
    (stats,) = (await served.json("GET", "/v2/models/fail/stats"))["model_stats"]
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert stats["inference_stats"]["success"]["count"] == 0


async def test_statistics_of_several(served: Any) -> None:
    both = (await served.json("GET", "/v2/models/add/stats"))["model_stats"]
    assert [(s["name"], s["version"]) for s in both] == [("add", "1"), ("add", "3")]
    everything = (await served.json("GET", "/v2/models/stats"))["model_stats"]
    assert {s["name"] for s in everything} == {"add", "bool", "bytes", "fail", "odd name"}


INDEX = [
    {"name": "add", "version": "1", "state": "READY"},
    {"name": "add", "version": "3", "state": "READY"},
    {"name": "bool", "version": "1", "state": "READY"},
    {"name": "bytes", "version": "1", "state": "READY"},
    {"name": "fail", "version": "1", "state": "READY"},
    {"name": "gone", "version": "1", "state": "UNAVAILABLE", "reason": "no luck"},
    {"name": "odd name", "version": "1", "state": "READY"},
]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": false}', b'{"other": 1}'])
async def test_index(served: Any, body: bytes) -> None:
    assert await served.json("POST", "/v2/repository/index", body) == INDEX


async def test_index_of_what_is_ready(served: Any) -> None:
    found = await served.json("POST", "/v2/repository/index", b'{"ready": true}')
    assert found == [entry for entry in INDEX if entry["state"] == "READY"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"ready": 1}', "Invalid value for 'ready': expected a boolean"),
        (b'{"ready": "true"}', "Invalid value for 'ready': expected a boolean"),
        (b'{"ready": null}', "Invalid value for 'ready': expected a boolean"),
        (b"[]", ""),
        (b"7", ""),
        (b"{", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b'{"a": "\xff"}', "not a JSON object"),
        (b"[" * 50_000, "not a JSON object"),
    ],
)
async def test_index_refused(served: Any, body: bytes, text: str) -> None:
    reply = await served.ask("POST", "/v2/repository/index", body)
    assert reply.status == 400
    assert reply.headers["penstock-code"] == "INVALID_ARGUMENT"
    assert text in json.loads(reply.body)["error"]


@pytest.mark.parametrize("document", ["", "/config"])
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nope", 404, "NOT_FOUND"),
        ("add/versions/99", 404, "NOT_FOUND"),
        ("gone", 503, "UNAVAILABLE"),
        ("gone/versions/1", 503, "UNAVAILABLE"),
    ],
)
async def test_no_such_model(served: Any, path: str, document: str, status: int, code: str) -> None:
    reply = await served.ask("GET", f"/v2/models/{path}{document}")
    assert (reply.status, reply.headers["penstock-code"]) == (status, code)
    assert "Request for unknown model" in json.loads(reply.body)["error"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nope", "requested model 'nope' is not available"),
        ("gone", "requested model 'gone' is not available"),
        ("gone/versions/1", "requested model 'gone' is not available"),
        ("add/versions/99", "requested model version is not available for model 'add'"),
    ],
)
async def test_statistics_of_what_is_not_there(served: Any, path: str, text: str) -> None:
    reply = await served.ask("GET", f"/v2/models/{path}/stats")
    assert (reply.status, json.loads(reply.body)["error"]) == (400, text)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/add/versions", 404),
        ("GET", "/v2/models/add/versions/x", 404),
        ("POST", "/v2", 405),
        ("POST", "/v2/health/live", 405),
        ("POST", "/v2/models/add", 405),
        ("DELETE", "/v2/models/add/stats", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/base/v2/health/live", 404),
    ],
)
async def test_elsewhere(served: Any, method: str, path: str, status: int) -> None:
    reply = await served.ask(method, path)
    assert reply.status == status
    if path.startswith("/v2"):
        text = {404: "Not Found", 405: "Method Not Allowed"}[status]
        assert json.loads(reply.body) == {"error": text}


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/add", "/v2/models/stats"])
async def test_head(served: Any, path: str) -> None:
    asked = await served.ask("GET", path)
    reply = await served.ask("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == str(len(asked.body))
