"""The front doors beside the Open Inference Protocol and GraphPipe over HTTP, put together.

Each is a few files of its own; here is only what they share: version labels and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.server.front.graphpipe_grpc import GraphpipeGrpcFront
from penstock.server.front.invocations import InvocationsFront
from penstock.server.front.json_door import JsonDoor
from penstock.server.front.offload import Offload
from penstock.server.front.oip import OipFront
from penstock.server.front.predict import PredictFront
from penstock.server.front.predict_admin import PredictAdminFront
from penstock.server.front.routes import Routes
from penstock.server.front.sagemaker import SagemakerFront
from penstock.server.front.tfs_grpc import TfsGrpcFront
from penstock.server.front.tfs_grpc_models import TfsGrpcModelsFront
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Method
from penstock.server.model_control import ModelControl
from penstock.server.version_labels import VersionLabels


@dataclass(frozen=True, slots=True)
class DoorOptions:
    """``version_labels`` are versions by label by model; the routes are further paths of
    ``/invocations`` and ``/ping``, empty for none."""

    version_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    predict_route: str = ""
    health_route: str = ""


class Doors:
    """``oip`` answers the v2 requests that come through another door."""

    def __init__(
        self,
        gateway: Gateway,
        control: ModelControl,
        oip: OipFront,
        version: str,
        options: DoorOptions | None = None,
        limits: WireLimits = DEFAULT,
        offload: Offload | None = None,
    ) -> None:
        options = options or DoorOptions()
        labels = VersionLabels(gateway.models, options.version_labels)
        door = JsonDoor(gateway, limits, offload)
        invocations = InvocationsFront(
            gateway, door, oip, version, options.predict_route, options.health_route
        )
        self._http = (
            PredictFront(door, labels),
            PredictAdminFront(gateway, labels),
            invocations,
            SagemakerFront(gateway, control, invocations),
        )
        self._grpc = (
            TfsGrpcFront(gateway, labels),
            TfsGrpcModelsFront(gateway, labels),
            GraphpipeGrpcFront(gateway, f"penstock/{version}"),
        )

    def add_to(self, routes: Routes) -> None:
        for front in self._http:
            front.add_to(routes)

    def methods(self) -> list[Method]:
        return [method for front in self._grpc for method in front.methods()]
