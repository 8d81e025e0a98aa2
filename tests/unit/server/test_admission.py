"""Signature and declared specs to a plan, or the exact text of the refusal."""

import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import OutputRequest, Signature, TensorSpec
from penstock.server.admission import Admission

A = TensorSpec("A", dt.FP32, (-1, 4))
B = TensorSpec("B", dt.INT64, (-1, -1, 2))
Y = TensorSpec("Y", dt.FP32, (-1, 4))
Z = TensorSpec("Z", dt.BYTES, (-1, 1))


def admission(rows_max=8, inputs=(A, B), outputs=(Y, Z)):
    return Admission("net", inputs, outputs, rows_max)


def a(shape=(2, 4), name="A", dtype=dt.FP32):
    return TensorSpec(name, dtype, shape)


def b(shape=(2, 5, 2), name="B", dtype=dt.INT64):
    return TensorSpec(name, dtype, shape)


def signature(*tensors, outputs=()):
    wanted = [o if isinstance(o, OutputRequest) else OutputRequest(o) for o in outputs]
    return Signature(tensors, wanted)


def refusal(of, *tensors, outputs=()):
    with pytest.raises(InferError) as caught:
        of.plan(signature(*tensors, outputs=outputs))
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


# --- plans


@pytest.mark.parametrize(
    ("tensors", "order"),
    [
        ([a(), b()], None),
        ([b(), a()], (1, 0)),
        ([a(name=""), b(name="")], None),
        ([a(), b(name="")], None),
        ([a(name=""), b()], None),
    ],
)
def test_inputs_by_name_or_by_place(tensors, order):
    plan = admission().plan(signature(*tensors))
    assert (plan.rows, plan.order, plan.wanted) == (2, order, (0, 1))
    assert plan.key == ((4,), (5, 2))


def test_the_key_follows_the_model_not_the_request():
    one, other = (admission().plan(signature(*pair)).key for pair in ([a(), b()], [b(), a()]))
    assert one == other


def test_the_key_tells_row_shapes_apart_but_not_row_counts():
    of = admission()
    key = of.plan(signature(a(), b())).key
    assert of.plan(signature(a((7, 4)), b((7, 5, 2)))).key == key
    assert of.plan(signature(a(), b((2, 6, 2)))).key != key


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_rows(rows):
    assert admission().plan(signature(a((rows, 4)), b((rows, 1, 2)))).rows == rows


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        ([], (0, 1)),
        (["Y"], (0,)),
        (["Z"], (1,)),
        (["Z", "Y"], (1, 0)),
        ([""], (0,)),
        (["", ""], (0, 1)),
        (["Y", ""], (0, 1)),
        ([OutputRequest("Z", {"binary_data": True})], (1,)),
    ],
)
def test_wanted_outputs(outputs, wanted):
    assert admission().plan(signature(a(), b(), outputs=outputs)).wanted == wanted


def test_a_model_that_does_not_batch():
    of = Admission("net", [TensorSpec("A", dt.FP32, (3, -1))], [Y], 0)
    plan = of.plan(signature(a((3, 9))))
    assert (plan.rows, plan.key, plan.order) == (1, None, None)
    text = "unexpected shape for input 'A' for model 'net'. Expected [3,-1], got [4,9]"
    assert refusal(of, a((4, 9))) == text


def test_scalars_and_rows_of_different_sizes_where_nothing_batches():
    of = Admission("net", [TensorSpec("A", dt.FP32, ()), TensorSpec("B", dt.INT64, (-1,))], [Y], 0)
    assert of.plan(signature(a(()), b((7,)))).rows == 1


# --- refusals


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            [a()],
            "expected 2 inputs but got 1 inputs for model 'net'. Got input(s) ['A'], but missing "
            "required input(s) ['B']. Please provide all required input(s).",
        ),
        (
            [],
            "expected 2 inputs but got 0 inputs for model 'net'. Got input(s) [], but "
            "missing required input(s) "
            "['A','B']. Please provide all required input(s).",
        ),
        (
            [a(), b(), a(name="C")],
            "unexpected inference input 'C' for model 'net'; its inputs are 'A', 'B'",
        ),
        (
            [a(), b(name="b")],
            "unexpected inference input 'b' for model 'net'; its inputs are 'A', 'B'",
        ),
        (
            [a(name=""), b(name=""), a(name="")],
            "unexpected inference input '2' for model 'net'; its inputs are 'A', 'B'",
        ),
        ([a(), a()], "input 'A' already exists in request"),
        ([a(), b(), a()], "input 'A' already exists in request"),
        ([b(), b(name="")], "input 'B' already exists in request"),
        (
            [a(dtype=dt.FP64), b()],
            "inference input 'A' data-type is 'FP64', but model 'net' expects 'FP32'",
        ),
        (
            [a(name=""), b(name="", dtype=dt.INT32)],
            "inference input 'B' data-type is 'INT32', but model 'net' expects 'INT64'",
        ),
        (
            [a((2, 5)), b()],
            "unexpected shape for input 'A' for model 'net'. Expected [-1,4], got [2,5]",
        ),
        (
            [a((4,)), b()],
            "unexpected shape for input 'A' for model 'net'. Expected [-1,4], got [4]",
        ),
        ([a(()), b()], "input 'A' has no shape but model requires batch dimension for 'net'"),
        (
            [a((2, 4, 1)), b()],
            "unexpected shape for input 'A' for model 'net'. Expected [-1,4], got [2,4,1]",
        ),
        (
            [a(), b((2, 5, 3))],
            "unexpected shape for input 'B' for model 'net'. Expected [-1,-1,2], got [2,5,3]",
        ),
        ([a((9, 4)), b((9, 1, 2))], "inference request batch-size must be <= 8 for 'net'"),
        ([a(), b((3, 5, 2))], "input 'B' batch size does not match other inputs for 'net'"),
        (
            [a(name=""), b((3, 5, 2), name="")],
            "input 'B' batch size does not match other inputs for 'net'",
        ),
        ([b((3, 5, 2)), a()], "input 'B' batch size does not match other inputs for 'net'"),
    ],
)
def test_refused_inputs(tensors, text):
    assert refusal(admission(), *tensors) == text


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (["X"], "unexpected inference output 'X' for model 'net'; its outputs are 'Y', 'Z'"),
        (
            ["", "", ""],
            "unexpected inference output '2' for model 'net'; its outputs are 'Y', 'Z'",
        ),
        (["Y", "Y"], "output 'Y' already exists in request"),
        (["Z", ""], "output 'Z' already exists in request"),
    ],
)
def test_refused_outputs(outputs, text):
    assert refusal(admission(), a(), b(), outputs=outputs) == text


CLASSES_TYPE = "invalid value type for 'classification' parameter, expected int64_param"
CLASSES_VALUE = "invalid value for 'classification' parameter, expected >= 0"


def test_only_a_wish_for_classes_costs_anything():
    plain = admission().plan(signature(a(), b(), outputs=["Y"]))
    assert plain.classifier is None
    wished = OutputRequest("Z", {"classification": 2})
    assert admission().plan(signature(a(), b(), outputs=["Y", wished])).classifier is not None


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"classification": "2"}, CLASSES_TYPE),
        ({"classification": True}, CLASSES_TYPE),
        ({"classification": 0}, CLASSES_VALUE),
        ({"classification": -3}, CLASSES_VALUE),
        ({"classification": 1 << 32}, CLASSES_VALUE),
        (
            {"classification": 1, "shared_memory_region": "r"},
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_wishes_for_classes_that_make_no_sense(parameters, text):
    outputs = [OutputRequest("Y", parameters)]
    assert refusal(admission(), a(), b(), outputs=outputs) == text


# --- the memo


def test_the_same_signature_is_checked_once(monkeypatch):
    made = []
    make = Admission._make
    monkeypatch.setattr(Admission, "_make", lambda of, s: made.append(s) or make(of, s))
    of, same = admission(), signature(a(), b())
    plan = of.plan(same)
    assert of.plan(same) is plan
    assert made == [same]
    of.plan(signature(a(), b()))
    assert len(made) == 2


def test_a_memo_of_another_lane_does_not_leak():
    strict, loose = admission(rows_max=1), admission(rows_max=8)
    swapped = admission(inputs=(B, A))
    same = signature(a(), b())
    assert loose.plan(same).order is None
    assert swapped.plan(same).order == (1, 0)
    with pytest.raises(InferError):
        strict.plan(same)
    assert loose.plan(same).order is None


def test_a_refused_signature_is_refused_again():
    of, same = admission(), signature(a())
    for _ in range(2):
        with pytest.raises(InferError):
            of.plan(same)
