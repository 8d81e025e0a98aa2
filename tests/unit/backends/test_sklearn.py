"""Models of scikit-learn, LightGBM and XGBoost, converted to ONNX, give what they gave before."""

import numpy as np
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.batchable import supports_batching
from penstock.backends.conformance import Case, check_backend
from penstock.backends.onnxruntime import OnnxRuntimeBackend


@pytest.fixture(scope="module", autouse=True)
def converters():
    engine_or_skip("onnxruntime")
    pytest.importorskip("skl2onnx")
    pytest.importorskip("onnxmltools")


@pytest.fixture
def rows():
    return digits.pictures()[300:400].reshape(-1, 64)


def served(onnx_model, tmp_path):
    """``onnx_model`` without the output that says the most probable class alone."""
    names = [output.name for output in onnx_model.graph.output]
    if len(names) == 2:
        del onnx_model.graph.output[0]
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model.SerializeToString())
    return ModelSource("m", path)


def pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def forest():
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(20, random_state=0)


def regressor():
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(n_estimators=20, random_state=0)


@pytest.mark.parametrize("make", [pipeline, forest, regressor])
def test_scikit_learn(tmp_path, rows, make):
    from skl2onnx import to_onnx

    pictures, labels = digits.learning()
    model = make().fit(pictures, labels.astype(int))
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    source = served(to_onnx(model, pictures[:1], options=options), tmp_path)
    wanted = model.predict_proba(rows) if options else model.predict(rows)[:, None]
    case = Case([rows], [wanted.astype(np.float32)])
    assert check_backend(OnnxRuntimeBackend(), source, cases=[case]).skipped == []


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_boosted_trees(tmp_path, rows, library):
    engine_or_skip(library)
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    kinds = [("image", FloatTensorType([None, 64]))]
    pictures, labels = digits.learning()
    if library == "lightgbm":
        import lightgbm

        model = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1)
        model.fit(pictures, labels.astype(int))
        converted = onnxmltools.convert_lightgbm(model, initial_types=kinds, zipmap=False)
    else:
        import xgboost

        model = xgboost.XGBClassifier(n_estimators=10, max_depth=3, n_jobs=1)
        model.fit(pictures, labels.astype(int))
        converted = onnxmltools.convert_xgboost(model, initial_types=kinds)
    source = served(converted, tmp_path)
    case = Case([rows], [model.predict_proba(rows).astype(np.float32)])
    assert check_backend(OnnxRuntimeBackend(), source, cases=[case]).skipped == []


def test_the_zoo_agrees_with_scikit_learn(tmp_path, rows):
    from tests.zoo import sklearn as zoo

    assert 'backend: "onnxruntime"' in zoo.write(tmp_path)
    session = OnnxRuntimeBackend().load(ModelSource("m", tmp_path / "model.onnx"))
    assert supports_batching(session)
    (made,) = session.run([rows])
    assert np.abs(made - zoo.expected(rows)).max() <= zoo.TOLERANCE


def test_dictionaries_of_probabilities_are_refused_with_the_way_out(tmp_path):
    from skl2onnx import to_onnx

    pictures, labels = digits.learning()
    converted = to_onnx(forest().fit(pictures, labels.astype(int)), pictures[:1])
    (tmp_path / "model.onnx").write_bytes(converted.SerializeToString())
    with pytest.raises(LoadError, match="zipmap=False"):
        OnnxRuntimeBackend().load(ModelSource("m", tmp_path))
