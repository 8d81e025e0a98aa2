"""Methods on chosen data; whatever holds for all data is in ``tests/property``."""

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from penstock.backends.quantize.affine import dequantized, quantized
from penstock.backends.quantize.histogram import Histogram
from penstock.backends.quantize.thresholds import (
    METHODS,
    Method,
    entropy,
    find,
    minmax,
    mse,
    percentile,
)

Floats = NDArray[np.float32]


def of(values: Floats | list[float]) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def laplace_with_outliers() -> Floats:
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    values[:5] = 60
    return values


def test_minmax_is_exact_and_holds_zero() -> None:
    assert minmax(of([1, 2, 3.3]), symmetric=False) == (0, float(np.float32(3.3)))
    assert minmax(of([-3.3, -1]), symmetric=False) == (float(np.float32(-3.3)), 0)
    assert minmax(of([-1, 5]), symmetric=True) == (-5, 5)


def test_percentile_leaves_out_what_it_says() -> None:
    values = np.linspace(-1, 1, 200_001, dtype=np.float32)
    low, high = percentile(of(values), symmetric=False, percent=90)
    assert (low, high) == pytest.approx((-0.9, 0.9), abs=1e-3)
    mirrored = percentile(of(values), symmetric=True, percent=90)
    assert mirrored == pytest.approx((-0.9, 0.9), abs=1e-3)
    low, high = percentile(of(np.abs(values)), symmetric=False, percent=90)
    assert low == 0
    assert high == pytest.approx(0.9, abs=1e-3), "all of what is left out is on the one side"
    assert percentile(of(values), symmetric=False, percent=100) == (-1, 1)


def test_each_side_is_cut_on_its_own() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[values < 0] *= np.float32(0.1)
    values[:3] = 40
    for bounds in (mse(of(values), symmetric=False), percentile(of(values), symmetric=False)):
        assert -0.6 < bounds[0] < -0.2
        assert 3 < bounds[1] <= 40


def test_least_error_gives_up_outliers_only_if_that_pays() -> None:
    rare, heavy = laplace_with_outliers(), laplace_with_outliers()
    heavy[:5000] = 60
    assert mse(of(rare), symmetric=True)[1] < 55
    assert mse(of(heavy), symmetric=True)[1] > 55


def test_entropy_of_one_side_is_that_of_its_mirror() -> None:
    values = np.abs(np.random.default_rng(0).laplace(size=100_000)).astype(np.float32)
    values[:5] = 100
    low, high = entropy(of(values), symmetric=False)
    assert low == 0
    assert high < 15
    assert entropy(of(-values), symmetric=False) == (-high, 0)


def test_entropy_is_not_misled_by_the_small_side() -> None:
    """SiLU: half of the values lie between -0.28 and 0."""
    normal = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values = normal / (1 + np.exp(-normal))
    low, high = entropy(of(values), symmetric=False)
    assert low == values.min()
    assert 3.5 < high < 4.5
    assert entropy(of(values), symmetric=True)[1] < 3.2, "folded together they are"


def test_entropy_is_not_misled_by_outliers_of_one_side() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[:3] = -60
    low, high = entropy(of(values), symmetric=False)
    assert -6 < low < -3
    assert 3 < high < 6


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([], "no finite value was seen"),
        ([np.nan, np.inf], "1 NaN and 1 infinite values left out; no finite value was seen"),
        ([0.0, -0.0], "only zeros were seen"),
        ([1e-45], "nothing beyond 1.4e-45 was seen, which 8 bits cannot hold"),
        ([3.0, 3.0], "it is constant"),
        ([-2.0], "it is constant"),
        ([1.0, 2.0], ""),
        ([1e38, -1e38], ""),
    ],
)
def test_odd_tensors_have_a_range_and_a_note(
    name: str, symmetric: bool, values: list[float], note: str
) -> None:
    found = find(of(values), Method(name), symmetric=symmetric)
    assert found.note == note
    assert found.low <= 0 <= found.high
    assert found.observed is not None
    assert found.observed.count == np.isfinite(np.float32(values)).sum()
    if not note or "constant" in note:
        how = found.s8() if symmetric else found.u8()
        array = np.float32(values)
        back = dequantized(quantized(array, how), how).astype(np.float64)
        assert np.abs(back - array).max() <= 0.51 * how.scale, "nothing was cut off"


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'kl' is not one of minmax"):
        Method("kl")  # type: ignore[arg-type]
    for percent in (50, 100.1, float("nan")):
        with pytest.raises(ValueError, match="percent"):
            Method("percentile", percent=percent)


def test_engines_own_entropy_is_minmax_where_ours_clips(tmp_path: Path) -> None:
    """ONNX Runtime's search has one candidate with its defaults: the whole range."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    values = laplace_with_outliers()
    theirs = _stock_range(calibrate, values, tmp_path)
    assert theirs == pytest.approx((float(values.min()), 60), rel=0.02)

    histogram = of(values)
    ours = find(histogram, Method("entropy"), symmetric=False)
    assert ours.high < 14
    body = values[5:]
    stock = type(ours)(*theirs, "stock")
    errors = {}
    for name, found in (("ours", ours), ("stock", stock)):
        how = found.u8()
        errors[name] = float(np.mean((dequantized(quantized(body, how), how) - body) ** 2))
    assert errors["ours"] < errors["stock"] / 4, "of all values but the outliers"


def _stock_range(calibrate: object, values: Floats, folder: Path) -> tuple[float, float]:
    def tensor(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [tensor("x")], [tensor("y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    feeds = iter([{"x": part} for part in np.array_split(values, 8)])

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Floats] | None:
            return next(feeds, None)

    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = calibrate.create_calibrator(  # type: ignore[attr-defined]
            folder / "model.onnx",
            ["Identity"],
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=calibrate.CalibrationMethod.Entropy,  # type: ignore[attr-defined]
        )
        calibrator.collect_data(Reader())
        low, high = calibrator.compute_data()["x"].range_value
    return float(low), float(high)
