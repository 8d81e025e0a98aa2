"""Opens the server's listening ports, tells which became of them, and closes them in order.

Knows addresses and transports. Must not know models; what is served there is handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from penstock.server.grpc_seam import Methods
from penstock.server.transport.grpc.listener import GrpcListener
from penstock.server.transport.grpc.options import GrpcOptions
from penstock.server.transport.tls import Certificates


class ListenError(OSError):
    """An address cannot be had: ``what`` is "http", "metrics", "uds", "grpc" or "grpc-uds"."""

    def __init__(self, what: str, where: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.what = what
        self.where = where


@contextlib.contextmanager
def listening(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(what, where, error) from error


class _Listener(Protocol):
    @property
    def connections(self) -> int: ...
    async def listen(self, host: str, port: int, tls: Certificates | None = ...) -> int: ...
    async def listen_unix(self, path: Path, mode: int = ...) -> None: ...
    def leave(self) -> None: ...
    async def close(self, timeout_s: float) -> None: ...


class GrpcPort:
    """The port that gRPC is served on, by our own HTTP/2 or by the library grpcio.

    Raises:
        CertificateError: the files for TLS are not what they should be.
    """

    def __init__(self, options: GrpcOptions, methods: Methods, http_hint: str = "") -> None:
        self.options = options
        self.port: int | None = None
        self._certificates = Certificates(options.tls, ("h2",)) if options.tls else None
        self._listener: _Listener
        if options.transport == "own":
            self._listener = GrpcListener(methods, options.limits, http_hint)
        else:
            self._listener = self._library(methods)

    def _library(self, methods: Methods) -> _Listener:
        from penstock.server.transport.grpcio import GrpcioListener, options_of

        return GrpcioListener(methods, options_of(self.options.limits))

    @property
    def connections(self) -> int:
        return self._listener.connections

    async def start(self, host: str) -> None:
        """Raises ListenError if an address cannot be had."""
        options = self.options
        host = options.host or host
        if options.port is not None:
            with listening("grpc", f"{host}:{options.port}"):
                self.port = await self._listener.listen(host, options.port, self._certificates)
        if options.uds is not None:
            with listening("grpc-uds", str(options.uds)):
                await self._listener.listen_unix(options.uds, options.uds_mode)

    def leave(self) -> None:
        """Refuses new calls and asks clients to go; calls in progress go on."""
        self._listener.leave()

    def reload(self) -> None:
        """Reads the certificates again."""
        if self._certificates is not None:
            self._certificates.reload()

    async def close(self, timeout_s: float) -> None:
        await self._listener.close(timeout_s)
