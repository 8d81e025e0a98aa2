"""Models run side by side: batches, parts of the samples, errors of single tensors."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.errors import DataError, ModelError
from penstock.backends.quantize.evaluate import (
    compared,
    fixed_rows,
    kept,
    measure,
    parted,
    run,
    tensor_db,
)
from penstock.backends.quantize.prepare import session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.targets import TARGETS


def test_batches_come_with_their_own_labels() -> None:
    model = session(graphs.residual())
    x, labels = graphs.pictures(50), np.arange(50)
    batches = list(compared(model, samples_of({"x": x}, labels, seed=3), 16))
    assert [batch.rows for batch in batches] == [16, 16, 16, 2]
    (whole,) = model.run(None, {"x": x})
    for batch in batches:
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.feed["x"], x[batch.labels])
        np.testing.assert_allclose(batch.outputs[0], whole[batch.labels], rtol=1e-4, atol=1e-5)


def test_only_as_much_is_kept_as_there_is_room() -> None:
    batches = list(compared(session(graphs.residual()), samples_of({"x": graphs.pictures(40)}), 8))
    size = batches[0].bytes
    assert size == 8 * (3 * 16 * 16 + 10) * 4
    assert len(kept(batches, 3 * size)) == 3
    assert len(kept(batches, 3 * size - 1)) == 2
    assert len(kept(batches, 1)) == 1
    assert len(kept(batches, rows_max=16)) == 2
    assert len(kept(batches)) == 5


def test_a_model_is_its_own_equal() -> None:
    model = session(graphs.residual())
    found = measure(model, compared(model, samples_of({"x": graphs.pictures(20)}), 8))
    assert found.rows == 20
    assert found.sqnr_db is None
    assert found.agreement == 1


def test_errors_of_tensors_are_those_of_their_values(tmp_path: Path) -> None:
    model = graphs.prepared(graphs.residual(), tmp_path)
    plan = Plan(model, TARGETS["cpu"])
    feed = {"x": graphs.pictures(12)}
    int8 = plan.build({layer.name for layer in plan.layers}, graphs.min_max(plan, feed))
    batches = list(compared(session(model), samples_of(feed), 8))
    told: list[float] = []
    names = ["stem.relu", "sum.relu", "y"]
    found = tensor_db(model, int8, names, batches, 1, told.append)
    assert told == [0.5, 1.0]
    for name in names:
        (real,), (other,) = (graphs.values(m, [name], feed) for m in (model, int8))
        assert found[name] == pytest.approx(graphs.sqnr_db(real, other), abs=0.1)
    assert found["stem.relu"] > found["sum.relu"]  # type: ignore[operator]


def test_parts_are_disjoint_and_everything() -> None:
    samples = samples_of({"x": np.arange(10)}, seed=1)
    calibration, selection = parted(samples, 5)
    assert len(calibration) == 8
    assert len(selection) == 2
    together = [*calibration.order, *selection.order]
    assert sorted(together) == list(range(10))
    one, other = parted(samples_of({"x": np.arange(2)}), 5)
    assert (len(one), len(other)) == (1, 1)


def test_a_model_of_one_batch_size_says_which() -> None:
    g = graphs.Graph()
    g.op("Relu", "x", "y")
    assert fixed_rows(session(g.model({"x": [4, 2]}, {"y": [4, 2]}))) == 4
    assert fixed_rows(session(graphs.residual())) is None
    few = samples_of({"x": np.zeros((3, 2), np.float32)})
    with pytest.raises(DataError, match="batches of 4, there are 3 samples"):
        list(compared(session(g.model({"x": [4, 2]}, {"y": [4, 2]})), few, 8))


def test_a_run_that_fails_is_an_error_in_words() -> None:
    with pytest.raises(ModelError, match=r"the model failed on a batch: .*x"):
        run(session(graphs.residual()), {"x": np.zeros((1, 4, 16, 16), np.float32)})
