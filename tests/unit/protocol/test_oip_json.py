"""The JSON codec: one table of tensors feeds readers and writers, then the rules one by one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    Array,
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
    wire_array,
)
from penstock.protocol.oip_json import (
    ALL_BINARY,
    ALL_JSON,
    OipForm,
    ReplyEncoder,
    RequestDecoder,
    RequestEncoder,
    decode_error,
    decode_reply,
    encode_error,
    encode_request,
)


def strings(*values: bytes, shape: tuple[int, ...] | None = None) -> Array:
    out = np.empty(len(values), dtype=object)
    out[:] = list(values)
    return out.reshape(shape if shape is not None else len(values))


def int_edges(kind: str) -> Array:
    info = np.iinfo(kind)
    return np.array([[info.min, info.max], [0, 1]], dtype=kind)


TENSORS: list[tuple[dt.DType, Array]] = [
    (dt.BOOL, np.array([True, False, True])),
    (dt.UINT8, int_edges("u1")),
    (dt.INT8, int_edges("i1")),
    (dt.UINT16, int_edges("u2")),
    (dt.INT16, int_edges("i2")),
    (dt.UINT32, int_edges("u4")),
    (dt.INT32, int_edges("i4")),
    (dt.UINT64, int_edges("u8")),
    (dt.INT64, int_edges("i8")),
    (dt.FP16, np.array([0.1, -2.5, np.inf], dtype="f2")),
    (dt.FP32, np.array([[0.1, 3.4e38, -1e-45]], dtype="f4")),
    (dt.FP32, np.array([np.nan, np.inf, -np.inf, 0.0], dtype="f4")),
    (dt.FP64, np.array([0.1, 1.7e308, 5e-324, -0.0])),
    (dt.FP64, np.array([[np.nan], [-np.inf]])),
    (dt.BF16, np.array([0, 0x3F80, 0xFFFF], dtype="u2")),
    (dt.BYTES, strings(b"", b"a", '\u00e9\U0001f600"\\\n\x00'.encode(), b"x" * 300)),
    (dt.BYTES, strings(b"only one", shape=())),
    (dt.FP32, np.array(1.5, dtype="f4")),
    (dt.INT64, np.array(-7)),
    (dt.FP32, np.zeros((0,), dtype="f4")),
    (dt.FP32, np.zeros((2, 0, 3), dtype="f4")),
    (dt.INT8, np.zeros((0, 1 << 40), dtype="i1")),
    (dt.BYTES, strings(shape=(0, 4))),
    (dt.BOOL, np.array(True)),
    (dt.UINT8, np.arange(5000, dtype="u1").reshape(50, 100)),
    (dt.FP32, np.arange(600, dtype="f4").reshape(20, 30).T),
    (dt.INT32, np.arange(600, dtype="i4")[::-2]),
]
IDS = [f"{dtype}-{array.shape}" for dtype, array in TENSORS]
JSON_TENSORS = [(d, a) for d, a in TENSORS if d not in (dt.FP16, dt.BF16)]


def request_of(*tensors: tuple[dt.DType, Array], **kwargs: Any) -> InferRequest:
    specs = [TensorSpec(f"T{i}", d, a.shape) for i, (d, a) in enumerate(tensors)]
    outputs = kwargs.pop("outputs", ())
    return InferRequest(Signature(specs, outputs), [a for _, a in tensors], **kwargs)


def reply_of(*tensors: tuple[dt.DType, Array], **kwargs: Any) -> InferReply:
    specs = [TensorSpec(f"T{i}", d, a.shape) for i, (d, a) in enumerate(tensors)]
    return InferReply(Signature(specs), [a for _, a in tensors], **kwargs)


def same(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == object:
        return bool(a.tolist() == b.tolist())
    # NaN payloads do not survive JSON, so compare what they are, not their bits.
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def assert_same(got: InferRequest | InferReply, want: InferRequest | InferReply) -> None:
    assert got.signature.tensors == want.signature.tensors
    for a, b in zip(got.arrays, want.arrays, strict=True):
        assert same(a, b), (a, b)
    assert got.id == want.id


def joined(parts: tuple[list[Any], int | None]) -> tuple[bytes, int | None]:
    buffers, length = parts
    assert all(isinstance(b, bytes | memoryview) for b in buffers)
    assert all(isinstance(b, bytes) or (b.format == "B" and b.ndim == 1) for b in buffers)
    if length is not None:
        assert len(buffers[0]) == length
    return b"".join(buffers), length


def infer(body: object, binary: bytes = b"", **kwargs: Any) -> InferRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RequestDecoder(**kwargs).decode(text + binary, len(text) if binary else None, "M")


def one(data: object = None, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5], **changes}
    if data is not None:
        tensor["data"] = data
    return {"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "array"), TENSORS, ids=IDS)
def test_request_binary(dtype: dt.DType, array: Array) -> None:
    request = request_of((dtype, array), id="r")
    body, length = joined(encode_request(request))
    decoder = RequestDecoder()
    for _ in range(3):  # new, remembered, from memory
        assert_same(decoder.decode(body, length), request)


@pytest.mark.parametrize(("dtype", "array"), TENSORS, ids=IDS)
def test_reply_binary(dtype: dt.DType, array: Array) -> None:
    encoder = ReplyEncoder()
    for name in ("", "r"):
        reply = reply_of((dtype, array), id=name, model="m", version="1")
        body, length = joined(encoder.encode(reply, ALL_BINARY))
        assert (length is None) == (array.size == 0)
        got = decode_reply(body, length)
        assert_same(got, reply)
        assert (got.model, got.version) == ("m", "1")


@pytest.mark.parametrize(("dtype", "array"), JSON_TENSORS)
def test_request_and_reply_json(dtype: dt.DType, array: Array) -> None:
    request = request_of((dtype, array))
    body, length = joined(encode_request(request, binary=False))
    assert length is None
    assert_same(RequestDecoder().decode(body, None), request)
    reply = reply_of((dtype, array))
    body, length = joined(ReplyEncoder().encode(reply, ALL_JSON))
    assert length is None
    assert_same(decode_reply(body, None), reply)


@pytest.mark.parametrize(("dtype", "array"), JSON_TENSORS)
def test_nested_data(dtype: dt.DType, array: Array) -> None:
    if array.size and dtype is dt.BYTES:
        nested = np.vectorize(lambda b: b.decode(), otypes=[object])(array).tolist()
    else:
        nested = array.tolist()
    body = one(nested, shape=array.shape, datatype=dtype.name)
    assert same(infer(body).arrays[0], array)


def test_mixed_reply_keeps_output_order() -> None:
    reply = reply_of(*TENSORS)
    binary = {f"T{i}": i % 2 == 0 or d in (dt.FP16, dt.BF16) for i, (d, _) in enumerate(TENSORS)}
    form = OipForm(False, binary)
    encoder = ReplyEncoder()
    for _ in range(2):
        assert_same(decode_reply(*joined(encoder.encode(reply, form))), reply)


def test_mixed_request() -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "A", "shape": [2], "datatype": "INT8", "data": [1, 2]},
                {
                    "name": "B",
                    "shape": [1],
                    "datatype": "INT16",
                    "parameters": {"binary_data_size": 2},
                },
                {"name": "C", "shape": [1], "datatype": "BOOL", "data": [[True]][0]},
            ]
        }
    ).encode()
    got = RequestDecoder().decode(head + b"\x05\x00", len(head))
    assert [a.tolist() for a in got.arrays] == [[1, 2], [5], [True]]


def test_all_bodies() -> None:
    request = request_of((dt.FP32, np.arange(4, dtype="f4")))
    body, length = joined(encode_request(request))
    for kind in (bytes, bytearray, memoryview):
        decoder = RequestDecoder()
        for _ in range(3):
            assert_same(decoder.decode(kind(body), length), request)


def test_encoding_and_decoding_do_not_copy() -> None:
    array = np.arange(1000, dtype="f4")
    buffers, length = encode_request(request_of((dt.FP32, array)))
    assert np.shares_memory(np.frombuffer(buffers[1], "f4"), array)
    body = b"".join(buffers)
    decoder = RequestDecoder()
    for _ in range(3):
        got = decoder.decode(body, length)
        assert np.shares_memory(got.arrays[0], np.frombuffer(body, "u1"))
        assert not got.arrays[0].flags.writeable


def test_unaligned_views_are_encoded() -> None:
    raw = np.frombuffer(bytes(range(256)) * 40, "u1")
    array = np.ndarray((1000,), "<f4", raw.data, 1)
    body, length = joined(ReplyEncoder().encode(reply_of((dt.FP32, array)), ALL_BINARY))
    assert body[length:] == raw[1:4001].tobytes()


# --- what a request says --------------------------------------------------------------------------


def test_reserved_parameters() -> None:
    body = one() | {
        "id": "abc",
        "parameters": {
            "priority": 3,
            "timeout": 1_500_000,
            "binary_data_output": True,
            "sequence_id": 7,
            "text": "t",
            "flag": False,
            "ratio": 0.5,
        },
    }
    got = infer(body)
    assert (got.id, got.priority, got.timeout_us) == ("abc", 3, 1_500_000)
    assert dict(got.parameters) == {"sequence_id": 7, "text": "t", "flag": False, "ratio": 0.5}
    assert got.signature.form is ALL_BINARY


@pytest.mark.parametrize("value", [5, 5.0, "5"])
def test_numbers_may_be_written_otherwise(value: object) -> None:
    got = infer(one() | {"parameters": {"timeout": value, "priority": value}})
    assert (got.timeout_us, got.priority) == (5, 5)


@pytest.mark.parametrize(
    ("outputs", "default", "expected"),
    [
        (None, None, {"A": False}),
        (None, True, {"A": True}),
        ([], True, {"A": True}),
        ([{"name": "A"}, {"name": "B"}], None, {"A": False, "B": False}),
        ([{"name": "A", "parameters": {"binary_data": True}}], None, {"A": True}),
        ([{"name": "A", "parameters": {"binary_data": False}}, {"name": "B"}], True,
         {"A": False, "B": True}),
        ([{"name": "A", "parameters": {"binary_data": 1}}, {"name": "B"}], False,
         {"A": True, "B": False}),
    ],
)  # fmt: skip
def test_form(outputs: Any, default: bool | None, expected: dict[str, bool]) -> None:
    body = one() | {"outputs": outputs}
    if default is not None:
        body["parameters"] = {"binary_data_output": default}
    signature = infer(body).signature
    assert {name: signature.form.is_binary(name) for name in expected} == expected
    assert [o.name for o in signature.outputs] == [o["name"] for o in outputs or ()]


def test_output_parameters_are_kept() -> None:
    outputs = [{"name": "A", "parameters": {"classification": 3, "binary_data": True}}]
    assert infer(one() | {"outputs": outputs}).signature.outputs == (
        OutputRequest("A", {"classification": 3, "binary_data": True}),
    )


def test_unknown_keys_are_ignored_and_nulls_are_absent() -> None:
    body = one() | {"id": None, "outputs": None, "parameters": None, "more": {"x": [None]}}
    body["inputs"][0]["other"] = 1
    body["inputs"][0]["parameters"] = {"anything": None}
    got = infer(body)
    assert got.id == ""
    assert got.arrays[0].tolist() == [1, 2.5]


def test_last_of_equal_keys_wins() -> None:
    text = b'{"id":"a","inputs":[],"id":"b","inputs":[]}'
    decoder = RequestDecoder()
    for _ in range(4):
        assert decoder.decode(text, len(text)).id == "b"


@pytest.mark.parametrize(
    ("datatype", "text", "value"),
    [
        ("FP32", "[NaN, 1]", [math.nan, 1.0]),
        ("FP64", "[[Infinity], [-Infinity]]", [math.inf, -math.inf]),
        ("BYTES", '["NaN", "Infinity"]', [b"NaN", b"Infinity"]),
        ("BOOL", "[1, false]", [True, False]),
        ("FP32", "[16777217, 0.1]", [16777216.0, float(np.float32(0.1))]),
    ],
)
def test_values(datatype: str, text: str, value: list[Any]) -> None:
    shape = "[2,1]" if "[[" in text else "[2]"
    body = '{"inputs":[{"name":"X","shape":%s,"datatype":"%s","data":%s}]}'
    got = infer((body % (shape, datatype, text)).encode()).arrays[0].reshape(-1).tolist()
    assert repr(got) == repr(value)


# --- what is refused ------------------------------------------------------------------------------

SHAPE = "Unable to parse 'data': Shape does not match true shape of 'data' field"
UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"

REFUSED: list[tuple[object, str, Code]] = [
    (b"", "truncated", Code.INVALID_ARGUMENT),
    (b"[]", "Expected `object`", Code.INVALID_ARGUMENT),
    (b"{}", "missing required field `inputs`", Code.INVALID_ARGUMENT),
    (b'{"inputs":[{"name":"\xff"}]}', "utf-8", Code.INVALID_ARGUMENT),
    (b'{"id":"\\ud800","inputs":[],"x":NaN}', "surrogates", Code.INVALID_ARGUMENT),
    (b'{"id":"\\ud800","inputs":[]}', "", Code.INVALID_ARGUMENT),
    (b'{"inputs":[],"x":NaN', "delimiter", Code.INVALID_ARGUMENT),
    (b'{"inputs":' + b"[" * 100_000, "", Code.INVALID_ARGUMENT),
    (b'{"inputs":[],"x":' + b"[" * 100_000,
     "JSON nesting depth exceeds maximum allowed limit (100)", Code.INVALID_ARGUMENT),
    (b'{"inputs":[],"x":NaN,"y":' + b"[" * 100_000,
     "JSON nesting depth exceeds maximum allowed limit (100)", Code.INVALID_ARGUMENT),
    (b'{"x":NaN,"inputs":[],"id":' + b"1" * 5000 + b"}", "", Code.INVALID_ARGUMENT),
    (one(shape=[-1]), f"Unable to parse 'shape': {UNSIGNED}", Code.INTERNAL),
    (one(shape=[1.5]), f"Unable to parse 'shape': {UNSIGNED}", Code.INTERNAL),
    (one(shape=["2"]), f"Unable to parse 'shape': {UNSIGNED}", Code.INTERNAL),
    (one(shape=2), f"Unable to parse 'shape': {UNSIGNED}", Code.INTERNAL),
    (one(shape=...), "missing required field `shape`", Code.INVALID_ARGUMENT),
    (one(name=...), "missing required field `name`", Code.INVALID_ARGUMENT),
    (one(name=5), "Expected `str`", Code.INVALID_ARGUMENT),
    (one(datatype="FLOAT"), "input 'X' has unknown datatype 'FLOAT'", Code.INVALID_ARGUMENT),
    (one(data=...) | {"inputs": [{"name": "X", "shape": [1], "datatype": "FP32"}]},
     "neither 'data' nor", Code.INVALID_ARGUMENT),
    (one(shape=[3]), SHAPE, Code.INVALID_ARGUMENT),
    (one(shape=[1]), SHAPE, Code.INVALID_ARGUMENT),
    (one(shape=[0]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[1], [2]], shape=[2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[1], [2]], shape=[1, 2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[1, 2], [3]], shape=[2, 2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([1, [2]], shape=[2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[1, 2], 3], shape=[2, 2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[[1], [2]]], shape=[1, 2]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[]], shape=[0]), SHAPE, Code.INVALID_ARGUMENT),
    (one([[[5]]], shape=[]), SHAPE, Code.INVALID_ARGUMENT),
    (one({"a": 1}), "neither 'data' nor", Code.INVALID_ARGUMENT),
    (one(5), "expected an array", Code.INVALID_ARGUMENT),
    (one([], shape=[10**12]), SHAPE, Code.INVALID_ARGUMENT),
    (one([], shape=[10**13]), "causes total element count to exceed maximum size of",
     Code.INVALID_ARGUMENT),
    (one([], shape=[0, 10**30]), "causes total element count to exceed maximum size of",
     Code.INVALID_ARGUMENT),
    (one([], shape=[1 << 25], datatype="BYTES"), "causes total element count to exceed",
     Code.INVALID_ARGUMENT),
    (one([1], shape=[1] * 33), "33 dimensions", Code.INVALID_ARGUMENT),
    (one(json.loads("[" * 101 + "1" + "]" * 101)), "JSON nesting depth exceeds maximum allowed",
     Code.INVALID_ARGUMENT),
    (one(datatype="INT32"), "'X' as INT32", Code.INVALID_ARGUMENT),
    (one([1, 1 << 31], datatype="INT32"), "'X' as INT32", Code.INVALID_ARGUMENT),
    (one([1, -1], datatype="UINT64"), "'X' as UINT64", Code.INVALID_ARGUMENT),
    (one([1, 1 << 64], datatype="UINT64"), "'X' as UINT64", Code.INVALID_ARGUMENT),
    (one([1, 1 << 63], datatype="INT64"), "'X' as INT64", Code.INVALID_ARGUMENT),
    (one([1, 256], datatype="UINT8"), "'X' as UINT8", Code.INVALID_ARGUMENT),
    (one([1, True], datatype="INT8"), "unexpected bool", Code.INVALID_ARGUMENT),
    (one([1, True]), "unexpected bool", Code.INVALID_ARGUMENT),
    (one([1, None]), "unexpected null", Code.INVALID_ARGUMENT),
    (one([1, "2"]), "'X' as FP32", Code.INVALID_ARGUMENT),
    (one([1, {}]), "unexpected dict", Code.INVALID_ARGUMENT),
    (one([1, 1e39]), "'X' as FP32", Code.INVALID_ARGUMENT),
    (b'{"inputs":[{"name":"X","shape":[1],"datatype":"FP64","data":[1e999]}]}', "out of range",
     Code.INVALID_ARGUMENT),
    (one([1, 2], datatype="BOOL"), "expected true, false, 0 or 1", Code.INVALID_ARGUMENT),
    (one([1, 0.0], datatype="BOOL"), "unexpected float", Code.INVALID_ARGUMENT),
    (one(["a", 1], datatype="BYTES"), "expected strings", Code.INVALID_ARGUMENT),
    (one(["a", True], datatype="BYTES"), "unexpected bool", Code.INVALID_ARGUMENT),
    (one(datatype="FP16"), "receiving FP16 data via JSON is not supported. Please use the binary "
     "data format for input 'X'", Code.INVALID_ARGUMENT),
    (one(datatype="BF16"), "receiving BF16 data via JSON is not supported",
     Code.INVALID_ARGUMENT),
    (one(parameters={"shared_memory_region": "r"}), "shared memory is not supported",
     Code.UNIMPLEMENTED),
    (one() | {"outputs": [{"name": "A", "parameters": {"shared_memory_region": "r"}}]},
     "shared memory is not supported", Code.UNIMPLEMENTED),
    (one() | {"outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]},
     "output 'OUTPUT0' already exists in request", Code.INVALID_ARGUMENT),
    ({"inputs": one()["inputs"] * 2}, "input 'X' already exists in request",
     Code.INVALID_ARGUMENT),
    ({"inputs": [{"name": str(i), "shape": [0], "datatype": "INT8"} for i in range(1025)]},
     "1025 inputs, more than the maximum 1024", Code.INVALID_ARGUMENT),
    (one() | {"outputs": [{"name": str(i)} for i in range(1025)]},
     "1025 outputs, more than the maximum 1024", Code.INVALID_ARGUMENT),
    (one(name="n" * 4097), "longer than the maximum 4096 bytes", Code.INVALID_ARGUMENT),
    (one(name="\u20ac" * 1500), "longer than the maximum 4096 bytes", Code.INVALID_ARGUMENT),
    (one() | {"id": "n" * 4097}, "longer than the maximum", Code.INVALID_ARGUMENT),
    (one() | {"id": 5}, "Expected `str | null`", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"a": [1]}}, "parameter 'a' has invalid type. It should be either "
     "'int', 'bool', 'string', or 'double'.", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"a": 1 << 64}}, "does not fit 64 bits", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"a": "n" * 4097}}, "longer than", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"timeout": -1}}, f"Unable to parse 'timeout': {UNSIGNED}",
     Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"priority": True}}, "Unable to parse 'priority'",
     Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"binary_data_output": "yes"}}, "non-boolean as boolean",
     Code.INVALID_ARGUMENT),
    (one(parameters={"binary_data_size": -1}), "Unable to parse 'binary_data_size'",
     Code.INVALID_ARGUMENT),
    (one(parameters={"binary_data_size": 8}), "unexpected size for input 'X', expecting 8 "
     "additional bytes for model 'M'", Code.INVALID_ARGUMENT),
    (one(parameters={"binary_data_size": 7}), "input byte size mismatch for input 'X' for model "
     "'M'. Expected 8, got 7", Code.INVALID_ARGUMENT),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text", "code"), REFUSED)
def test_refused(body: object, text: str, code: Code) -> None:
    with pytest.raises(PenstockError) as caught:
        infer(body)
    assert text in caught.value.message
    assert caught.value.code is code


def raw_string(*values: bytes) -> bytes:
    return b"".join(len(v).to_bytes(4, "little") + v for v in values)


@pytest.mark.parametrize(
    ("shape", "binary", "text"),
    [
        ([2], raw_string(b"a"), "unexpected number of string elements 1 for inference input 'X', "
         "expecting 2"),
        ([1], raw_string(b"a", b"", b"c"), "unexpected number of string elements 3 for inference "
         "input 'X', expecting 1"),
        ([1 << 24], raw_string(b"a"), "unexpected number of string elements 1 "),
        ([1], raw_string(b"abc")[:-1], "incomplete string data for inference input 'X', expecting "
         "string of length 3 but only 2 bytes available"),
        ([2], raw_string(b"abc") + b"\x01", "incomplete string length indicator for inference "
         "input 'X', expecting 4 bytes but only 1 bytes available"),
        ([1], b"\xff\xff\xff\xff", "incomplete string data"),
    ],
)  # fmt: skip
def test_bytes_refused(shape: list[int], binary: bytes, text: str) -> None:
    parameters = {"binary_data_size": len(binary)}
    head = one(shape=shape, datatype="BYTES", parameters=parameters)
    with pytest.raises(ProtocolError) as caught:
        infer(head, binary)
    assert text in caught.value.message


def test_bytes_are_checked_each_time() -> None:
    good, bad = raw_string(b"ab", b"c"), raw_string(b"a", b"bc") + b""
    worse = b"\x09" + good[1:]
    head = json.dumps(one(shape=[2], datatype="BYTES", parameters={"binary_data_size": 11}))
    decoder = RequestDecoder()
    for _ in range(3):
        assert decoder.decode(head.encode() + good, len(head)).arrays[0].tolist() == [b"ab", b"c"]
        assert decoder.decode(head.encode() + bad, len(head)).arrays[0].tolist() == [b"a", b"bc"]
        with pytest.raises(ProtocolError):
            decoder.decode(head.encode() + worse, len(head))


@pytest.mark.parametrize(
    ("size", "sent", "text"),
    [
        (8, 7, "unexpected size for input 'X', expecting 1 additional bytes for model 'M'"),
        (8, 9, "unexpected additional input data for model 'M'"),
        (4, 4, "input byte size mismatch for input 'X' for model 'M'. Expected 8, got 4"),
        (1 << 60, 4, "Expected 8, got 1152921504606846976"),
    ],
)
def test_binary_sizes(size: int, sent: int, text: str) -> None:
    head = json.dumps(one(parameters={"binary_data_size": size})).encode()
    decoder = RequestDecoder()
    if size == 8:
        for _ in range(3):  # the plan is there, and still the size is checked
            decoder.decode(head + bytes(8), len(head))
    with pytest.raises(ProtocolError) as caught:
        decoder.decode(head + bytes(sent), len(head), "M")
    assert text in caught.value.message


@pytest.mark.parametrize("length", [-(1 << 40), -8, -1, 0, 10**6, 1 << 70])
def test_json_length_must_fit(length: int) -> None:
    head = json.dumps(one(parameters={"binary_data_size": 8})).encode()
    body = head + bytes(8)
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(body, len(head))
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length"):
        decoder.decode(body, length)


def test_json_part_is_limited() -> None:
    limits = WireLimits(config_bytes_max=50)
    with pytest.raises(ProtocolError, match=r"request JSON size of .* bytes exceeds the maximum"):
        infer(one(parameters={"binary_data_size": 8}), bytes(8), limits=limits)


# --- what is remembered ---------------------------------------------------------------------------


def binary_body(count: int = 2, **more: Any) -> tuple[bytes, int]:
    head = json.dumps(
        more | one(shape=[count], parameters={"binary_data_size": 4 * count}, data=...)
    ).encode()
    return head + np.arange(count, dtype="f4").tobytes(), len(head)


def test_alike_requests_share_the_signature() -> None:
    decoder = RequestDecoder()
    first = decoder.decode(*binary_body())
    for i in range(5):
        got = decoder.decode(*binary_body(id=f"request {i}"))
        assert got.signature is first.signature
        assert got.id == f"request {i}"
        assert got.arrays[0].tolist() == [0, 1]
    assert decoder.decode(*binary_body()).id == ""
    as_json = decoder.decode(json.dumps(one()).encode(), None)
    assert as_json.signature is first.signature
    assert decoder.decode(*binary_body(3)).signature is not first.signature
    true, number = (
        decoder.decode(*binary_body(outputs=[{"name": "A", "parameters": {"classification": v}}]))
        for v in (True, 1)
    )
    assert true.signature is not number.signature


@pytest.mark.parametrize(
    "id", ["a\\b", 'a"b', "a\nb", "\u00e9", "", "x" * 200, "a\u2028b", "\\", '"', "\x7f"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_ids_survive_the_memory(id: str, ascii: bool) -> None:
    decoder = RequestDecoder()
    for separators in ((",", ":"), (", ", ": ")):
        body = {"id": id} | one(shape=[1], parameters={"binary_data_size": 4}, data=...)
        head = json.dumps(body, ensure_ascii=ascii, separators=separators).encode()
        for _ in range(4):
            assert decoder.decode(head + bytes(4), len(head)).id == id


@pytest.mark.parametrize(
    "text",
    [
        b'{"id":"a","inputs":[],"id":"b"}',
        b'{"id":"a","inputs":[],"id" \n :"b"}',
        b'{"id":"a","inputs":[],"\\u0069d":"b"}',
    ],
)
def test_a_second_id_is_not_forgotten(text: bytes) -> None:
    decoder = RequestDecoder()
    for _ in range(4):
        assert decoder.decode(text, len(text)).id == "b"
        other = text.replace(b'"a"', b'"c"')
        assert decoder.decode(other, len(other)).id == "b"


def test_an_id_with_a_control_character_is_refused_from_memory_too() -> None:
    body, length = binary_body(id="abcd")
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(body, length)
    for bad in (b"ab\ncd"[:4], b"a\xff\xffd"):
        with pytest.raises(ProtocolError):
            decoder.decode(body.replace(b"abcd", bad), length)


def test_everything_remembered_is_bounded() -> None:
    decoder = RequestDecoder()
    for i in range(1, 6000):
        for _ in range(2):
            decoder.decode(*binary_body(i % 1500 + 1, x=i))
    tables = vars(decoder)
    assert len(tables["_plans"]) == 1024
    assert len(tables["_signatures"]) == 1024
    assert len(tables["_seen"]) <= 4096
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(*binary_body(x="n" * 9000))
        decoder.decode(*binary_body(outputs=[{"name": "n" * 4096}, {"name": "m" * 3000}]))
    assert len(vars(decoder)["_signatures"]) == 1
    assert len(vars(decoder)["_plans"]) == 1


def test_parameters_are_frozen() -> None:
    decoder = RequestDecoder()
    for _ in range(3):
        got = decoder.decode(*binary_body(parameters={"a": 1}))
        with pytest.raises(TypeError):
            got.parameters["a"] = 2  # type: ignore[index]


# --- replies --------------------------------------------------------------------------------------


def test_reply_json_by_hand() -> None:
    reply = reply_of(
        (dt.FP32, np.array([[0.5, 2]], dtype="f4")),
        (dt.BYTES, strings(b'a"b')),
        model='m"',
        version="3",
        id="i\n",
        parameters={"p": 1, "q": math.inf},
    )
    buffers, length = ReplyEncoder().encode(reply, None)
    assert length is None
    (text,) = buffers
    assert bytes(text) == (
        b'{"model_name":"m\\"","model_version":"3","id":"i\\n","parameters":{"p":1,"q":Infinity},'
        b'"outputs":[{"name":"T0","datatype":"FP32","shape":[1,2],"data":[0.5,2.0]},'
        b'{"name":"T1","datatype":"BYTES","shape":[1],"data":["a\\"b"]}]}'
    )
    got = decode_reply(text, None)
    assert_same(got, reply)
    assert dict(got.parameters) == {"p": 1, "q": math.inf}


def test_reply_binary_by_hand() -> None:
    reply = reply_of((dt.INT16, np.array([1, 2], dtype="i2")), (dt.BYTES, strings(b"ab")))
    body, length = joined(ReplyEncoder().encode(reply, ALL_BINARY))
    assert body == (
        b'{"model_name":"","model_version":"","outputs":['
        b'{"name":"T0","datatype":"INT16","shape":[2],"parameters":{"binary_data_size":4}},'
        b'{"name":"T1","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}]}'
        b"\x01\x00\x02\x00\x02\x00\x00\x00ab"
    )
    assert body[length:] == b"\x01\x00\x02\x00\x02\x00\x00\x00ab"


def test_reply_without_outputs() -> None:
    body, length = joined(ReplyEncoder().encode(reply_of(), ALL_BINARY))
    assert length is None
    assert json.loads(body)["outputs"] == []
    assert decode_reply(body, None).arrays == []


def test_reply_refusals() -> None:
    encoder = ReplyEncoder()
    with pytest.raises(InferError, match="sending FP16 data via JSON is not supported"):
        encoder.encode(reply_of((dt.FP16, np.zeros(1, "f2"))), ALL_JSON)
    with pytest.raises(InferError, match="sending BF16 data via JSON is not supported"):
        encoder.encode(reply_of((dt.BF16, np.zeros(1, "u2"))), ALL_JSON)
    with pytest.raises(InferError, match="not UTF-8"):
        encoder.encode(reply_of((dt.BYTES, strings(b"\xff"))), ALL_JSON)


@pytest.mark.parametrize("form", [ALL_JSON, ALL_BINARY])
def test_arrays_that_are_not_as_declared(form: OipForm) -> None:
    signature = Signature([TensorSpec("A", dt.FP32, (2,))])
    for arrays in ([np.zeros(3, "f4")], [np.zeros(2, "f4")] * 2, []):
        with pytest.raises(ValueError):
            ReplyEncoder().encode(InferReply(signature, arrays), form)


def test_layouts_are_bounded() -> None:
    encoder = ReplyEncoder()
    for i in range(1500):
        encoder.encode(reply_of((dt.INT8, np.zeros(1, "i1")), model=str(i)), ALL_BINARY)
    assert len(vars(encoder)["_layouts"].table) == 1024


def test_reply_is_checked() -> None:
    for body, length in [
        (b"{}", None),
        (b'{"outputs":[{"name":"A","shape":[1],"datatype":"INT8"}]}', None),
        (b'{"outputs":[{"name":"A","shape":[-1],"datatype":"INT8","data":[1]}]}', None),
        (b'{"outputs":[]}x', 14),
        (b'{"outputs":[]}', 99),
        (b'{"error":"x"}', None),
    ]:
        with pytest.raises(ProtocolError):
            decode_reply(body, length)


# --- client's requests ----------------------------------------------------------------------------


def test_client_request_parameters() -> None:
    request = request_of(
        (dt.INT8, np.zeros(1, "i1")), id="i", priority=2, timeout_us=9, parameters={"p": "q"}
    )
    body, length = joined(encode_request(request))
    head = json.loads(body[:length])
    assert head["parameters"] == {
        "p": "q", "priority": 2, "timeout": 9, "binary_data_output": True,
    }  # fmt: skip
    got = RequestDecoder().decode(body, length)
    assert (got.priority, got.timeout_us, dict(got.parameters)) == (2, 9, {"p": "q"})
    assert "parameters" not in json.loads(
        joined(encode_request(request_of(), binary_outputs=False))[0]
    )


def test_client_output_choice() -> None:
    outputs = [OutputRequest("A"), OutputRequest("B", {"binary_data": False, "classification": 2})]
    encoder = RequestEncoder()
    request = request_of((dt.INT8, np.zeros(1, "i1")), outputs=outputs)
    for _ in range(2):
        body, length = joined(encoder.encode(request))
        got = RequestDecoder().decode(body, length).signature
        assert (got.form.is_binary("A"), got.form.is_binary("B")) == (True, False)
        assert got.outputs[1].parameters == {"binary_data": False, "classification": 2}


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (dt.FP16, np.zeros(1, "f2")),
        (dt.BF16, np.zeros(1, "u2")),
        (dt.BYTES, strings(b"\xff")),
    ],
)
def test_client_misuse_is_a_value_error(dtype: dt.DType, array: Array) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_request(request_of((dtype, array)), binary=False)


def test_wire_array_goes_straight_in() -> None:
    dtype, array = wire_array([["a", "b"]])
    body, length = joined(encode_request(request_of((dtype, array))))
    assert RequestDecoder().decode(body, length).arrays[0].tolist() == [[b"a", b"b"]]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["", "plain", 'quote " and \n', "\u00e9\U0001f600"])
def test_errors(message: str) -> None:
    assert decode_error(encode_error(message)) == message
    assert json.loads(encode_error(message)) == {"error": message}


def test_odd_errors() -> None:
    assert json.loads(encode_error("a\ud800b")) == {"error": "a?b"}
    for body in (b"", b"x", b"[]", b'{"error":5}', b"\xff", b'{"x":' + b"[" * 10**5):
        assert decode_error(body) is None
