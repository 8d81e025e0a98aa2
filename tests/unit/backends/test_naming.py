"""Tensors get the names of the configuration, or those of where they stand."""

from types import SimpleNamespace as Step

import pytest

from penstock.backends.base import LoadError
from penstock.backends.naming import labels, named
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

A = TensorSpec("a", dt.FP32, (-1, 3))
B = TensorSpec("b", dt.INT64, (-1,))


def test_without_stated_names_they_stay():
    assert named((A, B), (), "input") == (A, B)


def test_the_same_names_in_another_order_change_nothing():
    assert named((A, B), (B, A), "input") == (A, B)


def test_other_names_are_given_by_position_and_shapes_stay_the_models():
    stated = (TensorSpec("x", dt.FP32, (-1, -1)), TensorSpec("y", dt.INT64, (-1,)))
    first, second = named((A, B), stated, "input")
    assert (first.name, second.name) == ("x", "y")
    assert first.shape == (-1, 3)


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ((TensorSpec("x", dt.FP32, (-1, 3)),), "states 1 inputs, but the model has 2: a FP32"),
        ((TensorSpec("x", dt.FP64, (-1, 3)), B), r"states input x FP64 .* has a FP32 \[-1, 3\]"),
        ((TensorSpec("x", dt.FP32, (-1, 4)), B), "states input x FP32"),
        ((TensorSpec("x", dt.FP32, (-1,)), B), "states input x FP32"),
    ],
)
def test_what_does_not_agree_is_refused(stated, told):
    with pytest.raises(LoadError, match=told):
        named((A, B), stated, "input")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([[]], ["output_0"]),
        ([[Step(idx=0)], [Step(idx=1)]], ["output_0", "output_1"]),
        ([[Step(key="y")], [Step(key="z"), Step(idx=0)]], ["y", "z.0"]),
        ([[Step(name="field")], [Step(idx=1), Step(key="k")]], ["field", "output_1.k"]),
        ([[Step(key="y")], [Step(name="y")]], ["output_0", "output_1"]),
    ],
)
def test_names_from_paths(paths, names):
    assert labels(paths, "output") == names
