"""What all connections of one gRPC port share: its limits, its methods, the memo of heads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from penstock.server.grpc_seam import Methods
from penstock.server.transport.grpc.connection import GrpcConnection
from penstock.server.transport.grpc.head import GrpcHead, HeadLimits, Heads
from penstock.server.transport.grpc.refusal import LEAVING, PlainRefusal, RefusedCall
from penstock.server.transport.grpc.streaming import StreamCall
from penstock.server.transport.grpc.unary import UnaryCall
from penstock.server.transport.http2.blocks import Fields
from penstock.server.transport.http2.control import Control
from penstock.server.transport.http2.stream import Stream
from penstock.server.transport.port import Port

_FIRST_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """Limits of one port; times in seconds, 0 of the ages means never."""

    connections_max: int = 2048
    streams_max: int = 4096
    """Calls in progress on one connection."""
    message_bytes_max: int = 2 * 1024**3
    bodies_bytes_max: int = 8 * 1024**3
    """Received and not yet answered, over all connections (messages that take several reads)."""
    header_list_bytes_max: int = 16 * 1024
    idle_timeout_s: int = 0
    """Without a call; then the client is asked to go."""
    read_timeout_s: int = 30
    """A message that has begun must make some progress in this time."""
    write_timeout_s: int = 60
    """A client must read some of its replies in this time."""
    linger_s: int = 2
    keepalive_time_s: int = 7200
    """Silence after which we ping the client."""
    keepalive_timeout_s: int = 20
    """Time for its answer."""
    keepalive_without_calls: bool = False
    ping_interval_s_min: int = 300
    """Pings of a client that come sooner, with nothing sent between them, are strikes."""
    ping_strikes_max: int = 2
    connection_age_s_max: int = 0
    connection_grace_s: int = 0
    """After that age: time for the calls in progress; 0 is for ever."""


def _at_once(callback: Callable[[], None]) -> None:
    callback()


class GrpcListener(Port):
    """One listening gRPC port (or unix socket), its connections, and the methods served there.

    ``http_hint`` tells those who speak HTTP/1.1 here where to go.
    """

    def __init__(
        self, methods: Methods, limits: GrpcLimits | None = None, http_hint: str = ""
    ) -> None:
        self.limits = limits = limits or GrpcLimits()
        super().__init__(limits)
        self.http_hint = http_hint
        self.first_scratch = self.scratch[:_FIRST_BYTES]
        """For the start of what comes: the rest of a large message then goes where it stays."""
        self.streams_max = limits.streams_max
        self.header_list_bytes_max = limits.header_list_bytes_max
        self.read_timeout_s = limits.read_timeout_s
        self.write_timeout_s = limits.write_timeout_s
        self.ping_interval_s_min = limits.ping_interval_s_min
        self.ping_strikes_max = limits.ping_strikes_max
        self.soon: Callable[[Callable[[], None]], object] = _at_once
        """Calls something at the end of this turn of the loop; at once while there is no loop."""
        heads = Heads(methods, HeadLimits(limits.message_bytes_max, limits.header_list_bytes_max))
        self._resolve = heads.resolve

    def connect(self) -> asyncio.BaseProtocol:
        return GrpcConnection(self)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._start(loop)
        self.soon = loop.call_soon

    def resolve(self, fields: Fields) -> Any:
        return self._resolve(fields)

    def make(self, connection: Control, number: int, entry: tuple[GrpcHead, int]) -> Stream:
        head, timeout_ns = entry
        if head.unary and not self.draining:
            return UnaryCall(connection, number, head, timeout_ns, self)
        if head.status:
            return PlainRefusal(connection, number, head)
        if head.refusal is not None:
            return RefusedCall(connection, number, head.refusal)
        if self.draining:
            return RefusedCall(connection, number, LEAVING)
        return StreamCall(connection, number, head, timeout_ns, self)

    def leave(self) -> None:
        """From now on calls are refused and clients are told to go; calls in progress go on."""
        self.draining = True
        self._drain()

    async def close(self, timeout_s: float) -> None:
        """As every port; streams that are still open are ended, for nobody serves them."""
        self.leave()
        for connection in tuple(self._connections):
            connection.end_streams()
        await super().close(timeout_s)
