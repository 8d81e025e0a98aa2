"""Predict over gRPC, held against protobuf's own reading and writing of the same schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol import tf_tensor, tfs_proto
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferReply, Signature, TensorSpec, wire_array
from penstock.protocol.oip_proto_wire import FIELDS_MAX, fields
from penstock.protocol.packed_varints import read_varints, write_varints
from penstock.protocol.tf_dtype import BY_DTYPE
from penstock.protocol.tf_tensor import SHORTHAND_BYTES_MAX
from penstock.protocol.tfs_proto import PredictReader, PredictWriter
from penstock.server.tfs_schema import message

REQUEST, RESPONSE = message("PredictRequest"), message("PredictResponse")
TENSOR = message("tensorflow.TensorProto")
FIELDS = {
    dt.FP32: "float_val", dt.FP64: "double_val", dt.INT8: "int_val", dt.INT16: "int_val",
    dt.INT32: "int_val", dt.UINT8: "int_val", dt.UINT16: "int_val", dt.INT64: "int64_val",
    dt.UINT32: "uint32_val", dt.UINT64: "uint64_val", dt.BOOL: "bool_val", dt.FP16: "half_val",
    dt.BF16: "half_val", dt.BYTES: "string_val",
}  # fmt: skip
VALUES: dict[DType, Any] = {
    dt.BOOL: [[True, False], [False, True]],
    dt.BYTES: np.array([[b"", b"x"], [b"\xff", b"a longer text" * 20]], object),
    dt.FP16: np.array([[1, -2], [np.inf, 0.5]], "f2"),
    dt.BF16: np.array([[1, -2], [3, 0.5]], "f4"),
    dt.FP32: np.array([[1, -2], [np.nan, 0.5]], "f4"),
    dt.FP64: np.array([[1, -2], [np.inf, 0.5]], "f8"),
}


def array_of(dtype: DType) -> Any:
    if dtype in VALUES:
        return wire_array(np.asarray(VALUES[dtype]), dtype)[1]
    info = np.iinfo(dtype.numpy)
    return np.array([[info.min, 0], [1, info.max]], dtype.numpy)


def tensor(dtype: DType, shape: Sequence[int], **more: Any) -> Any:
    made = TENSOR(dtype=BY_DTYPE[dtype].number, **more)
    made.tensor_shape.SetInParent()
    for size in shape:
        made.tensor_shape.dim.add().size = size
    return made


def python_values(array: Any, dtype: DType) -> list[Any]:
    if dtype is dt.FP16:
        array = array.view("<u2")
    values: list[Any] = array.reshape(-1).tolist()
    return values


def request(tensors: Mapping[str, Any], **spec: Any) -> bytes:
    made = REQUEST(model_spec=message("ModelSpec")(**spec))
    for name, value in tensors.items():
        made.inputs[name].CopyFrom(value)
    return bytes(made.SerializeToString())


def read(data: bytes, **limits: int) -> Any:
    return PredictReader(WireLimits(**limits)).read(data).request


@pytest.mark.parametrize("dtype", FIELDS, ids=str)
def test_typed_values(dtype: DType) -> None:
    array = array_of(dtype)
    given = tensor(dtype, array.shape, **{FIELDS[dtype]: python_values(array, dtype)})
    found = read(request({"x": given}))
    assert found.signature.tensors == (TensorSpec("x", dtype, (2, 2)),)
    assert found.arrays[0].dtype == dtype.numpy
    np.testing.assert_array_equal(found.arrays[0], array)


@pytest.mark.parametrize("dtype", [d for d in FIELDS if d is not dt.BYTES], ids=str)
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_raw_content_is_not_copied(dtype: DType, kind: Any) -> None:
    array = array_of(dtype)
    data = request({"x": tensor(dtype, array.shape, tensor_content=array.tobytes())})
    reader = PredictReader()
    for _ in range(4):  # afresh, then as remembered
        (found,) = reader.read(kind(data)).request.arrays
        np.testing.assert_array_equal(found, array)
        assert not found.flags.owndata
        assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def test_texts_as_raw_content() -> None:
    content = bytes([1, 0, 130, 1]) + b"x" + b"y" * 130
    (found,) = read(request({"x": tensor(dt.BYTES, [3], tensor_content=content)})).arrays
    assert found.tolist() == [b"x", b"", b"y" * 130]


def test_values_one_by_one() -> None:
    """As writers before proto3 sent them."""
    shape = tensor(dt.INT32, [2]).SerializeToString()
    one_by_one = shape + b"\x38\x05\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    assert read(entry(b"x", one_by_one)).arrays[0].tolist() == [5, -1]
    floats = tensor(dt.FP32, [2]).SerializeToString() + b"\x2d\0\0\x80\x3f\x2d\0\0\0\x40"
    assert read(entry(b"x", floats)).arrays[0].tolist() == [1, 2]


def entry(name: bytes, body: bytes) -> bytes:
    inner = b"\x0a" + bytes([len(name)]) + name + b"\x12" + write_varints(
        np.array([len(body)])
    ) + body  # fmt: skip
    return b"\x12" + write_varints(np.array([len(inner)])) + inner


@pytest.mark.parametrize(
    ("values", "expected"), [([], [0, 0, 0]), ([7], [7, 7, 7]), ([1, 2], [1, 2, 2])]
)
def test_the_last_value_stands_for_the_rest(values: list[int], expected: list[int]) -> None:
    assert (
        read(request({"x": tensor(dt.INT32, [3], int_val=values)})).arrays[0].tolist() == expected
    )
    given = tensor(dt.BYTES, [3], string_val=[b"%d" % v for v in values])
    texts = read(request({"x": given})).arrays[0].tolist()
    assert texts == [b"%d" % v if values else b"" for v in expected]


def test_the_rest_of_a_request() -> None:
    made = REQUEST(output_filter=["y", "z"])
    made.model_spec.name = "m"
    made.model_spec.version.value = 3
    made.model_spec.signature_name = "serving_default"
    made.inputs["x"].CopyFrom(tensor(dt.FP32, []))
    found = PredictReader().read(made.SerializeToString())
    assert (found.request.model, found.request.version, found.label) == ("m", "3", "")
    assert [o.name for o in found.request.signature.outputs] == ["y", "z"]
    assert found.request.arrays[0].shape == ()
    made.model_spec.version_label = "stable"
    found = PredictReader().read(made.SerializeToString())
    assert (found.request.version, found.label) == ("", "stable")
    made.model_spec.version.SetInParent()  # version 0, explicitly
    assert PredictReader().read(made.SerializeToString()).request.version == "0"


def test_remembered_requests_mean_what_they_say() -> None:
    reader = PredictReader()

    def ask(model: str, value: float, label: str = "") -> Any:
        raw = np.float32([value, value]).tobytes()
        data = request({"x": tensor(dt.FP32, [2], tensor_content=raw)}, name=model)
        return reader.read(data).request

    first = ask("abc", 1)
    for turn in range(8):
        again, other = ask("abc", turn), ask("xyz", turn + 0.5)
        assert again.signature is first.signature
        assert (again.model, other.model) == ("abc", "xyz")
        assert again.arrays[0].tolist() == [turn, turn]
        assert other.arrays[0].tolist() == [turn + 0.5] * 2


BAD: dict[str, tuple[bytes, str]] = {
    "no message": (b"\xff\xff", "malformed"),
    "truncated": (request({"x": tensor(dt.FP32, [2], float_val=[1, 2])})[:-3], "malformed"),
    "no dtype": (request({"x": TENSOR()}), "dtype 0"),
    "complex": (request({"x": TENSOR(dtype=8)}), "dtype 8"),
    "too many values": (request({"x": tensor(dt.FP32, [1], float_val=[1, 2])}), "2 values"),
    "content too short": (
        request({"x": tensor(dt.FP32, [2], tensor_content=b"\0" * 7)}), "7 bytes of tensor_content",
    ),
    "half a float": (entry(b"x", tensor(dt.FP32, [1]).SerializeToString() + b"\x2a\x01\0"), "amid"),
    "half a number": (
        entry(b"x", tensor(dt.INT32, [1]).SerializeToString() + b"\x3a\x01\xff"), "cut off",
    ),
    "negative size": (request({"x": tensor(dt.FP32, [-1])}), "no shape"),
    "rank": (request({"x": tensor(dt.FP32, [1] * 33)}), "no shape"),
    "texts too short": (request({"x": tensor(dt.BYTES, [2], tensor_content=b"\x05\x01a")}), "fill"),
    "texts too few": (request({"x": tensor(dt.BYTES, [9], tensor_content=b"\0")}), "too few bytes"),
    "signature": (request({}, signature_name="other"), '"other" not found in signature def'),
    "a name": (request({}, name="x" * 5000), "model name"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "text"), BAD.values(), ids=BAD)
def test_bad_requests(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read(data)


def test_unknown_rank() -> None:
    given = tensor(dt.FP32, [])
    given.tensor_shape.unknown_rank = True
    with pytest.raises(ProtocolError, match="unknown rank"):
        read(request({"x": given}))


def test_limits() -> None:
    with pytest.raises(ProtocolError, match="total element count"):
        read(request({"x": tensor(dt.FP32, [1 << 40, 2])}))
    huge = tensor(dt.FP32, [SHORTHAND_BYTES_MAX // 4 + 1], float_val=[1])
    with pytest.raises(ProtocolError, match="too many to repeat") as caught:
        read(request({"x": huge}))
    assert caught.value.code is Code.OUT_OF_RANGE
    three = {name: tensor(dt.FP32, [1]) for name in "abc"}
    with pytest.raises(ProtocolError, match="maximum 2 tensors"):
        read(request(three), tensors_max=2)
    with pytest.raises(ProtocolError, match="too many fields"):
        read(request({"x": tensor(dt.BYTES, [9], string_val=[b""] * 9)}), strings_max=8)


def nested(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + write_varints(np.array([len(body)])) + body


def hostile() -> dict[str, bytes]:
    """Messages whose parts have few fields each, and more than a message may have in all."""
    few, parts = FIELDS_MAX // 8, 10
    unknown = b"\x78\x00" * few
    start = tensor(dt.FP32, []).SerializeToString()
    return {
        "messages": b"\x78\x00" * few * parts,
        "entries": entry(b"x", start) * (few * parts // 5),
        "fields of entries": nested(2, b"\x0a\x01x\x12\x02\x08\x01" + unknown) * parts,
        "fields of tensors": entry(b"x", b"\x08\x01" + unknown) * parts,
        "fields of shapes": entry(b"x", b"\x08\x01" + nested(2, unknown) * parts),
        "fields of dims": entry(b"x", b"\x08\x01" + nested(2, nested(2, unknown) * parts)),
        "specs": nested(1, b"") * few * parts,
        "fields of specs": nested(1, unknown) * parts,
        "fields of versions": nested(1, nested(2, unknown) * parts),
        "numbers one by one": entry(b"x", b"\x08\x03" + b"\x38\x01" * few * parts),
    }


@pytest.mark.parametrize("data", hostile().values(), ids=hostile())
def test_all_fields_of_a_message_count_together(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def counted(*args: Any) -> Iterator[tuple[int, int, int]]:
        nonlocal seen
        for found in fields(*args):
            seen += 1
            yield found

    for module in (tfs_proto, tf_tensor):
        monkeypatch.setattr(module, "fields", counted)
    with pytest.raises(ProtocolError, match="too many fields"):
        read(data)
    assert seen <= FIELDS_MAX


def test_strings_are_not_counted_as_fields() -> None:
    count = FIELDS_MAX + 1
    strings = tensor(dt.BYTES, [count], string_val=[b""] * count)
    assert read(request({"x": strings})).arrays[0].size == count


def test_shorthand_of_all_tensors_counts_together() -> None:
    third = SHORTHAND_BYTES_MAX // 4 // 3
    given = tensor(dt.FP32, [third], float_val=[1])
    assert len(read(request(dict.fromkeys("abc", given))).arrays) == 3
    with pytest.raises(ProtocolError, match="too many to repeat"):
        read(request(dict.fromkeys("abcd", given)))
    with pytest.raises(ProtocolError, match="too many to repeat"):
        read(entry(b"x", given.SerializeToString()) * 4)  # the last one would count


# --- replies --------------------------------------------------------------------------------------


def test_replies_read_by_protobuf() -> None:
    arrays = {str(dtype): array_of(dtype) for dtype in FIELDS}
    specs = [TensorSpec(name, dt.BY_NAME[name], (2, 2)) for name in arrays]
    writer = PredictWriter()
    reply = InferReply(Signature(specs), list(arrays.values()), "m", "12")
    for _ in range(2):
        read_back = RESPONSE.FromString(b"".join(writer.write(reply)))
        spec = read_back.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", 12, "serving_default")
        assert set(read_back.outputs) == set(arrays)
        for dtype in FIELDS:
            told = read_back.outputs[str(dtype)]
            assert told.dtype == BY_DTYPE[dtype].number
            assert [dim.size for dim in told.tensor_shape.dim] == [2, 2]
            found = list(getattr(told, FIELDS[dtype]))
            np.testing.assert_array_equal(found, python_values(arrays[str(dtype)], dtype))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    arrays = [np.ones(shape, "<f4"), np.ones(shape, "<i4")]
    specs = [TensorSpec("f", dt.FP32, shape), TensorSpec("i", dt.INT32, shape)]
    data = b"".join(PredictWriter().write(InferReply(Signature(specs), arrays, "m", "x")))
    read_back = RESPONSE.FromString(data)
    assert tuple(dim.size for dim in read_back.outputs["f"].tensor_shape.dim) == shape
    assert list(read_back.outputs["f"].float_val) == [1] * arrays[0].size
    assert list(read_back.outputs["i"].int_val) == [1] * arrays[0].size
    assert read_back.model_spec.version.value == 0


def test_large_floats_are_not_copied() -> None:
    array = np.zeros((64, 64), "<f4")
    spec = TensorSpec("y", dt.FP32, array.shape)
    buffers = PredictWriter().write(InferReply(Signature([spec]), [array], "m", "1"))
    assert any(np.shares_memory(np.frombuffer(b, np.uint8), array) for b in buffers if len(b))


def test_an_array_that_is_not_as_declared() -> None:
    spec = TensorSpec("y", dt.FP32, (2,))
    with pytest.raises(ValueError, match="declared"):
        PredictWriter().write(InferReply(Signature([spec]), [np.zeros(3, "<f4")], "m", "1"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([], np.int64),
        np.array([0, 127, 128, 16383, 16384, 2**63 - 1, -1, -(2**63)]),
        np.array([2**64 - 1, 0], np.uint64),
        np.arange(-70_000, 70_000, dtype=np.int32),
        np.array([[1, 300], [-5, 7]], np.int16),
    ],
)
def test_packed_varints(values: Any) -> None:
    name = "uint64_val" if values.dtype == np.uint64 else "int64_val"
    packed = write_varints(values)
    theirs = TENSOR(**{name: values.reshape(-1).tolist()}).SerializeToString()
    assert theirs.endswith(packed)
    np.testing.assert_array_equal(read_varints(packed).astype(values.dtype), values.reshape(-1))


@pytest.mark.parametrize("packed", [b"\x80", b"\x01\xff", b"\xff" * 10 + b"\x01"])
def test_packed_varints_that_are_none(packed: bytes) -> None:
    with pytest.raises(ProtocolError, match="cut off or too long"):
        read_varints(packed)
