"""Replies of the Open Inference Protocol over HTTP, as a client reads them.

Knows: the keys of a reply and of an error. Knows nothing of HTTP and of how requests are written.

Contract: arrays are views into the body. Whatever the bytes, the outcome is a value or a
``PenstockError``.
"""

from __future__ import annotations

import msgspec

from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import NO_PARAMETERS, InferReply, Signature
from penstock.protocol.oip_json_body import BodyReader, json_end, specs_of
from penstock.protocol.oip_json_wire import check_text, reply_parser, scalars
from penstock.protocol.oip_tensor import Body


class _Error(msgspec.Struct):
    error: str


_error_decoder = msgspec.json.Decoder(_Error)


def decode_reply(body: Body, json_length: int | None, limits: WireLimits = DEFAULT) -> InferReply:
    """The reply in ``body``; ``json_length`` as for ``RequestDecoder.decode``."""
    end = json_end(body, json_length, limits)
    text = body if end == len(body) else memoryview(body)[:end]
    parsed, typed = reply_parser.parse(text, limits)
    specs = specs_of(parsed.outputs, "output", limits)
    reader = BodyReader(
        body, end, typed=typed, what="output", model=parsed.model_name, limits=limits
    )
    arrays = reader.arrays(parsed.outputs, specs)
    version, request_id = parsed.model_version or "", parsed.id or ""
    for value in (parsed.model_name, version, request_id):
        check_text(value, "model name, version or id", limits)
    return InferReply(
        Signature(specs),
        arrays,
        model=parsed.model_name,
        version=version,
        id=request_id,
        parameters=scalars(parsed.parameters, limits) if parsed.parameters else NO_PARAMETERS,
    )


def decode_error(body: Body) -> str | None:
    """The message of an error body, ``None`` if it is not one."""
    try:
        return _error_decoder.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
