"""Inference requests that are large, compressed, in a hurry or bring headers along."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from penstock.protocol import oip_json
from penstock.server.front import oip_codecs
from penstock.server.front.offload import Offload
from penstock.server.front.oip import OipFront
from penstock.server.front.routes import Routes
from penstock.server.front.target import TIMEOUT_FIELD, forward_pattern
from penstock.server.transport.fake import Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

URL = "/v2/models/free/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
async def served(serve: Callable[..., Any]) -> Any:
    return await serve({"free/1": {"shape": "-1"}, "slow/1": {"shape": "-1", "delay_ms": "200"}})


def with_front(served: Any, **options: Any) -> OipFront:
    """Puts another inference front into the server."""
    front = OipFront(served.gateway, **options)
    routes = Routes()
    front.add_to(routes)
    served.listener = Http1Listener(routes.resolve, Http1Connection)
    return front


def request(values: Any, **more: Any) -> bytes:
    data = np.asarray(values, "i4")
    tensor = {"name": "INPUT0", "shape": [1, data.size], "datatype": "INT32", "data": data.tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def values_of(reply: Any, body: bytes | None = None) -> Any:
    assert reply.status == 200, reply
    length = reply.headers.get(LENGTH.lower())
    body = reply.body if body is None else body
    decoded = oip_json.decode_reply(body, None if length is None else int(length))
    return decoded.named()["OUTPUT0"].ravel().tolist()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the threads that decode and encode."""
    seen: set[str] = set()
    for owner, name in (
        (oip_json.RequestDecoder, "decode"),
        (oip_json.ReplyEncoder, "encode"),
    ):
        plain = getattr(owner, name)

        def noted(*args: Any, _plain: Any = plain, _name: str = name, **kwargs: Any) -> Any:
            on_loop = threading.current_thread() is threading.main_thread()
            seen.add(f"{_name} {'on the loop' if on_loop else 'aside'}")
            return _plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)
    return seen


SMALL = list(range(100))
LARGE = list(range(2 * oip_codecs.INLINE_ELEMENTS_MAX))


async def test_small_messages_stay_on_the_loop(served: Any, threads: set[str]) -> None:
    assert values_of(await served.ask("POST", URL, request(SMALL))) == SMALL
    assert threads == {"decode on the loop", "encode on the loop"}


async def test_large_ones_do_not(served: Any, threads: set[str]) -> None:
    body = request(LARGE)
    assert len(body) > oip_codecs.INLINE_JSON_BYTES_MAX
    assert values_of(await served.ask("POST", URL, body)) == LARGE
    assert threads == {"decode aside", "encode aside"}


async def test_large_binary_tensors_cost_nothing(served: Any, threads: set[str]) -> None:
    data = np.array(LARGE, "i4")
    size = {"binary_data_size": data.nbytes}
    tensor = {"name": "INPUT0", "shape": [1, data.size], "datatype": "INT32", "parameters": size}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = await served.ask("POST", URL, text + data.tobytes(), {LENGTH: str(len(text))})
    assert values_of(reply) == LARGE
    assert threads == {"decode on the loop", "encode on the loop"}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("values", [SMALL, LARGE], ids=["small", "large"])
async def test_codings_both_ways(served: Any, coding: str, values: list[int]) -> None:
    pack, unpack = {
        "gzip": (gzip.compress, gzip.decompress), "deflate": (zlib.compress, zlib.decompress)
    }[coding]  # fmt: skip
    headers = {"Content-Encoding": coding, "Accept-Encoding": coding}
    reply = await served.ask("POST", URL, pack(request(values)), headers)
    body = unpack(reply.body) if "content-encoding" in reply.headers else reply.body
    assert values_of(reply, body) == values
    assert ("content-encoding" in reply.headers) == (values is LARGE)


async def test_a_packed_raw_request(served: Any, threads: set[str]) -> None:
    """Its shape follows from the model, which the loop alone may look at."""
    data = np.random.default_rng(0).integers(0, 1 << 30, 4000).astype("<i4")
    headers = {"Content-Encoding": "gzip", LENGTH: "0"}
    reply = await served.ask("POST", URL, gzip.compress(data.tobytes()), headers)
    assert values_of(reply) == data.tolist()


async def test_large_and_wrong(served: Any) -> None:
    for body, status, text in (
        (request(LARGE)[:-1], 400, "failed to parse the request JSON"),
        (request(LARGE).replace(b"INT32", b"INT64"), 400, "data-type"),
        (b"x" * 100_000, 400, "failed to parse"),
        (request(LARGE).replace(b'"INPUT0"', b'"NOPE"'), 400, "NOPE"),
    ):
        reply = await served.ask("POST", URL, body)
        assert reply.status == status
        assert text in json.loads(reply.body)["error"]


async def test_the_limit_of_json(served: Any) -> None:
    with_front(served, limits=oip_codecs.WireLimits(json_bytes_max=1000))
    text = "Use --http-max-input-size to increase the limit."
    for body, headers in ((request(LARGE), {}), (b"{" * 1001, {LENGTH: "1001"})):
        reply = await served.ask("POST", URL, body, headers)
        assert (reply.status, json.loads(reply.body)["error"].endswith(text)) == (400, True)
    reply = await served.ask("POST", URL, gzip.compress(bytes(2000)), {"Content-Encoding": "gzip"})
    assert reply.status == 413


async def test_a_client_that_leaves_while_its_request_is_decoded(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, entered = threading.Event(), threading.Event()
    decode = oip_json.RequestDecoder.decode

    def held(*args: Any) -> Any:
        entered.set()
        assert gate.wait(10)
        return decode(*args)

    monkeypatch.setattr(oip_json.RequestDecoder, "decode", held)
    asked: list[Any] = []
    infer = served.gateway.infer
    monkeypatch.setattr(served.gateway, "infer", lambda *a: asked.append(a) or infer(*a))
    body = request(LARGE)
    wire = Wire(served.listener)
    wire.feed(f"POST {URL} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    wire.feed(body)
    assert await asyncio.to_thread(entered.wait, 10)
    wire.vanish()
    gate.set()
    monkeypatch.undo()
    assert values_of(await served.ask("POST", URL, body)) == LARGE
    assert not asked


async def test_too_much_at_once(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_front(served, offload=Offload(1, waiting_max=1))
    gate = threading.Event()
    decode = oip_json.RequestDecoder.decode

    def held(*args: Any) -> Any:
        assert gate.wait(10)
        return decode(*args)

    monkeypatch.setattr(oip_json.RequestDecoder, "decode", held)
    body = request(LARGE)
    first = asyncio.ensure_future(served.ask("POST", URL, body))
    await asyncio.sleep(0)
    second = await served.ask("POST", URL, body)
    assert (second.status, second.headers["penstock-code"]) == (503, "RESOURCE_EXHAUSTED")
    gate.set()
    # The reply is as large, and there is room for it again.
    assert values_of(await first) == LARGE


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize("value", ["60000", "1", "2147483648"])
async def test_a_deadline_that_is_kept(served: Any, value: str) -> None:
    asked: list[int] = []
    infer = served.gateway.infer
    served.gateway.infer = lambda *a: asked.append(a[3]) or infer(*a)
    reply = await served.ask("POST", URL, request(SMALL), {TIMEOUT_FIELD: value})
    assert reply.status in (200, 504), reply
    assert asked[0] > 0


async def test_a_deadline_that_passes(served: Any) -> None:
    url = "/v2/models/slow/infer"
    busy = [asyncio.ensure_future(served.ask("POST", url, request([i]))) for i in range(2)]
    await asyncio.sleep(0.05)
    reply = await served.ask("POST", url, request([7, 7]), {TIMEOUT_FIELD: "1"})
    assert reply.status in (503, 504), reply
    assert "error" in json.loads(reply.body)
    for waiting in busy:
        assert (await waiting).status == 200


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "x", "2147483649", "9" * 30])
async def test_a_deadline_that_is_none(served: Any, value: str) -> None:
    reply = await served.ask("POST", URL, request(SMALL), {TIMEOUT_FIELD: value})
    assert reply.status == 400
    assert TIMEOUT_FIELD in json.loads(reply.body)["error"]


@pytest.mark.parametrize("value", ["99999999999", "-1", "5000", "9" * 40])
async def test_a_length_beyond_the_body(served: Any, value: str) -> None:
    reply = await served.ask("POST", URL, b"12345", {LENGTH: value})
    text = f"inference header size should be in range (0, 5), got: {value}"
    assert (reply.status, json.loads(reply.body)["error"]) == (400, text)


@pytest.mark.parametrize("value", ["abc", "", "1e3", "0x10", "9" * 41, "1 2"])
async def test_a_length_that_is_none(served: Any, value: str) -> None:
    reply = await served.ask("POST", URL, b"12345", {LENGTH: value})
    assert reply.status == 400
    assert "is not a length" in json.loads(reply.body)["error"]


async def test_forwarded_headers_are_parameters(served: Any) -> None:
    with_front(served, forward=forward_pattern("^x-(user|role)$"))
    seen: list[Any] = []
    infer = served.gateway.infer
    served.gateway.infer = lambda r, *a: seen.append(dict(r.parameters)) or infer(r, *a)
    headers = {"X-User": "ada", "x-role": "admin", "X-Users": "no", "Y": "no"}
    body = request(SMALL, parameters={"x-user": "a liar", "own": 1})
    assert (await served.ask("POST", URL, body, headers)).status == 200
    assert (await served.ask("POST", URL, body)).status == 200
    assert seen == [
        {"x-user": "ada", "x-role": "admin", "own": 1},
        {"x-user": "a liar", "own": 1},
    ]


def test_patterns() -> None:
    assert forward_pattern("") is None
    pattern = forward_pattern("x-.*")
    assert pattern is not None
    assert pattern.search("my-X-Header")
    with pytest.raises(ValueError, match="not a regular expression"):
        forward_pattern("(")
