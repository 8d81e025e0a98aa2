"""Shared memory over gRPC: registering regions of system memory and of GPUs, and their status."""

from __future__ import annotations

from typing import Any

from penstock.server.front.grpc_admin import PREFIX
from penstock.server.front.grpc_unary import answering
from penstock.server.grpc_schema import METHODS
from penstock.server.grpc_seam import Method
from penstock.server.shared_memory import CudaRegion, Kind, SharedMemory


class GrpcSharedMemoryFront:
    """The regions of one server."""

    def __init__(self, regions: SharedMemory) -> None:
        self._regions = regions

    def methods(self) -> list[Method]:
        made = [
            answering(PREFIX + "SystemSharedMemoryRegister", self._register_system),
            answering(PREFIX + "CudaSharedMemoryRegister", self._register_cuda),
        ]
        for kind, name in ((Kind.SYSTEM, "System"), (Kind.CUDA, "Cuda")):
            path = f"{PREFIX}{name}SharedMemory"
            made.append(answering(path + "Status", self._status(kind, path + "Status")))
            made.append(answering(path + "Unregister", self._unregister(kind, path + "Unregister")))
        return made

    def _register_system(self, request: Any) -> Any:
        self._regions.register_system(request.name, request.key, request.offset, request.byte_size)
        return METHODS[PREFIX + "SystemSharedMemoryRegister"].reply()

    def _register_cuda(self, request: Any) -> Any:
        self._regions.register_cuda(
            request.name, request.raw_handle, request.device_id, request.byte_size
        )
        return METHODS[PREFIX + "CudaSharedMemoryRegister"].reply()

    def _status(self, kind: Kind, path: str) -> Any:
        def status(request: Any) -> Any:
            reply = METHODS[path].reply()
            for region in self._regions.status(request.name, kind):
                told = reply.regions[region.name]
                told.name, told.byte_size = region.name, region.byte_size
                if isinstance(region, CudaRegion):
                    told.device_id = region.device_id
                else:
                    told.key, told.offset = region.key, region.offset
            return reply

        return status

    def _unregister(self, kind: Kind, path: str) -> Any:
        def unregister(request: Any) -> Any:
            self._regions.unregister(request.name, kind)
            return METHODS[path].reply()

        return unregister
