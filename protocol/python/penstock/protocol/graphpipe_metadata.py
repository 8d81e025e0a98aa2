"""GraphPipe's metadata: the request for it, the reply, and the JSON that GET answers.

Knows: the tables MetadataRequest, MetadataResponse and IOMetadata (SPEC.md §2, §7). Must not know:
inference messages.

GraphPipe has no place for ``ModelMetadata.platform`` and for more than one version: both are left
out when writing and made up from what is there when reading.
"""

from __future__ import annotations

from typing import Final

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe_config import FORMS, write_config
from penstock.protocol.graphpipe_parse import Parser
from penstock.protocol.graphpipe_read import DIRECT, Frame, StructError
from penstock.protocol.graphpipe_signature import dtype_of
from penstock.protocol.graphpipe_write import HeadWriter, sent_as, write_request
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import NO_PARAMETERS, ModelMetadata, TensorSpec

_METADATA_REQUEST: Final = (6, 8, 4)
_METADATA_RESPONSE: Final = (16, 28, 4, 8, 12, 16, 20, 24)
_IO: Final = (12, 17, 4, 8, 12, 16)


def encode_metadata_request(*, extended: bool = True) -> bytes:
    """The frame that asks for metadata. ``extended`` announces that we know BOOL and BF16.

    It never announces error frames: a ``MetadataResponse`` cannot be told from an error frame, so
    that errors must come by their HTTP status.
    """
    config = write_config(
        form=FORMS[extended, False], id="", timeout_us=0, priority=0, parameters=NO_PARAMETERS
    )
    head, table = write_request(2, _METADATA_REQUEST if config else (4, 4))
    if config:
        head.string(config, table + 4)
    return bytes(head.buffer)


def encode_metadata(meta: ModelMetadata, *, extended: bool) -> bytes:
    """The metadata as a frame. Without ``extended``, BOOL and BF16 are declared as what they are
    sent as, and the description of the input or output says so."""
    head = HeadWriter()
    table = head.table(_METADATA_RESPONSE, 0)
    texts = (meta.name, meta.version, meta.server, meta.description)
    for slot, text in enumerate(texts):
        head.string(text.encode("utf-8", "replace"), table + 4 + 4 * slot)
    for link, specs in ((table + 20, meta.inputs), (table + 24, meta.outputs)):
        first = head.vector(len(specs), link)
        for i, spec in enumerate(specs):
            dtype, description = _declared_as(spec.dtype, extended)
            io = head.table(_IO, first + 4 * i)
            head.buffer[io + 16] = dtype.graphpipe
            head.string(spec.name.encode("utf-8", "replace"), io + 4)
            head.string(description.encode(), io + 8)
            head.shape(spec.shape, io + 12)
    return bytes(head.buffer)


def metadata_json(meta: ModelMetadata, *, extended: bool = False) -> dict[str, object]:
    """The object that GET answers, with the key names of the reference server in Go."""
    return {
        "Name": meta.name,
        "Version": meta.version,
        "Server": meta.server,
        "Description": meta.description,
        "Inputs": [_io_json(spec, extended) for spec in meta.inputs],
        "Outputs": [_io_json(spec, extended) for spec in meta.outputs],
    }


def decode_metadata_with(frame: Frame, parser: Parser, limits: WireLimits) -> ModelMetadata:
    """The metadata in ``frame``. Inputs and outputs of type Null cannot be sent and are left out.

    Raises:
        ProtocolError: the bytes are no metadata reply.
    """
    table, slots = parser.root(frame, 6)
    texts = _Texts(frame, parser, limits)
    name, version, server, description = (
        texts.read(table + slot if slot else 0, field)
        for slot, field in zip(slots, ("name", "version", "server", "description"), strict=False)
    )
    inputs, outputs = (
        _read_ios(frame, parser, limits, texts, table + slot, field) if slot else ()
        for slot, field in ((slots[4], "inputs"), (slots[5], "outputs"))
    )
    return ModelMetadata(
        name=name,
        version=version,
        versions=(version,) if version else (),
        platform="",
        inputs=inputs,
        outputs=outputs,
        server=server,
        description=description,
    )


class _Texts:
    """Reads strings, together at most twice as many bytes as the frame has.

    Twice, because writers may share some strings; bounded, because a hostile one could share a
    large string many times.
    """

    __slots__ = ("_frame", "_limits", "_parser", "_room")

    def __init__(self, frame: Frame, parser: Parser, limits: WireLimits) -> None:
        self._frame = frame
        self._parser = parser
        self._limits = limits
        self._room = 2 * len(frame)

    def read(self, at: int, field: str) -> str:
        """The text behind the offset word at ``at``; empty if ``at`` is 0."""
        if not at:
            return ""
        size_max = min(self._limits.config_bytes_max, self._room)
        raw, _ = self._parser.blob(self._frame, at, size_max, field)
        self._room -= len(raw)
        return raw.decode("utf-8", "replace")


def _read_ios(
    frame: Frame, parser: Parser, limits: WireLimits, texts: _Texts, at: int, field: str
) -> tuple[TensorSpec, ...]:
    specs = []
    for i, (table, vtable) in enumerate(parser.table_vector(frame, at, field)):
        path = f"{field}[{i}]"
        name_slot, _, shape_slot, type_slot = parser.table_fields(frame, vtable, 4, path)
        name = texts.read(table + name_slot if name_slot else 0, f"{path}.name")
        shape = _read_shape(frame, table + shape_slot, limits, path) if shape_slot else ()
        try:
            number = DIRECT.u8(frame, table + type_slot)[0] if type_slot else dt.GRAPHPIPE_NULL
        except StructError:
            raise ProtocolError("past the end", field=f"{path}.type", offset=table) from None
        if number != dt.GRAPHPIPE_NULL:
            specs.append(TensorSpec(name, dtype_of(number, f"{path}.type", table), shape))
    return tuple(specs)


def _read_shape(frame: Frame, at: int, limits: WireLimits, path: str) -> tuple[int, ...]:
    field = f"{path}.shape"
    try:
        start = at + DIRECT.u32(frame, at)[0]
        rank = DIRECT.u32(frame, start)[0]
        if rank > min(limits.rank_max, len(DIRECT.dims) - 1):
            raise ProtocolError(f"{rank} dimensions", field=field, offset=start)
        shape: tuple[int, ...] = DIRECT.dims[rank](frame, start + 4)
    except StructError:
        raise ProtocolError("points past the end of the frame", field=field, offset=at) from None
    if any(size < -1 for size in shape):
        raise ProtocolError(f"size below -1 in {list(shape)}", field=field, offset=start)
    return shape


def _declared_as(dtype: DType, extended: bool) -> tuple[DType, str]:
    sent, _ = sent_as(dtype, extended)
    return sent, "" if sent is dtype else f"{dtype}, sent as {sent}"


def _io_json(spec: TensorSpec, extended: bool) -> dict[str, object]:
    dtype, description = _declared_as(spec.dtype, extended)
    return {
        "Name": spec.name,
        "Description": description,
        "Shape": list(spec.shape),
        "Type": dtype.graphpipe,
    }
