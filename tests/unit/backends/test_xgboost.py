"""XGBoost keeps the contract, gives what the library gives, and never ends the process."""

import dataclasses
import sys

import numpy as np
import pytest
from tests.unit.backends.tree_cases import refusals
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.xgboost import XgBoostBackend
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


@pytest.fixture(scope="module", autouse=True)
def xgb():
    engine_or_skip("xgboost")
    import xgboost

    return xgboost


@pytest.fixture
def zoo():
    from tests.zoo import xgboost

    return xgboost


@pytest.fixture
def rows():
    return digits.pictures()[300:304].reshape(-1, 64)


@pytest.fixture
def source(tmp_path, zoo):
    zoo.write(tmp_path)
    return ModelSource("m", tmp_path / "model.ubj")


@pytest.fixture
def learned(tmp_path, xgb):
    """Learns a model of two features, the second of which is missing here and there."""

    def learn(rounds=5, **how):
        random = np.random.default_rng(0)
        x = random.normal(size=(200, 2))
        x[::3, 1] = np.nan
        label = (x[:, 0] + np.nan_to_num(x[:, 1], nan=3.0) > 1).astype(int)
        train, test = xgb.DMatrix(x[:100], label[:100]), xgb.DMatrix(x[100:], 1 - label[100:])
        model = xgb.train(
            {"nthread": 1, **how}, train, rounds,
            evals=[(test, "test")], early_stopping_rounds=4, verbose_eval=False,
        )  # fmt: skip
        model.save_model(tmp_path / "learned.json")
        return model, ModelSource("m", tmp_path / "learned.json")

    return learn


GIVEN = np.array([[0.5, np.nan], [-2, 0.1], [np.nan, np.nan]], np.float32)


def run(source, rows):
    session = XgBoostBackend().load(source)
    (made,) = session.run([rows])
    session.close()
    return made


def test_keeps_the_contract(source, zoo, rows):
    case = Case([rows], [zoo.expected(rows)])
    report = check_backend(XgBoostBackend(), source, cases=[case])
    assert report.skipped == []


@pytest.mark.parametrize("objective", ["reg:squarederror", "binary:logistic", "binary:hinge"])
def test_one_value_a_row_is_a_column(learned, xgb, objective):
    model, source = learned(objective=objective)
    made = run(source, GIVEN)
    assert made.shape == (3, 1)
    assert made[:, 0].tolist() == model.predict(xgb.DMatrix(GIVEN)).tolist()


@pytest.mark.parametrize(("kind", "how"), [("raw", "output_margin"), ("leaf", "pred_leaf")])
def test_other_answers(source, zoo, xgb, rows, kind, how):
    wanted = zoo.model().predict(xgb.DMatrix(rows), **{how: True})
    made = run(dataclasses.replace(source, options={"output": kind}), rows)
    assert made.tolist() == wanted.tolist()
    assert made.dtype == (np.int32 if kind == "leaf" else np.float32)


def test_a_linear_model_is_for_one_thread_at_a_time(learned, xgb):
    model, source = learned(objective="reg:squarederror", booster="gblinear")
    report = check_backend(XgBoostBackend(), source)
    assert report.skipped == ["threads: the session is not thread_safe"]
    given = np.nan_to_num(GIVEN)
    assert run(source, given)[:, 0].tolist() == model.predict(xgb.DMatrix(given)).tolist()
    with pytest.raises(LoadError, match="has no leaves"):
        run(dataclasses.replace(source, options={"output": "leaf"}), given)


def test_rounds_that_early_stopping_found_useless(learned, xgb):
    model, source = learned(rounds=20, objective="binary:logistic")
    best = model.best_iteration + 1
    assert best < model.num_boosted_rounds()
    data = xgb.DMatrix(GIVEN)
    assert run(source, GIVEN)[:, 0].tolist() == model.predict(data).tolist()
    fewer = run(dataclasses.replace(source, options={"rounds": "best"}), GIVEN)
    assert fewer[:, 0].tolist() == model.predict(data, iteration_range=(0, best)).tolist()


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"outputs": (TensorSpec("y", dt.FP64, (-1, 10)),)}, "declared FP64; it can be FP32"),
        ({"options": {"rounds": "best"}}, "without early stopping"),
        ({"options": {"rounds": "3"}}, "must be one of all, best"),
        ({"options": {"outputs": "raw"}}, "did you mean output"),
        ({"device": "cuda:0"}, "runs on the CPU"),
    ],
)
def test_what_cannot_be_is_refused(source, stated, told):
    with pytest.raises(LoadError, match=told):
        XgBoostBackend().load(dataclasses.replace(source, **stated))


def test_the_content_tells_not_the_name(learned, tmp_path):
    _, source = learned(objective="binary:logistic")
    renamed = source.path.rename(tmp_path / "model.xgb")
    assert run(dataclasses.replace(source, path=renamed), GIVEN).shape == (3, 1)


def test_no_rows_in_no_rows_out(source):
    assert run(source, np.empty((0, 64), np.float32)).shape == (0, 10)


def test_a_closed_session_refuses(source, rows):
    session = XgBoostBackend().load(source)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([rows])


def test_damaged_files_are_refused_or_harmless(source):
    said = refusals(XgBoostBackend(), source, 9)
    assert len(said) >= 3  # what was cut short, at least
    assert not [text for text in said if "\n" in text]


def test_says_what_is_wrong_with_a_file(source):
    source.path.write_bytes(b'{"learner": 7}')
    with pytest.raises(LoadError, match=r"cannot load .*model\.ubj") as caught:
        XgBoostBackend().load(source)
    assert "Stack trace" not in str(caught.value)


def test_nothing_is_printed(source, rows, capfd):
    run(source, rows)
    assert capfd.readouterr() == ("", "")


def test_says_what_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[xgboost\]'"):
        XgBoostBackend().load(source)
