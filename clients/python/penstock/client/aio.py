"""The asynchronous client, over aiohttp.

Knows: driving a flow with an ``aiohttp.ClientSession``. Must not know the protocols.

aiohttp brings connections, TLS and parsing for asyncio and uvloop alike. It is asked for as little
as possible: no cookies, redirects, decompression, proxies from the environment or headers of its
own. Bodies are received into aligned memory as in the synchronous client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
from yarl import URL

from penstock.client.core import CONNECTIONS_MAX, REPLY_BYTES_MAX, TIMEOUT_S, Core
from penstock.client.errors import (
    BadReply,
    ClientClosed,
    ConnectError,
    DeadlineExceeded,
    StaleConnection,
)
from penstock.client.exchange import JSON_LENGTH, Call, Files, Reply, json_length_of
from penstock.client.flow import Flow
from penstock.client.memory import Growing
from penstock.client.request import DTypes, Inputs, Outputs
from penstock.client.result import ModelStatus, Result
from penstock.client.retry import RetryPolicy
from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.errors import Code, PenstockError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import ModelMetadata, Parameter

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")
_HEAD_LINE_BYTES_MAX: Final = 8190
_JOIN_MAX: Final = 64 << 10
_PIECE: Final = 1 << 20
_IDLE_S_MAX: Final = 50.0
_URLS_MAX: Final = 1024


class AsyncClient:
    """``Client`` for asyncio: same arguments, same methods (awaited), same errors.

    Use it in one event loop. Cancelling a call closes its connection, so that the server notices
    and stops. ``async with`` or ``await close()`` ends it.
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
        self._core = Core(
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
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._closed = False

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        outputs: Outputs | None = None,
        version: str = "",
        id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it is also told to the server
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        dtypes: DTypes | None = None,
    ) -> Result:
        """As ``Client.infer``. The arrays must not change before the call has ended."""
        flow, deadline = self._core.infer(
            model, inputs, outputs, version, id, timeout, priority, parameters, dtypes
        )
        return await self._drive(flow, deadline)

    async def metadata(
        self,
        model: str = "",
        *,
        version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> ModelMetadata:
        """As ``Client.metadata``."""
        return await self._drive(*self._core.metadata(model, version, timeout))

    async def models(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> tuple[ModelStatus, ...]:
        """As ``Client.models``."""
        return await self._drive(*self._core.models(timeout))

    async def load(
        self,
        model: str,
        *,
        config: str | None = None,
        files: Files | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        """As ``Client.load``."""
        return await self._drive(*self._core.load(model, config, files, timeout))

    async def unload(self, model: str, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As ``Client.unload``."""
        return await self._drive(*self._core.unload(model, timeout))

    async def is_live(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """As ``Client.is_live``."""
        return await self._drive(*self._core.is_live(timeout))

    async def is_ready(
        self,
        model: str | None = None,
        *,
        version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bool:
        """As ``Client.is_ready``."""
        return await self._drive(*self._core.is_ready(model, version, timeout))

    async def close(self) -> None:
        """Close all connections; calls under way fail with ``ConnectError``."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient {self._core.endpoint}>"

    async def _drive(self, flow: Flow[T], deadline: float) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = None
                    if isinstance(step, Call):
                        outcome = step.read(await self._exchanged(step, deadline))
                    else:
                        await asyncio.sleep(step)
                except PenstockError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _exchanged(self, call: Call[object], deadline: float) -> Reply:
        """One exchange; if the connection went stale in aiohttp's pool, another one, once."""
        try:
            async with asyncio.timeout(max(0.0, deadline - self._core.clock())):
                try:
                    return await self._exchange(call)
                except StaleConnection as stale:
                    if not stale.used:
                        raise
                return await self._exchange(call)
        except TimeoutError as error:
            if isinstance(error, PenstockError):
                raise
            raise DeadlineExceeded("the time was over while waiting for the reply") from None

    async def _exchange(self, call: Call[object]) -> Reply:
        session = self._opened()
        trace = SimpleNamespace(reused=False)
        headers = {}
        if call.route.content_type:
            headers["Content-Type"] = call.route.content_type
        if call.json_length is not None:
            headers[JSON_LENGTH] = str(call.json_length)
        started = False
        try:
            async with session.request(
                call.route.method,
                self._url(call.route.target),
                data=_body(call, headers),
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=trace,
            ) as response:
                started = True
                headers_got = {name.lower(): value for name, value in response.headers.items()}
                body = await self._received(response, json_length_of(headers_got) or 0)
                return Reply(response.status, headers_got, body)
        except aiohttp.ClientError as error:
            raise _translated(error, started=started, reused=trace.reused) from error
        except OSError as error:
            if isinstance(error, PenstockError | TimeoutError):
                raise
            raise ConnectError(f"connection lost: {error}") from error

    async def _received(self, response: aiohttp.ClientResponse, lead: int) -> memoryview:
        limit = self._core.reply_bytes_max
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise BadReply("the body has a content encoding that was not asked for")
        size = response.content_length
        if size is not None and size <= limit:
            body, filled = aligned_bytes(size, lead).data, 0
            async for piece in response.content.iter_any():
                body[filled : filled + len(piece)] = piece
                filled += len(piece)
            return body
        grown = Growing()
        while size is None:
            piece = await response.content.readany()
            if not piece:
                return grown.done()
            if grown.filled + len(piece) > limit:
                break
            grown.append(piece)
        raise BadReply(f"body of more than {limit} bytes", Code.OUT_OF_RANGE)

    def _url(self, target: str) -> URL:
        """The URL as aiohttp wants it; ``target`` is quoted already and goes out as it is."""
        url = self._urls.get(target)
        if url is None:
            if len(self._urls) >= _URLS_MAX:
                self._urls.clear()
            where = self._core.endpoint
            scheme = "https" if where.tls else "http"
            url = URL(f"{scheme}://{where.authority}{target}", encoded=True)
            self._urls[target] = url
        return url

    def _opened(self) -> aiohttp.ClientSession:
        """The session: made at the first call, because it needs the running loop."""
        if self._closed:
            raise ClientClosed("the client is closed")
        if self._session is None:
            self._session = _session(self._core)
        return self._session


def _session(core: Core) -> aiohttp.ClientSession:
    where = core.endpoint
    connector: aiohttp.BaseConnector
    if where.unix:
        connector = aiohttp.UnixConnector(
            path=where.unix, limit=core.connections_max, keepalive_timeout=_IDLE_S_MAX
        )
    else:
        connector = aiohttp.TCPConnector(
            limit=core.connections_max,
            keepalive_timeout=_IDLE_S_MAX,
            ssl=True if core.ssl_context is None else core.ssl_context,
        )
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=connector,
        headers={"Accept-Encoding": "identity", **core.exchange.headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Content-Type", "User-Agent"),
        max_line_size=_HEAD_LINE_BYTES_MAX,
        max_field_size=_HEAD_LINE_BYTES_MAX,
        trace_configs=[trace],
    )


async def _note_reuse(
    _session: aiohttp.ClientSession, context: Any, _params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


def _body(call: Call[object], headers: dict[str, str]) -> Any:
    """Small bodies joined; large ones as they lie, in pieces that the transport can pace."""
    if not call.buffers:
        return None
    if call.length <= _JOIN_MAX:
        return b"".join(call.buffers)
    headers["Content-Length"] = str(call.length)
    return _pieces(call)


async def _pieces(call: Call[object]) -> AsyncIterator[memoryview]:
    for buffer in call.buffers:
        view = memoryview(buffer)
        if view.nbytes:
            view = view.cast("B")
            for at in range(0, len(view), _PIECE):
                yield view[at : at + _PIECE]


def _translated(error: aiohttp.ClientError, *, started: bool, reused: bool) -> PenstockError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return ConnectError(str(error), Code.UNAUTHENTICATED)
    if isinstance(error, aiohttp.ClientConnectorError):
        return ConnectError(f"cannot connect: {error}")
    if isinstance(error, aiohttp.ClientResponseError):
        return BadReply(f"not an HTTP/1.1 reply: {error.message}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return ConnectError(f"connection lost within the reply: {error}")
    if not started:
        return StaleConnection(f"connection lost before the reply: {error}", used=reused)
    return ConnectError(f"connection lost within the reply: {error}")
