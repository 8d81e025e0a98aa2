"""GraphPipe: frames to messages and back. The public face of the ``graphpipe_*`` modules.

The format is SPEC.md beside this package; ``graphpipe.fbs`` is its schema. Knows: how the parts fit
together. Must not know: HTTP, models, names' meaning.

Contract:

* Decoders take a whole frame, copy no tensor data (arrays are read-only views into the frame,
  perhaps unaligned) and raise ``ProtocolError`` and nothing else for any bytes whatever.
* Encoders return buffers whose concatenation is the frame. Tensor data is in there as views of the
  arrays themselves, each starting at a multiple of 64 bytes, so the arrays must stay as they are
  until the buffers are written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.protocol.dtype import AnyDType
from penstock.protocol.errors import InferError, ProtocolError, code_of_number
from penstock.protocol.graphpipe_config import (
    FORMS,
    LEGACY,
    NO_CONFIG,
    Config,
    GraphpipeForm,
    parse_config,
)
from penstock.protocol.graphpipe_metadata import (
    decode_metadata_with,
    encode_metadata,
    encode_metadata_request,
    metadata_json,
)
from penstock.protocol.graphpipe_parse import Parser, RequestParts
from penstock.protocol.graphpipe_read import DIRECT, Frame, StructError
from penstock.protocol.graphpipe_signature import (
    Declaration,
    SignatureTable,
    declare_reply,
    declare_request,
)
from penstock.protocol.graphpipe_template import (
    Recording,
    TemplateTable,
    all_inside,
    recording_parser,
    skeleton_ranges,
)
from penstock.protocol.graphpipe_write import (
    Buffer,
    ReplyEncoder,
    RequestEncoder,
    encode_error,
    encode_request,
)
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import Array, InferReply, InferRequest, ModelMetadata, Signature

__all__ = [
    "LEGACY",
    "Buffer",
    "FrameBytes",
    "GraphpipeForm",
    "MetadataRequest",
    "ReplyEncoder",
    "RequestDecoder",
    "RequestEncoder",
    "decode_bare_metadata_request",
    "decode_metadata",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_metadata",
    "encode_metadata_request",
    "encode_request",
    "metadata_json",
]

FrameBytes = bytes | bytearray | memoryview | NDArray[np.uint8]


class MetadataRequest:
    """The frame asks for the model's metadata, in this form."""

    __slots__ = ("form",)

    def __init__(self, form: GraphpipeForm = LEGACY) -> None:
        self.form = form


_METADATA_REQUESTS: Final = {form: MetadataRequest(form) for form in FORMS.values()}


class _Known(NamedTuple):
    """What a template means: everything of the request but the tensor data and ``config``.

    ``config`` is what the text ``raw`` at ``where`` meant when the template was made (None if it
    was empty); other texts of the same length are parsed afresh.
    """

    signature: Signature
    views: list[tuple[tuple[int, ...], AnyDType, int]]
    where: slice | None
    raw: bytes
    config: Config


class RequestDecoder:
    """Decodes requests; remembers signatures and templates of the frames that it has seen.

    One per server; not for use by several threads at once. Its memory is bounded whatever is sent.
    ``bare`` frames have an InferRequest for their root, as over gRPC, not a Request around it.
    """

    __slots__ = ("_bare", "_limits", "_parse", "_signatures", "_templates")

    def __init__(self, limits: WireLimits = DEFAULT, *, bare: bool = False) -> None:
        self._limits = limits
        self._bare = bare
        self._parse = _parse_of(Parser(DIRECT, limits), bare)
        self._signatures = SignatureTable(limits)
        self._templates: TemplateTable[_Known] = TemplateTable()

    def decode(self, frame: FrameBytes) -> InferRequest | MetadataRequest:
        """The message in ``frame``.

        Raises:
            ProtocolError: the bytes are not a request.
        """
        if type(frame) is not bytes:
            frame = _readable(frame)
        known = self._templates.find(frame)
        if known is None:
            return self._decode_new(frame)
        signature, views, where, raw, config = known
        if where is not None and raw != (text := bytes(frame[where])):
            form = config.form
            config = parse_config(text, self._limits)
            if config.form is not form:  # another signature, then
                return self._decode_new(frame)
        ndarray = np.ndarray
        arrays: list[Array] = []
        for shape, dtype, start in views:  # a comprehension costs a call before Python 3.12
            arrays.append(ndarray(shape, dtype, frame, start))
        return _request(signature, arrays, config)

    def _decode_new(self, frame: Frame) -> InferRequest | MetadataRequest:
        parts = self._parse(frame)
        if isinstance(parts, bytes):
            return _metadata_request(parts, self._limits)
        config = parse_config(parts.config, self._limits)
        declared = self._signatures.request(parts.names, parts.tensors, parts.outputs, config.form)
        arrays = declared.arrays(frame, parts.tensors, "input_tensors")
        if self._templates.wanted(len(frame)) and not declared.counts:
            self._remember(frame, parts, declared, config)
        return _request(declared.signature, arrays, config)

    def _remember(
        self, frame: Frame, parts: RequestParts, declared: Declaration, config: Config
    ) -> None:
        starts, sizes = parts.tensors.starts, parts.tensors.sizes
        data = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        text = (parts.config_start, parts.config_start + len(parts.config))
        outside = skeleton_ranges(len(frame), [*data, text])
        if outside is None:
            return
        recording = Recording(frame)
        _parse_of(recording_parser(self._limits), self._bare)(recording)
        if parts.config:  # its one reading is allowed: what it says is looked at each time
            recording.seen.remove(text)
        if all_inside(recording.seen, outside):
            views = [(*view, start) for view, start in zip(declared.views, starts, strict=True)]
            where = slice(*text) if parts.config else None
            known = _Known(declared.signature, views, where, parts.config, config)
            self._templates.add(frame, outside, known)


def _parse_of(parser: Parser, bare: bool) -> Callable[[Frame], RequestParts | bytes]:
    return parser.bare if bare else parser.infer


def decode_bare_metadata_request(
    frame: FrameBytes, limits: WireLimits = DEFAULT
) -> MetadataRequest:
    """The MetadataRequest that is the root of ``frame``. Raises ``ProtocolError``."""
    parser, readable = _parser(limits), _readable(frame)
    table, (config_slot,) = parser.root(readable, 1)
    config = b""
    if config_slot:
        at = table + config_slot
        config, _ = parser.blob(readable, at, limits.config_bytes_max, "config")
    return _metadata_request(config, limits)


def decode_request(
    frame: FrameBytes, limits: WireLimits = DEFAULT
) -> InferRequest | MetadataRequest:
    """The message in ``frame``, remembering nothing. Raises ``ProtocolError``."""
    readable = _readable(frame)
    parts = _parser(limits).infer(readable)
    if isinstance(parts, bytes):
        return _metadata_request(parts, limits)
    config = parse_config(parts.config, limits)
    declared = declare_request(parts.names, parts.tensors, parts.outputs, config.form, limits)
    arrays = declared.arrays(readable, parts.tensors, "input_tensors")
    return _request(declared.signature, arrays, config)


def decode_reply(frame: FrameBytes, limits: WireLimits = DEFAULT) -> InferReply:
    """The reply in ``frame``. Its tensors have no names: GraphPipe sends none.

    Raises:
        InferError: the reply carries errors: the first one's code, all their messages.
        ProtocolError: the bytes are not a reply.
    """
    readable = _readable(frame)
    parser = _parser(limits)
    table, (outputs_slot, errors_slot, _, _) = parser.root(readable, 4)
    declared, arrays = None, list[Array]()
    if outputs_slot:
        tensors = parser.tensors(readable, table + outputs_slot, "output_tensors")
        declared = declare_reply(tensors, limits)
        arrays = declared.arrays(readable, tensors, "output_tensors")
    if errors_slot:
        try:
            _raise_errors(readable, parser, table + errors_slot, limits, spare=not arrays)
        except ProtocolError:
            # Servers made with the Python library of 2022 and later write nonsense here beside
            # good outputs (SPEC.md §8), and errors beside outputs are against the protocol anyway.
            if not arrays:
                raise
    return InferReply(declared.signature if declared else Signature(()), arrays)


def decode_metadata(frame: FrameBytes, limits: WireLimits = DEFAULT) -> ModelMetadata:
    """The metadata in ``frame``. Raises ``ProtocolError``.

    Inputs and outputs whose type is Null cannot be sent and are left out.
    """
    return decode_metadata_with(_readable(frame), _parser(limits), limits)


def _raise_errors(
    frame: Frame, parser: Parser, at: int, limits: WireLimits, *, spare: bool
) -> None:
    """Raises what the errors vector holds, if anything; ``spare``: even errors without words."""
    read = DIRECT
    first, messages = None, []
    room = len(frame)
    for i, (table, vtable) in enumerate(parser.table_vector(frame, at, "errors")):
        field = f"errors[{i}]"
        code_slot, message_slot = parser.table_fields(frame, vtable, 2, field)
        try:
            number = read.i64(frame, table + code_slot)[0] if code_slot else 0
        except StructError:
            raise ProtocolError(
                "ends past the frame", field=f"{field}.code", offset=table
            ) from None
        if first is None:
            first = number
        if message_slot:
            size_max = min(limits.config_bytes_max, room)
            raw, _ = parser.blob(frame, table + message_slot, size_max, f"{field}.message")
            room -= len(raw)
            messages.append(raw.decode("utf-8", "replace"))
    text = "; ".join(filter(None, messages))
    if first is not None and (text or spare):
        raise InferError(code_of_number(first), text or f"the server answered error {first}")


def _request(signature: Signature, arrays: list[Array], config: Config) -> InferRequest:
    if config is NO_CONFIG:
        return InferRequest(signature, arrays)
    return InferRequest(
        signature, arrays, "", "", config.id, config.parameters, config.timeout_us, config.priority
    )


def _metadata_request(config: bytes, limits: WireLimits) -> MetadataRequest:
    return _METADATA_REQUESTS[parse_config(config, limits).form]


@lru_cache(maxsize=16)
def _parser(limits: WireLimits) -> Parser:
    return Parser(DIRECT, limits)


def _readable(frame: FrameBytes) -> Any:
    """``frame`` as bytes, or as a read-only view of single bytes."""
    if type(frame) is bytes:
        return frame
    view = memoryview(frame)  # type: ignore[arg-type]  # NumPy arrays are buffers
    if view.nbytes == 0:
        return b""
    return view.cast("B").toreadonly()
