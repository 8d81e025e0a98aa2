"""A gateway over fake models behind the real routes, reached through a connection in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.fake import artefact
from penstock.server.front.graphpipe import GraphpipeFront
from penstock.server.front.oip import OipFront
from penstock.server.front.oip_admin import OipAdminFront
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.models import ModelTable
from penstock.server.repository import Repository, RepositoryOptions
from penstock.server.transport.fake import Reply, Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener

MODELS: dict[str, dict[str, str]] = {
    "add/1": {"kind": "add_sub"},
    "add/3": {"kind": "add_sub"},
    "bytes/1": {"dtype": "BYTES", "shape": "-1"},
    "bool/1": {"dtype": "BOOL", "shape": "-1"},
    "fail/1": {"kind": "fail"},
    "odd name/1": {"shape": "2"},
    "gone/1": {"load_error": "no luck"},
}


class Served:
    """The server. ``ask`` sends one request on a connection of its own and awaits the reply."""

    def __init__(self, models: ModelTable) -> None:
        self.models = models
        self.gateway = Gateway(models)
        routes = Routes()
        OipFront(self.gateway).add_to(routes)
        OipAdminFront(self.gateway, "1.2.3").add_to(routes)
        GraphpipeFront(self.gateway, "penstock/1.2.3").add_to(routes)
        self.listener = Http1Listener(routes.resolve, Http1Connection)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        fields = {"Host": "h", "Content-Length": str(len(data)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        wire = Wire(self.listener)
        wire.feed(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        async with asyncio.timeout(10):
            while not wire.transport.sent:
                await asyncio.sleep(0.0005)
        (reply,) = wire.replies([method])
        wire.end()
        return reply

    async def json(self, method: str, path: str, body: bytes | dict[str, Any] = b"") -> Any:
        reply = await self.ask(method, path, body)
        assert reply.status == 200, reply
        assert reply.headers["content-type"] == "application/json"
        return json.loads(reply.body)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await serve(models, default_model)`` gives a ``Served``."""
    repositories: list[Repository] = []

    async def start(models: Mapping[str, dict[str, str]], default_model: str = "") -> Served:
        root = tmp_path / f"models{len(repositories)}"
        root.mkdir()
        for name, options in models.items():
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "model.fake").write_bytes(artefact(options))
            (folder.parent / "config.pbtxt").write_text("version_policy { all {} }")
        table = ModelTable(default_model)
        repository = Repository(RepositoryOptions((root,)), table)
        await repository.load_all()
        repositories.append(repository)
        return Served(table)

    yield start
    for repository in repositories:
        await repository.close()


@pytest.fixture
async def served(serve: Callable[..., Any]) -> Served:
    made: Served = await serve(MODELS)
    return made
