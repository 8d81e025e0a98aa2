"""Long work is told: as bars on a terminal, as few lines in a log, and never when unwanted."""

import io

import pytest

from penstock.server.commands.progress import LINE_S_MIN, Progress


class Screen(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_log_gets_a_line_for_each_step_and_one_now_and_then():
    log, clock = io.StringIO(), Clock()
    with Progress(log, clock=clock) as tell:
        for i in range(100):
            tell("calibrate", i / 100)
            clock.now += LINE_S_MIN / 25
        tell("write", 0.0)
    lines = log.getvalue().splitlines()
    assert lines == [
        "calibrate (0%)", "calibrate (25%)", "calibrate (50%)", "calibrate (75%)", "write (0%)",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_for_each_stage():
    pytest.importorskip("tqdm")
    screen = Screen()
    with Progress(screen) as tell:
        tell("calibrate", 0.0)
        tell("calibrate", 0.5)
        tell("calibrate", 1.0)
        tell("search", 0.25)
    shown = screen.getvalue()
    bars = shown.split("\n")
    assert len(bars) == 3  # two bars are left to see, and nothing behind them
    assert "calibrate" in bars[0]
    assert "100 %" in bars[0]
    assert "search" in bars[1]
    assert "25 %" in bars[1]


def test_shares_beyond_the_ends_do_no_harm():
    pytest.importorskip("tqdm")
    screen = Screen()
    with Progress(screen) as tell:
        tell("x", -1.0)
        tell("x", 7.0)
    assert "100 %" in screen.getvalue()


def test_without_tqdm_a_terminal_gets_lines(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    screen = Screen()
    with Progress(screen) as tell:
        tell("compile", 0.5)
    assert screen.getvalue() == "compile (50%)\n"


@pytest.mark.parametrize("stream", [io.StringIO, Screen])
def test_quiet_is_quiet(stream):
    out = stream()
    with Progress(out, quiet=True) as tell:
        tell("compile", 0.5)
    assert out.getvalue() == ""


def test_names_in_a_model_command_no_terminal():
    log = io.StringIO()
    with Progress(log) as tell:
        tell("sensitivity of \x1b[2J", 0.0)
    assert log.getvalue() == "sensitivity of \\x1b[2J (0%)\n"
