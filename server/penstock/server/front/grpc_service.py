"""All of Triton's gRPC service, with health and reflection, put together.

Each part is a file of its own; here is only what they share, and what other services a server has.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf import any_pb2, wrappers_pb2

from penstock.protocol.oip_region import NO_REGIONS
from penstock.server import grpc_schema, tfs_schema
from penstock.server.front.graphpipe_grpc import SERVICE as GRAPHPIPE
from penstock.server.front.grpc_admin import GrpcAdminFront
from penstock.server.front.grpc_health import GrpcHealthFront
from penstock.server.front.grpc_methods import table
from penstock.server.front.grpc_oip import GrpcOipFront
from penstock.server.front.grpc_reflection import Described, GrpcReflectionFront
from penstock.server.front.grpc_repository import GrpcRepositoryFront
from penstock.server.front.grpc_settings import GrpcSettingsFront
from penstock.server.front.grpc_shared_memory import GrpcSharedMemoryFront
from penstock.server.front.offload import Offload
from penstock.server.front.oip_documents import extensions
from penstock.server.front.restriction import Rules
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Method, Methods
from penstock.server.log_settings import LogSettings
from penstock.server.model_config_schema import POOL
from penstock.server.model_control import ModelControl
from penstock.server.shared_memory import SharedMemory
from penstock.server.tfs_schema.descriptor import FILES as TFS_FILES

_TFS_SERVICES = (tfs_schema.PREDICTION, tfs_schema.MODEL)


@dataclass(frozen=True, slots=True)
class GrpcServiceOptions:
    """``rules`` restrict groups of methods; ``forward`` is ``GrpcOipFront``'s."""

    rules: Rules = field(default_factory=dict)
    forward: re.Pattern[str] | None = None


class GrpcService:
    """What a server offers over gRPC besides ``others``."""

    def __init__(
        self,
        gateway: Gateway,
        control: ModelControl,
        regions: SharedMemory,
        logs: LogSettings,
        version: str,
        options: GrpcServiceOptions | None = None,
        offload: Offload | None = None,
    ) -> None:
        self._options = options or GrpcServiceOptions()
        forward = self._options.forward
        usable = regions if regions.allowed else NO_REGIONS
        self._infer = GrpcOipFront(gateway, regions=usable, forward=forward, offload=offload)
        self._health = GrpcHealthFront(gateway, (*grpc_schema.SERVICES, *_TFS_SERVICES, GRAPHPIPE))
        self._fronts = (
            self._infer,
            self._health,
            GrpcAdminFront(gateway, version, extensions(regions.allowed)),
            GrpcRepositoryFront(control),
            GrpcSettingsFront(gateway, gateway.tracer.book, logs),
            GrpcSharedMemoryFront(regions),
            GrpcReflectionFront(_described()),
        )

    def methods(self, others: Sequence[Method] = ()) -> Methods:
        """Every method by path."""
        own = [method for front in self._fronts for method in front.methods()]
        return table([*own, *others], self._options.rules)

    def drain(self) -> None:
        """Ends the calls that would never end by themselves: the server goes."""
        self._infer.drain()
        self._health.leave()


def _described() -> list[Described]:
    """GraphPipe's messages are not protobuf's, so reflection has nothing to tell of them."""
    tfs = {name: base64.b64decode(text) for name, text in TFS_FILES.items()}
    for file in (any_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR):
        tfs[file.name] = file.serialized_pb
    return [
        Described(grpc_schema.SERVICES, POOL, grpc_schema.FILES),
        Described(_TFS_SERVICES, tfs_schema.POOL, tfs),
    ]
