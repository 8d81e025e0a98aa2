"""The table of models: who serves a name, and the texts and codes for those that nobody serves."""

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import ModelMetadata
from penstock.server.model_config import ModelConfig
from penstock.server.models import UNLOADED, Loaded, ModelState, ModelTable, ModelVersion


def loaded(name="m", version="1"):
    return Loaded(None, ModelConfig(name, None), ModelMetadata(name, version, (), "", (), ()))


def ready(name, version, what=None):
    what = what or loaded(name, version)
    return ModelVersion(name, version, ModelState.READY, loaded=what)


def refused(name, version, reason=""):
    return ModelVersion(name, version, ModelState.UNAVAILABLE, reason)


def table(*entries, default=""):
    models = ModelTable(default)
    for entry in entries:
        models.set(entry)
    return models


def absence(models, name, version=""):
    with pytest.raises(InferError) as caught:
        models.find(name, version)
    return caught.value.code, caught.value.message


def test_finds_by_name_and_version():
    entries = [ready("a", "1"), ready("a", "2"), ready("b", "7")]
    models = table(*entries)
    assert models.find("a", "1") is entries[0].loaded
    assert models.find("a", "2") is entries[1].loaded
    assert models.find("b") is models.find("b", "7") is entries[2].loaded


@pytest.mark.parametrize("order", [["2", "10", "9"], ["10", "9", "2"], ["9", "2", "10"]])
def test_without_a_version_the_highest_number_serves(order):
    models = table(*[ready("a", version) for version in order])
    assert models.find("a").metadata.version == "10"
    assert [entry.version for entry in models.versions("a")] == ["2", "9", "10"]


def test_without_a_version_the_highest_ready_one_serves():
    models = table(ready("a", "1"), refused("a", "2", "broken"), ModelVersion("a", "3"))
    assert models.find("a").metadata.version == "1"


def test_a_version_that_is_replaced_serves_anew_or_not_at_all():
    models = table(ready("a", "1"))
    again = ready("a", "1")
    models.set(again)
    assert models.find("a") is models.find("a", "1") is again.loaded
    models.set(refused("a", "1", "out of memory"))
    assert absence(models, "a")[0] is Code.UNAVAILABLE
    assert absence(models, "a", "1")[0] is Code.UNAVAILABLE
    assert len(list(models)) == 1


def test_a_model_that_was_unloaded_is_not_worth_another_try():
    models = table(refused("a", "1", UNLOADED), refused("a", "2", UNLOADED))
    unknown = "Request for unknown model: 'a'"
    assert absence(models, "a") == (
        Code.NOT_FOUND,
        f"{unknown} has no available versions: unloaded; unloaded",
    )
    assert absence(models, "a", "1")[0] is Code.UNAVAILABLE  # as in Triton
    models.set(ModelVersion("a", "2"))
    assert absence(models, "a")[0] is Code.UNAVAILABLE


def test_entries_are_found_and_discarded():
    first, second = ready("a", "1"), ready("a", "2")
    models = table(first, second)
    assert models.entry("a", "2") is second
    assert models.find("a", "002") is second.loaded
    models.discard(second)
    assert models.entry("a", "2") is None
    assert models.find("a") is first.loaded
    models.discard(first)
    models.discard(first)
    assert list(models) == []
    assert absence(models, "a") == (Code.NOT_FOUND, "Request for unknown model: 'a' is not found")


MODELS = table(
    ready("good", "2"),
    refused("good", "3", "it is garbage"),
    ModelVersion("good", "4"),
    refused("bad", "", "config.pbtxt:1: no"),
    ModelVersion("loading", "1"),
    refused("twice", "1", "first"),
    refused("twice", "2", "second"),
)
UNKNOWN = "Request for unknown model: "
NO_VERSION = "failed to get model version from specified version string "
INTEGRAL = "(details: stol), version should be an integral value > 0"


@pytest.mark.parametrize(
    ("name", "version", "code", "text"),
    [
        ("nobody", "", Code.NOT_FOUND, f"{UNKNOWN}'nobody' is not found"),
        ("nobody", "1", Code.NOT_FOUND, f"{UNKNOWN}'nobody' is not found"),
        ("good", "1", Code.NOT_FOUND, f"{UNKNOWN}'good' version 1 is not found"),
        ("good", "01", Code.NOT_FOUND, f"{UNKNOWN}'good' version 1 is not found"),
        ("good", "one", Code.INVALID_ARGUMENT, f"{NO_VERSION}'one' {INTEGRAL}"),
        ("nobody", "-1", Code.INVALID_ARGUMENT, f"{NO_VERSION}'-1' {INTEGRAL}"),
        ("good", str(1 << 63), Code.INVALID_ARGUMENT, f"{NO_VERSION}'{1 << 63}' {INTEGRAL}"),
        ("good", "9" * 5000, Code.INVALID_ARGUMENT, f"{NO_VERSION}'{'9' * 100}' {INTEGRAL}"),
        (
            "good",
            "3",
            Code.UNAVAILABLE,
            f"{UNKNOWN}'good' version 3 is not at ready state: it is garbage",
        ),
        ("good", "4", Code.UNAVAILABLE, f"{UNKNOWN}'good' version 4 is not at ready state"),
        (
            "bad",
            "",
            Code.UNAVAILABLE,
            f"{UNKNOWN}'bad' has no available versions: config.pbtxt:1: no",
        ),
        ("loading", "", Code.UNAVAILABLE, f"{UNKNOWN}'loading' has no available versions"),
        (
            "twice",
            "",
            Code.UNAVAILABLE,
            f"{UNKNOWN}'twice' has no available versions: first; second",
        ),
        (
            "",
            "",
            Code.NOT_FOUND,
            f"{UNKNOWN}'' is not found: no model is named in the request and there is no default "
            "model; models: bad, good, loading, twice",
        ),
    ],
)
def test_who_is_absent_and_why(name, version, code, text):
    assert absence(MODELS, name, version) == (code, text)


def test_the_only_model_is_the_default():
    models = table(ready("a", "1"), ready("a", "2"))
    assert models.find("").metadata.version == "2"
    assert models.find("", "1").metadata.version == "1"
    assert absence(models, "", "9")[1] == f"{UNKNOWN}'a' version 9 is not found"
    models.set(refused("b", "1"))
    assert absence(models, "")[0] is Code.NOT_FOUND


def test_a_default_that_is_named():
    models = table(ready("a", "1"), ready("b", "1"), default="b")
    assert models.find("").metadata.name == "b"
    assert models.find("a").metadata.name == "a"
    assert absence(table(ready("a", "1"), default="c"), "") == (
        Code.NOT_FOUND,
        f"{UNKNOWN}'c' is not found",
    )


def test_an_empty_table():
    assert absence(table(), "") == (
        Code.NOT_FOUND,
        f"{UNKNOWN}'' is not found: no model is named in the request and there is no default "
        "model; models: none",
    )
    assert list(table()) == []
    assert table().versions("a") == []


def test_iterates_by_name_then_version():
    listed = [(entry.name, entry.version) for entry in MODELS]
    assert listed == [
        ("bad", ""),
        ("good", "2"),
        ("good", "3"),
        ("good", "4"),
        ("loading", "1"),
        ("twice", "1"),
        ("twice", "2"),
    ]
