"""The flat JSON of generate: shapes from counts, and whatever else a body may be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol import dtype as dt
from penstock.protocol.errors import PenstockError, ProtocolError
from penstock.protocol.generate_json import decode_generate, encode_generate
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferReply, Signature, TensorSpec


@pytest.mark.parametrize(
    ("declared", "count", "shape"),
    [
        ((-1, 1), 1, (1, 1)),
        ((-1, 1), 3, (3, 1)),
        ((-1, -1), 3, (1, 3)),
        ((-1, 4), 8, (2, 4)),
        ((-1, -1, 2), 6, (1, 3, 2)),
        ((2, 2), 4, (2, 2)),
        ((), 1, ()),
        ((-1,), 0, (0,)),
        ((-1, 4), 7, None),
        ((2, 2), 8, None),
        ((), 2, None),
        ((0, -1), 1, None),
    ],
)
def test_shapes_from_counts(declared, count, shape):
    spec = TensorSpec("A", dt.INT32, declared)
    body = json.dumps({"A": list(range(count))}).encode()
    if shape is None:
        with pytest.raises(ProtocolError, match="can not convert input 'A'"):
            decode_generate(body, [spec])
    else:
        request = decode_generate(body, [spec])
        assert request.signature.tensors == (TensorSpec("A", dt.INT32, shape),)
        assert request.arrays[0].ravel().tolist() == list(range(count))


def test_an_input_may_have_any_name():
    names = ["id", "text", "parameters"]
    specs = [TensorSpec(name, dt.BYTES, (-1,)) for name in names[:2]]
    request = decode_generate(b'{"id":"a","text":"b","parameters":{"id2":1}}', specs)
    assert [t.name for t in request.signature.tensors] == ["id", "text"]
    assert (request.id, dict(request.parameters)) == ("", {"id2": 1})
    with pytest.raises(ProtocolError, match="also given as input tensor name"):
        decode_generate(b'{"parameters":{}}', [TensorSpec("parameters", dt.BYTES, (-1,))])


def test_the_size_is_limited():
    with pytest.raises(ProtocolError, match="exceeds the maximum allowed input size of 5 bytes"):
        decode_generate(b'{"a":1}', [], WireLimits(json_bytes_max=5))


def test_replies():
    specs = [
        TensorSpec("one", dt.FP32, (1, 1)),
        TensorSpec("many", dt.BYTES, (2,)),
        TensorSpec("none", dt.INT8, (0,)),
        TensorSpec("id", dt.INT8, (1,)),
    ]
    arrays = [
        np.array([[np.nan]], "f4"), np.array([b"a", b'"'], object),
        np.zeros(0, "i1"), np.ones(1, "i1"),
    ]  # fmt: skip
    reply = InferReply(Signature(specs), arrays, "m", "3", "x", {"p": 1.5, "model_name": "liar"})
    assert encode_generate(reply) == (
        b'{"id":"x","many":["a","\\""],"model_name":"m","model_version":"3","none":[],'
        b'"one":NaN,"p":1.5}'
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["A", "B", "id", "parameters", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
SPECS = [TensorSpec("A", dt.FP32, (-1, 2)), TensorSpec("B", dt.BYTES, (-1, -1))]


@given(st.binary(max_size=30) | values.map(lambda v: json.dumps(v).encode()))
def test_any_body_is_a_request_or_an_error(body: bytes) -> None:
    try:
        request = decode_generate(body, SPECS)
    except PenstockError:
        return
    for spec, array in zip(request.signature.tensors, request.arrays, strict=True):
        assert array.shape == spec.shape
