"""/generate and /generate_stream: what is asked, one reply or many, and slow or leaving clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from penstock.server.front.generate import GenerateFront
from penstock.server.front.routes import Routes
from penstock.server.transport.fake import Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

DECOUPLED = "model_transaction_policy { decoupled: true }"
TEXT = "/v2/models/text/generate"
PARTS = "/v2/models/parts/generate"


@pytest.fixture
async def served(serve: Callable[..., Any]) -> Any:
    made = await serve(
        {
            "text/1": {"dtype": "BYTES", "shape": "-1"},
            "add/1": {"kind": "add_sub"},
            "half/1": {"dtype": "FP16", "shape": "-1"},
            "fail/1": {"kind": "fail", "shape": "-1"},
            "parts/1": {"kind": "repeat", "shape": "1", "times": "-1"},
        },
        configs={"parts": DECOUPLED},
    )
    routes = Routes()
    GenerateFront(made.gateway).add_to(routes)
    made.listener = Http1Listener(routes.resolve, Http1Connection)
    return made


def events(reply: Any) -> list[Any]:
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *texts, rest = reply.body.decode().split("\n\n")
    assert rest == ""
    return [json.loads(text.removeprefix("data: ")) for text in texts]


@pytest.mark.parametrize("path", [TEXT, "/v2/models/text/versions/1/generate"])
async def test_one_reply(served: Any, path: str) -> None:
    body = {"INPUT0": "hi", "id": "7", "more": 1, "parameters": {"y": 2.5, "on": True}}
    reply = await served.ask("POST", path, body)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    told = {"OUTPUT0": "hi", "id": "7", "model_name": "text", "model_version": "1"}
    assert json.loads(reply.body) == told
    stream = await served.ask("POST", path + "_stream", body)
    assert (stream.status, events(stream)) == (200, [told])
    assert "content-length" not in stream.headers


async def test_lists_and_single_values(served: Any) -> None:
    reply = await served.json("POST", TEXT, {"INPUT0": ["a", "b"]})
    assert reply["OUTPUT0"] == ["a", "b"]
    assert "id" not in reply
    row = list(range(16))
    reply = await served.json(
        "POST", "/v2/models/add/generate", {"INPUT0": row, "parameters": {"INPUT1": row}}
    )
    assert reply["OUTPUT0"] == [2 * n for n in row]


REFUSED: list[tuple[str, object, int, str]] = [
    (TEXT, b"", 400, "failed to parse the request JSON buffer"),
    (TEXT, b"{bad", 400, "failed to parse the request JSON buffer"),
    (TEXT, b"[1]", 400, "attempt to get members for non-object"),
    (TEXT, {"INPUT0": "a", "id": 7}, 400, "Unable to parse 'id'"),
    (TEXT, {"x": 1}, 400, "missing required input(s) ['INPUT0']"),
    (TEXT, {"INPUT0": "a", "x": [1]}, 400, "parameter 'x' has invalid type"),
    (TEXT, {"INPUT0": "a", "x": None}, 400, "parameter 'x' has invalid type"),
    (TEXT, {"INPUT0": "a", "x": {"y": 1}}, 400, "parameter 'x' has invalid type"),
    (TEXT, {"INPUT0": 5}, 400, "'INPUT0'"),
    (TEXT, {"INPUT0": [["a", "b"]]}, 400, "does not match"),
    (TEXT, {"INPUT0": "a", "parameters": 5}, 400, "Expected JSON object for keyword: 'parameters'"),
    (
        TEXT, {"INPUT0": "a", "parameters": {"INPUT0": "b"}}, 400,
        "Converting keyword: 'parameters': input 'INPUT0' already exists in request",
    ),
    (TEXT, {"INPUT0": "a", "timeout": -1}, 400, "Unable to parse 'timeout'"),
    (TEXT, {"INPUT0": "a", "priority": "x"}, 400, "Unable to parse 'priority'"),
    (
        "/v2/models/add/generate", {"INPUT0": [1, 2, 3], "INPUT1": 1}, 400,
        "The schema can not convert input 'INPUT0' to tensor with proper shape",
    ),
    ("/v2/models/half/generate", {"INPUT0": 1}, 400, "FP16 data via JSON is not supported"),
    ("/v2/models/nope/generate", {"INPUT0": 1}, 404, "unknown model: 'nope'"),
    ("/v2/models/fail/generate", {"INPUT0": 1}, 500, "always fails"),
    (PARTS, {"INPUT0": 2}, 400, "generate expects model to produce exactly 1 response"),
    (PARTS, {"INPUT0": 0}, 400, "generate expects model to produce exactly 1 response"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED)
async def test_refused(served: Any, path: str, body: Any, status: int, text: str) -> None:
    reply = await served.ask("POST", path, body)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert text in json.loads(reply.body)["error"]
    if not path.startswith(PARTS):
        stream = await served.ask("POST", path + "_stream", body)
        assert (stream.status, stream.body) == (reply.status, reply.body)


async def test_no_coding_is_taken(served: Any) -> None:
    reply = await served.ask("POST", TEXT, b"x", {"Content-Encoding": "gzip"})
    text = "Unsupported content-encoding, only 'identity' is supported."
    assert (reply.status, json.loads(reply.body)["error"]) == (400, text)


async def test_time_and_priority_are_the_requests_own(served: Any) -> None:
    seen: list[Any] = []
    infer = served.gateway.infer
    served.gateway.infer = lambda r, *a: seen.append(r) or infer(r, *a)
    body = {"INPUT0": "a", "timeout": 5_000_000, "parameters": {"priority": 2, "n": 1}}
    assert (await served.ask("POST", TEXT, body)).status == 200
    request = seen[0]
    assert (request.timeout_us, request.priority) == (5_000_000, 2)
    assert dict(request.parameters) == {"n": 1}


async def test_large_requests_are_read_aside(served: Any) -> None:
    words = ["word"] * 20_000
    reply = await served.json("POST", TEXT, {"INPUT0": words})
    assert reply["OUTPUT0"] == words
    refused = await served.ask("POST", TEXT, b"{" + b" " * 100_000)
    assert refused.status == 400


# ---------------------------------------------------------------------- decoupled models


async def test_a_reply_of_each_kind(served: Any) -> None:
    assert (await served.json("POST", PARTS, {"INPUT0": 1}))["OUTPUT0"] == 1


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_event_for_each_reply(served: Any, count: int) -> None:
    reply = await served.ask("POST", PARTS + "_stream", {"INPUT0": count, "id": "x"})
    told = {"OUTPUT0": count, "id": "x", "model_name": "parts", "model_version": "1"}
    assert (reply.status, events(reply)) == (200, [told] * count)


def start(served: Any, count: int) -> Wire:
    body = json.dumps({"INPUT0": count}).encode()
    wire = Wire(served.listener)
    head = f"POST {PARTS}_stream HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    wire.feed(head.encode() + body)
    return wire


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_client_that_does_not_read_holds_the_model_back(served: Any) -> None:
    count = 20_000
    wire = start(served, count)
    wire.transport.stalled = True
    lane = served.gateway.models.find("parts").lane
    await until(lambda: wire.connection.congested)
    await asyncio.sleep(0.1)
    assert lane.stats.response_count < count / 4
    wire.transport.stalled = False
    wire.take()
    await until(lambda: wire.transport.sent.endswith(b"0\r\n\r\n"))
    (reply,) = wire.replies()
    assert len(events(reply)) == count


async def test_a_client_that_leaves_ends_the_stream(served: Any) -> None:
    wire = start(served, 1_000_000_000)
    await until(lambda: b"data: " in wire.transport.sent)
    lane = served.gateway.models.find("parts").lane
    wire.vanish()
    await until(lambda: lane.in_flight == 0)
    assert (await served.json("POST", PARTS, {"INPUT0": 1}))["OUTPUT0"] == 1


async def test_what_fails_on_the_way_is_an_event(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.protocol.errors import Code, InferError
    from penstock.server.front import generate

    encode, calls = generate.encode_generate, iter(range(100))

    def failing(reply: Any) -> bytes:
        if next(calls) == 2:
            raise InferError(Code.INVALID_ARGUMENT, "cannot be written")
        return encode(reply)

    monkeypatch.setattr(generate, "encode_generate", failing)
    reply = await served.ask("POST", PARTS + "_stream", {"INPUT0": 9})
    first, second, last = events(reply)
    assert first == second
    assert last == {"error": "cannot be written"}
