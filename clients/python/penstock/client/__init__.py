"""Python clients of Penstock and of other GraphPipe and KServe v2 servers.

    from penstock.client import Client

    with Client("http://127.0.0.1:8000") as client:
        result = client.infer("digits", {"image": images})
        result["probabilities"]

``Client`` blocks and may be shared by threads; ``AsyncClient`` is for asyncio and the only part
that needs aiohttp, which is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.client.errors import (
    BadReply,
    ClientClosed,
    ConnectError,
    DeadlineExceeded,
    Unavailable,
)
from penstock.client.result import ModelStatus, Result
from penstock.client.retry import RetryPolicy
from penstock.client.sync import Client
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.message import ModelMetadata, OutputRequest, TensorSpec

if TYPE_CHECKING:
    from penstock.client.aio import AsyncClient

__all__ = [
    "AsyncClient",
    "BadReply",
    "Client",
    "ClientClosed",
    "Code",
    "ConnectError",
    "DeadlineExceeded",
    "InferError",
    "ModelMetadata",
    "ModelStatus",
    "OutputRequest",
    "PenstockError",
    "ProtocolError",
    "Result",
    "RetryPolicy",
    "TensorSpec",
    "Unavailable",
]


def __getattr__(name: str) -> object:
    if name == "AsyncClient":
        from penstock.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
