"""A gateway over fake models behind the real routes, reached through a connection in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.fake import artefact
from penstock.protocol.errors import PenstockError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.server.front.doors import DoorOptions, Doors
from penstock.server.front.graphpipe import GraphpipeFront
from penstock.server.front.oip import OipFront
from penstock.server.front.oip_admin import OipAdminFront
from penstock.server.front.oip_repository import OipRepositoryFront
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.grpc_schema import METHODS
from penstock.server.grpc_seam import Method, Methods
from penstock.server.http_seam import Buffer
from penstock.server.model_control import ControlMode, ModelControl
from penstock.server.models import ModelTable
from penstock.server.repository import Repository, RepositoryOptions
from penstock.server.transport.fake import Reply, Wire, parse_replies
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

    def __init__(self, models: ModelTable, control: ModelControl) -> None:
        self.models = models
        self.control = control
        self.gateway = Gateway(models)
        routes = Routes()
        OipFront(self.gateway).add_to(routes)
        OipAdminFront(self.gateway, "1.2.3").add_to(routes)
        OipRepositoryFront(control).add_to(routes)
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
            while not parse_replies(bytes(wire.transport.sent), [method])[0]:
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
    """``await serve(models, default_model, mode)`` gives a ``Served``; ``configs`` by model are
    further lines of its config.pbtxt."""
    repositories: list[Repository] = []

    async def start(
        models: Mapping[str, dict[str, str]],
        default_model: str = "",
        mode: ControlMode = ControlMode.NONE,
        configs: Mapping[str, str] | None = None,
    ) -> Served:
        root = tmp_path / f"models{len(repositories)}"
        root.mkdir()
        for name, options in models.items():
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "model.fake").write_bytes(artefact(options))
            more = (configs or {}).get(folder.parent.name, "")
            (folder.parent / "config.pbtxt").write_text("version_policy { all {} } " + more)
        table = ModelTable(default_model)
        repository = Repository(RepositoryOptions((root,)), table)
        await repository.load_all()
        repositories.append(repository)
        return Served(table, ModelControl(repository, table, mode))

    yield start
    for repository in repositories:
        await repository.close()


@pytest.fixture
async def served(serve: Callable[..., Any]) -> Served:
    made: Served = await serve(MODELS)
    return made


class FakeCall:
    """A gRPC call as methods see it, which records what they answer; see ``grpc_seam.Call``."""

    def __init__(self, deadline_ns: int = 0) -> None:
        self.deadline_ns = deadline_ns
        self.congested = False
        self.messages: list[bytes] = []
        self.trailers: Any = ()
        self.error: PenstockError | None = None
        self.ended = False
        self.resumed = 0

    def reply(self, buffers: Sequence[Buffer], trailers: Any = ()) -> None:
        self.send(buffers)
        self.finish(trailers)

    def send(self, buffers: Sequence[Buffer]) -> None:
        assert not self.ended, "a message after the end"
        self.messages.append(b"".join(buffers))

    def resume(self) -> None:
        self.resumed += 1

    def finish(self, trailers: Any = ()) -> None:
        assert not self.ended, "ended twice"
        self.trailers, self.ended = trailers, True

    def fail(self, error: PenstockError, trailers: Any = ()) -> None:
        assert not self.ended, "ended twice"
        self.error, self.trailers, self.ended = error, trailers, True


class FakeHead:
    """See ``grpc_seam.CallHead``."""

    def __init__(self, path: str = "", metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.metadata = metadata or {}
        self.memo: Any = None


class Rpc:
    """Calls methods by path, with protobuf messages; ``await`` what takes its time."""

    def __init__(self, methods: Methods) -> None:
        self.methods = methods

    async def unary(self, path: str, head: Any = None, **fields: Any) -> Any:
        """The reply; raises the error that the call ended with."""
        call = FakeCall()
        types = METHODS[path]
        self.methods[path].unary(call, head or FakeHead(path), _packed(types, fields))
        await self.until(lambda: call.ended)
        if call.error is not None:
            raise call.error
        (message,) = call.messages
        return types.reply.FromString(message)

    def stream(self, path: str, head: Any = None, call: FakeCall | None = None) -> Conversation:
        return Conversation(self.methods[path], METHODS[path], call or FakeCall(), head)

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.0005)


class Conversation:
    """A streaming call: what is said and what came back."""

    def __init__(self, method: Method, types: Any, call: FakeCall, head: Any) -> None:
        self.call = call
        self.stream = method.stream(call, head or FakeHead(method.path))
        self._types = types

    def say(self, message: bytes | None = None, **fields: Any) -> None:
        self.stream.received(_packed(self._types, fields) if message is None else message)

    @property
    def heard(self) -> list[Any]:
        return [self._types.reply.FromString(message) for message in self.call.messages]

    async def until(self, count: int) -> list[Any]:
        """What was heard, once it is so many messages."""
        await Rpc.until(lambda: len(self.call.messages) >= count)
        return self.heard


def _packed(types: Any, fields: dict[str, Any]) -> bytes:
    return types.request(**fields).SerializeToString()


@pytest.fixture
def rpc() -> type[Rpc]:
    return Rpc


@pytest.fixture
def fake_call() -> type[FakeCall]:
    return FakeCall


@pytest.fixture
def fake_head() -> type[FakeHead]:
    return FakeHead


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await repository({"name/1": (options, config)})`` gives a gateway over those models."""
    made: list[Repository] = []

    async def load(models: Mapping[str, tuple[dict[str, str], str]]) -> Gateway:
        root = tmp_path / f"repository{len(made)}"
        for name, (options, config) in models.items():
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "model.fake").write_bytes(artefact(options))
            (folder.parent / "config.pbtxt").write_text(config)
        table = ModelTable()
        repository = Repository(RepositoryOptions((root,)), table)
        await repository.load_all()
        made.append(repository)
        return Gateway(table)

    yield load
    for one in made:
        await one.close()


@pytest.fixture
async def doors(served: Served) -> Callable[..., Doors]:
    """``doors(DoorOptions(...))`` opens the other front doors of ``served``; ``doors(of=another)``
    those of another server."""

    def open_doors(
        options: DoorOptions | None = None, of: Served = served, limits: WireLimits = DEFAULT
    ) -> Doors:
        routes = Routes()
        oip = OipFront(of.gateway)
        made = Doors(of.gateway, of.control, oip, "1.2.3", options, limits)
        made.add_to(routes)
        of.listener = Http1Listener(routes.resolve, Http1Connection)
        return made

    return open_doors
