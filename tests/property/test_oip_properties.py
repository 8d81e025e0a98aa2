"""The JSON codec for all messages and for no messages at all."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.protocol import dtype as dt
from penstock.protocol.errors import PenstockError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    Array,
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
)
from penstock.protocol.oip_json import (
    ALL_BINARY,
    OipForm,
    ReplyDecoder,
    ReplyEncoder,
    RequestDecoder,
    RequestEncoder,
    decode_error,
    decode_raw,
    decode_reply,
    encode_request,
    parse_model_metadata,
)

SLOW_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
BINARY_ONLY = (dt.FP16, dt.BF16)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
scalars = st.one_of(
    text, st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False)
)
own_parameters = st.dictionaries(
    text.filter(lambda k: k not in ("priority", "timeout", "binary_data_output")),
    scalars,
    max_size=3,
)


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[dt.DType, ...] = dt.ALL) -> tuple[dt.DType, Array]:
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes)
    if dtype is not dt.BYTES:
        return dtype, draw(hnp.arrays(dtype.numpy, shape))
    size = int(np.prod(shape))
    values = draw(st.lists(text.map(str.encode), min_size=size, max_size=size))
    array = np.empty(size, dtype=object)
    array[:] = values
    return dtype, array.reshape(shape)


@st.composite
def signed(
    draw: st.DrawFn, dtypes: tuple[dt.DType, ...] = dt.ALL
) -> tuple[list[TensorSpec], list[Array]]:
    drawn = draw(st.lists(tensors(dtypes), max_size=4))
    names = draw(st.lists(text, min_size=len(drawn), max_size=len(drawn), unique=True))
    specs = [TensorSpec(n, d, a.shape) for n, (d, a) in zip(names, drawn, strict=True)]
    return specs, [a for _, a in drawn]


@st.composite
def requests(draw: st.DrawFn, dtypes: tuple[dt.DType, ...] = dt.ALL) -> InferRequest:
    specs, arrays = draw(signed(dtypes))
    names = draw(st.lists(text, max_size=3, unique=True))
    outputs = [
        OutputRequest(n, draw(st.dictionaries(st.just("binary_data"), st.booleans())))
        for n in names
    ]
    return InferRequest(
        Signature(specs, outputs),
        arrays,
        id=draw(text),
        parameters=draw(own_parameters),
        timeout_us=draw(st.integers(0, 2**64 - 1)),
        priority=draw(st.integers(0, 2**64 - 1)),
    )


def assert_same_arrays(got: Any, want: Any) -> None:
    for a, b in zip(got.arrays, want.arrays, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)  # NaN equals NaN here, and shapes are compared
        assert a.shape == b.shape


def assert_same_request(got: InferRequest, want: InferRequest) -> None:
    assert got.signature.tensors == want.signature.tensors
    assert [o.name for o in got.signature.outputs] == [o.name for o in want.signature.outputs]
    assert_same_arrays(got, want)
    assert (got.id, got.timeout_us, got.priority) == (want.id, want.timeout_us, want.priority)
    assert dict(got.parameters) == dict(want.parameters)


def encoded(request: InferRequest, **how: bool) -> tuple[bytes, int | None]:
    buffers, length = encode_request(request, **how)
    return b"".join(buffers), length


@given(requests(), st.booleans())
@SLOW_MACHINE
def test_binary_requests_round_trip(request: InferRequest, binary_outputs: bool) -> None:
    body, length = encoded(request, binary_outputs=binary_outputs)
    decoder = RequestDecoder()
    for _ in range(3):
        got = decoder.decode(body, length)
        assert_same_request(got, request)
        for output in request.signature.outputs:
            wanted = output.parameters.get("binary_data", binary_outputs)
            assert got.signature.form.is_binary(output.name) == wanted


@given(requests(tuple(d for d in dt.ALL if d not in BINARY_ONLY)))
@SLOW_MACHINE
def test_json_requests_round_trip(request: InferRequest) -> None:
    body, length = encoded(request, binary=False)
    assert length is None
    assert_same_request(RequestDecoder().decode(body, length), request)


@given(signed(), text, text, text, own_parameters, st.sets(st.integers(0, 3)))
@SLOW_MACHINE
def test_replies_round_trip(
    tensors: tuple[list[TensorSpec], list[Array]],
    model: str,
    version: str,
    id: str,
    parameters: dict[str, Any],
    binary: set[int],
) -> None:
    specs, arrays = tensors
    reply = InferReply(
        Signature(specs), arrays, model=model, version=version, id=id, parameters=parameters
    )
    form = OipForm(
        False, {s.name: i in binary or s.dtype in BINARY_ONLY for i, s in enumerate(specs)}
    )
    encoder, decoder = ReplyEncoder(), ReplyDecoder()
    for wanted in (form, ALL_BINARY, form, ALL_BINARY, ALL_BINARY):
        buffers, length = encoder.encode(reply, wanted)
        got = decoder.decode(b"".join(buffers), length)
        assert got.signature.tensors == reply.signature.tensors
        assert_same_arrays(got, reply)
        assert (got.model, got.version, got.id) == (model, version, id)
        assert dict(got.parameters) == parameters


# --- what is remembered makes no difference -------------------------------------------------------


@given(
    st.lists(requests(), min_size=1, max_size=4),
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from(["", "a", "b", 'q"', "\u00e9"]), st.integers()
        ),
        max_size=30,
    ),
)
@settings(SLOW_MACHINE, max_examples=60)
def test_memory_makes_no_difference(
    messages: list[InferRequest], order: list[tuple[int, str, int]]
) -> None:
    decoder = RequestDecoder()
    for index, name, damage in order:
        message = messages[index % len(messages)]
        message.id = name
        body, length = encoded(message)
        if damage % 5 == 0 and body:
            at = damage % len(body)
            body = body[:at] + bytes([damage % 256]) + body[at + 1 :]
        elif damage % 7 == 0:
            body = body[: damage % (len(body) + 1)]
        outcomes = [outcome(d, body, length) for d in (decoder, RequestDecoder())]
        if isinstance(outcomes[0], str) or isinstance(outcomes[1], str):
            assert outcomes[0] == outcomes[1]
        else:
            assert_same_request(*outcomes)


def outcome(decoder: RequestDecoder, body: bytes, length: int | None) -> Any:
    try:
        return decoder.decode(body, length, "M")
    except PenstockError as error:
        return error.message


# --- whatever comes -------------------------------------------------------------------------------

SMALL = WireLimits(tensors_max=4, rank_max=3, elements_max=100, strings_max=50, name_bytes_max=20)
lengths = st.one_of(st.none(), st.integers(-5, 300), st.integers())


def feed(body: bytes, length: int | None) -> None:
    """Every reader, twice where there is a memory: a value or a ``PenstockError``."""
    decoders = RequestDecoder(), RequestDecoder(SMALL), ReplyDecoder()
    for _ in range(3):
        for decoder in decoders:
            attempt(lambda decoder=decoder: decoder.decode(body, length))
    attempt(lambda: decode_reply(body, length))
    attempt(lambda: decode_reply(body, length, SMALL))
    attempt(lambda: parse_model_metadata(body))
    decode_error(body)
    for dtype in dt.ALL:
        attempt(lambda dtype=dtype: decode_raw(body, [TensorSpec("X", dtype, (-1, 1))], "M"))


def attempt(call: Any) -> None:
    try:
        value = call()
    except PenstockError as error:
        error.message.encode()  # must be able to travel
        return
    for array in getattr(value, "arrays", ()):
        array.tolist()
    if isinstance(value, InferReply):
        buffers, length = ReplyEncoder().encode(value, ALL_BINARY)
        assert_same_arrays(decode_reply(b"".join(buffers), length), value)
    if isinstance(value, InferRequest):
        body, length = encoded(value)
        assert_same_arrays(RequestDecoder().decode(body, length), value)


@given(st.binary(max_size=200), lengths)
@SLOW_MACHINE
def test_random_bytes(body: bytes, length: int | None) -> None:
    feed(body, length)


@given(requests(), st.data())
@SLOW_MACHINE
def test_mutated_requests(request: InferRequest, data: st.DataObject) -> None:
    binary = data.draw(st.booleans()) or any(
        s.dtype in BINARY_ONLY for s in request.signature.tensors
    )
    body, length = encoded(request, binary=binary)
    mutated = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        cut = data.draw(st.integers(0, 4))
        mutated[at : at + cut] = data.draw(
            st.one_of(
                st.binary(max_size=4), st.sampled_from([b"NaN", b"-1", b"[", b'"', b"\\ud800"])
            )
        )
    if data.draw(st.booleans()):
        length = data.draw(lengths)
    feed(bytes(mutated), length)


json_values = st.recursive(
    st.one_of(st.none(), scalars, st.just(float("nan")), st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def sometimes(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, usual, json_values)


entries = st.fixed_dictionaries(
    {
        "name": sometimes(text),
        "datatype": sometimes(st.sampled_from([d.name for d in dt.ALL])),
        "shape": sometimes(st.lists(st.integers(0, 3), max_size=3)),
    },
    optional={
        "data": sometimes(st.lists(st.one_of(st.integers(0, 1), st.floats(), text), max_size=6)),
        "parameters": sometimes(
            st.fixed_dictionaries(
                {},
                optional={
                    "binary_data_size": sometimes(st.integers(0, 64)),
                    "binary_data": sometimes(st.booleans()),
                    "shared_memory_region": text,
                },
            )
        ),
    },
)
near_messages = st.fixed_dictionaries(
    {"inputs": sometimes(st.lists(entries, max_size=3))},
    optional={
        "outputs": sometimes(st.lists(entries, max_size=3)),
        "id": sometimes(text),
        "model_name": sometimes(text),
        "model_version": sometimes(text),
        "parameters": sometimes(
            st.dictionaries(
                st.sampled_from(["priority", "timeout", "binary_data_output", "x"]),
                sometimes(scalars),
            )
        ),
    },
)


@given(near_messages, st.binary(max_size=64), st.booleans())
@SLOW_MACHINE
def test_messages_that_are_nearly_right(message: object, tail: bytes, has_length: bool) -> None:
    head = json.dumps(message).encode()
    feed(head + tail, len(head) if has_length else None)


@pytest.mark.parametrize("end", range(0, 400, 7))
def test_cut_short(end: int) -> None:
    request = InferRequest(
        Signature([TensorSpec("A", dt.FP32, (2,)), TensorSpec("B", dt.BYTES, (1,))]),
        [np.zeros(2, "f4"), np.array([b"x"], dtype=object)],
        id="abc",
    )
    buffers, length = RequestEncoder().encode(request)
    body = b"".join(buffers)
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(body, length)
    if end < len(body):
        with pytest.raises(PenstockError):
            decoder.decode(body[:end], length)
        with pytest.raises(PenstockError):
            decoder.decode(body + bytes(end + 1), length)
