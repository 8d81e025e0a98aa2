"""SageMaker's multi-model endpoints: ``/models`` and below.

Knows SageMaker's words for loading and unloading. A model is loaded by its name out of the
repositories that the operator named; the ``url`` that SageMaker sends is remembered and told again,
not followed. The name is that in ``X-Amzn-SageMaker-Target-Model`` without ``.tar.gz``, or else
SageMaker's own (a hash), which stands for the model in paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from penstock.protocol.errors import Code, InferError
from penstock.protocol.json_values import Document
from penstock.server.front.failure import failure
from penstock.server.front.invocations import InvocationsFront, InvocationTarget, refuse
from penstock.server.front.operation import Schema, json_operation
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, Buffer, Cancellable, RequestHead, Responder
from penstock.server.model_control import ModelControl

MODELS_MAX: Final = 4096
"""Models loaded this way at a time."""

_OBJECT: Final[Schema] = {"type": "object"}
_LIST: Final = json_operation("model-repository", "The models that SageMaker loaded", _OBJECT)
_TELL: Final = json_operation(
    "model-repository", "A model that SageMaker loaded", _OBJECT, errors=(404,)
)
_LOAD: Final = json_operation(
    "model-repository", "Loads a model for SageMaker", _OBJECT,
    {"type": "object", "properties": {"model_name": {"type": "string"}, "url": {"type": "string"}}},
    (400, 409, 503), request_needed=True,
)  # fmt: skip
_UNLOAD: Final = json_operation(
    "model-repository", "Unloads a model for SageMaker", _OBJECT, errors=(404, 503)
)
_INVOKE: Final = json_operation(
    "inference", "Runs a model that SageMaker loaded", _OBJECT, _OBJECT, (400, 404, 415, 500, 503)
)


class _Load(msgspec.Struct, gc=False):
    model_name: str
    url: str = ""


class _Hosted(NamedTuple):
    model: str
    url: str


_load = Document(_Load)


class SagemakerFront:
    """What one server hosts for SageMaker."""

    def __init__(
        self, gateway: Gateway, control: ModelControl, invocations: InvocationsFront
    ) -> None:
        self._gateway = gateway
        self._control = control
        self._invocations = invocations
        self._hosted: dict[str, _Hosted] = {}
        self._running: set[asyncio.Task[None]] = set()

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/models", self._list, describe=_LIST)
        routes.add("POST", "/models", self._load, InvocationTarget, _LOAD)
        routes.add("GET", "/models/{model}", self._tell, _name, _TELL)
        routes.add("DELETE", "/models/{model}", self._unload, _name, _UNLOAD)
        routes.add("POST", "/models/{model}/invoke", self._invoke, InvocationTarget, _INVOKE)

    def _list(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        models = [
            {"modelName": name, "modelUrl": hosted.url}
            for name, hosted in self._hosted.items()
            if self._gateway.model_ready(hosted.model)
        ]
        responder.reply(200, JSON, (msgspec.json.encode({"models": models}),))

    def _tell(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        hosted = self._hosted.get(head.memo)
        if hosted is None:
            refuse(responder, _not_loaded(head.memo))
            return
        document = {"modelName": head.memo, "modelUrl": hosted.url}
        responder.reply(200, JSON, (msgspec.json.encode(document),))

    def _load(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        target: InvocationTarget = head.memo

        async def load() -> None:
            asked = _load.read(body)
            name = asked.model_name
            if name in self._hosted:
                raise InferError(Code.ALREADY_EXISTS, f"model '{name}' is loaded already")
            if len(self._hosted) >= MODELS_MAX:
                raise InferError(Code.RESOURCE_EXHAUSTED, f"{MODELS_MAX} models are loaded")
            hosted = self._hosted[name] = _Hosted(target.model or name, asked.url)
            try:
                await self._control.load(hosted.model)
            except BaseException:
                del self._hosted[name]
                raise

        self._start(load, responder)

    def _unload(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        name: str = head.memo

        async def unload() -> None:
            hosted = self._hosted.get(name)
            if hosted is None:
                raise _not_loaded(name)
            others = (h.model for n, h in self._hosted.items() if n != name)
            if hosted.model not in others:
                await self._control.unload(hosted.model, dependents=True)
            self._hosted.pop(name, None)

        self._start(unload, responder)

    def _invoke(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        target: InvocationTarget = head.memo
        hosted = self._hosted.get(target.path_model)
        if hosted is None:
            refuse(responder, _not_loaded(target.path_model))
            return None
        target.model = hosted.model
        return self._invocations.invoke(responder, head, body)

    def _start(self, work: Callable[[], Awaitable[None]], responder: Responder) -> None:
        """A client that leaves does not stop it half-way."""

        async def run() -> None:
            try:
                await work()
            except Exception as error:
                refuse(responder, failure(error))
            else:
                responder.reply(200, JSON, (b"{}",))

        task = asyncio.get_running_loop().create_task(run())
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)


def _name(head: RequestHead, captured: Mapping[str, str]) -> str:
    return captured["model"]


def _not_loaded(name: str) -> InferError:
    return InferError(Code.NOT_FOUND, f"model '{name}' is not loaded")
