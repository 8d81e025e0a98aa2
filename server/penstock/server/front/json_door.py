"""What the front doors share whose requests and replies are JSON without types, or tables.

Knows content codings, limits, and that large texts are read and written on a thread, so that the
event loop is not held up. Must not know routes and which documents there are: a door hands in how
its body is read and how errors are told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns
from typing import NamedTuple

from penstock.protocol.errors import Code, PenstockError, ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import InferReply, InferRequest, TensorSpec
from penstock.protocol.predict_form import SignatureTable
from penstock.protocol.predict_json import PredictDecoder, encode_reply
from penstock.server.front.compression import decompress
from penstock.server.front.failure import failure
from penstock.server.front.offload import Offload
from penstock.server.front.oip_codecs import (
    INLINE_CODED_BYTES_MAX,
    INLINE_JSON_BYTES_MAX,
    is_large,
    packed,
)
from penstock.server.front.target import Target
from penstock.server.gateway import Gateway
from penstock.server.http_seam import JSON, Buffer, Cancellable, Responder
from penstock.server.job import Job

Inputs = tuple[TensorSpec, ...]
Refuse = Callable[[Responder, PenstockError | None], None]


class Readers(threading.local):
    """What reads bodies: a set for each thread that asks."""

    def __init__(self, limits: WireLimits) -> None:
        self.limits = limits
        self.predict = PredictDecoder(limits)
        self.signatures = SignatureTable()


Read = Callable[[Readers, Buffer, Inputs], InferRequest | None]
"""(readers, body, the model's inputs) to the request; None, it is not for this door after all."""


class Exchange(NamedTuple):
    """One request on its way. ``labels`` are those of the model's outputs; ``otherwise`` answers
    what is not for this door."""

    responder: Responder
    target: Target
    version: str
    refuse: Refuse
    otherwise: Callable[[], Cancellable | None] | None
    labels: Mapping[str, Sequence[str]]


class _Pending:
    """A request that is being read, and then a job."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Cancellable | None = None

    def cancel(self) -> None:
        if self.now is not None:
            self.now.cancel()


class JsonDoor:
    """Takes requests for the models of one gateway."""

    def __init__(
        self, gateway: Gateway, limits: WireLimits = DEFAULT, offload: Offload | None = None
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self._offload = offload or Offload()
        self._readers = Readers(limits)

    def infer(
        self,
        responder: Responder,
        target: Target,
        version: str,
        body: Buffer,
        read: Read,
        refuse: Refuse,
        otherwise: Callable[[], Cancellable | None] | None = None,
    ) -> Cancellable | None:
        """Answers the request in ``body`` for ``target.model``; gives what can be cancelled.

        Raises:
            PenstockError: it was not accepted, and not answered.
        """
        if target.fault:
            raise ProtocolError(target.fault)
        deadline_ns = monotonic_ns() + target.timeout_ns if target.timeout_ns else 0
        loaded = self._gateway.models.find(target.model, version)
        inputs, readers = loaded.metadata.inputs, self._readers
        exchange = Exchange(responder, target, version, refuse, otherwise, loaded.labels)
        if len(body) <= (INLINE_CODED_BYTES_MAX if target.coding else INLINE_JSON_BYTES_MAX):
            request = read(readers, self._plain(target, body), inputs)
            return self._submit(request, exchange, deadline_ns)
        pending = _Pending()

        def done(request: InferRequest | None, error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                pending.now = self._submit(request, exchange, deadline_ns)
            except Exception as fault:
                refuse(responder, failure(fault))

        pending.now = self._offload.run(
            lambda: read(readers, self._plain(target, body), inputs), done
        )
        return pending

    def _plain(self, target: Target, body: Buffer) -> Buffer:
        """The body as it was before it was encoded."""
        bytes_max = self._limits.json_bytes_max
        if target.coding:
            return decompress(body, target.coding, bytes_max)
        if len(body) > bytes_max:
            raise ProtocolError(
                f"request JSON size of {len(body)} bytes exceeds the maximum allowed input size of "
                f"{bytes_max} bytes. Use --http-max-input-size to increase the limit.",
                code=Code.OUT_OF_RANGE,
            )
        return body

    def _submit(
        self, request: InferRequest | None, exchange: Exchange, deadline_ns: int
    ) -> Cancellable | None:
        if request is None:
            return exchange.otherwise() if exchange.otherwise is not None else None
        request.model = exchange.target.model
        request.version = exchange.version
        return self._gateway.infer(request, self._done, exchange, deadline_ns)

    def _done(self, job: Job) -> None:
        exchange: Exchange = job.context
        reply = job.reply
        if reply is None:
            exchange.refuse(exchange.responder, job.error)
            return
        request = job.request
        if not is_large(reply):
            _answer(exchange, request, reply)
            return

        def written(answer: tuple[Buffer, bytes], error: Exception | None) -> None:
            _send(exchange, answer, error)

        coding = exchange.target.accepts
        self._offload.run(
            lambda: _written(request, reply, exchange.labels, coding, aside=True),
            written, owed=True,
        )  # fmt: skip


def _answer(exchange: Exchange, request: InferRequest, reply: InferReply) -> None:
    try:
        answer = _written(request, reply, exchange.labels, exchange.target.accepts)
    except Exception as error:
        exchange.refuse(exchange.responder, failure(error))
        return
    _send(exchange, answer, None)


def _written(
    request: InferRequest,
    reply: InferReply,
    labels: Mapping[str, Sequence[str]],
    coding: bytes,
    *,
    aside: bool = False,
) -> tuple[Buffer, bytes]:
    """The body and further header fields."""
    tensors = request.signature.tensors
    rows = tensors[0].shape[0] if tensors and tensors[0].shape else 1
    text = encode_reply(reply, request.signature.form, rows, labels)
    (body,), _, fields = packed([text], None, coding, aside=aside)
    return body, fields


def _send(exchange: Exchange, answer: tuple[Buffer, bytes], error: Exception | None) -> None:
    if error is not None:
        exchange.refuse(exchange.responder, failure(error))
        return
    body, fields = answer
    exchange.responder.reply(200, JSON, (body,), fields)
