"""Reading requests: what they say, and in which words bad ones are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from penstock.protocol.errors import Code, PenstockError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    InferRequest,
    OutputRequest,
)
from penstock.protocol.oip_json import (
    ALL_BINARY,
    RequestDecoder,
)


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

ONLY_ONE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'."
)
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
    (one(shape=2), "Unable to parse 'shape': attempt to access JSON non-array as array",
     Code.INTERNAL),
    (one(shape=...), "missing required field `shape`", Code.INVALID_ARGUMENT),
    (one(name=...), "missing required field `name`", Code.INVALID_ARGUMENT),
    (one(name=5), "Expected `str`", Code.INVALID_ARGUMENT),
    (one(datatype="FLOAT"), "invalid datatype for input X: 'FLOAT'", Code.INVALID_ARGUMENT),
    (one(data=...) | {"inputs": [{"name": "X", "shape": [1], "datatype": "FP32"}]},
     f"{ONLY_ONE} But no field is set", Code.INVALID_ARGUMENT),
    (one([1, 2], parameters={"binary_data_size": 8}),
     f"{ONLY_ONE} But set 'data' 'binary_data_size'", Code.INVALID_ARGUMENT),
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
     "data format for input X", Code.INVALID_ARGUMENT),
    (one(datatype="BF16"), "receiving BF16 data via JSON is not supported",
     Code.INVALID_ARGUMENT),
    (one(parameters={"shared_memory_region": "r"}), "Invalid offset + byte size for shared memory",
     Code.INVALID_ARGUMENT),
    (one(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}),
     "But set 'data' 'shared_memory_region'", Code.INVALID_ARGUMENT),
    (one() | {"outputs": [{"name": "A", "parameters": {"shared_memory_region": "r"}}]},
     "output 'A' has no 'shared_memory_byte_size'", Code.INVALID_ARGUMENT),
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
    (one(parameters={"binary_data_size": 7}), "unexpected size for input 'X', expecting 7 "
     "additional bytes for model 'M'", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"triton_mine": 1}}, "parameter keys starting with 'triton_' are "
     "reserved for Triton usage and should not be specified.", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"sequence_id": True}}, "Unable to parse 'sequence_id'",
     Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"sequence_id": -1}}, "Unable to parse 'sequence_id'",
     Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"sequence_start": 1}}, "Unable to parse 'sequence_start': attempt to "
     "access JSON non-boolean as boolean", Code.INVALID_ARGUMENT),
    (one() | {"parameters": {"sequence_end": "yes"}}, "Unable to parse 'sequence_end'",
     Code.INVALID_ARGUMENT),
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
        ([2], raw_string(b"a"), "expected 2 string elements for inference input 'X' for model "
         "'M', got 1"),
        ([1], raw_string(b"a", b"", b"c"), "unexpected number of string elements 3 for inference "
         "input 'X' for model 'M', expecting 1"),
        ([1 << 24], raw_string(b"a"), "expected 16777216 string elements "),
        ([1], raw_string(b"abc")[:-1], "incomplete string data for inference input 'X', expecting "
         "string of length 3 but only 2 bytes available"),
        ([2], raw_string(b"abc") + b"\x01", "incomplete string length indicator for inference "
         "input 'X' for model 'M', expecting 4 bytes but only 1 bytes available. Please make sure "
         "the string length indicator is in one buffer."),
        ([1], b"\xff\xff\xff\xff", "incomplete string data"),
    ],
)  # fmt: skip
def test_bytes_refused(shape: list[int], binary: bytes, text: str) -> None:
    parameters = {"binary_data_size": len(binary)}
    head = one(shape=shape, datatype="BYTES", parameters=parameters)
    with pytest.raises(ProtocolError) as caught:
        infer(head, binary)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("size", "sent", "text"),
    [
        (8, 7, "unexpected size for input 'X', expecting 1 additional bytes for model 'M'"),
        (8, 9, "unexpected additional input data for model 'M'"),
        (4, 4, "input byte size mismatch for input 'X' for model 'M'. Expected 8, got 4"),
        (1 << 60, 4, f"expecting {(1 << 60) - 4} additional bytes for model 'M'"),
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
    with pytest.raises(ProtocolError, match=r"inference header size should be in range \(0, "):
        decoder.decode(body, length)


def test_json_part_is_limited() -> None:
    limits = WireLimits(json_bytes_max=50)
    text = r"request JSON size of \d+ bytes exceeds the maximum allowed input size of 50 bytes\. "
    with pytest.raises(ProtocolError, match=text + "Use --http-max-input-size to increase"):
        infer(one(parameters={"binary_data_size": 8}), bytes(8), limits=limits)
    with pytest.raises(ProtocolError, match=text):
        infer(one(), limits=limits)


@pytest.mark.parametrize("count", [-1, "2", 2.0, True])
def test_a_wish_for_classes_is_a_count(count):
    outputs = [{"name": "Y", "parameters": {"classification": count}}]
    body = json.dumps({"inputs": [], "outputs": outputs}).encode()
    with pytest.raises(ProtocolError) as caught:
        RequestDecoder().decode(body, None)
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == (
        "Unable to set 'classification': "
        "attempt to access JSON non-unsigned-integer as unsigned-integer"
    )


def test_no_classes_are_no_wish():
    outputs = [{"name": "Y", "parameters": {"classification": 0, "x": 1}}]
    body = json.dumps({"inputs": [], "outputs": outputs}).encode()
    (output,) = RequestDecoder().decode(body, None).signature.outputs
    assert output.parameters == {"x": 1}
