"""GraphPipe over gRPC: ``graphpipe.GraphpipeService`` with ``Infer`` and ``Metadata``.

The messages are the bare tables: InferRequest and MetadataRequest are roots themselves, without the
Request that is around them over HTTP; replies are the same frames as there. Errors are gRPC's
status, or stand inside a frame where the client says that it reads them there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from penstock.protocol import graphpipe
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.server.front.failure import failure
from penstock.server.gateway import Gateway
from penstock.server.grpc_seam import Call, Method
from penstock.server.http_seam import Buffer, Cancellable
from penstock.server.job import Job

SERVICE: Final = "graphpipe.GraphpipeService"
MODEL_FIELD: Final = "model"
VERSION_FIELD: Final = "version"
"""Metadata of a call that name a model; the messages cannot. Without them: the default model."""
_REQUEST_BYTES_MAX: Final = 1 << 20


class GraphpipeGrpcFront:
    """``server`` is what metadata calls this server."""

    def __init__(self, gateway: Gateway, server: str, limits: WireLimits = DEFAULT) -> None:
        self._gateway = gateway
        self._server = server
        self._limits = limits
        self._decoder = graphpipe.RequestDecoder(limits, bare=True)
        self._encoder = graphpipe.ReplyEncoder()

    def methods(self) -> list[Method]:
        return [
            Method(f"/{SERVICE}/Infer", unary=self.infer),
            Method(f"/{SERVICE}/Metadata", self.metadata, request_bytes_max=_REQUEST_BYTES_MAX),
        ]

    def infer(self, call: Call, head: Any, data: Buffer) -> Cancellable | None:
        form: Any = graphpipe.LEGACY
        try:
            request = self._decoder.decode(data)
            if isinstance(request, graphpipe.MetadataRequest):
                raise InferError(Code.INTERNAL, "a bare frame cannot be a MetadataRequest")
            form = request.signature.form
            request.model, request.version = _target(head)
            return self._gateway.infer(request, self._done, call, call.deadline_ns)
        except Exception as error:
            _refuse(call, failure(error), form)
            return None

    def _done(self, job: Job) -> None:
        call: Call = job.context
        form = job.request.signature.form
        if job.reply is None:
            _refuse(call, job.error or InferError(Code.INTERNAL, "no reply"), form)
            return
        try:
            frame = self._encoder.encode(job.reply, form)
        except Exception as error:
            _refuse(call, failure(error), form)
            return
        call.reply(frame)

    def metadata(self, call: Call, head: Any, data: Buffer) -> None:
        try:
            form = graphpipe.decode_bare_metadata_request(data, self._limits).form
            known = self._gateway.models.find(*_target(head)).metadata
            named = replace(known, server=self._server)
            call.reply((graphpipe.encode_metadata(named, extended=form.extended),))
        except Exception as error:
            call.fail(failure(error))


def _target(head: Any) -> tuple[str, str]:
    """(model, version) as the call's metadata say, which are looked at once for equal heads."""
    if head.memo is None:
        fields = head.metadata
        head.memo = str(fields.get(MODEL_FIELD, "")), str(fields.get(VERSION_FIELD, ""))
    target: tuple[str, str] = head.memo
    return target


def _refuse(call: Call, error: PenstockError, form: Any) -> None:
    if form.error_frames:
        call.reply((graphpipe.encode_error(error),))
    else:
        call.fail(error)
