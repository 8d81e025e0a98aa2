"""The page says what the records say, stands alone, and cannot be broken by a model's names."""

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from penstock.backends.quantize import plots
from penstock.backends.quantize.plots import OWN
from penstock.backends.quantize.report import page
from penstock.backends.quantize.result import (
    AccuracyRow,
    Candidate,
    Histogram,
    LatencyRow,
    Layer,
    Measure,
    Result,
    TensorRange,
    Timings,
    Verdict,
)

NASTY = '<script>alert("x")</script>&amp;'


def measure(top1=0.975, sqnr_db=31.5):
    labelled = {} if top1 is None else {
        "top1": top1, "top1_float": 0.98, "drop_points": 100 * (0.98 - top1),
        "drop_error_points": 0.2, "agreement": 0.99,
    }  # fmt: skip
    return Measure(599, sqnr_db, 0.9991, 0.02, **labelled)


def result(*, layers=3, ranges=3, **changes):
    made = Result(
        model="digits.onnx",
        target="cpu",
        written="models/digits/2/model.onnx",
        verdict=Verdict(True, "top1", ("0.10 points lost, 0.30 allowed",)),
        measure=measure(),
        evaluated_on="held-out pictures",
        method="mse",
        layers=tuple(
            Layer(f"conv{i}", "Conv", f"t{i}", 1200, i == 1, 30.0 + i, 28.0, "")
            for i in range(layers)
        ),
        ranges=tuple(
            TensorRange(f"relu{i}", "mse", 0.0, 2.5, 0.01, 0, -0.5, 4.0, 0.002,
                        Histogram(0.0, 4.0, (9, 5, 1, 0)))
            for i in range(ranges)
        ),
        candidates=(Candidate("mse", ("conv1",), measure(), True),),
        accuracy=(AccuracyRow("float", measure(0.98, None), "", 4_000_000),
                  AccuracyRow(OWN, measure(), "", 1_050_000),
                  AccuracyRow("stock entropy", None, "it refused the model")),
        latency=(LatencyRow("float", 8, 1234.0, 1200.0, 1300.0, 1.0),
                 LatencyRow(OWN, 8, 432.1, 430.0, 440.0, 2.86)),
        notes=("the first layer is cheap",),
        calibration_rows=512,
        selection_rows=128,
        float_bytes=4_000_000,
        int8_bytes=1_050_000,
        timings=Timings(calibrate_s=3.21),
        versions=(("onnxruntime", "1.31.1"),),
        machine="one of two cores",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


class Reader(HTMLParser):
    """Collects the text, and checks that what is opened is closed in order."""

    VOID = {"meta", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def read(document):
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


def text_of(document):
    return " ".join(" ".join(read(document).text).split())


def test_what_decides_is_on_top():
    said = text_of(page(result()))
    top, rest = said.split("Accuracy", 1)
    assert "Passed" in top
    assert "0.10 points lost, 0.30 allowed" in top
    assert "models/digits/2/model.onnx" in top
    assert "97.50 of 98.00 %" in top
    assert "2.86× float" in top
    assert "1.05 MB of 4.00 MB" in top
    assert "1 of 3" in top
    for fact in ("31.5 dB", "432.1 µs", "1.23 ms", "it refused the model", "good enough",
                 "the first layer is cheap", "onnxruntime 1.31.1", "3.2 s"):  # fmt: skip
        assert fact in rest, fact


def test_a_refusal_is_told_as_one():
    refused = result(verdict=Verdict(False, "top1", ("9 points lost",)), written=None)
    said = text_of(page(refused))
    assert "Refused" in said
    assert "nothing was written" in said
    assert "Passed" not in said


def test_without_labels_the_outputs_speak():
    bare = measure(None, 41.0)
    said = text_of(
        page(
            result(
                measure=bare,
                verdict=Verdict(True, "outputs", ()),
                accuracy=(AccuracyRow(OWN, bare),),
            )
        )
    )
    assert "41.0 dB , cosine 0.99910" in said
    assert "outputs beside the float model's" in said


def test_the_page_stands_alone():
    document = page(result())
    for tag, attributes in read(document).tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#")
    assert "@import" not in document
    assert not re.search(r"url\((?!#)", document)


def test_names_from_a_model_are_text():
    nasty = result(
        model=NASTY,
        layers=1,
        ranges=1,
        notes=(NASTY,),
        candidates=(Candidate(NASTY, (NASTY,), measure(), False),),
    )
    nasty = dataclasses.replace(
        nasty,
        layers=(dataclasses.replace(nasty.layers[0], name=NASTY, why=NASTY),),
        ranges=(dataclasses.replace(nasty.ranges[0], tensor=NASTY),),
    )
    document = page(nasty)
    assert "<script" not in document
    assert text_of(document).count(NASTY) >= 6


@pytest.mark.parametrize("name", ["$x^2$", "a_b^c{", "\\frac", "naïve–层"])
def test_names_are_not_taken_for_formulas(name):
    made = result(layers=1, ranges=1)
    svg = plots.layers((dataclasses.replace(made.layers[0], name=name),))
    assert name in "".join(ET.fromstring(svg).itertext())
    svg = plots.histograms((dataclasses.replace(made.ranges[0], tensor=name),))
    assert name in "".join(ET.fromstring(svg).itertext())


def test_pictures_on_one_page_do_not_share_names():
    identifiers = re.findall(r'\bid="([^"]+)"', page(result()))
    assert len(identifiers) == len(set(identifiers)) > 10
    links = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page(result())))
    assert {a or b for a, b in links} <= set(identifiers)


def test_equal_results_are_equal_bytes():
    assert page(result()) == page(result())


def test_a_result_with_nothing_but_a_verdict_is_a_page():
    bare = result(layers=0, ranges=0, accuracy=(), latency=(), candidates=(), notes=())
    said = text_of(page(bare))
    assert "Passed" in said
    assert "Latency" not in said
    assert "Layers" not in said


def test_a_model_of_many_layers_stays_readable():
    large = page(result(layers=plots.LAYERS_MAX + 40, ranges=plots.HISTOGRAMS_MAX + 40))
    said = text_of(large)
    assert f"The first {plots.LAYERS_MAX} of {plots.LAYERS_MAX + 40}." in said
    assert f"The first {plots.HISTOGRAMS_MAX} of {plots.HISTOGRAMS_MAX + 40}." in said
    assert "conv119" in said  # the table has them all
    assert len(large) < 4_000_000


def test_the_candidate_that_was_chosen_is_told():
    other = Candidate("minmax", ("conv1",), measure(), True)
    shown = page(dataclasses.replace(result(), candidates=(*result().candidates, other)))
    assert shown.count("good enough, chosen") == 1
    assert shown.count("good enough") == 2


def test_words_of_variants_that_are_equal_do_not_lie_on_each_other():
    names = [f"variant {i}" for i in range(6)]
    accuracy = [AccuracyRow(name, measure(0.98)) for name in names]
    latency = [LatencyRow(name, 1, 50.0 + i, 50.0, 51.0 + i, 1.0) for i, name in enumerate(names)]
    drawn = plots.trade(accuracy, latency, "top-1, %")
    places = {
        name: re.search(
            rf'<text[^>]* y="([-0-9.]+)"[^>]*>{name}<|translate\(([^)]+)\)[^>]*>{name}<', drawn
        )
        for name in names
    }
    heights = sorted(float(m[1] or m[2].split()[-1]) for m in places.values() if m)
    assert len(heights) == len(names)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 7


def test_a_difference_that_is_none_does_not_fill_the_picture():
    assert plots._limits([98.0, 98.0]) == (97.5, 99.0)
    assert plots._limits([90.0, 100.0]) == (88.0, 104.0)
