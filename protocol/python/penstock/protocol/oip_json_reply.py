"""Replies of the Open Inference Protocol over HTTP, as a client reads them.

Knows: the keys of a reply and of an error. Knows nothing of HTTP and of how requests are written.

Contract: arrays are views into the body. Whatever the bytes, the outcome is a value or a
``PenstockError``.
"""

from __future__ import annotations

import msgspec
import numpy as np

from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import NO_PARAMETERS, InferReply, Signature
from penstock.protocol.oip_json_body import BodyReader, json_end, specs_of
from penstock.protocol.oip_json_memo import PLAN_JSON_BYTES_MAX, Plans, arrays_at
from penstock.protocol.oip_json_wire import check_text, reply_parser, scalars
from penstock.protocol.oip_tensor import Body


class _Error(msgspec.Struct):
    error: str


_error_decoder = msgspec.json.Decoder(_Error)


class ReplyDecoder:
    """Decodes reply bodies; used from one thread. Remembers texts as ``oip_json_memo`` says."""

    def __init__(self, limits: WireLimits = DEFAULT) -> None:
        self._limits = limits
        self._plans = Plans()
        self._find = self._plans.table.get

    def decode(self, body: Body, json_length: int | None) -> InferReply:
        """The reply in ``body``; the arguments are those of ``RequestDecoder.decode``."""
        if json_length is None or not 0 < json_length <= PLAN_JSON_BYTES_MAX:
            return _decode_new(body, json_length, self._limits, None)
        text = bytes(body[:json_length])
        length = len(text)
        plan = self._find(text)
        if plan is None or length != json_length or len(body) != length + plan.binary_bytes:
            return _decode_new(body, json_length, self._limits, self._plans)
        signature, _, views, _, extras = plan
        if views is None:
            arrays = arrays_at(plan, body, length, "output", extras[0])
        else:
            arrays = [np.ndarray(s, d, body, length + offset) for s, d, offset in views]
        reply = InferReply(signature, arrays)
        reply.model, reply.version, reply.id, reply.parameters = extras
        return reply


def decode_reply(body: Body, json_length: int | None, limits: WireLimits = DEFAULT) -> InferReply:
    """``ReplyDecoder`` for a single reply."""
    return _decode_new(body, json_length, limits, None)


def _decode_new(
    body: Body, json_length: int | None, limits: WireLimits, plans: Plans | None
) -> InferReply:
    end = json_end(body, json_length, limits)
    text = bytes(body[:end])
    parsed, typed = reply_parser.parse(text, limits)
    specs = specs_of(parsed.outputs, "output", limits)
    model, version, request_id = parsed.model_name, parsed.model_version or "", parsed.id or ""
    for value in (model, version, request_id):
        check_text(value, "model name, version or id", limits)
    parameters = scalars(parsed.parameters, limits) if parsed.parameters else NO_PARAMETERS
    reader = BodyReader(body, end, typed=typed, what="output", model=model, limits=limits)
    signature = Signature(specs)
    arrays = reader.arrays(parsed.outputs, specs)
    if plans is not None and len(reader.places) == len(specs) and plans.wants(text):
        plans.add(text, signature, reader.places, (model, version, request_id, parameters))
    return InferReply(
        signature, arrays, model=model, version=version, id=request_id, parameters=parameters
    )


def decode_error(body: Body) -> str | None:
    """The message of an error body, ``None`` if it is not one."""
    try:
        return _error_decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
