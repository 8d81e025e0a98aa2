"""What a model prints or raises is logged in bounds."""

from __future__ import annotations

from penstock.backends.python.output import (
    LINE_CHARS_MAX,
    LINES_AT_ONCE,
    LINES_PER_S,
    TRACE_S,
    Lines,
    Traces,
)


def test_lines_are_cut_wherever_reads_end() -> None:
    lines = Lines(0.0)
    assert lines.feed(b"one\ntw", 0.0) == ["one"]
    assert lines.feed(b"o\n\n  \nthree", 0.0) == ["two"]
    assert lines.last == "two"
    assert lines.feed(b"", 0.0) == ["three"]
    assert lines.last == "three"


def test_long_lines_and_strange_bytes_are_made_fit() -> None:
    lines = Lines(0.0)
    (line,) = lines.feed(b"x" * 10_000, 0.0)
    assert line == "x" * LINE_CHARS_MAX + "..."
    assert lines.feed(b"\xff\x1b[31m red\tblue\r\n", 0.0) == ["�?[31m red\tblue"]


def test_too_many_lines_are_counted_instead() -> None:
    lines = Lines(0.0)
    passed = lines.feed(b"".join(b"%d\n" % i for i in range(LINES_AT_ONCE + 50)), 0.0)
    assert passed == [str(i) for i in range(LINES_AT_ONCE)]
    assert lines.last == str(LINES_AT_ONCE + 49)
    assert lines.feed(b"more\n", 0.0) == []
    wait_s = 2 / LINES_PER_S
    assert lines.feed(b"again\n", wait_s) == ["(51 more lines, too many to log)", "again"]
    assert len(lines.feed(b"x\n" * 1000, 1000.0)) == LINES_AT_ONCE
    assert lines.feed(b"", 1000.0) == ["(900 more lines, too many to log)"]


def trace(line: int, text: str) -> str:
    return f'Traceback:\n  File "model.py", line {line}, in predict\n    code()\nError: {text}\n'


def test_a_traceback_is_logged_once_in_a_while() -> None:
    traces = Traces()
    assert traces.worth(trace(1, "a"), 0.0) == 0
    assert traces.worth(trace(1, "b"), 1.0) is None
    assert traces.worth(trace(2, "a"), 1.0) == 0
    assert traces.worth(trace(1, "c"), TRACE_S) == 1
    assert traces.worth(trace(1, "d"), TRACE_S + 1) is None


def test_tracebacks_of_many_kinds_do_not_pile_up() -> None:
    traces = Traces()
    for i in range(1000):
        assert traces.worth(trace(i, ""), 0.0) == 0
    assert len(traces._seen) <= 64
