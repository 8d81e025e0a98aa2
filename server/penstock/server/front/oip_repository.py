"""The model repository extension over HTTP: the index, load and unload."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from penstock.protocol.errors import Code, InferError
from penstock.server.front.failure import failure
from penstock.server.front.json_endpoint import json_object
from penstock.server.front.load_request import decode_load
from penstock.server.front.oip import refuse
from penstock.server.front.oip_documents import index_document
from penstock.server.front.operation import json_operation
from penstock.server.front.routes import Routes
from penstock.server.http_seam import JSON, Buffer, Endpoint, RequestHead, Responder
from penstock.server.model_control import ModelControl

_API = "model-repository"


class OipRepositoryFront:
    """What clients may do to the repository of one server."""

    def __init__(self, control: ModelControl) -> None:
        self._control = control

    def add_to(self, routes: Routes) -> None:
        for base in ("/v2/repository", "/v2/repository/{repository}"):
            routes.add("POST", base + "/index", awaiting(self._index), _target, _INDEX)
            model = base + "/models/{model}"
            routes.add("POST", model + "/load", awaiting(self._load), _target, _LOAD)
            routes.add("POST", model + "/unload", awaiting(self._unload), _target, _UNLOAD)

    async def _index(self, head: RequestHead, body: Buffer) -> bytes:
        ready_only = json_object(body).get("ready", False)
        if not isinstance(ready_only, bool):
            raise InferError(Code.INVALID_ARGUMENT, "Invalid value for 'ready': expected a boolean")
        entries = await self._control.index(ready_only=ready_only)
        return msgspec.json.encode(index_document(entries))

    async def _load(self, head: RequestHead, body: Buffer) -> bytes:
        repository, model = head.memo
        request = await asyncio.to_thread(decode_load, body)
        del body  # Its files are decoded; they need not be kept twice while the model loads.
        await self._control.load(model, request.config, request.files, repository_name=repository)
        return b""

    async def _unload(self, head: RequestHead, body: Buffer) -> bytes:
        repository, model = head.memo
        parameters = json_object(body).get("parameters", {})
        if not isinstance(parameters, dict):
            raise InferError(Code.INVALID_ARGUMENT, "Unable to parse 'parameters': not an object")
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InferError(
                Code.INVALID_ARGUMENT, "Unable to parse 'unload_dependents': expected a boolean"
            )
        await self._control.unload(model, dependents, repository_name=repository)
        return b""


def awaiting(answer: Callable[[Any, Buffer], Awaitable[bytes]]) -> Endpoint:
    """An endpoint that answers the JSON that ``answer(head, body)`` gives, or what it raises."""

    async def run(responder: Responder, head: RequestHead, body: Buffer) -> None:
        try:
            made = await answer(head, body)
        except Exception as error:
            refuse(responder, failure(error))
        else:
            responder.reply(200, JSON, (made,))

    def endpoint(responder: Responder, head: RequestHead, body: Buffer) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(run(responder, head, body))

    return endpoint


def _target(head: RequestHead, captured: Mapping[str, str]) -> tuple[str, str]:
    return captured.get("repository", ""), captured.get("model", "")


_STRING = {"type": "string"}
_BOOLEAN = {"type": "boolean"}
_STATES = ("LOADING", "READY", "UNLOADING", "UNAVAILABLE")
_INDEX = json_operation(
    _API,
    "The models of the repository and their versions, with the reason where one does not serve",
    {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": _STRING,
                "version": _STRING,
                "state": {"type": "string", "enum": list(_STATES)},
                "reason": _STRING,
            },
        },
    },
    {"type": "object", "properties": {"ready": _BOOLEAN}},
    (400,),
)
_LOAD = json_operation(
    _API,
    "Loads a model, or loads it again where it changed",
    {},
    {
        "type": "object",
        "properties": {
            "parameters": {
                "type": "object",
                "properties": {"config": _STRING},
                "patternProperties": {"^file:": {"type": "string", "contentEncoding": "base64"}},
                "additionalProperties": False,
            }
        },
    },
    (400, 500, 501, 503),
    details="'config' is the model's configuration as JSON, 'file:<path>' a file of its directory.",
)
_UNLOAD = json_operation(
    _API,
    "Unloads every version of a model; requests that it accepted are answered",
    {},
    {
        "type": "object",
        "properties": {
            "parameters": {"type": "object", "properties": {"unload_dependents": _BOOLEAN}}
        },
    },
    (400, 501, 503),
)
