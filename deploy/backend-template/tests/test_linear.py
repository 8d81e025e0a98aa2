"""Penstock's own proof of a backend, on a model of three features and two scores."""

import numpy as np
import pytest
from penstock_linear import LinearBackend

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.conformance import Case, check_backend


def test_the_contract(tmp_path):
    path = tmp_path / "model.npz"
    weights, bias = np.array([[1, 0], [0, 2], [3, 0]], np.float32), np.array([0, 5], np.float32)
    np.savez(path, weights=weights, bias=bias)
    case = Case([np.array([[1, 1, 1]], np.float32)], [np.array([[4, 7]], np.float32)])
    report = check_backend(LinearBackend(), ModelSource("m", path), cases=[case])
    print("held:", *report.held, "not tried:", *report.skipped, sep="\n  ")


@pytest.mark.parametrize("bias", [np.zeros(5), np.zeros((7, 2))])
def test_sizes_that_do_not_fit_are_found_at_load(tmp_path, bias):
    np.savez(tmp_path / "model.npz", weights=np.ones((3, 2)), bias=bias)
    with pytest.raises(LoadError, match="is no linear model"):
        LinearBackend().load(ModelSource("m", tmp_path / "model.npz"))
