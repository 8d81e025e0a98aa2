"""Measures of outputs and the verdicts on them."""

import math
import re

import numpy as np
import pytest

from penstock.backends.quantize.errors import DataError
from penstock.backends.quantize.gate import (
    FLOOR_DB,
    Bounds,
    Meter,
    criterion_of,
    judge,
    tellable,
)
from penstock.backends.quantize.result import Measure

RNG = np.random.default_rng(0)


def measured(real: object, found: object, labels: object = None) -> Measure:
    meter = Meter()
    wanted = None if labels is None else np.asarray(labels)
    meter.add([np.asarray(real, np.float32)], [np.asarray(found, np.float32)], wanted)
    return meter.measure()


def logits(classes: list[int]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[classes]


def test_figures_are_those_of_their_definitions() -> None:
    real = RNG.normal(2, 1, (500, 8)).astype(np.float32)
    noise = RNG.normal(0, 0.1, real.shape).astype(np.float32)
    found = measured(real, real + noise)
    assert found.rows == 500
    assert found.sqnr_db == pytest.approx(10 * math.log10((real**2).sum() / (noise**2).sum()), 1e-4)
    flat, other = real.reshape(-1), (real + noise).reshape(-1)
    cosine = float(flat @ other) / float(np.linalg.norm(flat) * np.linalg.norm(other))
    assert found.cosine == pytest.approx(cosine, abs=1e-6)
    assert found.relative_error == pytest.approx(float(noise.std() / real.std()), rel=0.02)
    assert found.top1 is None
    assert found.agreement == np.mean(real.argmax(1) == (real + noise).argmax(1))


def test_batches_add_up() -> None:
    real = RNG.normal(0, 1, (90, 4)).astype(np.float32)
    found = real + RNG.normal(0, 0.3, real.shape).astype(np.float32)
    labels = RNG.integers(0, 4, 90)
    whole, parts = Meter(), Meter()
    whole.add([real], [found], labels)
    for start in (0, 7, 50):
        end = {0: 7, 7: 50, 50: 90}[start]
        parts.add([real[start:end]], [found[start:end]], labels[start:end])
    one, two = whole.measure(), parts.measure()
    for name in Measure.__slots__:
        expected = getattr(two, name)
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-9)
        assert getattr(one, name) == expected, name


def test_a_few_huge_rows_do_not_hide_the_others() -> None:
    real = RNG.normal(0, 1, (100, 8)).astype(np.float32)
    real[:3] *= 1000
    found = real.copy()
    found[3:] += RNG.normal(0, 0.5, (97, 8)).astype(np.float32)
    measure = measured(real, found)
    assert measure.sqnr_db is not None
    assert measure.sqnr_db > 40
    assert measure.row_db is not None
    assert measure.row_db < 10


def test_lost_answers_are_counted_with_their_uncertainty() -> None:
    # Of 200 rows 10 are wrong in both, 6 are lost, 2 are won.
    labels = [0] * 200
    real = [1] * 12 + [0] * 188
    found = [1] * 10 + [0] * 2 + [1] * 6 + [0] * 182
    measure = measured(logits(real), logits(found), labels)
    assert measure.top1_float == 188 / 200
    assert measure.top1 == 184 / 200
    assert measure.drop_points == pytest.approx(2.0)
    # Variance of a difference of proportions in pairs.
    assert measure.drop_error_points == pytest.approx(100 * math.sqrt(8 - 16 / 200) / 200)


@pytest.mark.parametrize(
    ("lost", "rows", "passed"), [(0, 300, True), (3, 1000, True), (4, 1000, False), (1, 300, False)]
)
def test_top1_passes_up_to_the_bound_and_not_beyond(lost: int, rows: int, passed: bool) -> None:
    measure = measured(logits([0] * rows), logits([1] * lost + [0] * (rows - lost)), [0] * rows)
    verdict = judge(measure, Bounds(drop_points_max=0.3), "top1")
    assert verdict.passed is passed
    assert f"{100 * lost / rows:+.2f} points lost" in verdict.reasons[0]
    assert ("one is already 0.33 points" in verdict.reasons[0]) == (rows == 300)


def test_without_labels_both_sqnr_and_cosine_must_hold() -> None:
    real = RNG.normal(0, 1, (400, 64)).astype(np.float32)

    def at(db: float) -> Measure:
        noise = RNG.normal(0, 10 ** (-db / 20), real.shape)
        return measured(real, real + noise)

    assert judge(at(26), Bounds(), "outputs").passed
    refused = judge(at(15), Bounds(), "outputs")
    assert not refused.passed
    assert re.search(r"an SQNR of 1[34]\.\d dB, at least 20 wanted", refused.reasons[0])
    assert len(refused.reasons) == 2
    assert not judge(at(26), Bounds(sqnr_db_min=30), "outputs").passed
    assert not judge(at(26), Bounds(cosine_min=0.9999), "outputs").passed


def test_nine_rows_of_ten_decide_about_outputs() -> None:
    real = RNG.normal(0, 1, (100, 8)).astype(np.float32)

    def ruined(rows: int) -> Measure:
        found = real + RNG.normal(0, 0.01, real.shape)
        found[:rows] = 0
        return measured(real, found)

    assert judge(ruined(9), Bounds(), "outputs").passed
    assert not judge(ruined(11), Bounds(), "outputs").passed


def test_rows_of_single_numbers_are_judged_together() -> None:
    real = RNG.normal(0, 1, (1000, 1)).astype(np.float32)
    found = measured(real, real + RNG.normal(0, 0.03, real.shape))
    assert found.row_db == found.sqnr_db
    assert found.row_cosine == found.cosine
    assert judge(found, Bounds(), "outputs").passed


def test_a_constant_offset_does_not_hide_a_regressions_error() -> None:
    real = (1000 + RNG.normal(0, 1, (400, 1))).astype(np.float32)
    found = real + RNG.normal(0, 0.5, real.shape)
    measure = measured(real, found)
    assert measure.sqnr_db is not None
    assert measure.sqnr_db > 60
    assert not judge(measure, Bounds(), "relative").passed
    assert judge(measure, Bounds(relative_error_max=0.6), "relative").passed


def test_equal_outputs_pass_everything() -> None:
    real = RNG.normal(0, 1, (10, 4))
    measure = measured(real, real, real.argmax(axis=1))
    assert measure.sqnr_db is None
    assert measure.relative_error == 0
    for criterion in ("top1", "outputs", "relative"):
        assert judge(measure, Bounds(drop_points_max=0), criterion).passed  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_fail(bad: float) -> None:
    real = RNG.normal(0, 1, (10, 4))
    found = real.copy()
    found[3, 1] = bad
    measure = measured(real, found)
    assert measure.sqnr_db == FLOOR_DB
    assert not judge(measure, Bounds(), "outputs").passed
    assert not judge(measure, Bounds(), "relative").passed


def test_zeros_for_everything_fail() -> None:
    real = RNG.normal(0, 1, (10, 4))
    verdict = judge(measured(real, np.zeros_like(real)), Bounds(), "outputs")
    assert not verdict.passed


def test_of_several_outputs_the_worst_counts() -> None:
    real = RNG.normal(0, 1, (50, 3)).astype(np.float32)
    meter = Meter()
    meter.add([real, real], [real, real + 1], None)
    both = meter.measure()
    alone = measured(real, real + 1)
    assert both.sqnr_db == alone.sqnr_db
    assert both.cosine == alone.cosine


def test_models_may_answer_with_class_numbers() -> None:
    meter = Meter()
    meter.add([np.array([1, 2, 3])], [np.array([1, 2, 0])], np.array([1, 2, 3]))
    found = meter.measure()
    assert (found.top1, found.top1_float) == (2 / 3, 1.0)


def test_labels_decide_what_is_judged() -> None:
    assert criterion_of(None) == "outputs"
    assert criterion_of(np.zeros(3, np.uint8)) == "top1"
    assert criterion_of(np.zeros((3, 1), np.int64)) == "top1"
    assert criterion_of(np.zeros((3, 2), np.float32)) == "relative"
    with pytest.raises(DataError, match="one class number a row"):
        criterion_of(np.zeros((3, 10), np.int64))
    with pytest.raises(DataError, match="labels are <U1"):
        criterion_of(np.array(["a"]))


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        Meter().measure()
    with pytest.raises(DataError, match="no output of classes"):
        judge(measured(np.ones((3, 2, 2)), np.ones((3, 2, 2)), [0] * 3), Bounds(), "top1")
    with pytest.raises(ValueError, match="cosine_min"):
        Bounds(cosine_min=2)
    with pytest.raises(ValueError, match="cannot be negative"):
        Bounds(drop_points_max=-1)
    with pytest.raises(ValueError, match="finite"):
        Bounds(sqnr_db_min=math.nan)


def test_noise_counts_where_one_answer_is_more_than_the_bound() -> None:
    real = RNG.normal(0, 1, (20, 4)).astype(np.float32)
    found = 3 * real + RNG.normal(0, 1e-3, real.shape).astype(np.float32)
    measure = measured(real, found, real.argmax(axis=1))
    assert measure.drop_points == 0
    verdict = judge(measure, Bounds(), "top1")
    assert not verdict.passed
    assert "SQNR" in " ".join(verdict.reasons)
    assert judge(measure, Bounds(drop_points_max=5), "top1").passed


def test_answers_that_are_no_numbers_are_not_right() -> None:
    real = RNG.normal(0, 1, (400, 4)).astype(np.float32)
    labels = real.argmax(axis=1)
    verdict = judge(measured(real, np.full_like(real, np.nan), labels), Bounds(100), "top1")
    assert (verdict.passed, verdict.reasons) == (False, ("outputs are no numbers any more",))
    verdict = judge(measured(np.full_like(real, np.nan), real, labels), Bounds(100), "top1")
    assert (verdict.passed, "float model itself" in verdict.reasons[0]) == (False, True)


def test_infinities_of_both_are_equal() -> None:
    real = RNG.normal(0, 1, (10, 4)).astype(np.float32)
    real[:, 2] = -np.inf
    assert judge(measured(real, real), Bounds(), "outputs").passed
    assert not judge(measured(real, np.nan_to_num(real)), Bounds(), "outputs").passed


def test_labels_of_something_else_show_nothing() -> None:
    real = RNG.normal(0, 1, (400, 4)).astype(np.float32)
    wrong = (real.argmax(axis=1) + 1) % 4
    verdict = judge(measured(real, real, wrong), Bounds(), "top1")
    assert not verdict.passed
    assert "no better than guessed" in verdict.reasons[1]
    for label in (-1, 4):
        with pytest.raises(DataError, match=rf"label {label} is no class .* 0 to 3"):
            measured(real, real, [label] * 400)
    assert not tellable(np.full(9, 3))
    assert tellable(np.array([3, 4]))
    assert tellable(np.full(9, 0.5))


def test_every_output_is_judged_not_the_answers_alone() -> None:
    answers = RNG.normal(0, 1, (400, 4)).astype(np.float32)
    boxes = RNG.normal(0, 1, (400, 8)).astype(np.float32)
    whole, spoilt = Meter(), Meter()
    labels = answers.argmax(axis=1)
    whole.add([answers, boxes], [answers, boxes + np.float32(0.01)], labels)
    spoilt.add([answers, boxes], [answers, boxes[::-1]], labels)
    assert judge(whole.measure(), Bounds(), "top1").passed
    assert not judge(spoilt.measure(), Bounds(), "top1").passed


def test_outputs_without_real_numbers_are_counted() -> None:
    classes = RNG.integers(0, 9, (100, 6, 6))
    found = classes.copy()
    found[:, 0, 0] += 1
    equal, changed = Meter(), Meter()
    equal.add([classes], [classes], None)
    changed.add([classes], [found], None)
    assert judge(equal.measure(), Bounds(), "outputs").passed
    verdict = judge(changed.measure(), Bounds(), "outputs")
    assert not verdict.passed
    assert verdict.reasons[0].startswith("2.78 % of the values")


def test_outputs_that_are_all_zero_show_nothing() -> None:
    nothing = np.zeros((10, 4), np.float32)
    assert not judge(measured(nothing, nothing), Bounds(), "outputs").passed


def test_outputs_of_any_shape_are_taken_and_of_another_refused() -> None:
    meter = Meter()
    empty, scalar = np.zeros((0, 3), np.float32), np.float32(2)
    meter.add([np.asarray(scalar), empty], [np.asarray(scalar), empty], None, 5)
    assert meter.measure().rows == 5
    with pytest.raises(DataError, match=r"shape \[84\] in float and \[86\] in INT8"):
        Meter().add([np.zeros(84)], [np.zeros(86)], None, 5)


def test_a_convolutional_head_answers_too() -> None:
    real = RNG.normal(0, 1, (30, 4, 1, 1)).astype(np.float32)
    measure = measured(real, real, real.reshape(30, 4).argmax(axis=1))
    assert (measure.top1_float, measure.classes) == (1, 4)
