"""The synchronous client.

Knows: driving a flow over pooled connections with blocking calls. Must not know the protocols.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from penstock.client.core import CONNECTIONS_MAX, REPLY_BYTES_MAX, TIMEOUT_S, Core
from penstock.client.errors import StaleConnection
from penstock.client.exchange import Call, Files, Reply
from penstock.client.flow import Flow
from penstock.client.http1 import Connection
from penstock.client.pool import Pool
from penstock.client.request import DTypes, Inputs, Outputs
from penstock.client.result import ModelStatus, Result
from penstock.client.retry import RetryPolicy
from penstock.client.stream import connect
from penstock.protocol.errors import PenstockError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import ModelMetadata, Parameter

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class Client:
    """A client of one server. Thread-safe: threads share its connections.

    ``url``: ``http://host[:port][/base]``, ``https://...`` or ``unix:/path/to.sock``.
    ``protocol``: ``graphpipe`` or ``v2`` (KServe v2, also spoken by Triton).
    ``timeout``: seconds for a whole call, with its retries and pauses; each call may name its own.
    It is also sent to the server, which drops a request that nobody waits for any more.
    ``connections_max``: more concurrent calls than this wait for a free connection.
    ``retry``: see ``RetryPolicy``. A call may reach the server more than once, which is harmless:
    inference has no side effects.
    ``headers``: sent with every request. ``ssl_context``: for ``https://``; by default the system's
    certificates are trusted. ``limits``, ``reply_bytes_max``: what is accepted of the server.

    Each method raises ``InferError`` (the server answered with an error; ``Unavailable`` and
    ``DeadlineExceeded`` are kinds of it), ``ConnectError``, ``BadReply``; for the caller's own
    mistakes ``ClientClosed``, ``ValueError`` and ``TypeError``.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: str = "graphpipe",
        timeout: float = TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limits: WireLimits | None = None,
        reply_bytes_max: int = REPLY_BYTES_MAX,
    ) -> None:
        self._core = core = Core(
            url,
            protocol=protocol,
            timeout=timeout,
            connections_max=connections_max,
            retry=retry,
            headers=headers,
            ssl_context=ssl_context,
            limits=limits,
            reply_bytes_max=reply_bytes_max,
        )
        if core.endpoint.tls and core.ssl_context is None:
            import ssl

            core.ssl_context = ssl.create_default_context()
        self._pool = Pool(
            lambda deadline: Connection(
                connect(core.endpoint, deadline, core.ssl_context), core.reply_bytes_max
            ),
            core.connections_max,
            core.clock,
        )

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        outputs: Outputs | None = None,
        version: str = "",
        id: str = "",
        timeout: float | None = None,
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        dtypes: DTypes | None = None,
    ) -> Result:
        """Run ``model`` on ``inputs``: arrays by name, or one array for the model's only input.

        An input is anything that ``numpy.asarray`` takes; a C-contiguous array is sent from where
        it lies. ``dtypes`` says by input what NumPy cannot (``"BF16"``) or what a list should be.
        ``outputs``: which, in which order; None: all that the model declares; ``()``: what the
        server gives unasked. ``model`` ``""`` is GraphPipe's default model, ``version`` ``""`` the
        server's choice; ``priority`` 0 the model's default, 1 the highest.
        """
        flow, deadline = self._core.infer(
            model, inputs, outputs, version, id, timeout, priority, parameters, dtypes
        )
        return self._drive(flow, deadline)

    def metadata(
        self, model: str = "", *, version: str = "", timeout: float | None = None
    ) -> ModelMetadata:
        """The inputs and outputs that ``model`` declares."""
        return self._drive(*self._core.metadata(model, version, timeout))

    def models(self, *, timeout: float | None = None) -> tuple[ModelStatus, ...]:
        """The models in the server's repository, loaded or not."""
        return self._drive(*self._core.models(timeout))

    def load(
        self,
        model: str,
        *,
        config: str | None = None,
        files: Files | None = None,
        timeout: float | None = None,
    ) -> None:
        """Have the server load ``model``, or load it again; it must be under explicit control.

        ``config``: a configuration as JSON instead of the one in the server's repository;
        ``files``: by path within the model's directory (``1/model.onnx``), instead of those there.
        Returns when the model serves. Never retried; what served before a failure still does.
        """
        return self._drive(*self._core.load(model, config, files, timeout))

    def unload(self, model: str, *, timeout: float | None = None) -> None:
        """Have the server unload every version of ``model``. Never retried."""
        return self._drive(*self._core.unload(model, timeout))

    def is_live(self, *, timeout: float | None = None) -> bool:
        """Whether the server runs; False also if it cannot be reached. Never retried."""
        return self._drive(*self._core.is_live(timeout))

    def is_ready(
        self, model: str | None = None, *, version: str = "", timeout: float | None = None
    ) -> bool:
        """Whether the server, or one model, takes requests; False also if it cannot be reached."""
        return self._drive(*self._core.is_ready(model, version, timeout))

    def close(self) -> None:
        """Close all connections. Calls under way in other threads end as they would have."""
        self._pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self._core.endpoint}>"

    def _drive(self, flow: Flow[T], deadline: float) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = None
                    if isinstance(step, Call):
                        outcome = step.read(self._exchanged(step, deadline))
                    else:
                        time.sleep(step)
                except PenstockError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _exchanged(self, call: Call[object], deadline: float) -> Reply:
        """One exchange; a connection that went stale in the pool is replaced, once."""
        connection = self._pool.acquire(deadline)
        try:
            return connection.exchange(call, deadline)
        except StaleConnection as stale:
            if not stale.used:
                raise
        finally:
            self._pool.release(connection)
        connection = self._pool.acquire(deadline, fresh=True)
        try:
            return connection.exchange(call, deadline)
        finally:
            self._pool.release(connection)
