"""Readers of the other front doors: whatever comes, a request or a ``PenstockError``."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET

from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe
from penstock.protocol.dataframe import columns_for, csv_table, records_table, split_table
from penstock.protocol.errors import PenstockError
from penstock.protocol.json_values import array_of, encoded, values_of
from penstock.protocol.message import InferReply, Signature, TensorSpec
from penstock.protocol.packed_varints import read_varints, write_varints
from penstock.protocol.predict_form import Form
from penstock.protocol.predict_json import PredictDecoder
from penstock.protocol.tfs_proto import PredictReader, PredictWriter
from penstock.server.tfs_schema import message

INPUTS = (
    (TensorSpec("x", dt.FP32, (-1, 2)),),
    (TensorSpec("x", dt.BYTES, (-1,)),),
    (TensorSpec("a", dt.INT64, (-1,)), TensorSpec("b", dt.BOOL, (-1, 1))),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
    st.builds(lambda raw: {"b64": base64.b64encode(raw).decode()}, st.binary(max_size=4)),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["x", "a", "b", "b64"]), inner, max_size=3),
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["instances", "inputs", "examples", "context", "signature_name", "other"])
REQUEST, RESPONSE = message("PredictRequest"), message("PredictResponse")


def answers_or_refuses(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except PenstockError:
        return None


@given(st.dictionaries(KEYS, VALUES, max_size=3), st.sampled_from(INPUTS))
def test_json_bodies(document: dict[str, Any], inputs: Any) -> None:
    decoder = PredictDecoder()
    text = json.dumps(document).encode()
    for request in (
        answers_or_refuses(decoder.predict, text, inputs),
        answers_or_refuses(decoder.examples, text, inputs, Form.CLASSES),
    ):
        if request is not None:
            for spec, array in zip(request.signature.tensors, request.arrays, strict=True):
                assert (array.dtype, array.shape) == (spec.dtype.numpy, spec.shape)


NUMBERS = st.lists(
    st.lists(st.one_of(st.floats(width=32), st.integers(-9, 9), st.booleans()), max_size=3),
    max_size=3,
)


@given(st.sampled_from(["instances", "inputs"]), NUMBERS)
def test_what_the_parser_checks_is_what_is_checked_behind_it(key: str, rows: Any) -> None:
    """Bodies of numbers alone take a shorter way, to the same end."""
    text = json.dumps({key: rows}).encode()
    short = answers_or_refuses(PredictDecoder().predict, text, INPUTS[0])
    values = [rows, UNSET] if key == "instances" else [UNSET, rows]
    long = answers_or_refuses(PredictDecoder().tensors, *values, INPUTS[0])
    assert (short is None) is (long is None)
    if short is not None:
        assert short.signature.tensors == long.signature.tensors
        np.testing.assert_array_equal(short.arrays[0], long.arrays[0])


@given(st.binary(max_size=200))
@example(b'{"instances":NaN}')
@example(b'{"instances":[' + b"[" * 3000)
def test_any_bytes_as_json(text: bytes) -> None:
    answers_or_refuses(PredictDecoder().predict, text, INPUTS[0])


@given(VALUES, st.sampled_from(INPUTS))
def test_tables(value: Any, inputs: Any) -> None:
    for read in (split_table, records_table):
        answers_or_refuses(lambda read=read: columns_for(read(value), inputs))
    named = {"columns": ["a", "b"], "data": value}
    answers_or_refuses(lambda: columns_for(split_table(named), inputs))


@given(st.binary(max_size=100), st.sampled_from([None, True, False]), st.sampled_from(INPUTS))
@example(b'"', None, INPUTS[0])
@example(b"a,b\n1,\0\n", None, INPUTS[2])
@example(b"1e999,1\n", None, INPUTS[0])
def test_csv(text: bytes, header: bool | None, inputs: Any) -> None:
    answers_or_refuses(lambda: columns_for(csv_table(text, header), inputs, text=True))


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=4))
def test_floats_keep_their_bits(rows: list[list[float]]) -> None:
    array = np.array(rows, "<f4").reshape(len(rows), 2)
    text = encoded(values_of(array, dt.FP32, "x"))
    read = array_of(json.loads(text), dt.FP32, "x")
    np.testing.assert_array_equal(read, array if rows else np.zeros(0, "<f4"))


# --- protobuf -------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_as_a_predict_request(data: bytes) -> None:
    reader = PredictReader()
    for _ in range(3):
        answers_or_refuses(reader.read, data)


TENSORS = st.fixed_dictionaries(
    {"dtype": st.integers(0, 24)},
    optional={
        "tensor_content": st.binary(max_size=16),
        "float_val": st.lists(st.floats(width=32), max_size=3),
        "double_val": st.lists(st.floats(), max_size=3),
        "int_val": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        "uint64_val": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "string_val": st.lists(st.binary(max_size=3), max_size=3),
        "bool_val": st.lists(st.booleans(), max_size=3),
        "half_val": st.lists(st.integers(-1, 70_000), max_size=3),
    },
)


@given(
    st.dictionaries(st.text(max_size=3), TENSORS, max_size=2),
    st.lists(st.integers(-1, 3), max_size=3),
    st.binary(max_size=6),
    st.integers(0, 400),
)
def test_requests_of_protobuf_and_broken_ones(
    tensors: dict[str, Any], shape: list[int], noise: bytes, at: int
) -> None:
    request = REQUEST()
    request.model_spec.name = "m"
    for name, fields in tensors.items():
        tensor = request.inputs[name]
        tensor.MergeFrom(message("tensorflow.TensorProto")(**fields))
        for size in shape:
            tensor.tensor_shape.dim.add().size = size
    data = request.SerializeToString()
    reader = PredictReader()
    for _ in range(3):
        call = answers_or_refuses(reader.read, data)
    if call is not None:
        assert {spec.name for spec in call.request.signature.tensors} == set(tensors)
        assert all(list(array.shape) == shape for array in call.request.arrays)
    at %= len(data) + 1
    answers_or_refuses(reader.read, data[:at] + noise + data[at + len(noise) :])


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_packed_varints_there_and_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    packed = write_varints(array)
    np.testing.assert_array_equal(read_varints(packed).view(np.int64), array)
    reply = InferReply(Signature([TensorSpec("y", dt.INT64, array.shape)]), [array], "m", "1")
    read = RESPONSE.FromString(b"".join(PredictWriter().write(reply)))
    assert list(read.outputs["y"].int64_val) == values


@given(st.binary(max_size=100))
def test_any_bytes_as_packed_varints(packed: bytes) -> None:
    answers_or_refuses(read_varints, packed)


# --- FlatBuffers ----------------------------------------------------------------------------------


@given(st.binary(max_size=120), st.integers(0, 400))
def test_bare_frames(noise: bytes, at: int) -> None:
    decoder = graphpipe.RequestDecoder(bare=True)
    answers_or_refuses(decoder.decode, noise)
    answers_or_refuses(graphpipe.decode_bare_metadata_request, noise)
    at %= len(_FRAME) + 1
    broken = _FRAME[:at] + noise[:6] + _FRAME[at + len(noise[:6]) :]
    for _ in range(3):
        answers_or_refuses(decoder.decode, broken)


def _frame() -> bytes:
    path = Path(__file__).parents[1] / "data" / "graphpipe_fbs" / "oracle.py"
    spec = importlib.util.spec_from_file_location("graphpipe_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    tensor = (dt.FP32.graphpipe, (2, 2), b"\0" * 16)
    frame: bytes = oracle.write_request(b"c", [b"x"], [tensor], [b"y"], bare=True)
    return frame


_FRAME = _frame()


def test_the_whole_frame_is_read() -> None:
    request = graphpipe.RequestDecoder(bare=True).decode(_FRAME)
    assert request.signature.tensors == (TensorSpec("x", dt.FP32, (2, 2)),)  # type: ignore[union-attr]
