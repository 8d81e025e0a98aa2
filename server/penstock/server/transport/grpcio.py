"""gRPC by the library ``grpcio`` instead of our own HTTP/2: ``--grpc-transport grpcio``.

Knows ``grpc.aio`` and the seam. Must not know services or messages: bytes go in and out as they
are. Slower than our own transport, and there for whoever needs what only the library has; both pass
one suite of tests.

Framing, metadata, compression, keepalive and flow control are the library's. What the library does
not do is done here: the queue of replies that a client is slow to read is bounded by ``congested``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from penstock.server.grpc_seam import Methods
from penstock.server.transport.grpc.listener import GrpcLimits
from penstock.server.transport.grpcio_call import handlers_of
from penstock.server.transport.port import remove_stale
from penstock.server.transport.tls import Certificates, PemFiles

_log = logging.getLogger(__name__)

_COMPRESSIONS: Final = {
    "": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


_LEAVE_S_MAX: Final = 3600.0
_INT_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GrpcioOptions:
    """``message_bytes_max`` -1 is any size. ``compression`` is that of replies, for clients that
    accept it: empty, ``gzip`` or ``deflate``. ``settings`` are the library's channel arguments."""

    message_bytes_max: int = -1
    calls_max: int = 16_384
    """In progress at a time; further ones get RESOURCE_EXHAUSTED."""
    compression: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


def options_of(limits: GrpcLimits) -> GrpcioOptions:
    """What the library can keep of the limits of our own transport; it has no others."""
    settings = {
        "grpc.max_concurrent_streams": limits.streams_max,
        "grpc.keepalive_time_ms": limits.keepalive_time_s * 1000,
        "grpc.keepalive_timeout_ms": limits.keepalive_timeout_s * 1000,
        "grpc.keepalive_permit_without_calls": int(limits.keepalive_without_calls),
        "grpc.http2.min_ping_interval_without_data_ms": limits.ping_interval_s_min * 1000,
        "grpc.http2.max_ping_strikes": limits.ping_strikes_max,
        "grpc.max_metadata_size": limits.header_list_bytes_max,
    }
    never_or = {
        "grpc.max_connection_idle_ms": limits.idle_timeout_s * 1000,
        "grpc.max_connection_age_ms": limits.connection_age_s_max * 1000,
        "grpc.max_connection_age_grace_ms": limits.connection_grace_s * 1000,
    }
    settings |= {name: value for name, value in never_or.items() if value}
    return GrpcioOptions(
        message_bytes_max=min(limits.message_bytes_max, _INT_MAX),
        settings=tuple((name, min(value, _INT_MAX)) for name, value in settings.items()),
    )


class GrpcioListener:
    """Serves ``methods`` on any number of addresses; each has a server of the library."""

    def __init__(self, methods: Methods, options: GrpcioOptions | None = None) -> None:
        self._options = options or GrpcioOptions()
        self._calls: set[Any] = set()
        self._handlers = handlers_of(methods, self._calls)
        self._servers: list[grpc.aio.Server] = []
        self._paths: list[Path] = []
        self._leaving: set[asyncio.Future[None]] = set()

    @property
    def connections(self) -> int:
        """Clients with a call in progress; the library does not tell of others."""
        return len({call.peer for call in self._calls})

    async def listen(self, host: str, port: int, tls: Certificates | None = None) -> int:
        """Listens on a TCP port (0: any free one) and returns the port.

        Raises:
            OSError: the address cannot be had, or the files of ``tls`` cannot be read.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        server, bound = self._bound(address, tls)
        await self._start(server)
        return bound

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Listens on a unix socket; replaces a stale one, never a file of another kind.

        Raises:
            OSError: also when another server listens there.
        """
        remove_stale(path)
        before = os.umask(0o777 & ~mode)
        try:
            server, _ = self._bound(f"unix:{path}", None)
        finally:
            os.umask(before)
        self._paths.append(path)
        await self._start(server)

    def _bound(self, address: str, tls: Certificates | None) -> tuple[Any, int]:
        """A server that will serve ``address``, and the port."""
        options = self._options
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", options.message_bytes_max),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                *options.settings,
            ),
            maximum_concurrent_rpcs=options.calls_max,
            compression=_COMPRESSIONS[options.compression],
        )
        server.add_generic_rpc_handlers((_Dispatch(self._handlers),))
        try:
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, _credentials(tls.files))
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, str(error), address) from error
        return server, int(port)

    async def _start(self, server: Any) -> None:
        await server.start()
        self._servers.append(server)

    def leave(self) -> None:
        """From now on calls are refused and clients are told to go; calls in progress go on."""
        for server in self._servers:
            stopping = asyncio.ensure_future(server.stop(_LEAVE_S_MAX))
            self._leaving.add(stopping)
            stopping.add_done_callback(self._leaving.discard)

    async def close(self, timeout_s: float) -> None:
        """Stops accepting, lets calls finish for ``timeout_s`` seconds, then ends what is left."""
        await asyncio.gather(*[server.stop(timeout_s) for server in self._servers])
        for path in self._paths:
            path.unlink(missing_ok=True)


class _Dispatch(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)


def _credentials(files: PemFiles) -> Any:
    """What the library asks for a certificate at each handshake: files that changed are read."""
    seen = _read(files)

    def newest() -> Any:
        nonlocal seen
        try:
            now = _read(files)
        except OSError as error:
            _log.error("certificates were not read again, the former ones stay: %s", error)
            return None
        if now == seen:
            return None
        seen = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(seen), newest, require_client_authentication=files.client_ca is not None
    )


def _read(files: PemFiles) -> tuple[bytes, bytes, bytes | None]:
    ca = files.client_ca
    return (
        files.key.read_bytes(),
        files.certificate.read_bytes(),
        None if ca is None else ca.read_bytes(),
    )


def _configuration(read: tuple[bytes, bytes, bytes | None]) -> Any:
    key, certificate, ca = read
    return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)
