"""gRPC methods that take one protobuf message and answer one, for all that does not run a model.

Knows protobuf's classes and the seam. Must not know what the methods do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.grpc_schema import METHODS
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer, Cancellable

REQUEST_BYTES_MAX = 16 * 1024**2
"""Of a request that runs no model; those that carry model files say so."""


def answering(path: str, answer: Callable[[Any], Any]) -> Method:
    """The method at ``path``: ``answer(request)`` is its reply, or raises a ``PenstockError``."""
    request_type = METHODS[path].request

    def unary(call: Call, head: object, message: Buffer) -> None:
        try:
            reply = answer(parsed(request_type, message))
            call.reply((reply.SerializeToString(),))
        except Exception as error:
            call.fail(failure(error))

    return Method(path, unary=unary, request_bytes_max=REQUEST_BYTES_MAX)


def awaiting(
    path: str, answer: Callable[[Any], Awaitable[Any]], request_bytes_max: int = REQUEST_BYTES_MAX
) -> Method:
    """As ``answering``, for what takes its time. A client that leaves does not stop it half-way."""
    request_type = METHODS[path].request

    async def run(call: Call, message: Buffer) -> None:
        try:
            reply = await answer(parsed(request_type, message))
            call.reply((reply.SerializeToString(),))
        except Exception as error:
            call.fail(failure(error))

    running: set[asyncio.Task[None]] = set()

    def unary(call: Call, head: object, message: Buffer) -> Cancellable | None:
        task = asyncio.get_running_loop().create_task(run(call, message))
        running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(running.discard)
        return None

    return Method(path, unary=unary, request_bytes_max=request_bytes_max)


def parsed(message_type: Any, message: Buffer) -> Any:
    """``message`` as one of ``message_type``.

    Raises:
        InferError: INVALID_ARGUMENT, it is not one.
    """
    try:
        return message_type.FromString(bytes(message))
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise InferError(Code.INVALID_ARGUMENT, f"not a {name}: {error}") from None
