"""Inference over the Open Inference Protocol: forms of request, errors, compression."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from typing import Any

import numpy as np
import pytest

from penstock.protocol import oip_json
from penstock.protocol.errors import Code
from penstock.server.front import oip_codecs
from penstock.server.front.compression import DECOMPRESSED_BYTES_MAX

URL = "/v2/models/add/infer"
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, array: Any = ROW, datatype: str = "INT32", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, **more}


def as_json(**more: Any) -> dict[str, Any]:
    data = ROW.ravel().tolist()
    inputs = [tensor("INPUT0", data=data), tensor("INPUT1", data=data)]
    return {"inputs": inputs, **more}


def as_binary(**more: Any) -> tuple[bytes, dict[str, str]]:
    size = {"parameters": {"binary_data_size": ROW.nbytes}}
    inputs = [tensor("INPUT0", **size), tensor("INPUT1", **size)]
    parameters = {"binary_data_output": True}
    text = json.dumps({"inputs": inputs, "parameters": parameters, **more}).encode()
    return text + ROW.tobytes() * 2, {LENGTH: str(len(text))}


def outputs_of(reply: Any, body: bytes | None = None) -> dict[str, Any]:
    length = reply.headers.get(LENGTH.lower())
    body = reply.body if body is None else body
    decoded = oip_json.decode_reply(body, None if length is None else int(length))
    return decoded.named()


def check_added(reply: Any, body: bytes | None = None) -> None:
    assert reply.status == 200, reply
    found = outputs_of(reply, body)
    np.testing.assert_array_equal(found["OUTPUT0"], ROW + ROW)
    np.testing.assert_array_equal(found["OUTPUT1"], ROW - ROW)


PATHS = [URL, "/v2/models/add/versions/1/infer", "/v2/models/add/versions/3/infer", URL + "?a=b&c"]


@pytest.mark.parametrize("path", PATHS)
async def test_json(served: Any, path: str) -> None:
    reply = await served.ask("POST", path, as_json(id="7"))
    check_added(reply)
    assert reply.headers["content-type"] == "application/json"
    assert LENGTH.lower() not in reply.headers
    document = json.loads(reply.body)
    assert (document["model_name"], document["id"]) == ("add", "7")
    assert document["model_version"] == ("1" if "/1/" in path else "3")


@pytest.mark.parametrize("path", PATHS)
async def test_binary(served: Any, path: str) -> None:
    body, headers = as_binary()
    reply = await served.ask("POST", path, body, headers)
    check_added(reply)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert int(reply.headers[LENGTH.lower()]) == len(reply.body) - 2 * ROW.nbytes


async def test_mixed(served: Any) -> None:
    size = {"parameters": {"binary_data_size": ROW.nbytes}}
    inputs = [tensor("INPUT1", data=ROW.ravel().tolist()), tensor("INPUT0", **size)]
    outputs = [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}]
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    reply = await served.ask("POST", URL, text + ROW.tobytes(), {LENGTH: str(len(text))})
    check_added(reply)
    first, second = json.loads(reply.body[: int(reply.headers[LENGTH.lower()])])["outputs"]
    assert (first["name"], "data" in first) == ("OUTPUT1", False)
    assert (second["name"], "data" in second) == ("OUTPUT0", True)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/xml", "", ";"])
async def test_any_content_type(served: Any, kind: str) -> None:
    body, headers = as_binary()
    check_added(await served.ask("POST", URL, body, {**headers, "Content-Type": kind}))


async def test_a_model_name_with_a_space(served: Any) -> None:
    inputs = [{"name": "INPUT0", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}]
    reply = await served.ask("POST", "/v2/models/odd%20name/infer", {"inputs": inputs})
    assert reply.status == 200
    assert json.loads(reply.body)["model_name"] == "odd name"


# ---------------------------------------------------------------------- raw requests


async def test_raw_bytes(served: Any) -> None:
    reply = await served.ask(
        "POST", "/v2/models/odd%20name/infer", b"\1\0\0\0\2\0\0\0", {LENGTH: "0"}
    )
    assert reply.status == 200
    assert outputs_of(reply)["OUTPUT0"].tolist() == [[1, 2]]
    assert reply.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v2/models/odd%20name/infer", b"123", 400, ""),
        (URL, b"1234", 400, "Raw request must only have 1 input"),
        ("/v2/models/nope/infer", b"1234", 404, "unknown model: 'nope'"),
        ("/v2/models/gone/infer", b"1234", 503, "no luck"),
    ],
)
async def test_raw_requests_refused(
    served: Any, path: str, body: bytes, status: int, text: str
) -> None:
    await check_refused(served, path, body, {LENGTH: "0"}, status, text)


# ---------------------------------------------------------------------- errors


async def check_refused(
    served: Any, path: str, body: Any, headers: dict[str, str], status: int, text: str
) -> Any:
    reply = await served.ask("POST", path, body, headers)
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/json"
    assert set(json.loads(reply.body)) == {"error"}
    assert text in json.loads(reply.body)["error"]
    code = Code[reply.headers["penstock-code"]]
    assert code.http_status == status
    assert ("retry-after" in reply.headers) is code.retryable
    assert "connection" not in reply.headers
    return reply


BODY, HEADERS = as_binary()
LENGTHS = [
    "x", "-1", "+5", "1.5", "1e3", "0x10", "99999999999", "9" * 300, "2147483648", "1",
    str(len(BODY) + 1), str(int(HEADERS[LENGTH]) - 1), str(int(HEADERS[LENGTH]) + 1),
    f"{HEADERS[LENGTH]}, {HEADERS[LENGTH]}",
]  # fmt: skip


@pytest.mark.parametrize("length", LENGTHS)
async def test_wrong_lengths_of_the_json_part(served: Any, length: str) -> None:
    await check_refused(served, URL, BODY, {LENGTH: length}, 400, "")


REFUSED: dict[str, tuple[str, Any, int, str]] = {
    "unknown model": (
        "/v2/models/nope/infer", as_json(), 404, "Request for unknown model: 'nope' is not found",
    ),
    "unknown version": (
        "/v2/models/add/versions/99/infer", as_json(), 404, "version 99 is not found",
    ),
    "not loaded": ("/v2/models/gone/infer", as_json(), 503, "no luck"),
    "version not loaded": (
        "/v2/models/gone/versions/1/infer", as_json(), 503, "is not at ready state",
    ),
    "model fails": (
        "/v2/models/fail/infer", {"inputs": as_json()["inputs"][:1]}, 500, "always fails",
    ),
    "empty": (URL, b"", 400, ""),
    "not JSON": (URL, b"{", 400, ""),
    "a list": (URL, b"[]", 400, ""),
    "nested": (URL, b"[" * 100_000, 400, ""),
    "no inputs": (URL, {}, 400, ""),
    "one input": (URL, {"inputs": as_json()["inputs"][:1]}, 400, "INPUT1"),
    "form": (URL, b"inputs=1&a=b", 400, ""),
    "unknown output": (URL, as_json(outputs=[{"name": "NOPE"}]), 400, "NOPE"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED.values(), ids=REFUSED)
async def test_errors(served: Any, path: str, body: Any, status: int, text: str) -> None:
    await check_refused(served, path, body, {}, status, text)


async def test_a_draining_gateway_says_so(served: Any) -> None:
    served.gateway.draining = True
    await check_refused(served, URL, as_json(), {}, 503, "the server is shutting down")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", URL, 405),
        ("HEAD", URL, 405),
        ("DELETE", URL, 405),
        ("POST", "/v2/models/add/versions/1x/infer", 404),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/v2/models/a/b/infer", 404),
        ("POST", "/v2/models/add/infer/", 404),
        ("POST", "/v2/models/add/generate", 404),
    ],
)
async def test_elsewhere(served: Any, method: str, path: str, status: int) -> None:
    reply = await served.ask(method, path)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert ("allow" in reply.headers) is (status == 405)
    text = {404: "Not Found", 405: "Method Not Allowed"}[status]
    assert method == "HEAD" or json.loads(reply.body) == {"error": text}


@pytest.mark.parametrize("where", ["decode", "encode", "compress"])
async def test_a_bug_is_answered_in_json(
    served: Any, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    if where == "compress":
        monkeypatch.setattr(oip_codecs, "COMPRESSED_BYTES_MIN", 1)
        monkeypatch.setattr(oip_codecs, "compress", broken)
    else:
        owner = oip_json.RequestDecoder if where == "decode" else oip_json.ReplyEncoder
        monkeypatch.setattr(owner, where, broken)
    headers = {"Accept-Encoding": "gzip"} if where == "compress" else {}
    with caplog.at_level(logging.CRITICAL):
        reply = await check_refused(served, URL, as_json(), headers, 500, "internal error")
    assert b"secret" not in reply.body


# ---------------------------------------------------------------------- compression

CODINGS = {"gzip": (gzip.compress, gzip.decompress), "deflate": (zlib.compress, zlib.decompress)}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("form", ["json", "binary"])
async def test_compressed_requests(served: Any, coding: str, form: str) -> None:
    body, headers = (json.dumps(as_json()).encode(), {}) if form == "json" else as_binary()
    packed = CODINGS[coding][0](body)
    for value in (coding, coding.upper()):
        reply = await served.ask("POST", URL, packed, {**headers, "Content-Encoding": value})
        check_added(reply)
        assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("form", ["json", "binary"])
async def test_compressed_replies(served: Any, coding: str, form: str) -> None:
    rows = np.repeat(ROW, 50, 0)
    parameters = {"binary_data_output": form == "binary"}
    inputs = [tensor(name, rows, data=rows.ravel().tolist()) for name in ("INPUT0", "INPUT1")]
    body = {"inputs": inputs, "parameters": parameters}
    plain = await served.ask("POST", URL, body)
    reply = await served.ask("POST", URL, body, {"Accept-Encoding": coding})
    assert reply.headers["content-encoding"] == coding
    assert CODINGS[coding][1](reply.body) == plain.body
    # It speaks of the JSON part as it is behind the coding.
    assert reply.headers.get(LENGTH.lower()) == plain.headers.get(LENGTH.lower())
    found = outputs_of(reply, plain.body)
    np.testing.assert_array_equal(found["OUTPUT0"], rows + rows)


async def test_small_replies_are_not_worth_compressing(served: Any) -> None:
    reply = await served.ask("POST", URL, as_json(), {"Accept-Encoding": "gzip, deflate"})
    check_added(reply)
    assert "content-encoding" not in reply.headers


async def test_compressing_large_replies_would_hold_up_the_loop(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oip_codecs, "COMPRESSED_BYTES_MIN", 1)
    monkeypatch.setattr(oip_codecs, "COMPRESSED_BYTES_MAX", 8)
    reply = await served.ask("POST", URL, as_json(), {"Accept-Encoding": "gzip"})
    check_added(reply)
    assert "content-encoding" not in reply.headers


async def test_errors_are_not_compressed(served: Any) -> None:
    headers, body = {"Accept-Encoding": "gzip"}, {"inputs": as_json()["inputs"][:1]}
    await check_refused(served, "/v2/models/fail/infer", body, headers, 500, "always fails")


async def test_an_unknown_coding(served: Any) -> None:
    headers = {"Content-Encoding": "br"}
    reply = await check_refused(served, URL, b"x", headers, 501, "Unsupported compression type")
    assert reply.headers["accept-encoding"] == "gzip, deflate"


async def test_identity_is_no_coding(served: Any) -> None:
    check_added(await served.ask("POST", URL, as_json(), {"Content-Encoding": "identity"}))


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_bomb(served: Any, coding: str) -> None:
    bomb = CODINGS[coding][0](bytes(DECOMPRESSED_BYTES_MAX + 1))
    await check_refused(served, URL, bomb, {"Content-Encoding": coding}, 413, "decompressed")


@pytest.mark.parametrize("coding", CODINGS)
async def test_what_is_not_in_its_coding(served: Any, coding: str) -> None:
    packed = CODINGS[coding][0](json.dumps(as_json()).encode())
    for body in (b"", b"plain", packed[:-1], packed + b"x"):
        await check_refused(served, URL, body, {"Content-Encoding": coding}, 400, coding)
