"""The course of a whole call: deadline, attempts, pauses, metadata that a call needs first.

Sans-IO: each flow is a generator that yields what has to be done and is sent the outcome. A client
drives it: a ``Call`` is to be exchanged with the server before the deadline (send what its ``read``
returns, throw what it raises), a number is a pause in seconds. So the two clients share every
decision. Must not know sockets or event loops; the clock is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar

from penstock.client.errors import ConnectError, DeadlineExceeded
from penstock.client.exchange import Call, Exchange, Files
from penstock.client.result import ModelStatus, Result
from penstock.client.retry import Retrier
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    ModelMetadata,
    OutputRequest,
    Signature,
    TensorSpec,
)

T = TypeVar("T")
Flow = Generator[Call[Any] | float, Any, T]
_METADATA_MAX: Final = 1024
_NAMES_AT_FAULT: Final = (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


class Flows:
    """The flows of one client; keeps its retry budget and the metadata it looked up.

    ``deadline`` is on the scale of ``clock``, in seconds.

    Some names are missing on the wire: v2 has no default input, GraphPipe replies do not name
    their outputs. They are filled in from the model's metadata, looked up once for each model and
    version, and then sent with the request: so the server checks them, and a model that was
    reloaded with other names can give an error but never a wrongly named result. After such an
    error the metadata is looked up again, and the call is repeated if it has changed.
    """

    __slots__ = ("_clock", "_exchange", "_metadata", "_retrier")

    def __init__(self, exchange: Exchange, retrier: Retrier, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._retrier = retrier
        self._clock = clock
        self._metadata: dict[tuple[str, str], ModelMetadata] = {}

    def infer(self, request: InferRequest, deadline: float, *, all_outputs: bool) -> Flow[Result]:
        """``all_outputs``: the caller wants all that the model declares, by name."""
        exchange = self._exchange
        if not (
            (exchange.names_inputs and any(not t.name for t in request.signature.tensors))
            or (all_outputs and not exchange.names_outputs)
        ):
            reply = yield from self._infer(request, deadline)
            return Result(reply, _names(request, reply))
        bare = request.signature
        known = self._metadata.get((request.model, request.version))
        metadata = known or (yield from self.metadata(request.model, request.version, deadline))
        try:
            request.signature = _filled(bare, metadata, exchange)
            reply = yield from self._infer(request, deadline)
        except InferError as error:
            if known is None or error.code not in _NAMES_AT_FAULT:
                raise
            metadata = yield from self.metadata(request.model, request.version, deadline)
            if metadata == known:
                raise
            request.signature = _filled(bare, metadata, exchange)
            reply = yield from self._infer(request, deadline)
        return Result(reply, _names(request, reply))

    def metadata(self, model: str, version: str, deadline: float) -> Flow[ModelMetadata]:
        found = yield from self._attempts(
            lambda _attempt, _left_s: self._exchange.metadata(model, version), deadline
        )
        if len(self._metadata) >= _METADATA_MAX:
            self._metadata.clear()
        self._metadata[model, version] = found
        return found

    def models(self, deadline: float) -> Flow[tuple[ModelStatus, ...]]:
        return self._attempts(lambda _attempt, _left_s: self._exchange.models(), deadline)

    def load(self, model: str, config: str | None, files: Files) -> Flow[None]:
        yield self._exchange.load(model, config, files)

    def unload(self, model: str) -> Flow[None]:
        yield self._exchange.unload(model)

    def is_live(self) -> Flow[bool]:
        return self._health(self._exchange.is_live())

    def is_ready(self, model: str | None, version: str) -> Flow[bool]:
        return self._health(self._exchange.is_ready(model, version))

    def _health(self, call: Call[bool]) -> Flow[bool]:
        """No retries: who asks for health wants to know how it is now."""
        try:
            return bool((yield call))
        except (DeadlineExceeded, ConnectError) as error:
            if error.code is Code.UNAUTHENTICATED:
                raise  # Somebody is there, but it is not the server.
            return False

    def _infer(self, request: InferRequest, deadline: float) -> Flow[InferReply]:
        def call(attempt: int, left_s: float) -> Call[InferReply]:
            # The first attempt keeps the round number, so that equal requests have equal heads.
            if attempt > 1:
                request.timeout_us = max(1, int(left_s * 1e6))
            return self._exchange.infer(request)

        return self._attempts(call, deadline)

    def _attempts(self, call: Callable[[int, float], Call[T]], deadline: float) -> Flow[T]:
        attempt = 0
        while True:
            attempt += 1
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise DeadlineExceeded(f"no time left for attempt {attempt}")
            try:
                result: T = yield call(attempt, left_s)
            except PenstockError as error:
                pause_s = self._retrier.pause_s(error, attempt, deadline - self._clock())
                if pause_s is None:
                    if attempt > 1:
                        error.add_note(f"after {attempt} attempts")
                    raise
            else:
                self._retrier.succeeded()
                return result
            yield pause_s


def _filled(bare: Signature, metadata: ModelMetadata, exchange: Exchange) -> Signature:
    """``bare`` with the names that the wire needs; kept in its memo as long as they hold."""
    owner, kept = bare.memo
    if owner is metadata:
        filled: Signature = kept
        return filled
    tensors, outputs = bare.tensors, bare.outputs
    if exchange.names_inputs and any(not spec.name for spec in tensors):
        if len(metadata.inputs) != 1 or len(tensors) != 1:
            names = [spec.name for spec in metadata.inputs]
            raise ValueError(f"model {metadata.name!r} has the inputs {names}: name the arrays")
        spec = tensors[0]
        tensors = (TensorSpec(metadata.inputs[0].name, spec.dtype, spec.shape),)
    if not exchange.names_outputs and not outputs and all(o.name for o in metadata.outputs):
        outputs = tuple(OutputRequest(spec.name) for spec in metadata.outputs)
    filled = Signature(tensors, outputs)
    bare.memo = (metadata, filled)
    return filled


def _names(request: InferRequest, reply: InferReply) -> Sequence[str]:
    """The reply's own names, else those asked for, else ``output_0``, ``output_1``..."""
    names = [spec.name for spec in reply.signature.tensors]
    if all(names):
        return names
    names = [output.name for output in request.signature.outputs]
    if len(names) == len(reply.arrays) and all(names):
        return names
    return [f"output_{i}" for i in range(len(reply.arrays))]
