"""Endpoints that take a JSON object, or nothing, and answer a JSON document.

Knows the error form of the Open Inference Protocol. For everything that does not run a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.front.oip import refuse
from penstock.server.http_seam import JSON, Buffer, Endpoint, RequestHead, Responder


def answering(document: Callable[[Any, Buffer], object]) -> Endpoint:
    """An endpoint that answers ``document(head, body)``, or what it raises."""

    def endpoint(responder: Responder, head: RequestHead, body: Buffer) -> None:
        try:
            made = msgspec.json.encode(document(head, body))
        except Exception as error:
            refuse(responder, failure(error))
            return
        responder.reply(200, JSON, (made,))

    return endpoint


def json_object(body: Buffer) -> dict[str, Any]:
    """The object that ``body`` holds; an empty body is an empty object.

    Raises:
        InferError: INVALID_ARGUMENT, ``body`` is something else.
    """
    if not len(body):
        return {}
    try:
        given = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise InferError(Code.INVALID_ARGUMENT, f"not a JSON object: {error}") from None
    if not isinstance(given, dict):
        raise InferError(Code.INVALID_ARGUMENT, "not a JSON object")
    return given
