"""Replies of the Open Inference Protocol over gRPC, as a client reads them.

Knows: ``ModelInferResponse`` and, around it, ``ModelStreamInferResponse``. Knows nothing of gRPC's
framing and of how requests are written.

Contract: as ``oip_proto_read``: arrays are views into the message; whatever the bytes, the outcome
is a value or a ``PenstockError``.
"""

from __future__ import annotations

from collections import deque
from typing import NoReturn

from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import (
    InferReply,
    RegionRef,
    Regions,
    Signature,
)
from penstock.protocol.oip_proto_body import array_at, checked, places_of, specs_of
from penstock.protocol.oip_proto_memo import Templates
from penstock.protocol.oip_proto_parse import Parameters, parse_reply
from penstock.protocol.oip_proto_wire import Buffer, fields, read_parameter


class Elsewhere:
    """``Regions`` of a client that reads its shared memory itself."""

    def resolve(self, ref: RegionRef) -> NoReturn:
        raise InferError(
            Code.UNIMPLEMENTED, f"an output is in shared memory '{ref.region}', not in the reply"
        )

    target = resolve


class ReplyDecoder:
    """Decodes ``ModelInferResponse`` messages; used from one thread. Remembers as
    ``oip_proto_memo`` says."""

    def __init__(self, limits: WireLimits = DEFAULT, regions: Regions | None = None) -> None:
        self._limits = limits
        self._regions = regions or Elsewhere()
        self._templates: Templates[None] = Templates(limits)

    def decode(self, message: Buffer) -> InferReply:
        """The reply in ``message``, which is contiguous and of bytes.

        Raises:
            ProtocolError: it is no reply.
            InferError: an output is in shared memory.
        """
        found = self._templates.find(message)
        if found is None:
            return self._decode_new(message)
        template, at, id_bytes, parameter_bytes = found
        parameters: Parameters = {}
        try:
            reply_id = id_bytes.decode()
            for _, a, b in fields(parameter_bytes, 0, len(parameter_bytes)):
                read_parameter(parameter_bytes, a, b, parameters, self._limits)
        except (UnicodeDecodeError, ProtocolError):
            return self._decode_new(message)  # will say what is wrong, and where
        return InferReply(
            template.signature,
            template.arrays(message, at, "output", self._regions),
            template.model,
            template.version,
            reply_id,
            checked(parameters),
        )

    def _decode_new(self, message: Buffer) -> InferReply:
        parts = parse_reply(message, self._limits)
        signature = Signature(specs_of(parts, "output", self._limits))
        places = places_of(parts, signature.tensors, "output")
        arrays = [
            array_at(place, spec, message, parts.model, "output", self._regions)
            for place, spec in zip(places, signature.tensors, strict=True)
        ]
        self._templates.add(message, signature, places, parts.model, parts.version, None)
        parameters = checked(parts.parameters)
        return InferReply(signature, arrays, parts.model, parts.version, parts.id, parameters)


def split_stream_response(message: Buffer) -> tuple[str, Buffer | None]:
    """The error message, empty if there is none, and the ``ModelInferResponse`` if there is one.

    Raises:
        ProtocolError: it is no ``ModelStreamInferResponse``.
    """
    error = ""
    pieces: list[Buffer] = []
    view = memoryview(message)
    for tag, a, b in fields(message, 0, len(message)):
        if tag == 0x0A:
            # As long as the message allows, and readable: it is for people.
            error = str(view[a:b], "utf-8", "replace")
        elif tag == 0x12:
            pieces.append(view[a:b])
    if len(pieces) < 2:
        return error, pieces[0] if pieces else None
    for piece in pieces:  # of one message, which they are when put together, if all are whole
        deque(fields(piece, 0, len(piece), 1), 0)
    return error, b"".join(pieces)
