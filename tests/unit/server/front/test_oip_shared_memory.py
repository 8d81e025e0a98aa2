"""Shared memory over HTTP: its documents, requests by it, and that nothing is copied on the way."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from penstock.backends.fake import FakeSession
from penstock.protocol.message import RegionRef
from penstock.server.front.oip import OipFront
from penstock.server.front.oip_shared_memory import OipSharedMemoryFront
from penstock.server.front.routes import Routes
from penstock.server.shared_memory import SharedMemory
from penstock.server.system_memory import map_system
from penstock.server.transport.fake import Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

ROWS = np.arange(32, dtype="<i4").reshape(2, 16)
SIZE = 4096


class Objects:
    """Shared memory objects in a folder, as a client has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = SharedMemory(True, map_system=partial(map_system, folder=folder))

    def create(self, name: str, size: int = SIZE) -> None:
        (self.folder / name).write_bytes(bytes(size))

    def put(self, name: str, offset: int, array: Any) -> None:
        with (self.folder / name).open("r+b") as file:
            file.seek(offset)
            file.write(array.tobytes())

    def get(self, name: str, offset: int, like: Any) -> Any:
        raw = (self.folder / name).read_bytes()[offset : offset + like.nbytes]
        return np.frombuffer(raw, like.dtype).reshape(like.shape)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    objects = Objects(tmp_path)
    yield objects
    objects.registry.close()


@pytest.fixture
async def shared(served: Any, objects: Objects) -> Any:
    """``served`` with shared memory: the objects ``in`` and ``out``, registered as such."""
    routes = Routes()
    OipFront(served.gateway, regions=objects.registry).add_to(routes)
    OipSharedMemoryFront(objects.registry).add_to(routes)
    served.listener = Http1Listener(routes.resolve, Http1Connection)
    for name in ("in", "out"):
        objects.create(name)
        path = f"/v2/systemsharedmemory/region/{name}/register"
        await served.json("POST", path, {"key": f"/{name}", "offset": 0, "byte_size": SIZE})
    return served


def place(region: str, offset: int, size: int = ROWS.nbytes) -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return found | {"shared_memory_offset": offset} if offset else found


def asked(**outputs: dict[str, Any]) -> dict[str, Any]:
    """INPUT0 at 0 and INPUT1 at 1000 of ``in``."""
    return {
        "inputs": [
            {"name": n, "shape": [2, 16], "datatype": "INT32", "parameters": place("in", at)}
            for n, at in (("INPUT0", 0), ("INPUT1", 1000))
        ],
        "outputs": [{"name": n, "parameters": p} for n, p in outputs.items()],
    }


async def test_the_documents(shared: Any) -> None:
    url = "/v2/systemsharedmemory"
    one = {"name": "in", "key": "/in", "offset": 0, "byte_size": SIZE}
    assert await shared.json("GET", f"{url}/region/in/status") == [one]
    await shared.json("POST", f"{url}/region/odd%20name/register", {"key": "in", "byte_size": 8})
    again = await shared.ask("POST", f"{url}/region/in/register", b'{"key": "in", "byte_size": 8}')
    assert (again.status, again.headers["penstock-code"]) == (400, "ALREADY_EXISTS")  # as in Triton
    found = await shared.json("GET", f"{url}/status")
    assert [region["name"] for region in found] == ["in", "out", "odd name"]
    await shared.json("POST", f"{url}/region/in/unregister")
    reply = await shared.ask("GET", f"{url}/region/in/status")
    assert reply.status == 404
    text = "Unable to find system shared memory region: 'in'"
    assert json.loads(reply.body) == {"error": text}
    await shared.json("POST", f"{url}/unregister")
    assert await shared.json("GET", f"{url}/status") == []


async def test_the_documents_of_cuda(
    shared: Any, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/v2/cudasharedmemory"
    opened: list[tuple[Any, ...]] = []

    def open_cuda(*arguments: Any) -> Any:
        opened.append(arguments)
        return SimpleNamespace(memory_key=arguments)

    monkeypatch.setattr(objects.registry, "_open_cuda", open_cuda)
    handle = bytes(range(64))
    body = {
        "raw_handle": {"b64": base64.b64encode(handle).decode()},
        "device_id": 2,
        "byte_size": 512,
    }
    await shared.json("POST", f"{url}/region/gpu/register", body)
    assert opened == [(handle, 2, 512)]
    found = await shared.json("GET", f"{url}/region/gpu/status")
    assert found == await shared.json("GET", f"{url}/status")
    assert found == [{"name": "gpu", "device_id": 2, "byte_size": 512}]
    await shared.json("POST", f"{url}/unregister")
    assert await shared.json("GET", f"{url}/status") == []
    assert len(await shared.json("GET", "/v2/systemsharedmemory/status")) == 2
    reply = await shared.ask(
        "POST", f"{url}/region/g/register", body | {"raw_handle": {"b64": "no base64!"}}
    )
    assert (reply.status, json.loads(reply.body)) == (400, {"error": "'raw_handle' is not base64"})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Shared memory register request has no '"), (b"[]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b'{"key": 7, "raw_handle": {"b64": 7}}', "JSON non-string as string"),
        (b'{"key": "k", "raw_handle": {"b64": ""}, "device_id": 0}', "has no 'byte_size' field"),
        (b'{"key": "k", "raw_handle": {"b64": ""}, "device_id": 0, "byte_size": -1}',
         "Unable to parse 'byte_size': attempt to access JSON non-unsigned-integer"),
        (b'{"key": "k", "raw_handle": {"b64": ""}, "device_id": 0, "byte_size": "8"}',
         "Unable to parse 'byte_size'"),
        (b'{"key": "k", "offset": true, "raw_handle": {"b64": ""}, "device_id": true}',
         "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        (b'{"raw_handle": 7}', "register request has no '"),
    ],
)  # fmt: skip
async def test_documents_that_are_none(shared: Any, body: bytes, text: str) -> None:
    for kind in ("system", "cuda"):
        reply = await shared.ask("POST", f"/v2/{kind}sharedmemory/region/a/register", body)
        assert reply.status == 400
        assert text in json.loads(reply.body)["error"]


async def test_in_and_out(shared: Any, objects: Objects) -> None:
    objects.put("in", 0, ROWS)
    body = asked(OUTPUT0=place("out", 0), OUTPUT1=place("out", 2048, 500))
    for step in range(5):  # new to the codec, then known to it
        objects.put("in", 1000, ROWS * step)
        found = await shared.json("POST", "/v2/models/add/infer", body)
        np.testing.assert_array_equal(objects.get("out", 0, ROWS), ROWS * (1 + step))
        np.testing.assert_array_equal(objects.get("out", 2048, ROWS), ROWS * (1 - step))
    assert found["outputs"] == [
        {"name": name, "datatype": "INT32", "shape": [2, 16]} for name in ("OUTPUT0", "OUTPUT1")
    ]


async def test_in_place(shared: Any, objects: Objects) -> None:
    """Outputs over the inputs, crosswise and shifted."""
    objects.put("in", 0, ROWS)
    objects.put("in", 1000, ROWS * 3)
    body = asked(OUTPUT0=place("in", 960), OUTPUT1=place("in", 64))
    await shared.json("POST", "/v2/models/add/infer", body)
    np.testing.assert_array_equal(objects.get("in", 960, ROWS), ROWS * 4)
    np.testing.assert_array_equal(objects.get("in", 64, ROWS), ROWS * -2)


async def test_errors_name_what_is_wrong(shared: Any, objects: Objects) -> None:
    async def told(body: dict[str, Any]) -> str:
        reply = await shared.ask("POST", "/v2/models/add/infer", body)
        assert reply.status in (400, 404)
        text: str = json.loads(reply.body)["error"]
        return text

    small = asked(OUTPUT0=place("out", 0, 127))
    assert "'OUTPUT0' (127 bytes) should be at least 128 bytes" in await told(small)
    absent = asked(OUTPUT0=place("absent", 0))
    assert await told(absent) == "Unable to find shared memory region: 'absent'"
    beyond = asked(OUTPUT0=place("out", SIZE - 127))
    assert await told(beyond) == "Invalid offset + byte size for shared memory region: 'out'"
    good = asked(OUTPUT0=place("out", 0))
    for _ in range(3):
        await shared.json("POST", "/v2/models/add/infer", good)
    os.truncate(objects.folder / "in", 1000)
    assert "its memory is smaller now" in await told(good)
    (objects.folder / "in").unlink()
    objects.create("in", 2 * SIZE)  # another of that name: the client starts over
    assert "its memory is smaller now" in await told(good)
    await shared.json("POST", "/v2/systemsharedmemory/region/in/unregister")
    again = {"key": "/in", "offset": SIZE, "byte_size": SIZE}
    await shared.json("POST", "/v2/systemsharedmemory/region/in/register", again)
    objects.put("in", SIZE, ROWS)
    objects.put("in", SIZE + 1000, ROWS)
    await shared.json("POST", "/v2/models/add/infer", good)
    np.testing.assert_array_equal(objects.get("out", 0, ROWS), ROWS * 2)


async def test_two_clients_of_one_region(shared: Any, objects: Objects) -> None:
    """Each in a part of its own, many at once: nobody's bytes reach another."""

    async def client(number: int) -> None:
        start = 512 * number
        body = asked(OUTPUT0=place("out", start), OUTPUT1=place("out", start + 256))
        for tensor, at in zip(body["inputs"], (start, start + 256), strict=True):
            tensor["parameters"] = place("in", at)
        for step in range(20):
            objects.put("in", start, ROWS * number)
            objects.put("in", start + 256, ROWS * step)
            await shared.json("POST", "/v2/models/add/infer", body)
            np.testing.assert_array_equal(objects.get("out", start, ROWS), ROWS * (number + step))
            np.testing.assert_array_equal(
                objects.get("out", start + 256, ROWS), ROWS * (number - step)
            )

    await asyncio.gather(client(1), client(2), client(6))


# --- what the model sees --------------------------------------------------------------------------


class Spy:
    """Keeps the very arrays that models are given; holds their runs while ``gate`` is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[Any] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        real = FakeSession.run

        def run(session: FakeSession, inputs: Any) -> Any:
            self.inputs.append(inputs)
            self.entered.release()
            assert self.gate.wait(30)
            return real(session, inputs)

        monkeypatch.setattr(FakeSession, "run", run)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    spy = Spy(monkeypatch)
    yield spy
    spy.gate.set()


def mapped(registry: SharedMemory, name: str) -> Any:
    return np.frombuffer(registry.resolve(RegionRef(name, 0, SIZE)), "u1")


async def test_models_read_the_clients_memory_itself(
    shared: Any, objects: Objects, spy: Spy
) -> None:
    body = asked(OUTPUT0=place("out", 0))
    for _ in range(4):
        await shared.json("POST", "/v2/models/add/infer", body)
    region = mapped(objects.registry, "in")
    assert len(spy.inputs) == 4
    for inputs in spy.inputs:
        for array, start in zip(inputs, (0, 1000), strict=True):
            assert np.shares_memory(array, region[start : start + ROWS.nbytes])
            assert not array.flags.writeable


async def test_what_is_unaligned_is_copied_for_the_model(
    shared: Any, objects: Objects, spy: Spy
) -> None:
    objects.put("in", 3, ROWS)
    body = asked(OUTPUT0=place("out", 1))
    body["inputs"][0]["parameters"] = place("in", 3)
    await shared.json("POST", "/v2/models/add/infer", body)
    np.testing.assert_array_equal(objects.get("out", 1, ROWS), ROWS)
    assert not np.shares_memory(spy.inputs[0][0], mapped(objects.registry, "in"))
    assert spy.inputs[0][0].flags.aligned


@pytest.mark.parametrize("name", ["in", ""])
async def test_unregistered_while_the_model_runs(
    shared: Any, objects: Objects, spy: Spy, name: str
) -> None:
    """The request goes on with the memory that it began with; its bytes still reach the client."""
    objects.put("in", 0, ROWS)
    objects.put("in", 1000, ROWS)
    shared.gateway.models.find("add").lane.learned(1 << 40)  # in a thread
    spy.gate.clear()
    body = asked(OUTPUT0=place("out", 8), OUTPUT1=place("in", 2000))
    waiting = asyncio.ensure_future(shared.ask("POST", "/v2/models/add/infer", body))
    assert await asyncio.to_thread(spy.entered.acquire, timeout=10)
    path = f"/v2/systemsharedmemory{name and '/region/' + name}/unregister"
    await shared.json("POST", path)
    again = {"key": "/out", "byte_size": 100}  # other bytes under the name, at once
    await shared.json("POST", "/v2/systemsharedmemory/region/in/register", again)
    (objects.folder / "in").rename(objects.folder / "old")
    spy.gate.set()
    assert (await waiting).status == 200
    np.testing.assert_array_equal(objects.get("out", 8, ROWS), ROWS * 2)
    np.testing.assert_array_equal(objects.get("old", 2000, ROWS), ROWS * 0)
    spy.inputs.clear()
    del waiting
    gc.collect()
    assert f"{objects.folder}/old" not in Path("/proc/self/maps").read_text()


async def test_a_client_that_is_gone_gets_nothing_written(
    shared: Any, objects: Objects, spy: Spy
) -> None:
    shared.gateway.models.find("add").lane.learned(1 << 40)
    objects.put("in", 0, ROWS)
    spy.gate.clear()
    data = json.dumps(asked(OUTPUT0=place("out", 0))).encode()
    wire = Wire(shared.listener)
    head = f"POST /v2/models/add/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\n\r\n"
    wire.feed(head.encode() + data)
    assert await asyncio.to_thread(spy.entered.acquire, timeout=10)
    wire.end()
    spy.gate.set()
    await shared.json("POST", "/v2/models/add/infer", asked(OUTPUT0=place("out", 1024)))
    np.testing.assert_array_equal(objects.get("out", 1024, ROWS), ROWS)
    np.testing.assert_array_equal(objects.get("out", 0, ROWS), ROWS * 0)
