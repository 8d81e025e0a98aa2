"""The JSON codec: one table of tensors feeds readers and writers, then the rules one by one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError, ProtocolError
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
    ReplyDecoder,
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
    elif "binary_data_size" in changes.get("parameters", ()):
        del tensor["data"]
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
    encoder, decoder = ReplyEncoder(), ReplyDecoder()
    for name in ("", "r", "", "", "r", "r"):
        reply = reply_of((dtype, array), id=name, model="m", version="1")
        body, length = joined(encoder.encode(reply, ALL_BINARY))
        assert (length is None) == (array.size == 0)
        got = decoder.decode(body, length)
        assert_same(got, reply)
        assert_same(decode_reply(body, length), reply)
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
