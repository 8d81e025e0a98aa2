"""Trace settings: inheritance, clearing, and refusals that change nothing."""

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server import trace_settings
from penstock.server.trace_settings import TraceBook, TraceSettings, settings_of

OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


def test_a_server_starts_with_tracing_off():
    book = TraceBook()
    assert book.document() == OFF
    assert not book.of().on
    assert book.document("any") == OFF


def test_models_inherit_what_they_do_not_set():
    book = TraceBook()
    book.update({"trace_rate": ["7"]}, "m")
    book.update({"trace_level": ["TENSORS", "TIMESTAMPS"], "trace_rate": ["3"]})
    assert book.document("m") == {
        **OFF, "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "7",
    }  # fmt: skip
    assert book.document("other")["trace_rate"] == "3"
    assert book.models == ("m",)
    book.update({"trace_rate": []}, "m")
    assert book.document("m")["trace_rate"] == "3"
    assert book.models == ()


def test_the_servers_cleared_settings_are_those_of_the_start():
    book = TraceBook(TraceSettings(frozenset({"TIMESTAMPS"}), rate=5, file="t.json"))
    book.update({"trace_level": ["OFF"], "trace_rate": ["2"]})
    assert book.document()["trace_level"] == ["OFF"]
    book.update({"trace_level": [], "trace_rate": []})
    document = book.document()
    assert (document["trace_level"], document["trace_rate"]) == (["TIMESTAMPS"], "5")
    assert document["trace_file"] == "t.json"


@pytest.mark.parametrize(
    ("name", "values", "code", "text"),
    [
        ("trace_file", ["/etc/passwd"], Code.UNIMPLEMENTED, "through network protocol"),
        ("trace_mode", ["opentelemetry"], Code.UNIMPLEMENTED, "through network protocol"),
        ("trace_level", ["ALL"], Code.INVALID_ARGUMENT, "'ALL'"),
        ("trace_level", ["OFF", "TENSORS"], Code.INVALID_ARGUMENT, "only one trace level 'OFF'"),
        ("trace_rate", ["x"], Code.INVALID_ARGUMENT, "got: x"),
        ("trace_rate", ["-1"], Code.INVALID_ARGUMENT, "Expecting value >= 0, got:-1"),
        ("trace_rate", ["1", "2"], Code.INVALID_ARGUMENT, "only 1 value"),
        ("trace_count", ["-2"], Code.INVALID_ARGUMENT, "Expecting value >= -1, got:-2"),
        ("log_frequency", [str(1 << 31)], Code.INVALID_ARGUMENT, "got: 2147483648"),
        ("trace_colour", ["red"], Code.INVALID_ARGUMENT, "unknown trace setting"),
    ],
)
def test_a_wrong_setting_changes_nothing(name, values, code, text):
    book = TraceBook()
    changes = {"trace_count": ["9"], name: values}
    for model in ("", "m"):
        with pytest.raises(InferError) as caught:
            book.update(changes, model)
        assert caught.value.code is code
        assert text in caught.value.message
        assert book.document(model) == OFF


def test_models_with_settings_are_bounded(monkeypatch):
    monkeypatch.setattr(trace_settings, "MODELS_MAX", 1)
    book = TraceBook()
    book.update({"trace_rate": ["1"]}, "a")
    with pytest.raises(InferError) as caught:
        book.update({"trace_rate": ["1"]}, "b")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    book.update({"trace_rate": ["2"]}, "a")
    assert book.document("a")["trace_rate"] == "2"


def test_changes_are_announced():
    seen = []
    book = TraceBook(changed=lambda: seen.append(1))
    book.update({"trace_rate": ["1"]})
    book.update({"trace_rate": ["1"]}, "m")
    assert len(seen) == 2


def test_command_line():
    settings = settings_of(
        ["triton,file=/tmp/x", "mode=triton", "level=TIMESTAMPS", "level=TENSORS", "rate=2",
         "count=10", "log-frequency=5"]
    )  # fmt: skip
    assert settings == TraceSettings(
        frozenset({"TIMESTAMPS", "TENSORS"}), rate=2, count=10, log_frequency=5, file="/tmp/x"
    )
    assert settings.on


@pytest.mark.parametrize("part", ["file", "mode=opentelemetry", "rate=x", "colour=red"])
def test_a_wrong_command_line_is_refused(part):
    with pytest.raises(ValueError, match=part.split("=")[0]):
        settings_of([part])
