"""GraphPipe over HTTP: frames in, frames out (SPEC.md §3, §9).

Knows the codec and its routes. Errors go as the status and text that every deployed client notices,
or inside a frame where the client asked for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from penstock.protocol import graphpipe
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import ModelMetadata
from penstock.server.front.failure import failure
from penstock.server.front.operation import BINARY, Operation, json_operation, ref
from penstock.server.front.routes import Routes
from penstock.server.gateway import Gateway
from penstock.server.http_seam import (
    JSON,
    TEXT,
    Buffer,
    Cancellable,
    RequestHead,
    Responder,
)
from penstock.server.job import Job

GRAPHPIPE: Final = "application/x-graphpipe"

_NAMED: Final = (400, 404, 503)
_INFER: Final = Operation(
    "inference",
    "GraphPipe: runs a model, or tells of it",
    {GRAPHPIPE: BINARY},
    {GRAPHPIPE: BINARY},
    (400, 404, 413, 500, 501, 503, 504),
    details="A GraphPipe frame in, a GraphPipe frame out.",
)
_DESCRIBE: Final = json_operation(
    "metadata", "The model, its inputs and outputs", ref("GraphpipeMetadata"), errors=_NAMED
)
_TOLD: Final = {"text/plain": {"type": "string"}}
_READY: Final = Operation("health", "Whether the server should get requests", _TOLD, errors=(503,))
_ALIVE: Final = Operation("health", "Whether the server runs", _TOLD)


class GraphpipeFront:
    """The GraphPipe endpoints of one gateway. ``server`` is what metadata calls this server."""

    def __init__(self, gateway: Gateway, server: str, limits: WireLimits = DEFAULT) -> None:
        self._gateway = gateway
        self._server = server
        self._decoder = graphpipe.RequestDecoder(limits)
        self._encoder = graphpipe.ReplyEncoder()

    def add_to(self, routes: Routes) -> None:
        for path in ("/", "/graphpipe", "/graphpipe/{model}", "/graphpipe/{model}/{version}"):
            # Legacy clients POST; the reference server takes any method but GET.
            routes.add("POST", path, self.infer, _target, _INFER)
            routes.add("PUT", path, self.infer, _target, _INFER)
            describe = self.describe if path != "/" else self.describe_root
            routes.add("GET", path, describe, _target, _DESCRIBE)
        routes.add("GET", "/control/is_ready", self.is_ready, describe=_READY)
        routes.add("GET", "/control/is_alive", self.is_alive, describe=_ALIVE)

    def infer(self, responder: Responder, head: RequestHead, body: Buffer) -> Cancellable | None:
        form: Any = graphpipe.LEGACY
        try:
            request = self._decoder.decode(body)
            model, version = head.memo
            if isinstance(request, graphpipe.MetadataRequest):
                form = request.form
                metadata = self._metadata(model, version)
                frame = graphpipe.encode_metadata(metadata, extended=form.extended)
                responder.reply(200, GRAPHPIPE, (frame,))
                return None
            form = request.signature.form
            request.model = model
            request.version = version
            return self._gateway.infer(request, self._done, responder)
        except Exception as error:
            _refuse(responder, failure(error), form)
            return None

    def _done(self, job: Job) -> None:
        reply = job.reply
        form = job.request.signature.form
        if reply is None:
            _refuse(job.context, job.error or InferError(Code.INTERNAL, "no reply"), form)
            return
        try:
            frame = self._encoder.encode(reply, form)
        except Exception as error:
            _refuse(job.context, failure(error), form)
            return
        job.context.reply(200, GRAPHPIPE, frame)

    def describe(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        try:
            metadata = self._metadata(*head.memo)
        except InferError as error:
            _refuse(responder, error, graphpipe.LEGACY)
            return
        _tell(responder, graphpipe.metadata_json(metadata))

    def describe_root(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        """As ``describe``, with what KServe's v1 clients take for life; also if nothing serves."""
        try:
            known = graphpipe.metadata_json(self._metadata("", ""))
        except InferError:
            known = {}
        _tell(responder, {"status": "alive", **known})

    def _metadata(self, model: str, version: str) -> ModelMetadata:
        return replace(self._gateway.models.find(model, version).metadata, server=self._server)

    def is_ready(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        _say(responder, self._gateway.ready, "not ready")

    def is_alive(self, responder: Responder, head: RequestHead, body: Buffer) -> None:
        _say(responder, True, "not alive")


def _target(head: RequestHead, captured: Mapping[str, str]) -> tuple[str, str]:
    return captured.get("model", ""), captured.get("version", "")


def _tell(responder: Responder, document: Mapping[str, object]) -> None:
    text = msgspec.json.format(msgspec.json.encode(document), indent=4)
    responder.reply(200, JSON, (text + b"\n",))


def _say(responder: Responder, good: bool, otherwise: str) -> None:
    if good:
        responder.reply(200, TEXT, (b"ok\n",))
    else:
        responder.reply(503, TEXT, (otherwise.encode() + b"\n",))


def _refuse(responder: Responder, error: PenstockError, form: Any) -> None:
    field = b"Penstock-Code: %b\r\n" % error.code.name.encode()
    if form.error_frames:
        responder.reply(200, GRAPHPIPE, (graphpipe.encode_error(error),), field)
        return
    if error.code.retryable:
        field += b"Retry-After: 1\r\n"
    text = error.message.encode("utf-8", "replace") + b"\n"
    responder.reply(error.code.http_status, TEXT, (text,), field, error.message)
