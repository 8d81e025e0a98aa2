"""Predict, classify and regress as JSON: which tensors a body stands for, and how replies look."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.message import InferReply, Signature, TensorSpec
from penstock.protocol.predict_form import Form
from penstock.protocol.predict_json import PredictDecoder, encode_reply

IMAGE = (TensorSpec("image", dt.FP32, (-1, 1, 2, 2)),)
TEXT = (TensorSpec("text", dt.BYTES, (-1,)),)
PAIR = (TensorSpec("a", dt.INT32, (-1, 2)), TensorSpec("b", dt.FP32, (-1,)))


def predict(document: Any, inputs: tuple[TensorSpec, ...] = IMAGE) -> dict[str, Any]:
    """Name to nested values of the request."""
    request = PredictDecoder().predict(json.dumps(document).encode(), inputs)
    named = zip(request.signature.tensors, request.arrays, strict=True)
    return {spec.name: array.tolist() for spec, array in named}


def test_rows() -> None:
    image = [[[1, 2], [3, 4]]]
    assert predict({"instances": [image, image]}) == {"image": [image, image]}
    assert predict({"instances": [{"image": image}]}) == {"image": [image]}
    assert predict({"instances": [[1, 2, 3, 4]]}) == {"image": [image]}
    rows = [{"a": [1, 2], "b": 0.5}, {"b": 1, "a": [3, 4]}]
    assert predict({"instances": rows}, PAIR) == {"a": [[1, 2], [3, 4]], "b": [0.5, 1.0]}


def test_columns() -> None:
    image = [[[1, 2], [3, 4]]]
    assert predict({"inputs": [image]}) == {"image": [image]}
    assert predict({"inputs": {"image": [image]}}) == {"image": [image]}
    assert predict({"inputs": {"a": [[1, 2]], "b": [3]}}, PAIR) == {"a": [[1, 2]], "b": [3.0]}


def test_bytes_are_values_not_named_inputs() -> None:
    b64 = {"b64": "eHk="}
    assert predict({"instances": [b64, "z"]}, TEXT) == {"text": [b"xy", b"z"]}
    assert predict({"instances": [{"text": b64}]}, TEXT) == {"text": [b"xy"]}
    assert predict({"inputs": [b64]}, TEXT) == {"text": [b"xy"]}


def test_the_signature_and_forms() -> None:
    decoder = PredictDecoder()

    def form(text: bytes) -> Any:
        return decoder.predict(text, IMAGE).signature

    row = b'{"signature_name":"serving_default","instances":[[1,2,3,4]]}'
    assert form(row).form is Form.ROWS
    assert form(b'{"inputs":[[1,2,3,4]]}').form is Form.COLUMNS
    assert form(row) is form(row.replace(b"1", b"9")), "found again by what it declares"
    assert form(row) is not form(b'{"instances":[[1,2,3,4],[1,2,3,4]]}')


BAD: dict[str, tuple[Any, tuple[TensorSpec, ...], str]] = {
    "a list": ([1], IMAGE, "JSON Parse error"),
    "neither": ({}, IMAGE, "Missing 'inputs' or 'instances' key"),
    "both": ({"instances": [1], "inputs": [1]}, IMAGE, "only one of"),
    "no list": ({"instances": 3}, IMAGE, "to be a list/array"),
    "null": ({"instances": None}, IMAGE, "to be a list/array"),
    "no rows": ({"instances": []}, IMAGE, "No values in 'instances'"),
    "signature": ({"signature_name": "x", "instances": [1]}, IMAGE, '"x" not found in signature'),
    "signature type": ({"signature_name": 1, "instances": [1]}, IMAGE, "JSON Parse error"),
    "bare rows of two": ({"instances": [1]}, PAIR, "objects by name"),
    "bare columns of two": ({"inputs": [1]}, PAIR, "objects by name"),
    "unknown": ({"instances": [{"x": 1}]}, IMAGE, "no input 'x'"),
    "unknown column": ({"inputs": {"x": 1}}, IMAGE, "no input 'x'"),
    "other names": ({"instances": [{"image": 1}, {"x": 1}]}, IMAGE, "element 1"),
    "mixed": ({"instances": [{"image": 1}, 2]}, IMAGE, "element 1"),
    "mixed the other way": ({"instances": [1, {"image": 1}]}, IMAGE, "unexpected object"),
}


@pytest.mark.parametrize(("document", "inputs", "text"), BAD.values(), ids=BAD)
def test_bad_requests(document: Any, inputs: tuple[TensorSpec, ...], text: str) -> None:
    with pytest.raises(ProtocolError, match=text) as caught:
        predict(document, inputs)
    assert caught.value.code is Code.INVALID_ARGUMENT


def examples(document: Any, inputs: tuple[TensorSpec, ...] = PAIR) -> dict[str, Any]:
    request = PredictDecoder().examples(json.dumps(document).encode(), inputs, Form.CLASSES)
    assert request.signature.form is Form.CLASSES
    named = zip(request.signature.tensors, request.arrays, strict=True)
    return {spec.name: array.tolist() for spec, array in named}


def test_examples_with_context() -> None:
    document = {
        "context": {"b": 2.5, "unused": 1},
        "examples": [{"a": [1, 2]}, {"a": [3, 4], "b": [7], "other": "x"}],
    }
    with pytest.raises(ProtocolError, match="same length"):
        examples(document)
    document["examples"][1]["b"] = 7  # type: ignore[index]
    assert examples(document) == {"a": [[1, 2], [3, 4]], "b": [2.5, 7.0]}
    one = {"examples": [{"a": [1, 2], "b": [7]}]}
    assert examples(one) == {"a": [[1, 2]], "b": [7.0]}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"examples": []}, "empty array"),
        ({"examples": {}}, "JSON Parse error"),
        ({"examples": [1]}, "JSON Parse error"),
        ({}, "examples"),
        ({"examples": [{"a": [1, 2]}]}, "example 0 has no feature 'b'"),
        ({"examples": [{"a": [1, 2], "b": {}}]}, "unexpected object"),
        ({"signature_name": "x", "examples": [{}]}, "not found in signature"),
    ],
)
def test_bad_examples(document: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        examples(document)


# --- replies --------------------------------------------------------------------------------------


def reply(**tensors: Any) -> InferReply:
    arrays = [np.asarray(value) for value in tensors.values()]
    specs = [
        TensorSpec(name, dt.of_numpy(array.dtype), array.shape)
        for name, array in zip(tensors, arrays, strict=True)
    ]
    return InferReply(Signature(specs), arrays)


ONE = reply(y=np.array([[1, 2], [3, 4]], "f4"))
TWO = reply(y=np.array([1, 2], "i4"), t=np.array([b"a", b"\xff"], object))


def written(what: InferReply, form: Form, rows: int = 2, **more: Any) -> Any:
    return json.loads(encode_reply(what, form, rows, **more))


def test_replies() -> None:
    assert written(ONE, Form.ROWS) == {"predictions": [[1, 2], [3, 4]]}
    assert written(ONE, Form.COLUMNS) == {"outputs": [[1, 2], [3, 4]]}
    assert written(ONE, Form.COLUMNS_AS_PREDICTIONS) == {"predictions": [[1, 2], [3, 4]]}
    texts = ["a", {"b64": "/w=="}]
    assert written(TWO, Form.COLUMNS) == {"outputs": {"y": [1, 2], "t": texts}}
    assert written(TWO, Form.ROWS) == {
        "predictions": [{"y": 1, "t": texts[0]}, {"y": 2, "t": texts[1]}]
    }


def test_rows_need_an_entry_each() -> None:
    with pytest.raises(InferError, match="send 'inputs'"):
        encode_reply(ONE, Form.ROWS, 3)
    with pytest.raises(InferError, match="send 'inputs'"):
        encode_reply(reply(y=np.float32(1)), Form.ROWS, 1)


def test_classes() -> None:
    scores = np.array([[0.5, 0.25, 0.25]], "f4")
    assert written(reply(p=scores), Form.CLASSES, 1) == {
        "results": [[["0", 0.5], ["1", 0.25], ["2", 0.25]]]
    }
    named = written(reply(p=scores), Form.CLASSES, 1, labels={"p": ("cat", "dog")})
    assert named == {"results": [[["cat", 0.5], ["dog", 0.25], ["2", 0.25]]]}
    texts = np.array([[b"x", b"y", b"z"]], object)
    told = written(reply(classes=texts, scores=scores), Form.CLASSES, 1)
    assert told == {"results": [[["x", 0.5], ["y", 0.25], ["z", 0.25]]]}


def test_numbers() -> None:
    assert written(ONE, Form.COLUMNS) != written(reply(y=np.ones((2, 1))), Form.VALUES)
    assert written(reply(y=np.array([[1.5], [2]])), Form.VALUES) == {"results": [1.5, 2]}
    assert written(reply(y=np.array([1.5, 2])), Form.VALUES) == {"results": [1.5, 2]}


@pytest.mark.parametrize(
    ("what", "form"),
    [
        (reply(y=np.array([1, 2])), Form.CLASSES),
        (reply(y=np.array([1.0, 2])), Form.CLASSES),
        (reply(y=np.ones((2, 3)), z=np.ones((2, 3))), Form.CLASSES),
        (ONE, Form.VALUES),
        (TWO, Form.VALUES),
    ],
)
def test_models_that_cannot(what: InferReply, form: Form) -> None:
    with pytest.raises(InferError) as caught:
        encode_reply(what, form, 2)
    assert caught.value.code is Code.FAILED_PRECONDITION
