"""Puts the server together, runs it, and takes it down in order. The only builder beside
``repository``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock.server.front.doors import DoorOptions, Doors
from penstock.server.front.generate import GenerateFront
from penstock.server.front.graphpipe import GraphpipeFront
from penstock.server.front.grpc_service import GrpcService, GrpcServiceOptions
from penstock.server.front.http_options import HttpFrontOptions
from penstock.server.front.metrics import MetricsFront
from penstock.server.front.offload import Offload
from penstock.server.front.oip import OipFront
from penstock.server.front.oip_admin import OipAdminFront
from penstock.server.front.oip_repository import OipRepositoryFront
from penstock.server.front.oip_settings import OipSettingsFront
from penstock.server.front.oip_shared_memory import OipSharedMemoryFront
from penstock.server.front.openapi import OpenapiFront
from penstock.server.front.routes import Routes, refusal
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Methods
from penstock.server.log_settings import LogSettings
from penstock.server.model_control import ControlMode, ModelControl
from penstock.server.model_loading import LoadOptions
from penstock.server.models import ModelTable
from penstock.server.placement import usable_cores
from penstock.server.ports import GrpcPort, listening
from penstock.server.repository import Repository, RepositoryOptions
from penstock.server.repository_poll import RepositoryPoll
from penstock.server.shared_memory import SharedMemory
from penstock.server.trace_settings import TraceSettings
from penstock.server.tracing import Tracer
from penstock.server.transport.grpc.options import GrpcOptions
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener, HttpLimits
from penstock.server.transport.tls import Certificates, PemFiles

_log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 50e-6
"""How long a thread may hold the GIL while another waits for it. With Python's 5 ms a worker that
has its results waits for a busy loop."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything that can be chosen about a server. Ports: 0 is any free one, None is off."""

    model_repository: tuple[Path, ...]
    host: str = "127.0.0.1"
    http_port: int | None = 8000
    metrics_port: int | None = 8002
    uds: Path | None = None
    uds_mode: int = 0o660
    default_model: str = ""
    queue_jobs_max: int = 4096
    load_threads: int = 2
    shutdown_delay_s: float = 0.0
    """After SIGTERM: not ready, but still serving for so long, while load balancers notice."""
    exit_timeout_s: float = 30.0
    """After that: how long requests in progress may take to finish."""
    http: HttpLimits = field(default_factory=HttpLimits)
    http_front: HttpFrontOptions = field(default_factory=HttpFrontOptions)
    http_tls: PemFiles | None = None
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    grpc_service: GrpcServiceOptions = field(default_factory=GrpcServiceOptions)
    sagemaker_port: int | None = None
    """A further port with the routes of ``http_port``, where SageMaker and Vertex AI look."""
    doors: DoorOptions = field(default_factory=DoorOptions)
    allow_client_shm: bool = False
    """Whether clients on this machine may pass tensors in memory that they share."""
    trace: TraceSettings = field(default_factory=TraceSettings)
    """As the server starts; clients may change it, but for the file."""
    model_control_mode: ControlMode = ControlMode.NONE
    repository_poll_s: float = 15.0
    load_models: tuple[str, ...] = ()
    """Under explicit control: what is loaded at the start; ``*`` is every model."""
    model_load_retries: int = 0
    model_config_name: str = ""
    complete_configs: bool = True
    allow_code_upload: bool = False
    allow_code: frozenset[str] = frozenset()
    """Backends whose models may be programs."""
    require_checksums: bool = False
    strict_readiness: bool = False


def server_version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "0"


class App:
    """A server: ``start``, then ``stop``. Several may live in one process."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.models = ModelTable(options.default_model)
        self.tracer = Tracer(options.trace)
        self.logs = LogSettings()
        self.shared_memory = SharedMemory(options.allow_client_shm)
        self.offload = Offload()
        self.gateway = Gateway(self.models, self.tracer)
        self.gateway.ready_empty = options.model_control_mode is ControlMode.EXPLICIT
        self.gateway.ready_strict = options.strict_readiness
        self.http_port: int | None = None
        self.metrics_port: int | None = None
        tls = options.http_tls
        self._http_certificates = Certificates(tls, ("http/1.1",)) if tls else None
        self.sagemaker_port: int | None = None
        self._repository = Repository(
            RepositoryOptions(
                options.model_repository,
                options.load_threads,
                options.model_load_retries,
                options.model_config_name,
                LoadOptions(
                    usable_cores(),
                    options.queue_jobs_max,
                    options.complete_configs,
                    options.allow_code_upload,
                    options.allow_code,
                    options.require_checksums,
                ),
            ),
            self.models,
        )
        self.control = ModelControl(self._repository, self.models, options.model_control_mode)
        self._poll = RepositoryPoll(self._repository, options.repository_poll_s)
        self._polling: asyncio.Task[None] | None = None
        self.service = GrpcService(
            self.gateway,
            self.control,
            self.shared_memory,
            self.logs,
            server_version(),
            options.grpc_service,
            self.offload,
        )
        self.http_routes = self._routes()
        self._http = Http1Listener(self.http_routes.resolve, Http1Connection, options.http, refusal)
        self._metrics = Http1Listener(self._metrics_routes().resolve, Http1Connection, options.http)
        self.grpc = GrpcPort(options.grpc, self._grpc_methods(), _http_hint(options))

    def _routes(self) -> Routes:
        front = self.options.http_front
        routes = Routes(front.rules, front.cross_origin)
        name = f"penstock/{server_version()}"
        oip = OipFront(self.gateway, front.limits, self.shared_memory, front.forward, self.offload)
        oip.add_to(routes)
        GenerateFront(self.gateway, front.limits, front.forward, self.offload).add_to(routes)
        OipSharedMemoryFront(self.shared_memory).add_to(routes)
        OipAdminFront(self.gateway, server_version(), self.shared_memory.allowed).add_to(routes)
        OipRepositoryFront(self.control).add_to(routes)
        OipSettingsFront(self.gateway, self.tracer.book, self.logs).add_to(routes)
        self.doors = Doors(
            self.gateway, self.control, oip, server_version(), self.options.doors, front.limits,
            self.offload,
        )  # fmt: skip
        self.doors.add_to(routes)
        GraphpipeFront(self.gateway, name).add_to(routes)
        OpenapiFront(routes, server_version()).add_to(routes)
        return routes

    def _grpc_methods(self) -> Methods:
        return self.service.methods(self.doors.methods())

    def _metrics_routes(self) -> Routes:
        routes = Routes()
        MetricsFront(self.models, self._connections).add_to(routes)
        return routes

    def _connections(self) -> dict[str, int]:
        return {"http": self._http.connections, "grpc": self.grpc.connections}

    async def start(self) -> None:
        """Loads the models and listens. Health is served while models load.

        Raises:
            LayoutError: a model repository is not one.
            ListenError: a port or socket cannot be had.
        """
        options = self.options
        host = options.host
        try:
            if options.metrics_port is not None:
                with listening("metrics", f"{host}:{options.metrics_port}"):
                    self.metrics_port = await self._metrics.listen(host, options.metrics_port)
            if options.http_port is not None:
                with listening("http", f"{host}:{options.http_port}"):
                    self.http_port = await self._http.listen(
                        host, options.http_port, self._http_certificates
                    )
            if options.sagemaker_port is not None:
                with listening("sagemaker", f"{host}:{options.sagemaker_port}"):
                    self.sagemaker_port = await self._http.listen(host, options.sagemaker_port)
                _log.info("listening for hosting platforms on port %d", self.sagemaker_port)
            if options.uds is not None:
                with listening("uds", str(options.uds)):
                    await self._http.listen_unix(options.uds, options.uds_mode)
            await self.grpc.start(host)
            self.gateway.leaving = True
            await self._load_first()
            self.gateway.leaving = False
        except BaseException:
            await self._close_listeners(0)
            raise

    async def _load_first(self) -> None:
        options = self.options
        mode = options.model_control_mode
        names: Iterable[str] | None = None
        if mode is ControlMode.POLL:
            names = await self._repository.look()  # nothing that is being copied
        elif mode is ControlMode.EXPLICIT and "*" not in options.load_models:
            names = options.load_models
        await self._repository.load_all(names)
        if mode is ControlMode.POLL:
            self._polling = asyncio.create_task(self._poll.run(), name="repository poll")

    async def stop(self, *, at_once: bool = False) -> None:
        """Drains: not ready at once, refuses new work after the delay, answers what it accepted.

        ``at_once`` leaves out the delay, for a server that never was ready.
        """
        options = self.options
        self.gateway.leaving = True
        if options.shutdown_delay_s and not at_once:
            await asyncio.sleep(options.shutdown_delay_s)
        self.gateway.draining = True
        self.grpc.leave()
        self.service.drain()
        if self._polling is not None:
            self._polling.cancel()
        try:
            async with asyncio.timeout(options.exit_timeout_s):
                await self._repository.close()
        except TimeoutError:
            _log.error("requests still in progress after %g s are given up", options.exit_timeout_s)
        self.service.drain()  # Streams that were waiting for replies before.
        await self._close_listeners(min(5.0, options.exit_timeout_s))
        self.shared_memory.close()
        self.offload.close()
        await self.tracer.close()
        self.logs.remove()

    async def _close_listeners(self, timeout_s: float) -> None:
        await asyncio.gather(self._http.close(timeout_s), self.grpc.close(timeout_s))
        await self._metrics.close(0)

    def reload_certificates(self) -> None:
        """Reads the files of TLS again; where they are not right, the former ones stay."""
        self.grpc.reload()
        if self._http_certificates is not None:
            self._http_certificates.reload()


def _http_hint(options: ServeOptions) -> str:
    return f"; HTTP/1.1 is served on port {options.http_port}" if options.http_port else ""


async def serve(options: ServeOptions, on_ready: Callable[[App], None]) -> None:
    """Runs a server until SIGTERM or SIGINT; a second signal ends it at once.

    What ``on_ready`` raises ends it too, and is raised again once the server is down.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            _log.warning("second signal: ending at once")
            raise SystemExit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    app = App(options)
    loop.add_signal_handler(signal.SIGHUP, app.reload_certificates)
    starting = asyncio.ensure_future(app.start())
    interrupted = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        # What is loaded by now stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        try:
            on_ready(app)
        except BaseException:
            await app.stop(at_once=True)
            raise
        await interrupted
    else:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    _log.info("shutting down")
    await app.stop(at_once=starting.cancelled())


def run(options: ServeOptions, on_ready: Callable[[App], None]) -> None:
    """``serve`` on a fresh uvloop event loop."""
    import uvloop

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(serve(options, on_ready))
