"""A quantisation as text: what decided, figures that fit the screen, nothing that commands it."""

from pathlib import Path

import pytest

from penstock.backends.quantize.result import (
    AccuracyRow,
    LatencyRow,
    Layer,
    Measure,
    Result,
    Verdict,
)
from penstock.server.commands.quantize_text import lines
from penstock.server.commands.terminal import Terminal

PAGES = [Path("a.html"), Path("a.json")]


def result(*, passed=True, written="m/2/model.onnx", name="conv", notes=()):
    measure = Measure(599, 31.5, 0.9991, 0.02, top1=0.975, top1_float=0.98, drop_points=0.5)
    return Result(
        model="m.onnx",
        target="cpu",
        written=written,
        verdict=Verdict(passed, "top1", (f"lost by {name}",)),
        measure=measure,
        evaluated_on="pictures",
        method="mse",
        layers=tuple(Layer(f"{name}{i}", "Conv", "t", 9, i < 7) for i in range(8)),
        ranges=(),
        candidates=(),
        accuracy=(
            AccuracyRow("float", measure, "", 4_000_000),
            AccuracyRow("INT8", measure, "", 150_000),
            AccuracyRow("another", None, "it refused the model"),
        ),
        latency=tuple(
            LatencyRow(variant, batch, 1234.0, 1200.0, 1300.0, 2.5)
            for variant in ("float", "INT8")
            for batch in (32, 1)
        ),
        notes=notes,
    )


def test_figures_stand_side_by_side_where_there_is_room():
    shown = lines(result(), PAGES, Terminal(columns=120))
    assert shown[0].split() == [
        "VARIANT", "TOP-1", "LOST", "SQNR", "COSINE", "SIZE", "BATCH", "1", "BATCH", "32",
    ]  # fmt: skip
    assert shown[2].split() == [
        "INT8", "97.50", "%", "+0.50", "31.5", "dB", "0.99910", "150.0", "kB",
        "1.23", "ms", "2.50x", "1.23", "ms", "2.50x",
    ]  # fmt: skip
    assert shown[3:7] == [
        "another  -", "another: it refused the model", "", "✓ passed: m/2/model.onnx",
    ]  # fmt: skip
    assert shown[8] == "  7 of 8 layers stay in float: conv0, conv1, conv2, conv3, conv4 and 2 more"
    assert shown[-1] == "report: a.html, a.json"


def test_and_below_each_other_where_there_is_none():
    shown = lines(result(), PAGES, Terminal(columns=70))
    tables = shown[: shown.index("another: it refused the model")]
    assert max(map(len, tables)) <= 70
    heads = [line.split() for line in tables if line.startswith("VARIANT")]
    assert [head[-1] for head in heads] == ["SIZE", "32"]
    assert sum(line.startswith("INT8") for line in tables) == 2


def test_a_refusal_and_a_dry_run_say_that_nothing_was_written():
    refused = lines(result(passed=False, written=None), PAGES, Terminal(unicode=False))
    assert "refused: nothing was written" in refused
    dry = lines(result(written=None), PAGES, Terminal(unicode=False))
    assert "passed: nothing was written, as asked" in dry


@pytest.mark.parametrize("nasty", ["\x1b[2J", "a\nb", "\x9b1m"])
def test_names_in_a_model_command_no_terminal(nasty):
    shown = lines(result(name=nasty, notes=(f"{nasty} is wide",)), PAGES, Terminal(color=False))
    assert all(line.isprintable() for line in shown)
    assert nasty.encode("unicode_escape").decode() in "".join(shown)


def test_there_are_no_colours_where_they_are_not_wanted():
    assert "\x1b" not in "".join(lines(result(), PAGES, Terminal()))
    assert "\x1b[1mINT8" in "".join(lines(result(), PAGES, Terminal(color=True)))
