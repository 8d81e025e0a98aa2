"""Properties of the GraphPipe codec over random messages and random damage."""

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError, ProtocolError
from penstock.protocol.graphpipe import (
    ReplyEncoder,
    RequestDecoder,
    decode_metadata,
    decode_reply,
    decode_request,
    encode_request,
)
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
)

ROOT = Path(__file__).parents[2]
VALID = [path.read_bytes() for path in sorted((ROOT / "protocol/vectors/valid").glob("*.bin"))]
REQUESTS = [
    path.read_bytes() for path in sorted((ROOT / "protocol/vectors/valid").glob("*req*.bin"))
]


def load_oracle() -> Any:
    where = ROOT / "tests/data/graphpipe_fbs/oracle.py"
    spec = importlib.util.spec_from_file_location("graphpipe_oracle", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()
names = st.text(max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, Any]:
    dtype = draw(st.sampled_from(dt.ALL))
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=int))
    if dtype is dt.BYTES:
        array = np.empty(shape, object)
        array.reshape(-1)[:] = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
    elif dtype is dt.BOOL:
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        array = np.array(bits, bool).reshape(shape)
    else:
        size = count * dtype.itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
        array = np.frombuffer(raw, dtype.numpy).reshape(shape)
    return TensorSpec(draw(names), dtype, shape), array


parameters = st.dictionaries(
    names.filter(lambda key: key not in ("id", "timeout_us", "priority", "dtypes", "errors")),
    st.one_of(
        names,
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=4,
)


@st.composite
def requests(draw: st.DrawFn) -> InferRequest:
    drawn = draw(st.lists(tensors(), max_size=4))
    outputs = [OutputRequest(name) for name in draw(st.lists(names, max_size=3))]
    return InferRequest(
        Signature([spec for spec, _ in drawn], outputs),
        [array for _, array in drawn],
        id=draw(names),
        timeout_us=draw(st.integers(0, (1 << 63) - 1)),
        priority=draw(st.integers(0, (1 << 32) - 1)),
        parameters=draw(parameters),
    )


def contents(message: InferRequest | InferReply) -> list[Any]:
    """Tensors as the oracle writes and reads them."""
    return [
        (
            spec.dtype.graphpipe,
            spec.shape,
            array.reshape(-1).tolist() if spec.dtype is dt.BYTES else array.tobytes(),
        )
        for spec, array in zip(message.signature.tensors, message.arrays, strict=True)
    ]


def facts(message: Any) -> Any:
    if not isinstance(message, InferRequest):
        return message.form
    return (
        message.signature.tensors,
        message.signature.outputs,
        message.signature.form,
        contents(message),
        message.id,
        message.timeout_us,
        message.priority,
        dict(message.parameters),
    )


def outcome(read: Any, frame: bytes) -> Any:
    try:
        return facts(read(frame))
    except ProtocolError as error:
        return str(error)


@given(requests())
def test_requests_survive_the_way(sent: InferRequest) -> None:
    frame = b"".join(encode_request(sent))
    decoder = RequestDecoder()
    for _ in range(3):
        back = facts(decoder.decode(frame))
        assert back[:2] == (sent.signature.tensors, sent.signature.outputs)
        assert back[3:] == facts(sent)[3:]
    assert facts(decode_request(frame)) == back


@given(requests(), st.booleans())
def test_generated_code_agrees_about_our_frames(sent: InferRequest, extended: bool) -> None:
    frame = b"".join(encode_request(sent, extended=extended))
    _, read_names, read_tensors, outputs = oracle.read_request(frame)
    back = decode_request(frame)
    assert isinstance(back, InferRequest)
    assert read_tensors == contents(back)
    wanted = [spec.name.encode() for spec in sent.signature.tensors]
    assert read_names == (wanted if any(wanted) else [])
    assert outputs == [output.name.encode() for output in sent.signature.outputs]
    reply = b"".join(ReplyEncoder().encode(InferReply(sent.signature, sent.arrays)))
    assert oracle.read_reply(reply) == (contents(decode_reply(reply)), [])


@given(requests(), st.booleans(), st.booleans())
def test_we_agree_with_generated_code_about_its_frames(
    sent: InferRequest, nul: bool, aligned: bool
) -> None:
    frame = oracle.write_request(
        b"",
        [spec.name.encode() for spec in sent.signature.tensors],
        contents(sent),
        [output.name.encode() for output in sent.signature.outputs],
        nul=nul,
        aligned=aligned,
    )
    back = decode_request(frame)
    assert isinstance(back, InferRequest)
    assert contents(back) == contents(sent)
    assert back.signature.tensors == sent.signature.tensors
    assert back.signature.outputs == sent.signature.outputs


damage = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6)


def damaged(frame: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    out = bytearray(frame)
    for at, value in changes:
        out[at % len(out)] = value
    return bytes(out[: len(out) - cut])


@settings(max_examples=300)
@given(st.sampled_from(VALID), damage, st.sampled_from([0, 0, 0, 1, 4, 17]))
def test_damage_gives_a_value_or_a_refusal(
    frame: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    hurt = damaged(frame, changes, cut)
    for read in (decode_request, decode_reply, decode_metadata):
        with suppress(ProtocolError, *([InferError] if read is decode_reply else [])):
            read(hurt)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_refusal(frame: bytes) -> None:
    test_damage_gives_a_value_or_a_refusal.hypothesis.inner_test(frame, [], 0)  # type: ignore[attr-defined]


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(REQUESTS), damage, st.integers(1, 4)), min_size=1, max_size=12
    )
)
def test_memory_never_changes_the_outcome(
    sequence: list[tuple[bytes, list[tuple[int, int]], int]],
) -> None:
    """One decoder that saw everything before answers like one that saw nothing."""
    decoder = RequestDecoder()
    for frame, changes, repeats in sequence:
        for hurt in (frame, damaged(frame, changes, 0)):
            for _ in range(repeats):
                assert outcome(decoder.decode, hurt) == outcome(decode_request, hurt)
