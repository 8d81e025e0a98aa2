"""Requests: what their parts mean together, in the words that clients know."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferRequest, RegionRef, Target
from penstock.protocol.oip_form import ALL_BINARY
from penstock.protocol.oip_proto import RequestDecoder
from penstock.protocol.oip_proto_wire import opening
from penstock.server.grpc_schema import message

REQUEST = message("ModelInferRequest")
ONES = np.ones((1, 2), "<i4").tobytes()


def request(*raw: bytes, **inputs: dict[str, Any]) -> Any:
    """A request to model ``m``; of an input ``shape`` and ``datatype`` have defaults."""
    made = REQUEST(model_name="m")
    for name, fields in inputs.items():
        made.inputs.add(**{"name": name, "datatype": "INT32", "shape": [1, 2], **fields})
    made.raw_input_contents.extend(raw)
    return made


def nameless_output() -> Any:
    made = request(ONES, a={})
    made.outputs.add()
    return made


def decode(made: Any, **options: Any) -> InferRequest:
    return RequestDecoder(**options).decode(made.SerializeToString())


def refusal(made: Any, kind: type[PenstockError] = ProtocolError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        decode(made, **options)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


# --- values ---------------------------------------------------------------------------------------


def test_raw_values_are_views_into_the_message() -> None:
    data = bytearray(request(ONES, a={}).SerializeToString())
    found = RequestDecoder().decode(memoryview(data))
    assert np.shares_memory(found.arrays[0], np.frombuffer(data, "u1"))
    data[-4:] = struct.pack("<i", 77)
    assert found.arrays[0].tolist() == [[1, 77]]


def test_a_message_of_a_gigabyte_is_not_looked_into() -> None:
    """Its pages are never touched, so nobody pays for them here."""
    size = 1 << 30
    head = request(a={"datatype": "UINT8", "shape": [size]}).SerializeToString() + opening(7, size)
    whole = np.zeros(len(head) + size, "u1")
    whole[: len(head)] = np.frombuffer(head, "u1")
    decoder = RequestDecoder()
    for _ in range(3):
        found = decoder.decode(memoryview(whole))
        assert found.arrays[0].nbytes == size
        assert np.may_share_memory(found.arrays[0], whole[-1:])


def test_one_chunk_of_packed_floats_is_a_view_too() -> None:
    made = request(a={"datatype": "FP32", "contents": {"fp32_contents": [1, 2]}})
    data = made.SerializeToString()
    found = RequestDecoder().decode(data)
    assert found.arrays[0].tolist() == [[1, 2]]
    assert np.shares_memory(found.arrays[0], np.frombuffer(data, "u1"))


def test_values_in_pieces_are_put_together() -> None:
    made = request(a={"shape": [5], "contents": {"int_contents": [1, 2]}})
    data = made.SerializeToString()
    one_by_one = b"\x2a\x0a\x10\x03\x12\x01\x04\x10\xac\x02\x12\x00"  # 3, [4], 300, []
    tensor = data[data.index(b"\x2a") + 2 :] + one_by_one
    found = RequestDecoder().decode(data[:3] + b"\x2a" + bytes([len(tensor)]) + tensor)
    assert found.arrays[0].tolist() == [1, 2, 3, 4, 300]


@pytest.mark.parametrize(
    ("datatype", "contents", "expected"),
    [
        ("BOOL", {"bool_contents": [True, False]}, [True, False]),
        ("INT8", {"int_contents": [-128, 300]}, [-128, 44]),
        ("INT16", {"int_contents": [-1, 2**31 - 1]}, [-1, -1]),
        ("INT32", {"int_contents": [-(2**31), 5]}, [-(2**31), 5]),
        ("INT64", {"int64_contents": [-(2**63), 2**63 - 1]}, [-(2**63), 2**63 - 1]),
        ("UINT8", {"uint_contents": [255, 256]}, [255, 0]),
        ("UINT16", {"uint_contents": [65535, 0]}, [65535, 0]),
        ("UINT32", {"uint_contents": [2**32 - 1, 0]}, [2**32 - 1, 0]),
        ("UINT64", {"uint64_contents": [2**64 - 1, 128]}, [2**64 - 1, 128]),
        ("FP32", {"fp32_contents": [0.5, -1]}, [0.5, -1]),
        ("FP64", {"fp64_contents": [0.1, -1]}, [0.1, -1]),
        ("BYTES", {"bytes_contents": [b"a", b""]}, [b"a", b""]),
    ],
)
def test_typed_values(datatype: str, contents: dict[str, Any], expected: list[Any]) -> None:
    """Numbers that do not fit keep their lower bits, as upstream."""
    made = request(a={"datatype": datatype, "shape": [2], "contents": contents})
    found = decode(made)
    assert found.arrays[0].tolist() == expected
    assert found.arrays[0].dtype == dt.BY_NAME[datatype].numpy


def test_tensors_without_elements_need_no_values() -> None:
    found = decode(request(a={"shape": [0, 3]}, b={"datatype": "BYTES", "shape": [0]}))
    assert [a.shape for a in found.arrays] == [(0, 3), (0,)]
    found = decode(request(b"", ONES, a={"shape": [0, 3]}, b={}))
    assert [a.shape for a in found.arrays] == [(0, 3), (1, 2)]


MISMATCH = "input byte size mismatch for input 'a' for model 'm'. Expected 8, got "
NO_DATA = "unable to find data for input tensor '{}' for model 'm' in request."
FAULTS: dict[str, tuple[Any, str]] = {
    "raw beside typed": (
        request(ONES, a={"contents": {"int_contents": [1, 2]}}),
        "contents field must not be specified when using raw_input_contents for 'a' for model 'm'",
    ),
    "raw beside nothing typed": (
        request(ONES, a={"contents": {}}),
        "contents field must not be specified when using raw_input_contents for 'a' for model 'm'",
    ),
    "too much raw": (request(ONES + b"x", a={}), MISMATCH + "9"),
    "too little raw": (request(b"", a={}), MISMATCH + "0"),
    "no values": (request(a={}), NO_DATA.format("a")),
    "too few typed": (request(a={"contents": {"int_contents": [1]}}), MISMATCH + "4"),
    "too few raw": (request(ONES, a={}, b={}), NO_DATA.format("b")),
    "values of another type": (
        request(a={"contents": {"fp32_contents": [1, 2]}}),
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'FP32', "
        "expected datatype 'INT32'",
    ),
    "half precision as values": (
        request(a={"datatype": "FP16", "contents": {"fp32_contents": [1, 2]}}),
        "unexpected explicit tensor data for input tensor 'a' for model 'm' of type 'FP32', "
        "expected datatype 'FP16'",
    ),
    "strings missing": (
        request(a={"datatype": "BYTES", "contents": {"bytes_contents": [b"x"]}}),
        "expected 2 string elements for inference input 'a' for model 'm', got 1",
    ),
    "raw strings missing": (
        request(b"\x01\0\0\0x", a={"datatype": "BYTES"}),
        "expected 2 string elements for inference input 'a' for model 'm', got 1",
    ),
    "raw string cut off": (
        request(b"\x05\0\0\0x", a={"datatype": "BYTES"}),
        "incomplete string data for inference input 'a', expecting string of length 5 but only 1 "
        "bytes available",
    ),
    "negative dimension": (
        request(ONES, a={"shape": [-1, 2]}),
        "All input dimensions should be specified for input 'a' for model 'm', got [-1,2]",
    ),
    "unknown datatype": (
        request(ONES, a={"datatype": "INT"}),
        "invalid datatype for input a: 'INT'",
    ),
    "no name of an input": (
        request(ONES, **{"": {}}),
        "unexpected inference input '' for model 'm'",
    ),
    "no name of an output": (
        nameless_output(),
        "unexpected inference output '' for model 'm'",
    ),
    "too many elements": (
        request(ONES, a={"shape": [2**62, 2**62]}),
        "shape of input 'a' causes total element count to exceed maximum size of 1099511627776",
    ),
    "too many strings": (
        request(ONES, a={"datatype": "BYTES", "shape": [2**30]}),
        "shape of input 'a' causes total element count to exceed maximum size of 16777216",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    made, text = FAULTS[name]
    assert refusal(made) == text


def test_names_are_there_once() -> None:
    made = request(a={"shape": [0]})
    made.inputs.add(name="a", datatype="INT32", shape=[0])
    assert refusal(made) == "input 'a' already exists in request"


def test_upstream_s_leniencies() -> None:
    """What Triton lets pass, stock clients may rely on."""
    found = decode(request(ONES, ONES, b"more", a={}))
    assert found.arrays[0].tolist() == [[1, 1]]
    made = REQUEST(outputs=[{"name": "y"}, {"name": "z"}, {"name": "y"}])
    made.outputs[2].parameters["classification"].int64_param = 2
    outputs = decode(made).signature.outputs
    assert [(o.name, dict(o.parameters)) for o in outputs] == [
        ("y", {"classification": 2}),
        ("z", {}),
    ]
    assert decode(REQUEST(parameters={"timeout": {"int64_param": -5}})).timeout_us == 0
    made = REQUEST(outputs=[{"name": "y", **shared()}, {"name": "y"}])
    assert not decode(made).targets


# --- parameters -----------------------------------------------------------------------------------


def test_parameters() -> None:
    made = REQUEST(model_name="m", model_version="3", id="7")
    made.parameters["timeout"].int64_param = 500
    made.parameters["priority"].uint64_param = 2
    made.parameters["sequence_id"].uint64_param = 2**64 - 1
    made.parameters["sequence_start"].bool_param = True
    made.parameters["text"].string_param = "\u20ac"
    made.parameters["share"].double_param = 0.25
    found = decode(made)
    assert (found.model, found.version, found.id) == ("m", "3", "7")
    assert (found.timeout_us, found.priority) == (500, 2)
    assert dict(found.parameters) == {
        "sequence_id": 2**64 - 1, "sequence_start": True, "text": "\u20ac", "share": 0.25,
    }  # fmt: skip
    assert type(found.parameters["sequence_start"]) is bool
    made.parameters["priority"].int64_param = 3
    assert decode(made).priority == 3


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("priority", {"int64_param": -1}, "invalid value for 'priority', expected value >= 0."),
        ("priority", {"string_param": "1"}, "expected int64_param or uint64_param."),
        ("timeout", {"double_param": 1}, "expected int64_param."),
        ("timeout", {"bool_param": True}, "expected int64_param."),
        ("sequence_id", {"bool_param": True}, "expected int64_param or string_param."),
        ("sequence_start", {"int64_param": 1}, "expected bool_param."),
        ("sequence_end", {"string_param": "x"}, "expected bool_param."),
    ],
)
def test_parameters_of_known_types(key: str, value: dict[str, Any], text: str) -> None:
    if text.startswith("expected"):
        text = f"invalid value type for '{key}' parameter, {text}"
    assert refusal(REQUEST(parameters={key: value})) == text


def test_parameters_have_values() -> None:
    text = (
        "invalid value type for 'k' parameter, expected int64_param, bool_param, or string_param."
    )
    assert refusal(REQUEST(parameters={"k": {}})) == text
    assert refusal(request(a={"shape": [0], "parameters": {"k": {}}})) == text
    assert refusal(REQUEST(outputs=[{"name": "y", "parameters": {"k": {}}}])) == text


def test_reserved_names_of_parameters() -> None:
    made = REQUEST(parameters={"triton_mine": {"int64_param": 1}})
    assert refusal(made) == (
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following "
        "keys starting with 'triton_' are allowed: triton_enable_empty_final_response"
    )
    made = REQUEST(parameters={"triton_enable_empty_final_response": {"bool_param": True}})
    assert decode(made).parameters == {"triton_enable_empty_final_response": True}


def test_outputs() -> None:
    made = request(a={"shape": [0]})
    made.outputs.add(name="y").parameters["classification"].int64_param = 3
    made.outputs.add(name="z")
    found = decode(made)
    assert [(o.name, dict(o.parameters)) for o in found.signature.outputs] == [
        ("y", {"classification": 3}),
        ("z", {}),
    ]
    assert found.signature.form is ALL_BINARY
    assert not found.targets


# --- shared memory --------------------------------------------------------------------------------


class Memory:
    """One region "r" of 32 bytes that counts who asked."""

    def __init__(self) -> None:
        self.bytes = bytearray(np.arange(8, dtype="<i4").tobytes())
        self.asked: list[RegionRef] = []

    def resolve(self, ref: RegionRef) -> memoryview:
        self.asked.append(ref)
        if ref.region != "r":
            raise InferError(Code.INVALID_ARGUMENT, f"no region '{ref.region}'")
        return memoryview(self.bytes)[ref.offset : ref.offset + ref.byte_size]

    def target(self, ref: RegionRef) -> Target:
        return Target(ref, self.resolve(ref))


def shared(size: int = 8, offset: int | None = 4, region: str = "r") -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "shared_memory_region": {"string_param": region},
        "shared_memory_byte_size": {"int64_param": size},
    }
    if offset is not None:
        parameters["shared_memory_offset"] = {"int64_param": offset}
    return {"parameters": parameters}


def test_inputs_in_shared_memory_take_no_raw_contents() -> None:
    memory = Memory()
    data = request(ONES, a={}, b=shared(), c=shared(offset=None)).SerializeToString()
    made = request(b=shared(), a={}, c=shared(offset=None))
    made.raw_input_contents.append(ONES)
    decoder = RequestDecoder(regions=memory)
    for _ in range(3):
        found = decoder.decode(data)
        assert [a.tolist() for a in found.arrays] == [[[1, 1]], [[1, 2]], [[0, 1]]]
        found = decoder.decode(made.SerializeToString())
        assert [a.tolist() for a in found.arrays] == [[[1, 2]], [[1, 1]], [[0, 1]]]
    assert len(memory.asked) == 12  # anew for each request
    memory.bytes[4:8] = b"\xff" * 4
    assert found.arrays[0].tolist() == [[-1, 2]]


def test_shared_strings_are_read_anew() -> None:
    memory = Memory()
    memory.bytes[:10] = b"\x01\0\0\0a\x01\0\0\0b"
    strings = {"datatype": "BYTES", **shared(10, None)}
    decoder = RequestDecoder(regions=memory)
    data = request(a=strings).SerializeToString()
    for letter in b"xyz":
        memory.bytes[4] = letter
        assert decoder.decode(data).arrays[0].tolist() == [[bytes([letter]), b"b"]]


def test_outputs_in_shared_memory_are_targets() -> None:
    memory = Memory()
    made = request(ONES, a={})
    made.outputs.add(name="y", **shared())
    made.outputs.add(name="z")
    decoder = RequestDecoder(regions=memory)
    for _ in range(3):
        found = decoder.decode(made.SerializeToString())
        assert found.signature.form.regions == {"y": RegionRef("r", 4, 8)}
        assert set(found.targets) == {"y"}
        assert found.targets["y"].memory == memory.bytes[4:12]
    assert len(memory.asked) == 3


DISABLED = (
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
)


def test_shared_memory_is_off_by_default() -> None:
    assert refusal(request(a=shared()), InferError) == DISABLED
    made = REQUEST(outputs=[{"name": "y", **shared()}])
    assert refusal(made, InferError) == DISABLED


def test_faults_of_shared_memory() -> None:
    def refused(**fields: Any) -> str:
        return refusal(request(a=fields), PenstockError, regions=Memory())

    assert refused(**shared(12)) == MISMATCH + "12"
    assert refused(**shared(region="s")) == "no region 's'"
    assert refused(**shared(), contents={"int_contents": [1, 2]}) == (
        "contents field must not be specified when using shared memory for 'a' for model 'm'"
    )
    untold = shared(region="r")
    untold["parameters"]["shared_memory_region"] = {"int64_param": 1}
    assert refused(**untold) == (
        "invalid value type for 'shared_memory_region' parameter for tensor 'a', expected "
        "string_param."
    )
    alone = shared()
    del alone["parameters"]["shared_memory_byte_size"]
    assert "shared_memory_byte_size" in refused(**alone)
    assert "shared_memory_offset" in refused(**shared(offset=-1))


# --- signatures -----------------------------------------------------------------------------------


def test_requests_alike_share_a_signature() -> None:
    decoder = RequestDecoder()
    raw = decoder.decode(request(ONES, a={}).SerializeToString())
    made = request(a={"contents": {"int_contents": [1, 2]}})
    made.id = "7"
    made.parameters["timeout"].int64_param = 5
    assert decoder.decode(made.SerializeToString()).signature is raw.signature
    for other in (
        request(ONES, b={}),
        request(ONES, a={"shape": [2]}),
        request(ONES, a={"datatype": "FP32"}),
    ):
        assert decoder.decode(other.SerializeToString()).signature is not raw.signature
    made = request(ONES, a={})
    made.model_name = "n"
    assert decoder.decode(made.SerializeToString()).signature is not raw.signature


def test_signatures_tell_parameters_of_outputs_apart() -> None:
    decoder = RequestDecoder()
    signatures = set()
    for value in ({"int64_param": 1}, {"bool_param": True}, {"double_param": 1}, {"bool_param": 0}):
        made = REQUEST(outputs=[{"name": "y", "parameters": {"k": value}}])
        signatures.add(decoder.decode(made.SerializeToString()).signature)
    assert len(signatures) == 4


def test_limits_reach_the_wire() -> None:
    made = request(ONES, a={})
    small = WireLimits(name_bytes_max=3)
    assert refusal(made, limits=small) == "datatype is longer than the maximum 3 bytes"
    assert decode(made, limits=WireLimits(name_bytes_max=5)).model == "m"
