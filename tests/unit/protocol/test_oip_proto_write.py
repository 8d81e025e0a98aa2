"""Replies and requests as bytes: their layout, their buffers and what is not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    OutputRequest,
    RegionRef,
    Signature,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_form import OipForm
from penstock.protocol.oip_proto import (
    ReplyDecoder,
    ReplyEncoder,
    RequestEncoder,
    encode_stream_response,
    split_stream_response,
)
from penstock.server.grpc_schema import message

REQUEST = message("ModelInferRequest")
REPLY = message("ModelInferResponse")
STREAM = message("ModelStreamInferResponse")
SMALL = np.arange(16, dtype="<i4").reshape(1, 16)
LARGE = np.arange(1024, dtype="<f4")
STRINGS = np.array([b"ab", b""], dtype=object)


def reply(*arrays: Any, **named: Any) -> InferReply:
    specs = [TensorSpec(f"y{i}", dt.of_numpy(a.dtype), a.shape) for i, a in enumerate(arrays)]
    return InferReply(Signature(specs), arrays, "m", "2", **named)


def read(buffers: list[Any]) -> Any:
    return REPLY.FromString(b"".join(buffers))


def test_a_reply() -> None:
    found = read(ReplyEncoder().encode(reply(SMALL, STRINGS, id="7", parameters={"k": True})))
    assert (found.model_name, found.model_version, found.id) == ("m", "2", "7")
    assert found.parameters["k"].bool_param is True
    assert [(o.name, o.datatype, list(o.shape)) for o in found.outputs] == [
        ("y0", "INT32", [1, 16]),
        ("y1", "BYTES", [2]),
    ]
    assert not any(o.HasField("contents") for o in found.outputs)
    assert list(found.raw_output_contents) == [SMALL.tobytes(), b"\x02\0\0\0ab\0\0\0\0"]


def test_small_replies_are_one_buffer_and_large_arrays_are_handed_on() -> None:
    encoder = ReplyEncoder()
    assert len(encoder.encode(reply(SMALL, SMALL))) == 1
    buffers = encoder.encode(reply(SMALL, LARGE, SMALL, LARGE))
    assert [len(b) > 512 for b in buffers] == [False, True, False, True]
    for buffer in (buffers[1], buffers[3]):
        assert np.shares_memory(np.frombuffer(buffer, "u1"), LARGE)
    assert [len(raw) for raw in read(buffers).raw_output_contents] == [64, 4096, 64, 4096]


def test_sizes_of_strings_vary_from_reply_to_reply() -> None:
    encoder = ReplyEncoder()
    signature = Signature([TensorSpec("s", dt.BYTES, (1,)), TensorSpec("n", dt.INT32, (1, 16))])
    for length in (1, 200, 1, 3000):
        strings = np.array([b"x" * length], dtype=object)
        found = read(encoder.encode(InferReply(signature, [strings, SMALL], "m")))
        assert [len(raw) for raw in found.raw_output_contents] == [length + 4, 64]
    assert len(encoder._layouts) == 1


def test_a_reply_without_outputs() -> None:
    last = reply(id="7", parameters={"triton_final_response": True})
    found = read(ReplyEncoder().encode(last))
    assert found.parameters["triton_final_response"].bool_param is True
    assert not found.outputs
    assert found.id == "7"


@pytest.mark.parametrize(
    "array",
    [SMALL.astype("<i8"), SMALL[:, :8], np.asfortranarray(LARGE.reshape(2, 512)[:, ::2])],
)
def test_arrays_are_what_is_declared(array: Any) -> None:
    encoder = ReplyEncoder()
    made = reply(SMALL)
    encoder.encode(made)
    made.arrays = [array]
    with pytest.raises(ValueError, match="given for declared"):
        encoder.encode(made)
    made.arrays = []
    with pytest.raises(ValueError):
        encoder.encode(made)
    made.arrays = [SMALL]
    assert read(encoder.encode(made)).raw_output_contents[0] == SMALL.tobytes()


def test_strings_have_the_declared_shape() -> None:
    made = reply(STRINGS)
    made.arrays = [STRINGS[:1]]
    with pytest.raises(ValueError, match="given for declared"):
        ReplyEncoder().encode(made)


def test_scattered_arrays_are_sent_in_c_order() -> None:
    array = np.arange(4096, dtype="<i4").reshape(64, 64).T
    assert read(ReplyEncoder().encode(reply(array))).raw_output_contents[0] == array.tobytes("C")


def test_layouts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.protocol.oip_proto_write.LAYOUTS_MAX", 4)
    encoder, client = ReplyEncoder(), RequestEncoder()
    for _ in range(20):
        encoder.encode(reply(SMALL))
        client.encode(InferRequest(Signature([TensorSpec("x", dt.INT32, (1, 16))]), [SMALL]))
    assert len(encoder._layouts) == len(client._layouts) == 4


# --- outputs in shared memory ---------------------------------------------------------------------


def sharing(memory: bytearray, **refs: RegionRef) -> tuple[OipForm, dict[str, Target]]:
    targets = {
        name: Target(ref, memoryview(memory)[ref.offset : ref.offset + ref.byte_size])
        for name, ref in refs.items()
    }
    return OipForm(True, regions=refs), targets


def test_outputs_go_to_shared_memory_and_leave_an_empty_entry() -> None:
    memory = bytearray(100)
    form, targets = sharing(memory, y0=RegionRef("r", 16, 70), y1=RegionRef("s", 0, 16))
    encoder = ReplyEncoder()
    for add in range(3):
        buffers = encoder.encode(reply(SMALL + add, STRINGS, SMALL), form, {**targets})
        found = read(buffers)
        assert memory[:10] == b"\x02\0\0\0ab\0\0\0\0"
        assert memory[16:80] == (SMALL + add).tobytes()
        assert [len(raw) for raw in found.raw_output_contents] == [0, 0, 64]
        first, second, third = (
            {k: v.string_param or v.int64_param for k, v in o.parameters.items()}
            for o in found.outputs
        )
        assert first == {
            "shared_memory_region": "r",
            "shared_memory_offset": 16,
            "shared_memory_byte_size": 64,
        }
        assert second == {"shared_memory_region": "s", "shared_memory_byte_size": 10}
        assert third == {}


def test_outputs_that_do_not_fit_their_memory() -> None:
    form, targets = sharing(bytearray(100), y0=RegionRef("r", 0, 63))
    with pytest.raises(InferError) as caught:
        ReplyEncoder().encode(reply(SMALL), form, targets)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        "shared memory size specified with the request for output 'y0' (63 bytes) should be at "
        "least 64 bytes to hold the results"
    )


def test_a_client_is_told_that_an_output_is_elsewhere() -> None:
    form, targets = sharing(bytearray(100), y0=RegionRef("r", 0, 64))
    buffers = ReplyEncoder().encode(reply(SMALL, SMALL), form, targets)
    with pytest.raises(InferError, match="shared memory 'r', not in the reply"):
        ReplyDecoder().decode(b"".join(buffers))

    class Own:
        def resolve(self, ref: RegionRef) -> memoryview:
            return targets["y0"].memory[: ref.byte_size]

        def target(self, ref: RegionRef) -> Target:
            return targets["y0"]

    decoder = ReplyDecoder(regions=Own())
    for _ in range(3):
        found = decoder.decode(b"".join(buffers))
        assert [a.tolist() for a in found.arrays] == [SMALL.tolist()] * 2


# --- streams --------------------------------------------------------------------------------------


def test_stream_responses() -> None:
    buffers = ReplyEncoder().encode(reply(SMALL, LARGE, id="7"))
    streamed = encode_stream_response(buffers)
    assert streamed[-1] is buffers[-1]
    found = STREAM.FromString(b"".join(streamed))
    assert found.error_message == ""
    assert found.infer_response == read(buffers)
    error, inner = split_stream_response(b"".join(streamed))
    assert error == ""
    assert inner is not None
    assert ReplyDecoder().decode(inner).id == "7"


def test_stream_errors() -> None:
    found = STREAM.FromString(b"".join(encode_stream_response("no\ud800 luck")))
    assert found.error_message == "no? luck"
    assert not found.HasField("infer_response")
    streamed = b"".join(encode_stream_response("no luck", "7"))
    assert STREAM.FromString(streamed).infer_response.id == "7"
    assert split_stream_response(streamed)[0] == "no luck"


def test_a_stream_response_in_pieces() -> None:
    pieces = b"\x12\x03\x0a\x01m\x12\x03\x1a\x017"
    error, inner = split_stream_response(pieces)
    assert inner is not None
    found = ReplyDecoder().decode(inner)
    assert (error, found.model, found.id) == ("", "m", "7")
    with pytest.raises(ProtocolError):
        split_stream_response(b"\x12\x01\x0a\x12\x02\x01m")
    assert split_stream_response(b"") == ("", None)


# --- requests -------------------------------------------------------------------------------------


def test_a_request() -> None:
    signature = Signature(
        [TensorSpec("x", dt.INT32, (1, 16)), TensorSpec("f", dt.FP32, (1024,))],
        [OutputRequest("y", {"classification": 3}), OutputRequest("z")],
    )
    request = InferRequest(signature, [SMALL, LARGE], "m", "2", "7", {"k": 0.5}, 100, 2)
    buffers = RequestEncoder().encode(request)
    assert np.shares_memory(np.frombuffer(buffers[-1], "u1"), LARGE)
    found = REQUEST.FromString(b"".join(buffers))
    assert (found.model_name, found.model_version, found.id) == ("m", "2", "7")
    assert {k: v.WhichOneof("parameter_choice") for k, v in found.parameters.items()} == {
        "k": "double_param",
        "timeout": "int64_param",
        "priority": "uint64_param",
    }
    assert [o.name for o in found.outputs] == ["y", "z"]
    assert found.outputs[0].parameters["classification"].int64_param == 3
    assert [len(raw) for raw in found.raw_input_contents] == [64, 4096]
