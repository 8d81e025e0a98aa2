"""What the connections of one port share, whatever they speak: limits, the sweep, the end.

Knows sockets and time (in ticks of one second). Must not know any protocol: a connection is
something that can be swept, drained and aborted. All connections read into one scratch buffer,
because a connection takes what it read before another one reads.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any, Final, Protocol

from penstock.server.transport.tls import CHECK_EVERY_S, Certificates

_SCRATCH_BYTES: Final = 256 * 1024


class Swept(Protocol):
    def sweep(self, tick: int) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


class PortLimits(Protocol):
    """``bodies_bytes_max``: received and not yet answered, over all connections."""

    @property
    def connections_max(self) -> int: ...
    @property
    def bodies_bytes_max(self) -> int: ...


class Port:
    """Listens on TCP ports and unix sockets and keeps the connections made there.

    A subclass says by ``connect`` what serves a new connection.
    """

    def __init__(self, limits: PortLimits) -> None:
        self._limits = limits
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.tick = 0
        """Seconds since the start, counted by the sweep."""
        self.draining = False
        self._connections: set[Any] = set()
        self._body_bytes = 0
        self._servers: list[asyncio.AbstractServer] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._paths: list[Path] = []
        self._certificates: list[Certificates] = []

    def connect(self) -> asyncio.BaseProtocol:
        """What serves a connection that was just accepted."""
        raise NotImplementedError

    # ------------------------------------------------------------------ for connections

    def add(self, connection: Swept) -> bool:
        """False when there are too many connections already; it is swept all the same."""
        self._connections.add(connection)
        return len(self._connections) <= self._limits.connections_max

    def discard(self, connection: Swept) -> None:
        self._connections.discard(connection)

    def charge(self, nbytes: int) -> bool:
        """Accounts for a body's memory, also beyond the budget; False when it is beyond."""
        self._body_bytes += nbytes
        return self._body_bytes <= self._limits.bodies_bytes_max

    @property
    def connections(self) -> int:
        return len(self._connections)

    # ------------------------------------------------------------------ life

    async def listen(self, host: str, port: int, tls: Certificates | None = None) -> int:
        """Listens on a TCP port (0: any free one) and returns the port.

        The files of ``tls`` are looked at from time to time, and read again if they have changed.
        """
        loop = asyncio.get_running_loop()
        self._start(loop)
        server = await loop.create_server(
            self.connect,
            host,
            port,
            backlog=1024,
            reuse_address=True,
            ssl=tls.context if tls else None,
        )
        if tls is not None:
            self._certificates.append(tls)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Listens on a unix socket; replaces a stale one, never a file of another kind.

        Raises:
            OSError: also when another server listens there.
        """
        loop = asyncio.get_running_loop()
        self._start(loop)
        remove_stale(path)
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
        server = await loop.create_unix_server(self.connect, sock=unix, backlog=1024)
        self._servers.append(server)
        self._paths.append(path)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweeper is None:
            self.ticked()
            self._sweeper = loop.call_later(1.0, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = loop.call_later(1.0, self._sweep, loop)
        self.tick += 1
        self.ticked()
        if self.tick % CHECK_EVERY_S == 0:
            for certificates in self._certificates:
                certificates.refresh()
        for connection in tuple(self._connections):
            connection.sweep(self.tick)

    def ticked(self) -> None:
        """Called at the start and before each sweep."""

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


def remove_stale(path: Path) -> None:
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
