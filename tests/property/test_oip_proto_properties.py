"""The protobuf codec beside google.protobuf, for messages of every make and for damaged ones.

Messages are put together byte by byte, so that they can be what no library writes: fields in any
order and of the wrong wire type, numbers longer than they need be, sub-messages in pieces, packed
and unpacked values mixed, unknown fields and groups.
"""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    Array,
    InferReply,
    InferRequest,
    OutputRequest,
    RegionRef,
    Signature,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_proto import (
    ReplyDecoder,
    ReplyEncoder,
    RequestDecoder,
    RequestEncoder,
    encode_stream_response,
    split_stream_response,
)
from penstock.protocol.oip_proto_contents import Contents
from penstock.protocol.oip_proto_parse import Parts, parse_reply, parse_request
from penstock.protocol.oip_proto_wire import field, parameter_fields, varint
from penstock.protocol.oip_region import BYTE_SIZE, OFFSET, REGION
from penstock.protocol.packed_varints import read_varints
from penstock.server.grpc_schema import message as message_class

REQUEST = message_class("ModelInferRequest")
REPLY = message_class("ModelInferResponse")
STREAM = message_class("ModelStreamInferResponse")
SLOW_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Not alike on purpose: upb, the parser below google.protobuf in Python, drops entries of maps that
# hold unknown fields; the one for C++, Triton's, keeps them, and so do we.

# --- messages of any make -------------------------------------------------------------------------

Kind = str | dict[int, Any]
PARAMETER: dict[int, Kind] = {1: "varint", 2: "varint", 3: "text", 4: "fixed64", 5: "varint"}
ENTRY: dict[int, Kind] = {1: "text", 2: PARAMETER}
CONTENTS: dict[int, Kind] = {
    1: "varint", 2: "varint", 3: "varint", 4: "varint", 5: "varint", 6: "fixed32", 7: "fixed64",
    8: "bytes",
}  # fmt: skip
TENSOR: dict[int, Kind] = {1: "text", 2: "text", 3: "varint", 4: ENTRY, 5: CONTENTS}
OUTPUT: dict[int, Kind] = {1: "text", 2: ENTRY}
HEAD: dict[int, Kind] = {1: "text", 2: "text", 3: "text", 4: ENTRY, 5: TENSOR}
REQUEST_FIELDS: dict[int, Kind] = {**HEAD, 6: OUTPUT, 7: "bytes"}
REPLY_FIELDS: dict[int, Kind] = {**HEAD, 6: "bytes"}
PACKABLE = ("varint", "fixed32", "fixed64")
WORDS = ("", "a", "INPUT0", "INT32", "FP32", "BYTES", "timeout", "\u20ac", "\U0001f600")
INTEGERS = (0, 1, 2, 127, 128, 300, 2**31 - 1, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1)


class Maker:
    """Makes bytes from a source of chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def number(self, value: int) -> bytes:
        """A varint, perhaps longer than need be."""
        found = bytearray(varint(value))
        if self.chance.random() < 0.1:
            found[-1] |= 0x80
            found += b"\x80" * self.chance.randint(0, 9 - len(found)) if len(found) < 10 else b""
            found += b"\x00"
        return bytes(found[:10]) if found[9:10] in (b"", b"\0", b"\1") else varint(value)

    def tag(self, number: int, wire_type: int) -> bytes:
        found = varint(number << 3 | wire_type)
        if self.chance.random() < 0.05 and len(found) < 5:
            found = found[:-1] + bytes([found[-1] | 0x80, 0])
        return found

    def value(self, kind: str) -> bytes:
        if kind == "varint":
            return self.number(self.chance.choice(INTEGERS))
        if kind == "fixed32":
            return self.chance.randbytes(4)
        if kind == "fixed64":
            return self.chance.randbytes(8)
        if kind == "text":
            return self.chance.choice(WORDS).encode()
        return self.chance.randbytes(self.chance.randint(0, 9))

    def message(self, fields: dict[int, Kind], size: int = 8) -> bytes:
        parts = []
        for _ in range(self.chance.randint(0, size)):
            number = self.chance.choice(list(fields))
            if self.chance.random() < 0.08 and fields is not ENTRY:
                parts.append(self.unknown(number, fields[number]))
            else:
                parts.append(self.field(number, fields[number]))
        return b"".join(parts)

    def field(self, number: int, kind: Kind) -> bytes:
        if isinstance(kind, dict):
            return self.delimited(number, self.message(kind, 5))
        if kind in PACKABLE:
            if self.chance.random() < 0.5:
                packed = [self.value(kind) for _ in range(self.chance.randint(0, 5))]
                return self.delimited(number, b"".join(packed))
            wire_type = {"varint": 0, "fixed32": 5, "fixed64": 1}[kind]
            return self.tag(number, wire_type) + self.value(kind)
        return self.delimited(number, self.value(kind))

    def delimited(self, number: int, content: bytes) -> bytes:
        return self.tag(number, 2) + self.number(len(content)) + content

    def unknown(self, number: int, kind: Kind) -> bytes:
        """A field of another wire type than field ``number`` has, or of another number."""
        wire_types = [3] if kind in PACKABLE else [0, 1, 3, 5]
        if self.chance.random() < 0.5:
            number, wire_types = self.chance.choice([9, 15, 16, 1000, 2**29 - 1]), [0, 1, 2, 3, 5]
        wire_type = self.chance.choice(wire_types)
        if wire_type == 3:
            inner = [self.unknown(7, "bytes") for _ in range(self.chance.randint(0, 2))]
            return self.tag(number, 3) + b"".join(inner) + self.tag(number, 4)
        if wire_type == 2:
            return self.delimited(number, self.value("bytes"))
        return self.tag(number, wire_type) + self.value(
            {0: "varint", 1: "fixed64", 5: "fixed32"}[wire_type]
        )

    def damaged(self, data: bytes) -> bytes:
        """``data`` with a few bytes changed, lost, repeated or added."""
        found = bytearray(data)
        for _ in range(self.chance.randint(1, 3)):
            at = self.chance.randint(0, len(found))
            what = self.chance.randint(0, 3)
            if what == 0:
                found[at : at + 1] = self.chance.randbytes(1)
            elif what == 1:
                del found[at : at + self.chance.randint(1, 4)]
            elif what == 2:
                found[at:at] = found[at : at + self.chance.randint(1, 12)]
            else:
                found[at:at] = self.chance.randbytes(self.chance.randint(1, 3))
        return bytes(found)


# --- what both sides make of a message ------------------------------------------------------------


def exact(value: Any) -> Any:
    """Comparable: NaN equals itself, 1 and true and 1.0 do not."""
    return type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value


def google_parameters(found: Any) -> dict[str, Any]:
    plain = {}
    for key, value in found.items():
        choice = value.WhichOneof("parameter_choice")
        plain[key] = exact(getattr(value, choice) if choice else None)
    return plain


def google_contents(tensor: Any) -> list[Any] | None:
    if not tensor.HasField("contents"):
        return None
    c = tensor.contents
    return [
        list(c.bool_contents), list(c.int_contents), list(c.int64_contents), list(c.uint_contents),
        list(c.uint64_contents), struct.pack(f"<{len(c.fp32_contents)}f", *c.fp32_contents),
        struct.pack(f"<{len(c.fp64_contents)}d", *c.fp64_contents), list(c.bytes_contents),
    ]  # fmt: skip


def google_view(data: bytes, kind: Any) -> Any:
    read = kind.FromString(data)
    is_request = kind is REQUEST
    tensors = read.inputs if is_request else read.outputs
    return (
        read.model_name,
        read.model_version,
        read.id,
        google_parameters(read.parameters),
        [
            (t.name, t.datatype, list(t.shape), google_parameters(t.parameters), google_contents(t))
            for t in tensors
        ],
        [(o.name, google_parameters(o.parameters)) for o in (read.outputs if is_request else ())],
        list(read.raw_input_contents if is_request else read.raw_output_contents),
    )


def requieted(code: str, packed: bytes) -> bytes:
    """``packed`` floats after a way through Python's, on which signalling NaNs become quiet."""
    layout = f"<{len(packed) // struct.calcsize(code)}{code}"
    return struct.pack(layout, *struct.unpack(layout, packed))


def our_contents(found: Contents | None) -> list[Any] | None:
    if found is None:
        return None
    packed = {n: b"".join(chunks) for n, chunks in found.chunks.items() if n != 8}
    whole = {n: read_varints(packed.get(n, b"")) for n in range(1, 6)}
    return [
        (whole[1] != 0).tolist(), whole[2].astype(np.int32).tolist(),
        whole[3].astype(np.int64).tolist(), whole[4].astype(np.uint32).tolist(),
        whole[5].tolist(), requieted("f", packed.get(6, b"")), packed.get(7, b""),
        list(found.chunks.get(8, [])),
    ]  # fmt: skip


def our_parameters(found: dict[str, Any] | None) -> dict[str, Any]:
    return {key: exact(value) for key, value in (found or {}).items()}


def our_view(data: bytes, parts: Parts) -> Any:
    return (
        parts.model,
        parts.version,
        parts.id,
        our_parameters(parts.parameters),
        [
            (t.name, t.datatype, t.shape, our_parameters(t.parameters), our_contents(t.data))
            for t in parts.tensors
        ],
        [(o.name, our_parameters(o.parameters)) for o in parts.outputs],
        [data[a:b] for a, b in parts.raw],
    )


def unmapped(view: Any) -> Any:
    """``view`` without parameters."""
    *texts, _, tensors, outputs, raw = view
    return texts, [(*t[:3], t[4]) for t in tensors], [o[0] for o in outputs], raw


GENEROUS = WireLimits(tensors_max=1 << 20, rank_max=1 << 20, name_bytes_max=1 << 30)
"""What is beyond the limits is refused here and taken there; the tests of limits are elsewhere."""


def compare(data: bytes, kind: Any, without_maps: bool = False) -> bool:
    """Holds parsing against google.protobuf; whether the bytes are a message."""
    parse, decoder = (
        (parse_request, RequestDecoder()) if kind is REQUEST else (parse_reply, ReplyDecoder())
    )
    with suppress(PenstockError):  # anything else fails the test
        decoder.decode(data)
    try:
        theirs = google_view(data, kind)
    except DecodeError:
        with pytest.raises(ProtocolError):
            our_view(data, parse(data, GENEROUS))
        return False
    ours = our_view(data, parse(data, GENEROUS))
    if without_maps:
        assert unmapped(ours) == unmapped(theirs)
    else:
        assert ours == theirs
    assert ours == our_view(data, parse(memoryview(data), GENEROUS))
    return True


chances = st.integers(0, 2**48).map(random.Random)
kinds = st.sampled_from([(REQUEST, REQUEST_FIELDS), (REPLY, REPLY_FIELDS)])


@settings(SLOW_MACHINE, max_examples=400)
@given(chances, kinds)
def test_messages_of_any_make_are_read_as_google_protobuf_reads_them(
    chance: random.Random, kind: tuple[Any, dict[int, Kind]]
) -> None:
    assert compare(Maker(chance).message(kind[1], 12), kind[0])


@settings(SLOW_MACHINE, max_examples=600)
@given(chances, kinds)
def test_damaged_messages_are_refused_when_google_protobuf_refuses_them(
    chance: random.Random, kind: tuple[Any, dict[int, Kind]]
) -> None:
    maker = Maker(chance)
    compare(maker.damaged(maker.message(kind[1], 12)), kind[0], without_maps=True)


@SLOW_MACHINE
@given(st.binary(max_size=200), kinds)
@example(b"\x0a\xff\xff\xff\xff\x0f", (REQUEST, REQUEST_FIELDS))
def test_any_bytes(data: bytes, kind: tuple[Any, dict[int, Kind]]) -> None:
    compare(data, kind[0], without_maps=True)


# --- requests and replies that mean something -----------------------------------------------------

TYPED = {
    dt.BOOL: "bool_contents", dt.INT8: "int_contents", dt.INT16: "int_contents",
    dt.INT32: "int_contents", dt.INT64: "int64_contents", dt.UINT8: "uint_contents",
    dt.UINT16: "uint_contents", dt.UINT32: "uint_contents", dt.UINT64: "uint64_contents",
    dt.FP32: "fp32_contents", dt.FP64: "fp64_contents", dt.BYTES: "bytes_contents",
}  # fmt: skip
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
name = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
scalars = st.one_of(
    text, st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False)
)
parameters = st.dictionaries(
    text.filter(lambda key: key not in ("priority", "timeout")), scalars, max_size=3
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dt.DType, Array]:
    dtype = draw(st.sampled_from(dt.ALL))
    shape = draw(shapes)
    if dtype is not dt.BYTES:
        return dtype, draw(hnp.arrays(dtype.numpy, shape))
    size = int(np.prod(shape))
    array = np.empty(size, dtype=object)
    array[:] = draw(st.lists(st.binary(max_size=9), min_size=size, max_size=size))
    return dtype, array.reshape(shape)


@st.composite
def signed(draw: st.DrawFn) -> tuple[list[TensorSpec], list[Array]]:
    drawn = draw(st.lists(tensors(), max_size=4))
    names = draw(st.lists(name, min_size=len(drawn), max_size=len(drawn), unique=True))
    specs = [TensorSpec(n, d, a.shape) for n, (d, a) in zip(names, drawn, strict=True)]
    return specs, [array for _, array in drawn]


@st.composite
def requests(draw: st.DrawFn) -> InferRequest:
    specs, arrays = draw(signed())
    names = draw(st.lists(name, max_size=3, unique=True))
    outputs = [OutputRequest(name, draw(parameters)) for name in names]
    counts = st.integers(0, 2**63 - 1)
    texts = [draw(text) for _ in range(3)]
    return InferRequest(
        Signature(specs, outputs), arrays, *texts, draw(parameters), draw(counts), draw(counts)
    )


@st.composite
def replies(draw: st.DrawFn) -> InferReply:
    specs, arrays = draw(signed())
    return InferReply(Signature(specs), arrays, *[draw(text) for _ in range(3)], draw(parameters))


def plain(found: InferRequest | InferReply) -> Any:
    """Everything that is said, comparable."""
    arrays = [a.tolist() if a.dtype == object else a.tobytes() for a in found.arrays]
    assert [a.shape for a in found.arrays] == [s.shape for s in found.signature.tensors]
    assert [a.dtype for a in found.arrays] == [s.dtype.numpy for s in found.signature.tensors]
    if isinstance(found, InferRequest):
        extras: Any = found.timeout_us, found.priority
    else:
        extras = ()
    return (
        found.model, found.version, found.id, our_parameters(dict(found.parameters)), extras,
        list(found.signature.tensors), arrays,
        [(o.name, our_parameters(dict(o.parameters))) for o in found.signature.outputs],
    )  # fmt: skip


def outcome(decoder: RequestDecoder | ReplyDecoder, message: bytes | memoryview) -> Any:
    try:
        return plain(decoder.decode(message))
    except PenstockError as error:
        return type(error), error.message


@SLOW_MACHINE
@given(requests())
def test_requests_return_and_are_what_google_protobuf_reads(request: InferRequest) -> None:
    encoder, decoder = RequestEncoder(), RequestDecoder()
    message = b"".join(encoder.encode(request))
    read = REQUEST.FromString(message)
    assert [list(t.shape) for t in read.inputs] == [list(a.shape) for a in request.arrays]
    assert [t.datatype for t in read.inputs] == [s.dtype.name for s in request.signature.tensors]
    assert (read.model_name, read.id) == (request.model, request.id)
    for _ in range(3):  # the third time from memory
        assert plain(decoder.decode(message)) == plain(request)
    assert plain(decoder.decode(memoryview(bytearray(message)))) == plain(request)
    again = read.SerializeToString(deterministic=True)
    assert plain(RequestDecoder().decode(again)) == plain(request)


@SLOW_MACHINE
@given(replies())
def test_replies_return_and_are_what_google_protobuf_reads(reply: InferReply) -> None:
    encoder, decoder = ReplyEncoder(), ReplyDecoder()
    buffers = encoder.encode(reply)
    message = b"".join(buffers)
    read = REPLY.FromString(message)
    assert len(read.raw_output_contents) == len(read.outputs) == len(reply.arrays)
    assert google_parameters(read.parameters) == our_parameters(dict(reply.parameters))
    for _ in range(3):
        assert plain(decoder.decode(message)) == plain(reply)
    assert plain(ReplyDecoder().decode(read.SerializeToString())) == plain(reply)
    streamed = b"".join(encode_stream_response(buffers))
    assert STREAM.FromString(streamed).infer_response == read
    error, inner = split_stream_response(streamed)
    assert error == ""
    assert inner is not None
    assert plain(decoder.decode(inner)) == plain(reply)


@SLOW_MACHINE
@given(signed(), st.integers(0, 2**48).map(random.Random))
def test_typed_values_are_those_of_google_protobuf(
    signed: tuple[list[TensorSpec], list[Array]], chance: random.Random
) -> None:
    message = REQUEST(model_name="m")
    rows = [row for row in zip(*signed, strict=True) if row[0].dtype in TYPED]
    for spec, array in rows:
        tensor = message.inputs.add(name=spec.name, datatype=spec.dtype.name, shape=spec.shape)
        getattr(tensor.contents, TYPED[spec.dtype]).extend(array.reshape(-1).tolist())
    decoder = RequestDecoder()
    found = decoder.decode(message.SerializeToString())
    assert list(found.signature.tensors) == [spec for spec, _ in rows]
    for ours, (_, array) in zip(found.arrays, rows, strict=True):
        np.testing.assert_array_equal(ours, array)
    assert found.signature is decoder.decode(message.SerializeToString()).signature


@settings(SLOW_MACHINE, max_examples=200)
@given(requests(), chances)
def test_what_is_remembered_changes_nothing(request: InferRequest, chance: random.Random) -> None:
    """A decoder that knows a message says of any other what one says that knows nothing."""
    message = b"".join(RequestEncoder().encode(request))
    knowing = RequestDecoder()
    for _ in range(3):
        knowing.decode(message)
    maker = Maker(chance)
    for _ in range(20):
        other = maker.damaged(message)
        assert outcome(knowing, other) == outcome(RequestDecoder(), other)
    request.id += "another"
    request.parameters = {**request.parameters, "sequence_id": chance.randint(1, 2**40)}
    other = b"".join(RequestEncoder().encode(request))
    assert plain(knowing.decode(other)) == plain(request)


class Shared:
    """One region of 1000 bytes under every name that begins with r."""

    def __init__(self) -> None:
        self.memory = memoryview(bytes(range(250)) * 4)

    def resolve(self, ref: RegionRef) -> memoryview:
        if ref.region[:1] != "r" or ref.offset + ref.byte_size > len(self.memory):
            raise InferError(Code.NOT_FOUND, f"no {ref}")
        return self.memory[ref.offset : ref.offset + ref.byte_size]

    def target(self, ref: RegionRef) -> Target:
        return Target(ref, self.resolve(ref))


def shuffled(rows: list[tuple[str, int, int]], chance: random.Random) -> bytes:
    """A request with an input and an output for each (region, offset, size), and their parameters
    in any order, as the maps of C++ are written."""
    made = field(1, b"m")
    for number, name, more in ((5, "in", b"\x12\x05UINT8"), (6, "out", b"")):
        for i, (region, offset, size) in enumerate(rows):
            place = {REGION: region, OFFSET: offset, BYTE_SIZE: size}
            keys = chance.sample(list(place), 3)
            entries = [parameter_fields(4 if number == 5 else 2, {k: place[k]}) for k in keys]
            shape = field(3, varint(size)) if number == 5 else b""
            content = field(1, f"{name}{i}".encode()) + more + shape
            made += field(number, content + b"".join(entries))
    return made


@settings(SLOW_MACHINE, max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(("r", "r2", "s")), st.integers(0, 999), st.integers(1, 300)),
        min_size=1,
        max_size=3,
    ),
    chances,
)
def test_places_are_those_of_the_message_in_any_order(
    rows: list[tuple[str, int, int]], chance: random.Random
) -> None:
    """Whatever was seen before: with other places, in other orders, damaged."""

    def said(decoder: RequestDecoder, message: bytes) -> Any:
        try:
            found = decoder.decode(message)
        except PenstockError as error:
            return type(error), error.message
        return plain(found), {name: target.ref for name, target in found.targets.items()}

    knowing = RequestDecoder(regions=Shared())
    maker = Maker(chance)
    other = [(region, offset // 2, size) for region, offset, size in rows]
    signatures = set()
    for _ in range(30):
        message = shuffled(chance.choice((rows, other)), chance)
        if chance.random() < 0.2:
            message = maker.damaged(message)
        assert said(knowing, message) == said(RequestDecoder(regions=Shared()), message)
        with suppress(PenstockError):
            signatures.add(knowing.decode(shuffled(rows, chance)).signature)
    assert len(signatures) <= 1


@settings(SLOW_MACHINE, max_examples=100)
@given(replies(), chances)
def test_what_a_client_remembers_changes_nothing(reply: InferReply, chance: random.Random) -> None:
    message = b"".join(ReplyEncoder().encode(reply))
    knowing = ReplyDecoder()
    for _ in range(3):
        knowing.decode(message)
    maker = Maker(chance)
    for _ in range(20):
        other = maker.damaged(message)
        assert outcome(knowing, other) == outcome(ReplyDecoder(), other)


@SLOW_MACHINE
@given(st.binary(max_size=60))
def test_stream_responses_of_any_bytes(data: bytes) -> None:
    try:
        error, inner = split_stream_response(data)
    except ProtocolError:
        with pytest.raises(DecodeError):
            STREAM.FromString(data)
        return
    try:
        theirs = STREAM.FromString(data)
    except DecodeError:
        return  # they look into the reply and at the text; here the caller does
    assert theirs.error_message == error
    assert theirs.HasField("infer_response") == (inner is not None)
    if inner is not None:
        assert REPLY.FromString(bytes(inner)) == theirs.infer_response
