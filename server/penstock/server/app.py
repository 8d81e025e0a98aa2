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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock.server.front.graphpipe import GraphpipeFront
from penstock.server.front.metrics import MetricsFront
from penstock.server.front.oip import OipFront
from penstock.server.front.oip_admin import OipAdminFront
from penstock.server.front.routes import Routes, refusal
from penstock.server.gateway import Gateway
from penstock.server.models import ModelTable
from penstock.server.placement import usable_cores
from penstock.server.repository import Repository, RepositoryOptions
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener, HttpLimits

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


class ListenError(OSError):
    """An address cannot be had: ``what`` is "http", "metrics" or "uds", ``where`` the address."""

    def __init__(self, what: str, where: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.what = what
        self.where = where


@contextlib.contextmanager
def _listening(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ListenError(what, where, error) from error


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
        self.gateway = Gateway(self.models)
        self.http_port: int | None = None
        self.metrics_port: int | None = None
        self._repository = Repository(
            RepositoryOptions(
                options.model_repository,
                options.load_threads,
                usable_cores(),
                options.queue_jobs_max,
            ),
            self.models,
        )
        self._http = Http1Listener(self._routes().resolve, Http1Connection, options.http, refusal)
        self._metrics = Http1Listener(self._metrics_routes().resolve, Http1Connection, options.http)

    def _routes(self) -> Routes:
        routes = Routes()
        name = f"penstock/{server_version()}"
        OipFront(self.gateway).add_to(routes)
        OipAdminFront(self.gateway, server_version()).add_to(routes)
        GraphpipeFront(self.gateway, name).add_to(routes)
        return routes

    def _metrics_routes(self) -> Routes:
        routes = Routes()
        MetricsFront(self.models, lambda: self._http.connections).add_to(routes)
        return routes

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
                with _listening("metrics", f"{host}:{options.metrics_port}"):
                    self.metrics_port = await self._metrics.listen(host, options.metrics_port)
            if options.http_port is not None:
                with _listening("http", f"{host}:{options.http_port}"):
                    self.http_port = await self._http.listen(host, options.http_port)
            if options.uds is not None:
                with _listening("uds", str(options.uds)):
                    await self._http.listen_unix(options.uds, options.uds_mode)
            self.gateway.leaving = True
            await self._repository.load_all()
            self.gateway.leaving = False
        except BaseException:
            await self._close_listeners(0)
            raise

    async def stop(self, *, at_once: bool = False) -> None:
        """Drains: not ready at once, refuses new work after the delay, answers what it accepted.

        ``at_once`` leaves out the delay, for a server that never was ready.
        """
        options = self.options
        self.gateway.leaving = True
        if options.shutdown_delay_s and not at_once:
            await asyncio.sleep(options.shutdown_delay_s)
        self.gateway.draining = True
        try:
            async with asyncio.timeout(options.exit_timeout_s):
                await self._repository.close()
        except TimeoutError:
            _log.error("requests still in progress after %g s are given up", options.exit_timeout_s)
        await self._close_listeners(min(5.0, options.exit_timeout_s))

    async def _close_listeners(self, timeout_s: float) -> None:
        await self._http.close(timeout_s)
        await self._metrics.close(0)


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
