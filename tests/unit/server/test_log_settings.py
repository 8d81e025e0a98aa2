"""Log settings: what each lets through, all or nothing, and times in two forms."""

import io
import logging

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.log_settings import LogSettings


@pytest.fixture
def logs():
    """Settings over a handler of their own; the root logger is put back afterwards."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s|%(levelname)s %(message)s"))
    root.addHandler(handler)
    settings = LogSettings([handler])
    settings.stream = stream
    yield settings
    settings.remove()
    root.removeHandler(handler)
    root.setLevel(level)


def said(logs):
    """The levels that come through, of one record each."""
    logs.stream.truncate(0)
    logs.stream.seek(0)
    log = logging.getLogger("penstock.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "x")
    return [line.partition("|")[2].split()[0] for line in logs.stream.getvalue().splitlines()]


def test_the_document_has_every_setting(logs):
    assert logs.document() == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


@pytest.mark.parametrize(
    ("changes", "through"),
    [
        ({}, ["INFO", "WARNING", "ERROR"]),
        ({"log_info": False}, ["WARNING", "ERROR"]),
        ({"log_warning": False}, ["INFO", "ERROR"]),
        ({"log_error": False, "log_verbose_level": 1}, ["DEBUG", "INFO", "WARNING"]),
        ({"log_info": False, "log_warning": False, "log_error": False}, []),
    ],
)
def test_settings_act(logs, changes, through):
    logs.update(changes)
    assert said(logs) == through
    assert {name: logs.document()[name] for name in changes} == changes


def test_times_in_two_forms(logs):
    logs.update({"log_format": "ISO8601"})
    said(logs)
    assert logs.stream.getvalue()[10] == "T"
    logs.update({"log_format": "default"})
    said(logs)
    assert logs.stream.getvalue()[10] == " "


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("log_file", "x", Code.UNIMPLEMENTED),
        ("log_info", "yes", Code.INVALID_ARGUMENT),
        ("log_error", 1, Code.INVALID_ARGUMENT),
        ("log_verbose_level", -1, Code.INVALID_ARGUMENT),
        ("log_verbose_level", True, Code.INVALID_ARGUMENT),
        ("log_verbose_level", "2", Code.INVALID_ARGUMENT),
        ("log_format", "xml", Code.INVALID_ARGUMENT),
        ("log_colour", 1, Code.INVALID_ARGUMENT),
    ],
)
def test_a_wrong_setting_changes_nothing(logs, name, value, code):
    before = logs.document()
    with pytest.raises(InferError) as caught:
        logs.update({"log_warning": False, name: value})
    assert caught.value.code is code
    assert logs.document() == before


def test_what_was_changed_is_put_back(logs):
    before = logging.getLogger().level
    logs.update({"log_verbose_level": 1, "log_error": False, "log_format": "ISO8601"})
    assert logging.getLogger().level == logging.DEBUG
    logs.remove()
    assert logging.getLogger().level == before
    assert said(logs) == ["INFO", "WARNING", "ERROR"]
    assert logs.stream.getvalue()[10] == " "
