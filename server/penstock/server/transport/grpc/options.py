"""Everything that can be chosen about the gRPC port."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from penstock.server.transport.grpc.listener import GrpcLimits
from penstock.server.transport.tls import PemFiles

TRANSPORTS = ("own", "grpcio")


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """``port``: 0 is any free one, None is off. ``host`` is empty where the server's is meant."""

    port: int | None = 8001
    host: str = ""
    uds: Path | None = None
    uds_mode: int = 0o660
    tls: PemFiles | None = None
    transport: str = "own"
    limits: GrpcLimits = field(default_factory=GrpcLimits)
