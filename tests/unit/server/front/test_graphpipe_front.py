"""GraphPipe over HTTP: what deployed clients send and what they notice of the answer."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferRequest, OutputRequest, Signature, TensorSpec
from penstock.server.front.graphpipe import GRAPHPIPE

ROW = np.arange(16, dtype=np.int32).reshape(1, 16)


def frame(
    *arrays: Any,
    names: tuple[str, ...] = ("INPUT0", "INPUT1"),
    outputs: tuple[str, ...] = (),
    extended: bool = False,
    **more: Any,
) -> bytes:
    specs = [
        TensorSpec(n, dt.of_numpy(a.dtype), a.shape) for n, a in zip(names, arrays, strict=False)
    ]
    signature = Signature(specs, [OutputRequest(name) for name in outputs])
    request = InferRequest(signature, arrays, **more)
    return b"".join(graphpipe.encode_request(request, extended=extended))


ADD = frame(ROW, ROW)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "path", ["/graphpipe/add", "/graphpipe/add/1", "/graphpipe/add/3", "/graphpipe/add?x=1&y"]
)
@pytest.mark.parametrize(
    "kind", ["", "application/octet-stream", "application/x-www-form-urlencoded", "nonsense"]
)
async def test_infer(served: Any, method: str, path: str, kind: str) -> None:
    reply = await served.ask(method, path, ADD, {"Content-Type": kind} if kind else {})
    assert (reply.status, reply.reason) == (200, "OK")
    assert reply.headers["content-type"] == GRAPHPIPE
    added, subtracted = graphpipe.decode_reply(reply.body).arrays
    np.testing.assert_array_equal(added, ROW + ROW)
    np.testing.assert_array_equal(subtracted, ROW - ROW)


async def test_inputs_without_names_and_chosen_outputs(served: Any) -> None:
    body = frame(ROW, ROW, names=("", ""), outputs=("OUTPUT1",))
    reply = await served.ask("POST", "/graphpipe/add", body)
    (array,) = graphpipe.decode_reply(reply.body).arrays
    np.testing.assert_array_equal(array, ROW - ROW)


async def test_the_default_model(serve: Any) -> None:
    one = await serve({"add/1": {"kind": "add_sub"}})
    assert (await one.ask("POST", "/", ADD)).status == 200
    two = await serve({"add/1": {"kind": "add_sub"}, "other/1": {}})
    reply = await two.ask("POST", "/", ADD)
    assert reply.status == 404
    assert "models: add, other" in reply.reason
    chosen = await serve({"add/1": {"kind": "add_sub"}, "other/1": {}}, "add")
    assert (await chosen.ask("POST", "/", ADD)).status == 200


REFUSED: dict[str, tuple[str, bytes, int, Code, str]] = {
    "empty": ("/graphpipe/add", b"", 400, Code.INVALID_ARGUMENT, ""),
    "garbage": ("/graphpipe/add", b"garbage, not a frame", 400, Code.INVALID_ARGUMENT, ""),
    "truncated": ("/graphpipe/add", ADD[:-40], 400, Code.INVALID_ARGUMENT, ""),
    "unknown model": (
        "/graphpipe/nope", ADD, 404, Code.NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    ),
    "unknown version": (
        "/graphpipe/add/2", ADD, 404, Code.NOT_FOUND,
        "Request for unknown model: 'add' version 2 is not found",
    ),
    "not loaded": ("/graphpipe/gone", ADD, 503, Code.UNAVAILABLE, "no luck"),
    "too few inputs": ("/graphpipe/add", frame(ROW), 400, Code.INVALID_ARGUMENT, "INPUT1"),
    "wrong shape": (
        "/graphpipe/add", frame(ROW[:, :3], ROW[:, :3]), 400, Code.INVALID_ARGUMENT, "",
    ),
    "wrong dtype": (
        "/graphpipe/add", frame(ROW * 1.0, ROW * 1.0), 400, Code.INVALID_ARGUMENT, "",
    ),
    "unknown output": (
        "/graphpipe/add", frame(ROW, ROW, outputs=("NOPE",)), 400, Code.INVALID_ARGUMENT, "NOPE",
    ),
    "the model fails": (
        "/graphpipe/fail", frame(ROW), 500, Code.INTERNAL, "this model always fails",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "code", "text"), REFUSED.values(), ids=REFUSED)
async def test_errors_as_old_clients_notice_them(
    served: Any, path: str, body: bytes, status: int, code: Code, text: str
) -> None:
    reply = await served.ask("POST", path, body)
    assert reply.status == status == code.http_status
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.headers["penstock-code"] == code.name
    assert ("retry-after" in reply.headers) is code.retryable
    message = reply.body.decode()
    assert message.endswith("\n")
    assert text in message
    assert reply.reason
    assert reply.reason.removesuffix("...") in message
    assert "connection" not in reply.headers


@pytest.mark.parametrize("name", [n for n in REFUSED if n not in ("empty", "garbage", "truncated")])
async def test_errors_in_a_frame_when_the_client_reads_them_there(served: Any, name: str) -> None:
    path, body, _, code, text = REFUSED[name]
    request = graphpipe.decode_request(body)
    assert isinstance(request, InferRequest)
    announced = b"".join(graphpipe.encode_request(request, extended=True))
    reply = await served.ask("POST", path, announced)
    assert reply.status == 200
    assert reply.headers["penstock-code"] == code.name
    with pytest.raises(InferError) as caught:
        graphpipe.decode_reply(reply.body)
    assert caught.value.code is code
    assert text in caught.value.message


async def test_a_long_message_is_whole_in_the_body(served: Any) -> None:
    reply = await served.ask("POST", "/graphpipe/" + "m" * 500, ADD)
    assert len(reply.reason) == 200
    assert b"m" * 500 in reply.body


async def test_a_name_from_the_url_injects_nothing(served: Any) -> None:
    reply = await served.ask("POST", "/graphpipe/a%0d%0aX-Injected:%201%00%C3%A9", ADD)
    assert reply.status == 404
    assert "x-injected" not in reply.headers
    assert "é" in reply.body.decode()


KEYS = {"Name", "Version", "Server", "Description", "Inputs", "Outputs"}


@pytest.mark.parametrize("path", ["/graphpipe/add", "/graphpipe/add/3", "/graphpipe/add?q"])
async def test_metadata_as_json(served: Any, path: str) -> None:
    document = await served.json("GET", path)
    assert set(document) == KEYS
    assert (document["Name"], document["Version"]) == ("add", "3")
    assert document["Server"] == "penstock/1.2.3"
    assert [io["Name"] for io in document["Inputs"]] == ["INPUT0", "INPUT1"]
    assert document["Outputs"][0] == {
        "Name": "OUTPUT0", "Description": "", "Shape": [-1, 16], "Type": 6,
    }  # fmt: skip


async def test_metadata_by_head(served: Any) -> None:
    asked = await served.ask("GET", "/graphpipe/add")
    reply = await served.ask("HEAD", "/graphpipe/add")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == str(len(asked.body))


@pytest.mark.parametrize(
    ("path", "status"), [("/graphpipe/nope", 404), ("/graphpipe/gone", 503), ("/graphpipe", 404)]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_metadata(served: Any, method: str, path: str, status: int) -> None:
    reply = await served.ask(method, path)
    assert reply.status == status
    assert reply.headers["penstock-code"]


async def test_the_root_is_alive_whatever_is_served(served: Any, serve: Any) -> None:
    """KServe's v1 client asks there."""
    assert await served.json("GET", "/") == {"status": "alive"}
    one = await serve({"add/1": {"kind": "add_sub"}})
    document = await one.json("GET", "/")
    assert set(document) == KEYS | {"status"}
    assert (document["Name"], document["status"]) == ("add", "alive")


async def test_metadata_by_frame(served: Any) -> None:
    body = bytes(graphpipe.encode_metadata_request())
    reply = await served.ask("POST", "/graphpipe/add/1", body)
    assert reply.status == 200
    metadata = graphpipe.decode_metadata(reply.body)
    assert (metadata.name, metadata.version, metadata.server) == ("add", "1", "penstock/1.2.3")
    assert [spec.name for spec in metadata.outputs] == ["OUTPUT0", "OUTPUT1"]
    missing = await served.ask("POST", "/graphpipe/nope", body)
    assert missing.status == 404


async def test_control(served: Any) -> None:
    for path in ("/control/is_ready", "/control/is_alive"):
        reply = await served.ask("GET", path)
        assert (reply.status, reply.body) == (200, b"ok\n")
    served.gateway.leaving = True
    ready = await served.ask("GET", "/control/is_ready")
    assert (ready.status, ready.reason) == (503, "Service Unavailable")
    assert (await served.ask("GET", "/control/is_alive")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/", 405),
        ("PATCH", "/graphpipe/add", 405),
        ("POST", "/control/is_alive", 405),
        ("POST", "/control/shutdown", 404),
        ("POST", "/graphpipe/", 404),
        ("POST", "/graphpipe/add/x", 404),
        ("POST", "/graphpipe/add/1/", 404),
        ("GET", "/favicon.ico", 404),
    ],
)
async def test_elsewhere(served: Any, method: str, path: str, status: int) -> None:
    reply = await served.ask(method, path)
    assert reply.status == status
    assert reply.headers["content-type"].startswith("text/plain")


async def test_a_draining_gateway_says_so(served: Any) -> None:
    served.gateway.draining = True
    reply = await served.ask("POST", "/graphpipe/add", ADD)
    assert (reply.status, reply.headers["penstock-code"]) == (503, "UNAVAILABLE")
    assert "shutting down" in reply.reason
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("timeout_us", [1 << 40, (1 << 63) - 1])
async def test_a_timeout_of_ages(served: Any, timeout_us: int) -> None:
    body = frame(ROW, ROW, extended=True, timeout_us=timeout_us)
    assert (await served.ask("POST", "/graphpipe/add", body)).status == 200


@pytest.mark.parametrize("where", ["decode", "encode"])
async def test_a_bug_is_answered_too(
    served: Any, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    owner = graphpipe.RequestDecoder if where == "decode" else graphpipe.ReplyEncoder
    monkeypatch.setattr(owner, where, broken)
    with caplog.at_level(logging.CRITICAL):
        reply = await served.ask("POST", "/graphpipe/add", ADD)
    assert (reply.status, reply.body) == (500, b"internal error\n")


async def test_the_type_numbers_in_json_are_graphpipes(served: Any) -> None:
    reply = await served.ask("GET", "/graphpipe/bytes")
    assert json.loads(reply.body)["Inputs"][0]["Type"] == 12
