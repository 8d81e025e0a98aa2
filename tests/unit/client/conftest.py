"""A scripted HTTP server on raw sockets, and both clients behind one face.

The server does exactly what a script says, right or wrong: each request is answered by the next
action of the script, the last one again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.client import AsyncClient, Client, RetryPolicy
from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe, oip_json
from penstock.protocol.errors import InferError
from penstock.protocol.message import InferReply, ModelMetadata, Signature, TensorSpec

PROBABILITIES = np.linspace(0, 1, 20, dtype=np.float32).reshape(2, 10)
LABELS = np.array([3, 7], dtype=np.int64)
OUTPUTS = (
    TensorSpec("probabilities", dt.FP32, (-1, 10)),
    TensorSpec("label", dt.INT64, (-1,)),
)
METADATA = ModelMetadata(
    name="digits",
    version="1",
    versions=("1",),
    platform="fake",
    inputs=(TensorSpec("image", dt.FP32, (-1, 64)),),
    outputs=OUTPUTS,
)


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Action = Callable[[socket.socket, Request], bool]
"""Answers one request; True if the connection goes on."""


class Wire:
    """What a server can say and do."""

    metadata = METADATA
    probabilities = PROBABILITIES
    labels = LABELS

    @staticmethod
    def http(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        named = {"Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode() + body

    @staticmethod
    def reply(request: Request) -> tuple[bytes, dict[str, str]]:
        """The right body for ``request``, in its protocol, and the headers that go with it."""
        if "/v2/" in request.target:
            if request.method == "GET":
                return oip_json_metadata(), {}
            signature = Signature(
                [
                    TensorSpec("probabilities", dt.FP32, PROBABILITIES.shape),
                    TensorSpec("label", dt.INT64, LABELS.shape),
                ]
            )
            reply = InferReply(signature, [PROBABILITIES, LABELS], model="digits", version="1")
            buffers, length = oip_json.ReplyEncoder().encode(reply, oip_json.ALL_BINARY)
            return b"".join(buffers), {"Inference-Header-Content-Length": str(length)}
        decoded = graphpipe.decode_request(request.body)
        if isinstance(decoded, graphpipe.MetadataRequest):
            return b"".join([graphpipe.encode_metadata(METADATA, extended=True)]), {}
        known = {"probabilities": PROBABILITIES, "label": LABELS}
        names = [output.name for output in decoded.signature.outputs] or list(known)
        specs = [TensorSpec(n, dt.of_numpy(known[n].dtype), known[n].shape) for n in names]
        reply = InferReply(Signature(specs), [known[n] for n in names])
        return b"".join(graphpipe.ReplyEncoder().encode(reply)), {}

    # --- actions ---

    def good(self, connection: socket.socket, request: Request) -> bool:
        connection.sendall(self.http(200, *self.reply(request)))
        return True

    def bytewise(self, connection: socket.socket, request: Request) -> bool:
        for byte in self.http(200, *self.reply(request)):
            connection.sendall(bytes((byte,)))
        return True

    def chunked(self, connection: socket.socket, request: Request) -> bool:
        body, headers = self.reply(request)
        lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
        connection.sendall(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{lines}\r\n".encode())
        for at in range(0, len(body), 7):
            piece = body[at : at + 7]
            connection.sendall(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\nTrailer: x\r\n\r\n")
        return True

    def until_close(self, connection: socket.socket, request: Request) -> bool:
        body, headers = self.reply(request)
        lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
        connection.sendall(f"HTTP/1.0 200 OK\r\n{lines}\r\n".encode() + body)
        return False

    def interim(self, connection: socket.socket, request: Request) -> bool:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n")
        return self.good(connection, request)

    def last(self, connection: socket.socket, request: Request) -> bool:
        """Answers, and closes without having said so."""
        self.good(connection, request)
        return False

    def hang_up(self, connection: socket.socket, request: Request) -> bool:
        return False

    def break_off(self, connection: socket.socket, request: Request) -> bool:
        connection.sendall(self.http(200, *self.reply(request))[:-5])
        return False

    def break_head(self, connection: socket.socket, request: Request) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
        return False

    def silence(self, connection: socket.socket, request: Request) -> bool:
        """Says nothing until the client gives up."""
        with contextlib.suppress(OSError):
            connection.recv(1)
        return False

    def stall(self, connection: socket.socket, request: Request) -> bool:
        connection.sendall(self.http(200, *self.reply(request))[:-5])
        return self.silence(connection, request)

    def raw(self, data: bytes, *, keep: bool = False) -> Action:
        def act(connection: socket.socket, request: Request) -> bool:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            return keep

        return act

    def status(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Action:
        return self.raw(self.http(status, body, headers), keep=True)

    def error_frame(self, error: InferError) -> Action:
        return self.raw(self.http(200, graphpipe.encode_error(error)), keep=True)


def oip_json_metadata() -> bytes:
    document: Any = oip_json.model_metadata_document(METADATA)
    if isinstance(document, bytes):
        return document
    import msgspec

    return msgspec.json.encode(document)


class Server:
    """Plays ``script``; keeps what it was asked."""

    def __init__(self, script: list[Action], unix: str) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self._turns = 0
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        family = socket.AF_UNIX if unix else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind(unix or ("127.0.0.1", 0))
        self._listener.listen(64)
        port = 0 if unix else self._listener.getsockname()[1]
        self.url = f"unix:{unix}" if unix else f"http://127.0.0.1:{port}"
        self._start(self._accept)

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak TLS on connections from now on."""
        self._tls = context

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                self._start(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection, contextlib.suppress(ConnectionError, ssl.SSLError):
            stream = connection.makefile("rb")
            with stream:
                while (request := _read(stream)) is not None:
                    with self._lock:
                        action = self.script[min(self._turns, len(self.script) - 1)]
                        self._turns += 1
                        self.requests.append(request)
                    if not action(connection, request):
                        return


def _read(stream: Any) -> Request | None:
    line = stream.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ")
    headers = {}
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``serve(action, ...)`` starts a server; ``unix=True`` on a Unix socket."""
    servers: list[Server] = []

    def start(*script: Action, unix: bool = False) -> Server:
        servers.append(Server(list(script), str(tmp_path / "socket") if unix else ""))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Blocking:
    """An ``AsyncClient`` with the face of a ``Client``."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self._client, name)(*args, **kwargs)

        return lambda *args, **kwargs: self._runner.run(call(*args, **kwargs))


AT_ONCE = RetryPolicy(attempts_max=3, backoff_s_first=0.0)
NEVER = RetryPolicy(attempts_max=1)


@pytest.fixture(params=["sync", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """``connect(url, ...)`` opens a client of either kind, closed after the test.

    Retries do not pause unless a policy is given; ``retry=False`` turns them off.
    """
    with contextlib.ExitStack() as stack:

        def opened(url: str, *, retry: Any = AT_ONCE, **options: Any) -> Any:
            options["retry"] = NEVER if retry is False else retry
            if request.param == "sync":
                return stack.enter_context(Client(url, **options))
            client = AsyncClient(url, **options)
            blocking = Blocking(stack.enter_context(asyncio.Runner()), client)
            stack.callback(blocking.close)
            return blocking

        yield opened


@pytest.fixture(params=["graphpipe", "v2"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)
