"""Outputs as classes: order, form, shapes, and what has none. Held against Triton's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferReply, Signature, TensorSpec
from penstock.server.classification import ELEMENTS_MAX, Classifier, highest

LABELS = {"Y": ("cat", "dog", "cow")}


def reply(values: Any, dtype: dt.DType = dt.FP32, *more: TensorSpec) -> InferReply:
    array = np.asarray(values, dtype.numpy)
    specs = [TensorSpec("Y", dtype, array.shape), *more]
    extra = [np.zeros(spec.shape, spec.dtype.numpy) for spec in more]
    return InferReply(Signature(specs), [array, *extra], "m", "1", "id", {"p": 1})


def classes(values: Any, count: int, dtype: dt.DType = dt.FP32, batches: bool = True) -> Any:
    classifier = Classifier({"Y": count}, batches=batches)
    made = classifier.classify(reply(values, dtype), LABELS)
    (spec,), (array,) = made.signature.tensors, made.arrays
    assert (spec.dtype, spec.shape) == (dt.BYTES, array.shape)
    return [[s.decode() for s in row] for row in array] if array.ndim == 2 else array.tolist()


def test_what_triton_answers() -> None:
    """Recorded from Triton 2.51."""
    rows = [[0.1, 0.9, 0.5, 0.5], [4, 3, 2, 1]]
    assert classes(rows, 2) == [
        ["0.900000:1:dog", "0.500000:2:cow"],
        ["4.000000:0:cat", "3.000000:1:dog"],
    ]
    assert classes(rows, 100) == [
        ["0.900000:1:dog", "0.500000:2:cow", "0.500000:3", "0.100000:0:cat"],
        ["4.000000:0:cat", "3.000000:1:dog", "2.000000:2:cow", "1.000000:3"],
    ]
    nobatch = classes([[0.1, 0.9], [0.5, 0.5]], 3, batches=False)
    assert nobatch == [b"0.900000:1:dog", b"0.500000:2:cow", b"0.500000:3"]
    assert classes([[1, -5, 7]], 3, dt.INT32) == [["7:2:cow", "1:0:cat", "-5:1:dog"]]


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (dt.UINT64, 2**64 - 1, "18446744073709551615:0:cat"),
        (dt.INT64, -(2**63), "-9223372036854775808:0:cat"),
        (dt.UINT8, 255, "255:0:cat"),
        (dt.INT8, -128, "-128:0:cat"),
        (dt.FP64, 1e-9, "0.000000:0:cat"),
        (dt.FP64, 1e20, "100000000000000000000.000000:0:cat"),
        (dt.FP32, np.inf, "inf:0:cat"),
        (dt.FP32, -np.inf, "-inf:0:cat"),
        (dt.FP32, np.nan, "nan:0:cat"),
    ],
)
def test_values_are_written_as_c_writes_them(dtype: dt.DType, value: Any, text: str) -> None:
    assert classes([[value]], 1, dtype) == [[text]]


def test_other_outputs_and_the_rest_of_the_reply_stay() -> None:
    other = TensorSpec("Z", dt.INT32, (1, 2))
    given = reply([[1.0, 2.0]], dt.FP32, other)
    made = Classifier({"Y": 1}, batches=True).classify(given, {})
    assert made.signature.tensors[1] is other
    assert made.arrays[1] is given.arrays[1]
    assert (made.model, made.version, made.id, made.parameters) == ("m", "1", "id", {"p": 1})
    assert given.arrays[0].tolist() == [[1.0, 2.0]], "the model's own reply is nobody's to change"


def test_alike_replies_share_their_signature() -> None:
    classifier = Classifier({"Y": 1}, batches=True)
    one, other = reply([[1.0, 2.0]]), reply([[1.0, 2.0, 3.0]])
    first = classifier.classify(one, {}).signature
    assert classifier.classify(one, {}).signature is first
    assert classifier.classify(other, {}).signature is not first
    assert classifier.classify(one, {}).signature.tensors == first.tensors


@pytest.mark.parametrize("dtype", [dt.FP16, dt.BF16, dt.BOOL, dt.BYTES])
def test_types_without_an_order(dtype: dt.DType) -> None:
    with pytest.raises(InferError) as caught:
        classes([[0, 1]], 1, dtype)
    assert caught.value.code is Code.INVALID_ARGUMENT
    name = dtype.name
    assert caught.value.message == (
        f"class result not available for output due to unsupported type '{name}'"
    )


def test_too_large() -> None:
    assert len(classes(np.zeros((1, ELEMENTS_MAX), "f4"), 1)) == 1
    with pytest.raises(InferError, match=r"^classification output tensor too large$"):
        classes(np.zeros((1, ELEMENTS_MAX + 1), "f4"), 1)
    rows = np.zeros((2, ELEMENTS_MAX), "f4")
    assert len(classes(rows, 1)) == 2, "a row counts, not the batch"


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_nothing_to_classify(shape: tuple[int, ...]) -> None:
    made = Classifier({"Y": 3}, batches=True).classify(reply(np.zeros(shape, "f4")), {})
    assert made.arrays[0].shape == (shape[0], min(3, shape[1]))
    assert made.signature.tensors[0].shape == made.arrays[0].shape


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, np.inf, -np.inf, np.nan]), min_size=1),
    st.integers(1, 12),
)
def test_the_highest_in_order(values: list[float], count: int) -> None:
    row = np.array(values)
    found = highest(row, min(count, len(row))).tolist()
    key = [(-np.inf if np.isnan(v) else v) for v in values]
    assert found == sorted(range(len(row)), key=lambda i: (-key[i], i))[:count]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 12))
def test_large_whole_numbers_are_not_rounded(values: list[int], count: int) -> None:
    found = highest(np.array(values, "u8"), min(count, len(values))).tolist()
    assert found == sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
