"""The GraphPipe codec: encoders, forms, zero copies, config, errors and metadata."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.graphpipe import (
    Buffer,
    GraphpipeForm,
    ReplyEncoder,
    RequestEncoder,
    decode_reply,
    decode_request,
    encode_error,
    encode_request,
)
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
    widen_bf16,
    wire_array,
)

EXTENDED = GraphpipeForm(extended=True)


def signature(arrays: Sequence[Any], outputs: Sequence[str] = (), **types: DType) -> Signature:
    specs = [
        TensorSpec(f"t{i}", types.get(f"t{i}") or dt.of_numpy(a.dtype), a.shape)
        for i, a in enumerate(arrays)
    ]
    return Signature(specs, [OutputRequest(name) for name in outputs])


def request(*arrays: Any, **more: Any) -> InferRequest:
    return InferRequest(signature(arrays), arrays, **more)


def joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def read(frame: Any, limits: WireLimits = WireLimits()) -> InferRequest:  # noqa: B008
    message = decode_request(frame, limits)
    assert isinstance(message, InferRequest)
    return message


ARRAYS = {
    name: np.arange(6).reshape(2, 3).astype(dt.BY_NAME[name].numpy)
    for name in dt.BY_NAME
    if name not in ("BYTES", "BF16")
}


@pytest.mark.parametrize("name", ARRAYS)
def test_numeric_roundtrip_keeps_bits_and_type(name: str) -> None:
    array = ARRAYS[name]
    back = read(joined(encode_request(request(array))))
    assert back.signature.tensors == (TensorSpec("t0", dt.BY_NAME[name], (2, 3)),)
    assert np.array_equal(back.arrays[0], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array(0.42),
        np.zeros((0, 3), np.float32),
        np.zeros((3, 0, 2), np.int64),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(True),
    ],
    ids=["scalar", "no rows", "no columns", "strided", "fortran", "bool scalar"],
)
def test_odd_arrays(array: Any) -> None:
    buffers = encode_request(request(array))
    back = read(joined(buffers)).arrays[0]
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert sum(memoryview(buffer).nbytes for buffer in buffers) == len(joined(buffers))


def test_strings_are_raw_bytes() -> None:
    items = np.array([[b"", b"\xff\0x"], ["grün", b"end\0"]], object)
    _, array = wire_array(items)
    back = read(joined(encode_request(request(array)))).arrays[0]
    assert back.tolist() == [[b"", b"\xff\0x"], ["grün".encode(), b"end\0"]]


def test_data_starts_at_multiples_of_64_and_strings_end_in_nul() -> None:
    arrays = [np.arange(n, dtype=np.uint8) + 200 for n in (1, 7, 64, 3)]
    _, text = wire_array([b"needle"])
    frame = joined(encode_request(request(*arrays, text)))
    for array in arrays:
        assert frame.index(array.tobytes()) % 64 == 0
    assert b"needle\0" in frame


def test_neither_way_copies_tensor_data() -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    buffers = encode_request(request(array))
    assert any(
        np.shares_memory(np.frombuffer(b, np.uint8), array)
        for b in buffers
        if isinstance(b, memoryview)
    )
    frame = bytearray(joined(buffers))
    for source in (bytes(frame), frame, memoryview(frame), np.frombuffer(frame, np.uint8)):
        back = read(source).arrays[0]
        assert np.shares_memory(back, np.frombuffer(source, np.uint8))
        assert not back.flags.writeable


def test_small_frames_are_small() -> None:
    array = np.zeros((1, 16), np.int32)
    reply = InferReply(signature([array, array]), [array, array])
    assert len(joined(ReplyEncoder().encode(reply))) <= 320


@pytest.mark.parametrize("extended", [True, False])
def test_request_fields_travel(extended: bool) -> None:
    array = np.ones(2, np.float32)
    sent = InferRequest(
        signature([array], ["z", ""]),
        [array],
        id="r-1",
        timeout_us=2500,
        priority=3,
        parameters={"sequence_id": 7, "sequence_start": True, "scale": 0.5, "tag": "grün"},
    )
    back = read(joined(encode_request(sent, extended=extended)))
    assert (back.id, back.timeout_us, back.priority) == ("r-1", 2500, 3)
    assert dict(back.parameters) == dict(sent.parameters)
    assert back.signature.outputs == sent.signature.outputs
    assert back.signature.form == GraphpipeForm(extended, extended)
    with pytest.raises(TypeError):
        back.parameters["x"] = 1  # type: ignore[index]  # shared by all users of a template


def test_unnamed_tensors_send_no_names() -> None:
    array = np.ones(2, np.float32)
    sent = InferRequest(Signature([TensorSpec("", dt.FP32, (2,))]), [array])
    assert len(joined(encode_request(sent, extended=False))) <= 192
    assert read(joined(encode_request(sent))).signature.tensors[0].name == ""


def test_opaque_config_goes_both_ways() -> None:
    array = np.ones(1, np.float32)
    for text in ("words", "[1]", "grün {", "\udcff\udcfe"):
        sent = request(array, parameters={"config": text})
        frame = joined(encode_request(sent, extended=False))
        assert text.encode("utf-8", "surrogateescape") in frame
        assert dict(read(frame).parameters) == {"config": text}


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"parameters": {"id": "x"}}, ValueError),
        ({"parameters": {"x": float("nan")}}, ValueError),
        ({"parameters": {"x": 1 << 64}}, ValueError),
        ({"parameters": {"x": [1]}}, TypeError),
        ({"timeout_us": -1}, ValueError),
        ({"priority": 1 << 32}, ValueError),
    ],
)
def test_what_cannot_be_said_is_local_misuse(more: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        encode_request(request(np.ones(1), **more))


def test_config_limits() -> None:
    limits = WireLimits(name_bytes_max=4, config_bytes_max=64)
    frame = joined(encode_request(request(np.ones(1), id="12345"), extended=False))
    with pytest.raises(ProtocolError, match="longer than 4"):
        read(frame, limits)
    frame = joined(encode_request(request(np.ones(1), parameters={"a": "12345"}), extended=False))
    with pytest.raises(ProtocolError, match="longer than 4"):
        read(frame, limits)
    frame = joined(encode_request(request(np.ones(1), parameters={"config": "x" * 65}), extended=0))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="at most 64"):
        read(frame, limits)


def test_deeply_nested_config_is_opaque() -> None:
    text = "[" * 100_000
    frame = joined(encode_request(request(np.ones(1), parameters={"config": text}), extended=False))
    assert dict(read(frame).parameters) == {"config": text}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (WireLimits(tensors_max=1), "2 names, at most 1"),
        (WireLimits(rank_max=1), "2 dimensions, at most 1"),
        (WireLimits(elements_max=5), "at most 5"),
        (WireLimits(name_bytes_max=1), "name of 2 bytes"),
        (WireLimits(strings_max=3), "left of the limit"),
    ],
)
def test_limits(limits: WireLimits, words: str) -> None:
    _, text = wire_array([b"a", b"b", b"c", b"d"])
    sent = joined(encode_request(request(np.ones((2, 3)), text)))
    read(sent)
    with pytest.raises(ProtocolError, match=words):
        read(sent, limits)


def test_strings_of_all_tensors_share_one_limit() -> None:
    _, text = wire_array([b"a", b"b"])
    sent = joined(encode_request(request(text, text)))
    read(sent, WireLimits(strings_max=4))
    with pytest.raises(ProtocolError, match=r"input_tensors\[1\]\.string_val"):
        read(sent, WireLimits(strings_max=3))


# Replies -------------------------------------------------------------------------------------


def test_reply_roundtrip_and_memo() -> None:
    first, second = np.arange(4, dtype=np.int16), np.arange(2.0)
    shared = signature([first, second])
    encoder = ReplyEncoder()
    for factor in (1, 2, 3):
        sent = InferReply(shared, [first * factor, second * factor])
        back = decode_reply(joined(encoder.encode(sent)))
        assert [a.tolist() for a in back.arrays] == [a.tolist() for a in sent.arrays]
        assert [s.name for s in back.signature.tensors] == ["", ""]


def test_reply_of_strings_is_not_remembered() -> None:
    shared = Signature([TensorSpec("s", dt.BYTES, (1,)), TensorSpec("n", dt.INT8, (1,))])
    encoder = ReplyEncoder()
    for word in (b"one", b"two"):
        reply = InferReply(shared, [wire_array([word])[1], np.ones(1, np.int8)])
        assert decode_reply(joined(encoder.encode(reply))).arrays[0].tolist() == [word]


def test_reply_without_outputs() -> None:
    frame = joined(ReplyEncoder().encode(InferReply(Signature(()), [])))
    assert decode_reply(frame).arrays == []


def test_legacy_peers_get_legacy_types() -> None:
    flags, halves = np.array([True, False]), wire_array([1.5, -2.0], dt.BF16)[1]
    reply = InferReply(signature([flags, halves], t1=dt.BF16), [flags, halves])
    encoder = ReplyEncoder()
    for _ in range(2):
        old = decode_reply(joined(encoder.encode(reply, GraphpipeForm())))
        assert [s.dtype for s in old.signature.tensors] == [dt.UINT8, dt.FP32]
        assert [a.tolist() for a in old.arrays] == [[1, 0], [1.5, -2.0]]
        new = decode_reply(joined(encoder.encode(reply, EXTENDED)))
        assert [s.dtype for s in new.signature.tensors] == [dt.BOOL, dt.BF16]
        assert widen_bf16(new.arrays[1]).tolist() == [1.5, -2.0]
    assert joined(encoder.encode(reply)) == joined(encoder.encode(reply, GraphpipeForm()))


@pytest.mark.parametrize("kind", ["BOOL", "BF16"])
def test_using_an_added_type_announces_it(kind: str) -> None:
    dtype = dt.BY_NAME[kind]
    array = np.zeros(2, dtype.numpy)
    sent = InferRequest(signature([array], t0=dtype), [array])
    frame = bytearray(joined(encode_request(sent)))
    frame = frame.replace(b'"dtypes":"extended"', b'"dtypez":"extended"')
    assert read(frame).signature.form.extended
    old = read(joined(encode_request(sent, extended=False)))
    assert old.signature.tensors[0].dtype in (dt.UINT8, dt.FP32)
    assert not old.signature.form.extended


def test_arrays_that_contradict_the_signature_are_refused() -> None:
    array = np.ones(4, np.float32)
    encoder = ReplyEncoder()
    shared = signature([array])
    encoder.encode(InferReply(shared, [array]))
    with pytest.raises(ValueError, match="12 bytes, declared are 16"):
        encoder.encode(InferReply(shared, [array[:3]]))


def test_reply_of_2_gib_is_refused() -> None:
    huge = np.broadcast_to(np.zeros(1, np.uint8), (1 << 31,))
    with pytest.raises(InferError) as caught:
        ReplyEncoder().encode(InferReply(signature([huge]), [huge]))
    assert caught.value.code is Code.OUT_OF_RANGE


def test_reply_table_is_bounded() -> None:
    encoder, array = ReplyEncoder(), np.ones(1)
    for _ in range(1100):
        encoder.encode(InferReply(signature([array]), [array]))
    assert len(encoder._legacy) <= 1024


@pytest.mark.parametrize("code", Code)
def test_errors_travel_in_frames(code: Code) -> None:
    with pytest.raises(InferError) as caught:
        decode_reply(encode_error(InferError(code, "no\0 gr\xfcn")))
    assert (caught.value.code, caught.value.message) == (code, "no\0 gr\xfcn")


def test_error_without_words_says_its_number() -> None:
    with pytest.raises(InferError, match="the server answered error 14"):
        decode_reply(encode_error(InferError(Code.UNAVAILABLE, "")))


def test_request_encoder_writes_what_encode_request_writes() -> None:
    arrays = [np.arange(3, dtype=np.int16), np.ones((2, 2))]
    shared = signature(arrays, ["z"])
    text = Signature([TensorSpec("s", dt.BYTES, (1,)), *shared.tensors])
    for extended in (True, False):
        encoder = RequestEncoder(extended=extended)
        for n, name in enumerate(["", "a", "b", "longer", "a", ""] * 2):
            scaled = [array * n for array in arrays]
            for sent in (
                InferRequest(shared, scaled, id=name, priority=n % 2),
                InferRequest(text, [wire_array([name])[1], *scaled], id=name),
            ):
                assert joined(encoder.encode(sent)) == joined(
                    encode_request(sent, extended=extended)
                )
    with pytest.raises(ValueError, match="declared are"):
        encoder.encode(InferRequest(shared, [arrays[0], np.ones(3)]))


def test_request_encoder_is_bounded() -> None:
    encoder, array = RequestEncoder(), np.ones(1)
    for n in range(1100):
        encoder.encode(InferRequest(signature([array]), [array], id="x" * (n % 3)))
    assert len(encoder._plans) <= 1024
