"""What the two clients share: their settings, and a flow for each of their methods.

Knows: how the arguments of a client fit together. Must not know sockets or event loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from penstock.client import endpoint
from penstock.client.exchange import PROTOCOLS, Files
from penstock.client.flow import Flow, Flows
from penstock.client.request import DTypes, Inputs, Outputs, RequestBuilder, timeout_checked
from penstock.client.result import ModelStatus, Result
from penstock.client.retry import Retrier, RetryPolicy
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import ModelMetadata, Parameter

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")
Clock = Callable[[], float]

TIMEOUT_S: Final = 30.0
CONNECTIONS_MAX: Final = 64
REPLY_BYTES_MAX: Final = (1 << 31) - 1
"""GraphPipe frames end here: their offsets have 31 bits."""


class Core:
    """The settings of one client, checked.

    Raises:
        ValueError: an argument that cannot be meant; the message names it.
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: str,
        timeout: float,
        connections_max: int,
        retry: RetryPolicy | None,
        headers: Mapping[str, str] | None,
        ssl_context: ssl.SSLContext | None,
        limits: WireLimits | None,
        reply_bytes_max: int,
        clock: Clock = time.monotonic,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
        if connections_max < 1 or reply_bytes_max < 1:
            raise ValueError(
                f"connections_max {connections_max}, reply_bytes_max {reply_bytes_max}"
            )
        self.endpoint = endpoint.parse(url)
        if ssl_context is not None and not self.endpoint.tls:
            raise ValueError(f"ssl_context given for {url!r}, which is not https://")
        self.connections_max = connections_max
        self.reply_bytes_max = reply_bytes_max
        self.ssl_context = ssl_context
        self.exchange = PROTOCOLS[protocol](self.endpoint, headers or {}, limits or DEFAULT)
        self.clock = clock
        self._timeout_s = timeout_checked(timeout)
        self._requests = RequestBuilder()
        self._flows = Flows(self.exchange, Retrier(retry or RetryPolicy()), clock)

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Outputs | None,
        version: str,
        id: str,
        timeout: float | None,
        priority: int,
        parameters: Mapping[str, Parameter] | None,
        dtypes: DTypes | None,
    ) -> tuple[Flow[Result], float]:
        """The flow and its deadline, as from each of the methods below."""
        timeout_s = self._timeout_s if timeout is None else timeout_checked(timeout)
        request = self._requests.build(
            model,
            inputs,
            outputs=() if outputs is None else outputs,
            version=version,
            id=id,
            priority=priority,
            parameters=parameters,
            dtypes=dtypes,
            timeout_s=timeout_s,
        )
        deadline = self.clock() + timeout_s
        return self._flows.infer(request, deadline, all_outputs=outputs is None), deadline

    def metadata(
        self, model: str, version: str, timeout: float | None
    ) -> tuple[Flow[ModelMetadata], float]:
        deadline = self._deadline(timeout)
        return self._flows.metadata(model, version, deadline), deadline

    def models(self, timeout: float | None) -> tuple[Flow[tuple[ModelStatus, ...]], float]:
        deadline = self._deadline(timeout)
        return self._flows.models(deadline), deadline

    def load(
        self, model: str, config: str | None, files: Files | None, timeout: float | None
    ) -> tuple[Flow[None], float]:
        return self._flows.load(model, config, files or {}), self._deadline(timeout)

    def unload(self, model: str, timeout: float | None) -> tuple[Flow[None], float]:
        return self._flows.unload(model), self._deadline(timeout)

    def is_live(self, timeout: float | None) -> tuple[Flow[bool], float]:
        return self._flows.is_live(), self._deadline(timeout)

    def is_ready(
        self, model: str | None, version: str, timeout: float | None
    ) -> tuple[Flow[bool], float]:
        return self._flows.is_ready(model, version), self._deadline(timeout)

    def _deadline(self, timeout: float | None) -> float:
        return self.clock() + (self._timeout_s if timeout is None else timeout_checked(timeout))
