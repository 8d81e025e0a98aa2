"""LightGBM keeps the contract, gives what the library gives, and never ends the process."""

import dataclasses
import logging
import sys

import numpy as np
import pytest
from tests.unit.backends.tree_cases import refusals
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.lightgbm import LightGbmBackend
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


@pytest.fixture(scope="module", autouse=True)
def lgb():
    engine_or_skip("lightgbm")
    import lightgbm

    return lightgbm


@pytest.fixture
def zoo():
    from tests.zoo import lightgbm

    return lightgbm


@pytest.fixture
def rows():
    return digits.pictures()[300:304].reshape(-1, 64)


@pytest.fixture
def source(tmp_path, zoo):
    zoo.write(tmp_path)
    return ModelSource("m", tmp_path / "model.lgb")


@pytest.fixture
def learned(tmp_path, lgb):
    """Learns a model of two features, the second of which is missing here and there."""

    def learn(**how):
        random = np.random.default_rng(0)
        x = random.normal(size=(200, 2))
        x[::3, 1] = np.nan
        label = (x[:, 0] + np.nan_to_num(x[:, 1], nan=3.0) > 1).astype(int)
        data = lgb.Dataset(x, label, group=[200] if how["objective"] == "lambdarank" else None)
        model = lgb.train({"verbosity": -1, "num_threads": 1, **how}, data, 5)
        model.save_model(str(tmp_path / "learned.txt"))
        return model, ModelSource("m", tmp_path / "learned.txt")

    return learn


def run(source, rows):
    session = LightGbmBackend().load(source)
    (made,) = session.run([rows])
    session.close()
    return made


def test_keeps_the_contract(source, zoo, rows):
    case = Case([rows], [zoo.expected(rows).astype(np.float32)])
    report = check_backend(LightGbmBackend(), source, cases=[case])
    assert report.skipped == []


def test_finds_its_file_in_the_folder_of_a_version(source):
    folder = dataclasses.replace(source, path=source.path.parent)
    assert LightGbmBackend().load(folder).inputs == (TensorSpec("input", dt.FP32, (-1, 64)),)


@pytest.mark.parametrize("objective", ["regression", "binary", "lambdarank", "cross_entropy"])
def test_one_value_a_row_is_a_column(learned, objective):
    model, source = learned(objective=objective)
    given = np.array([[0.5, np.nan], [-2, 0.1], [np.nan, np.nan]], np.float32)
    made = run(source, given)
    assert made.shape == (3, 1)
    np.testing.assert_allclose(made[:, 0], model.predict(given), rtol=1e-6)


@pytest.mark.parametrize(("kind", "how"), [("raw", "raw_score"), ("leaf", "pred_leaf")])
def test_other_answers(source, zoo, rows, kind, how):
    wanted = zoo.model().predict(rows, **{how: True})
    made = run(dataclasses.replace(source, options={"output": kind}), rows)
    np.testing.assert_allclose(made, wanted, rtol=1e-6)
    assert made.dtype == (np.int32 if kind == "leaf" else np.float32)


def test_the_configuration_names_types_and_flattens(learned):
    model, source = learned(objective="regression")
    source = dataclasses.replace(
        source,
        inputs=(TensorSpec("features", dt.FP64, (-1, 2)),),
        outputs=(TensorSpec("price", dt.FP64, (-1,)),),
    )
    session = LightGbmBackend().load(source)
    assert (session.inputs, session.outputs) == (source.inputs, source.outputs)
    given = np.array([[0.1, 0.2]])
    assert session.run([given])[0].tolist() == model.predict(given).tolist()


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"inputs": (TensorSpec("x", dt.INT8, (-1, 2)),)}, "declared INT8; trees take FP32"),
        ({"outputs": (TensorSpec("y", dt.INT64, (-1, 1)),)}, "INT64; it can be FP32 or FP64"),
        ({"inputs": (TensorSpec("x", dt.FP32, (-1,)), TensorSpec("z", dt.FP32, (-1,)))}, "x, z"),
        ({"options": {"output": "classes"}}, "must be one of prediction, raw, leaf"),
        ({"device": "cuda:0"}, "runs on the CPU"),
    ],
)
def test_what_cannot_be_is_refused(source, stated, told):
    with pytest.raises(LoadError, match=told):
        LightGbmBackend().load(dataclasses.replace(source, **stated))


def test_no_rows_in_no_rows_out(source):
    assert run(source, np.empty((0, 64), np.float32)).shape == (0, 10)


def test_a_closed_session_refuses(source, rows):
    session = LightGbmBackend().load(source)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([rows])


def test_uses_as_many_cores_as_it_may(source, rows, lgb, monkeypatch):
    seen = []
    real = lgb.Booster.predict

    def predict(self, data, **how):
        seen.append(how["num_threads"])
        return real(self, data, **how)

    monkeypatch.setattr(lgb.Booster, "predict", predict)
    run(dataclasses.replace(source, threads=3), rows)
    assert set(seen) == {3}


def test_damaged_files_are_refused_or_harmless(source):
    said = refusals(LightGbmBackend(), source, 9)
    assert len(said) >= 3  # what was cut short, at least
    assert not [text for text in said if "\n" in text]


def test_a_file_cut_short_is_told_from_another_kind(source):
    source.path.write_bytes(source.path.read_bytes()[:-9000].partition(b"end of trees")[0])
    with pytest.raises(LoadError, match="cut short"):
        LightGbmBackend().load(source)
    source.path.write_bytes(b"PK\x03\x04")
    with pytest.raises(LoadError, match=r"not a model as Booster\.save_model writes it"):
        LightGbmBackend().load(source)


def test_nothing_is_printed(source, rows, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "lightgbm"):
        run(source, rows)
    assert capfd.readouterr() == ("", "")


def test_says_what_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[lightgbm\]'"):
        LightGbmBackend().load(source)
