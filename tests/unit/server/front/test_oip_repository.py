"""The model repository extension over HTTP: forms, refusals, base64, other people's JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from penstock.backends.fake import artefact
from penstock.protocol.errors import Code, InferError
from penstock.server.front.load_request import decode_load
from penstock.server.model_control import NOT_EXPLICIT, ControlMode

FAKE = json.dumps({"backend": "fake", "max_batch_size": 4})
INPUT = {"name": "INPUT0", "shape": [1, 16], "datatype": "INT32", "data": [7] * 16}
MODELS = {"m/1": {}, "bad/1": {"load_error": "no luck"}}


@pytest.fixture
async def explicit(serve: Any) -> Any:
    served = await serve(MODELS, mode=ControlMode.EXPLICIT)
    await served.control.unload("m")
    return served


async def change(served: Any, model: str, what: str, body: Any = b"", base: str = "") -> Any:
    reply = await served.ask("POST", f"/v2/repository{base}/models/{model}/{what}", body)
    if reply.status == 200:
        assert reply.headers["content-type"] == "application/json"
        assert reply.body == b""
        return 200, ""
    return reply.status, json.loads(reply.body)["error"]


def encoded(options: dict[str, str]) -> str:
    return base64.b64encode(artefact(options)).decode()


@pytest.mark.parametrize("body", [b"", b"{}", {"parameters": {}}, {"other": 1}])
async def test_load_and_unload(explicit: Any, body: Any) -> None:
    assert await change(explicit, "m", "load", body) == (200, "")
    await explicit.json("POST", "/v2/models/m/infer", {"inputs": [INPUT]})
    index = await explicit.json("POST", "/v2/repository/index")
    assert {"name": "m", "version": "1", "state": "READY"} in index
    assert await change(explicit, "m", "unload", body) == (200, "")
    reply = await explicit.ask("POST", "/v2/models/m/infer", {"inputs": [INPUT]})
    assert reply.status == 404
    assert (await explicit.ask("GET", "/v2/models/m/ready")).status == 400


async def test_a_configuration_and_files(explicit: Any) -> None:
    parameters = {"config": FAKE, "file:2/model.fake": encoded({"kind": "echo_rows"})}
    assert await change(explicit, "odd%20name", "load", {"parameters": parameters}) == (200, "")
    document = await explicit.json("GET", "/v2/models/odd%20name/config")
    assert (document["name"], document["max_batch_size"]) == ("odd name", 4)
    reply = await explicit.json(
        "POST", "/v2/models/odd%20name/versions/2/infer", {"inputs": [INPUT]}
    )
    assert [output["name"] for output in reply["outputs"]] == ["OUTPUT0", "ROWS"]


POLL = "failed to load 'm', failed to poll from model repository"


@pytest.mark.parametrize(
    ("model", "parameters", "status", "words"),
    [
        ("nope", {}, 500, "failed to load 'nope', failed to poll from model repository"),
        ("bad", {}, 400, "load failed for model 'bad': version 1 is at UNAVAILABLE state: no luck"),
        ("m", {"config": "{"}, 500, f"{POLL}: Invalid config override"),
        ("m", {"config": 7}, 400, "'config' is not a string"),
        ("m", {"file:1/x": "AAAA"}, 500, f"{POLL}: Load parameter 'config' must be specified"),
        ("m", {"config": FAKE, "file:../x": "AAAA"}, 500, f"{POLL}: Invalid file parameter"),
        ("m", {"config": FAKE, "file:1/x": "A*AA"}, 400, "'file:1/x' is not base64"),
        ("m", {"config": FAKE, "file:1/x": 7}, 400, "'file:1/x' is not a string"),
        ("m", {"colour": "red"}, 400, "unexpected load parameter 'colour'"),
        ("..%2Fm", {}, 400, "model name must not contain path traversal characters"),
    ],
)
async def test_loads_that_fail(
    explicit: Any, model: str, parameters: dict[str, Any], status: int, words: str
) -> None:
    told, text = await change(explicit, model, "load", {"parameters": parameters})
    assert (told, words in text) == (status, True), text


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"parameters": []}', b"\xff"])
async def test_bodies_that_are_none(explicit: Any, body: bytes) -> None:
    assert (await change(explicit, "m", "load", body))[0] == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"parameters": {"unload_dependents": "yes"}}'])
async def test_unloads_that_are_none(explicit: Any, body: bytes) -> None:
    assert (await change(explicit, "m", "unload", body))[0] == 400


@pytest.mark.parametrize("dependents", [True, False])
async def test_stock_unload(explicit: Any, dependents: bool) -> None:
    body = {"parameters": {"unload_dependents": dependents}}
    for name in ("m", "nobody"):
        assert await change(explicit, name, "unload", body) == (200, "")


async def test_repositories_have_no_names(explicit: Any) -> None:
    text = "'repository_name' specification is not supported"
    for what in ("load", "unload"):
        assert await change(explicit, "m", what, base="/r") == (501, text)
    index = await explicit.json("POST", "/v2/repository/r/index")
    assert index == await explicit.json("POST", "/v2/repository/index")


async def test_without_explicit_control(served: Any) -> None:
    for what in ("load", "unload"):
        assert await change(served, "add", what) == (503, NOT_EXPLICIT)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/repository/models/m/load", 405),
        ("POST", "/v2/repository/models//load", 404),
        ("POST", "/v2/repository/models/m/zip", 404),
        ("POST", "/v2/repository/models/m", 404),
    ],
)
async def test_elsewhere(explicit: Any, method: str, path: str, status: int) -> None:
    assert (await explicit.ask(method, path)).status == status


# --- base64


def file_of(text: str) -> bytes:
    body = json.dumps({"parameters": {"file:f": text}}).encode()
    return bytes(decode_load(memoryview(body)).files["f"])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 196_607, 196_608, 196_609, 500_000])
def test_base64_of_any_length(length: int) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    assert file_of(base64.b64encode(content[:length]).decode()) == content[:length]


def test_base64_as_other_clients_write_it() -> None:
    content = bytes(range(256)) * 1000
    text = base64.b64encode(content).decode()
    lines = base64.encodebytes(content).decode()
    assert file_of(lines) == content
    escaped = text.replace("/", "\\/")
    body = b'{"parameters": {"file:f": "%b"}}' % escaped.encode()
    assert bytes(decode_load(body).files["f"]) == content


@pytest.mark.parametrize("text", ["A", "AAA", "A*AA", "AA==AAAA", "====", "é", "AAA=" * 100_000])
def test_what_is_not_base64(text: str) -> None:
    with pytest.raises(InferError) as caught:
        file_of(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "is not base64" in caught.value.message
