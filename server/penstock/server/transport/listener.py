"""What all connections of one HTTP port share: limits, the memo of heads, the sweep, the drain."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, Protocol

from penstock.server.http_seam import Endpoint, Refusal, plain_refusal
from penstock.server.transport.head import Head, HeadMemo
from penstock.server.transport.status import REASON_MAX, reason_of

_SCRATCH_BYTES: Final = 256 * 1024
_HEAD_SCRATCH_BYTES: Final = 16 * 1024
_REPLY_HEADS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one port; times in seconds."""

    connections_max: int = 16_384
    body_bytes_max: int = 2 * 1024**3
    bodies_bytes_max: int = 8 * 1024**3
    """Received and not yet answered, over all connections (bodies that take several reads)."""
    idle_timeout_s: int = 600
    read_timeout_s: int = 30
    """A request must make some progress in this time."""
    write_timeout_s: int = 60
    """A client must read some of its reply in this time."""
    linger_s: int = 2


class Swept(Protocol):
    def sweep(self, tick: int) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


class Http1Listener:
    """One listening port (or unix socket) and its connections.

    ``resolve`` gives the endpoint for a head; it never fails (there is one for "not found").
    ``refusal`` words an error that HTTP itself finds.
    """

    def __init__(
        self,
        resolve: Callable[[Head], Endpoint],
        protocol: Callable[[Http1Listener], asyncio.BaseProtocol],
        limits: HttpLimits | None = None,
        refusal: Refusal = plain_refusal,
    ) -> None:
        self.resolve = resolve
        self.refusal = refusal
        self.limits = limits or HttpLimits()
        self.heads = HeadMemo()
        # One buffer for all: a connection copies what it reads before another one reads.
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.head_scratch = self.scratch[:_HEAD_SCRATCH_BYTES]
        """For the start of a request: the rest of a large body then goes where it stays."""
        self.tick = 0
        """Seconds since the start, counted by the sweep."""
        self.date = b""
        self.draining = False
        self._protocol = protocol
        self._connections: set[Any] = set()
        self._body_bytes = 0
        self._reply_heads: dict[tuple[int, str, str], bytes] = {}
        self._servers: list[asyncio.AbstractServer] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._paths: list[Path] = []

    # ------------------------------------------------------------------ for connections

    def add(self, connection: Swept) -> bool:
        """False when there are too many connections already; it is swept all the same."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections_max

    def discard(self, connection: Swept) -> None:
        self._connections.discard(connection)

    def charge(self, nbytes: int) -> bool:
        """Accounts for a body's memory, also beyond the budget; False when it is beyond."""
        self._body_bytes += nbytes
        return self._body_bytes <= self.limits.bodies_bytes_max

    def reply_head(self, status: int, content_type: str, reason: str) -> bytes:
        """The status line and the Content-Type field."""
        if len(reason) > REASON_MAX:  # Clients have a say in it, and it is kept.
            reason = reason[: REASON_MAX + 1]
        key = (status, content_type, reason)
        known = self._reply_heads.get(key)
        if known is None:
            if len(self._reply_heads) >= _REPLY_HEADS_MAX:
                self._reply_heads.clear()
            text = f"HTTP/1.1 {status} {reason_of(status, reason)}\r\n"
            if content_type:
                text += f"Content-Type: {content_type}\r\n"
            known = self._reply_heads[key] = text.encode("ascii")
        return known

    @property
    def connections(self) -> int:
        return len(self._connections)

    # ------------------------------------------------------------------ life

    async def listen(self, host: str, port: int) -> int:
        """Listens on a TCP port (0: any free one) and returns the port."""
        loop = asyncio.get_running_loop()
        self._start(loop)
        server = await loop.create_server(
            lambda: self._protocol(self), host, port, backlog=1024, reuse_address=True
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Listens on a unix socket; replaces a stale one, never a file of another kind.

        Raises:
            OSError: also when another server listens there.
        """
        loop = asyncio.get_running_loop()
        self._start(loop)
        _remove_stale(path)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The umask, so that there is no moment at which others may connect.
        before = os.umask(0o777 & ~mode)
        try:
            unix.bind(str(path))
        except OSError:
            unix.close()
            raise
        finally:
            os.umask(before)
        server = await loop.create_unix_server(
            lambda: self._protocol(self), sock=unix, backlog=1024
        )
        self._servers.append(server)
        self._paths.append(path)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweeper is None:
            self._set_date()
            self._sweeper = loop.call_later(1.0, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = loop.call_later(1.0, self._sweep, loop)
        self.tick += 1
        self._set_date()
        for connection in tuple(self._connections):
            connection.sweep(self.tick)

    def _set_date(self) -> None:
        self.date = f"Date: {formatdate(usegmt=True)}\r\n".encode("ascii")

    async def close(self, timeout_s: float) -> None:
        """Stops accepting, lets connections finish their replies, then ends what is left."""
        self.draining = True
        for server in self._servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._drain()
        while self._connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
            self._drain()  # Some were accepted before, and are announced only now.
        for connection in tuple(self._connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _drain(self) -> None:
        for connection in tuple(self._connections):
            connection.drain()


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # Its backlog is full: there is somebody.
    raise OSError(errno.EADDRINUSE, "another server listens on this socket", str(path))
