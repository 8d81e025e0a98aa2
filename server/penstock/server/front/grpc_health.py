"""gRPC's health protocol: probes, and clients that balance load, ask it.

Knows the gateway's readiness. The empty service is the server as a whole; the name of a gRPC
service stands for that too, and the name of a model for the model.

Who watches is told of each change, a quarter of a second late at the most: states are compared by
one timer, which runs while somebody watches. When the server goes, watchers are told and left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.front.grpc_unary import REQUEST_BYTES_MAX, answering, parsed
from penstock.server.gateway import DRAINING, Gateway
from penstock.server.grpc_schema import HEALTH, METHODS
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer

CHECK: Final = f"/{HEALTH}/Check"
WATCH: Final = f"/{HEALTH}/Watch"
WATCHERS_MAX: Final = 1024
PERIOD_S: Final = 0.25

_REPLY: Final = METHODS[CHECK].reply
_SERVING: Final = int(_REPLY.SERVING)
_NOT_SERVING: Final = int(_REPLY.NOT_SERVING)
_SERVICE_UNKNOWN: Final = int(_REPLY.SERVICE_UNKNOWN)


class GrpcHealthFront:
    """``services`` are the gRPC services of this server, by full name."""

    def __init__(self, gateway: Gateway, services: Collection[str]) -> None:
        self._gateway = gateway
        self._services = frozenset(services)
        self._watchers: set[_Watcher] = set()
        self._timer: asyncio.TimerHandle | None = None

    def methods(self) -> list[Method]:
        return [
            answering(CHECK, self._check),
            Method(WATCH, stream=self._watch, request_bytes_max=REQUEST_BYTES_MAX),
        ]

    def status(self, service: str) -> int:
        """How ``service`` is now."""
        gateway = self._gateway
        if service == "" or service in self._services:
            ready = gateway.ready
        elif gateway.models.versions(service):
            ready = gateway.model_ready(service)
        else:
            return _SERVICE_UNKNOWN
        return _SERVING if ready else _NOT_SERVING

    def _check(self, request: Any) -> Any:
        status = self.status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise InferError(Code.NOT_FOUND, f"unknown service '{request.service}'")
        return _REPLY(status=status)

    def _watch(self, call: Call, head: object) -> _Watcher:
        return _Watcher(self, call)

    def add(self, watcher: _Watcher) -> None:
        """Tells ``watcher`` of changes from now on.

        Raises:
            InferError: RESOURCE_EXHAUSTED, too many watch.
        """
        if len(self._watchers) >= WATCHERS_MAX:
            raise InferError(Code.RESOURCE_EXHAUSTED, f"{WATCHERS_MAX} clients watch already")
        self._watchers.add(watcher)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def discard(self, watcher: _Watcher) -> None:
        self._watchers.discard(watcher)

    def _look(self) -> None:
        self._timer = None
        for watcher in tuple(self._watchers):
            watcher.tell()
        if self._gateway.draining:
            self.leave()
        if self._watchers:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def leave(self) -> None:
        """Ends all watching: the server goes."""
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.end()


class _Watcher:
    """One call of Watch; see ``grpc_seam.Stream``."""

    full = False

    def __init__(self, front: GrpcHealthFront, call: Call) -> None:
        self._front = front
        self._call = call
        self._service: str | None = None
        self._told = -1

    def received(self, message: Buffer) -> None:
        try:
            if self._service is not None:
                raise InferError(Code.INVALID_ARGUMENT, "Watch takes one message")
            self._service = parsed(METHODS[WATCH].request, message).service
            self._front.add(self)
        except Exception as error:
            self._front.discard(self)
            self._call.fail(failure(error))
            return
        self.tell()

    def tell(self) -> None:
        """Sends the status, if it is another one than before and the client keeps up."""
        status = self._front.status(self._service or "")
        if status != self._told and not self._call.congested:
            self._told = status
            self._call.send((_REPLY(status=status).SerializeToString(),))

    def end(self) -> None:
        self._call.fail(InferError(Code.UNAVAILABLE, DRAINING))

    def half_closed(self) -> None:
        if self._service is None:
            self._call.fail(InferError(Code.INVALID_ARGUMENT, "Watch takes one message"))

    def drained(self) -> None:
        self.tell()

    def cancel(self) -> None:
        self._front.discard(self)
