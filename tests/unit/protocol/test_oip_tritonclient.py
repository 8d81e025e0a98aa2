"""The JSON codec against the stock client: what it sends is read, what it reads is written."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError
from penstock.protocol.message import InferReply, Signature, TensorSpec, wire_array
from penstock.protocol.oip_json import (
    ALL_BINARY,
    ALL_JSON,
    OipForm,
    ReplyEncoder,
    RequestDecoder,
    encode_request,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    http = pytest.importorskip("tritonclient.http")
ml_dtypes = pytest.importorskip("ml_dtypes")  # the client takes BF16 in no other type since r26.06

VALUES: dict[dt.DType, Any] = {
    dt.BOOL: np.array([[True, False]]),
    dt.UINT8: np.array([[0, 255]], dtype="u1"),
    dt.INT8: np.array([[-128, 127]], dtype="i1"),
    dt.UINT16: np.array([[0, 65535]], dtype="u2"),
    dt.INT16: np.array([[-32768, 32767]], dtype="i2"),
    dt.UINT32: np.array([[0, 2**32 - 1]], dtype="u4"),
    dt.INT32: np.array([[-(2**31), 2**31 - 1]], dtype="i4"),
    dt.UINT64: np.array([[0, 2**64 - 1]], dtype="u8"),
    dt.INT64: np.array([[-(2**63), 2**63 - 1]], dtype="i8"),
    dt.FP16: np.array([[0.1, -2]], dtype="f2"),
    dt.FP32: np.array([[0.1, np.nan]], dtype="f4"),
    dt.FP64: np.array([[0.1, -np.inf]], dtype="f8"),
    dt.BYTES: np.array([[b"ab", "\u00e9\U0001f600".encode()]], dtype=object),
    dt.BF16: np.array([[0.5, -3.0]], dtype=ml_dtypes.bfloat16),
}
PAIRS = list(VALUES.items())
EMPTY = [(d, v[:0]) for d, v in PAIRS]
JSON_PAIRS = [(d, v) for d, v in PAIRS + EMPTY if d not in (dt.FP16, dt.BF16)]


def client_input(name: str, dtype: dt.DType, value: Any, binary: bool) -> Any:
    tensor = http.InferInput(name, list(value.shape), dtype.name)
    tensor.set_data_from_numpy(value, binary_data=binary)
    return tensor


def check_request(pairs: list[tuple[dt.DType, Any]], binary: list[bool], **kwargs: Any) -> Any:
    inputs = [
        client_input(f"I{i}", d, v, b)
        for i, ((d, v), b) in enumerate(zip(pairs, binary, strict=True))
    ]
    body, length = http.InferenceServerClient.generate_request_body(inputs, **kwargs)
    decoder = RequestDecoder()
    for _ in range(3):
        request = decoder.decode(body, length)
        for (dtype, value), spec, array in zip(
            pairs, request.signature.tensors, request.arrays, strict=True
        ):
            assert spec.dtype is dtype
            np.testing.assert_array_equal(array, wire_array(value, dtype)[1])
    return request


@pytest.mark.parametrize(("dtype", "value"), PAIRS + EMPTY)
def test_binary_requests(dtype: dt.DType, value: Any) -> None:
    check_request([(dtype, value)], [True])


@pytest.mark.parametrize(("dtype", "value"), JSON_PAIRS)
def test_json_requests(dtype: dt.DType, value: Any) -> None:
    check_request([(dtype, value)], [False])


def test_mixed_requests() -> None:
    pairs = PAIRS + EMPTY
    check_request(pairs, [d in (dt.FP16, dt.BF16) or i % 2 == 0 for i, (d, _) in enumerate(pairs)])


def test_all_that_a_request_says() -> None:
    outputs = [
        http.InferRequestedOutput("A", binary_data=True),
        http.InferRequestedOutput("B", binary_data=False, class_count=3),
    ]
    request = check_request(
        PAIRS,
        [True] * len(PAIRS),
        outputs=outputs,
        request_id="my id",
        sequence_id=9,
        sequence_start=True,
        priority=2,
        timeout=1000,
        parameters={"mine": "x", "f": 0.5},
    )
    assert (request.id, request.priority, request.timeout_us) == ("my id", 2, 1000)
    assert dict(request.parameters) == {
        "sequence_id": 9, "sequence_start": True, "sequence_end": False, "mine": "x", "f": 0.5,
    }  # fmt: skip
    form = request.signature.form
    assert (form.is_binary("A"), form.is_binary("B")) == (True, False)
    assert request.signature.outputs[1].parameters["classification"] == 3


def test_no_outputs_named_means_binary() -> None:
    assert check_request(PAIRS[:1], [True]).signature.form is ALL_BINARY
    assert check_request(PAIRS[:1], [False]).signature.form is ALL_BINARY


def reply_of(pairs: list[tuple[dt.DType, Any]]) -> InferReply:
    wire = [wire_array(v, d) for d, v in pairs]
    specs = [TensorSpec(f"O{i}", d, a.shape) for i, (d, a) in enumerate(wire)]
    return InferReply(Signature(specs), [a for _, a in wire], model="m", version="1", id="x")


def check_reply(pairs: list[tuple[dt.DType, Any]], form: OipForm) -> None:
    buffers, length = ReplyEncoder().encode(reply_of(pairs), form)
    result = http.InferenceServerClient.parse_response_body(b"".join(buffers), header_length=length)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("m", "1", "x")
    for i, (dtype, value) in enumerate(pairs):
        entry = result.get_output(f"O{i}")
        assert entry["datatype"] == dtype.name
        got = result.as_numpy(f"O{i}")
        if dtype is dt.BYTES and "data" in entry:
            got = np.array([v.encode() for v in got.reshape(-1)], dtype=object).reshape(got.shape)
        np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(("dtype", "value"), PAIRS + EMPTY)
def test_binary_replies(dtype: dt.DType, value: Any) -> None:
    check_reply([(dtype, value)], ALL_BINARY)


@pytest.mark.parametrize(("dtype", "value"), JSON_PAIRS)
def test_json_replies(dtype: dt.DType, value: Any) -> None:
    check_reply([(dtype, value)], ALL_JSON)


def test_mixed_replies() -> None:
    pairs = PAIRS + EMPTY
    for odd in (0, 1):
        binary = {
            f"O{i}": d in (dt.FP16, dt.BF16) or i % 2 == odd for i, (d, _) in enumerate(pairs)
        }
        check_reply(pairs, OipForm(False, binary))
    check_reply(pairs, ALL_BINARY)
    with pytest.raises(InferError):
        check_reply(pairs, ALL_JSON)


@pytest.mark.parametrize("binary", [True, False])
def test_our_requests_are_the_clients_own(binary: bool) -> None:
    pairs = [(d, v) for d, v in PAIRS if d not in (dt.FP16, dt.BF16)]
    inputs = [client_input(f"I{i}", d, v, binary) for i, (d, v) in enumerate(pairs)]
    theirs, their_length = http.InferenceServerClient.generate_request_body(inputs)
    request = RequestDecoder().decode(theirs, their_length)
    buffers, length = encode_request(request, binary=binary)
    ours = b"".join(buffers)
    assert (length is None) == (their_length is None)

    mine, other = json.loads(ours[:length]), json.loads(theirs[:their_length])
    assert repr(flattened(mine)) == repr(flattened(other))  # repr, because NaN is not NaN
    if binary:
        assert ours[length:] == theirs[their_length:]


def flattened(message: dict[str, Any]) -> Any:
    """``message`` with keys sorted: neither their order nor the nesting of data means anything."""
    for tensor in message["inputs"]:
        if "data" in tensor:
            tensor["data"] = np.array(tensor["data"], dtype=object).reshape(-1).tolist()
    return json.loads(json.dumps(message, sort_keys=True))
