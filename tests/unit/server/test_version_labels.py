"""Labels of versions: what the operator said, what may be changed, what is refused."""

from __future__ import annotations

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.models import ModelState, ModelTable, ModelVersion
from penstock.server.version_labels import LABELS_MAX, VersionLabels


@pytest.fixture
def labels() -> VersionLabels:
    """Of model m, whose version 1 serves and whose version 2 does not."""
    table = ModelTable()
    loaded = ModelVersion("m", "1", ModelState.READY)
    loaded.loaded = object()  # type: ignore[assignment]  # that there is something is enough
    table.set(loaded)
    table.set(ModelVersion("m", "2", ModelState.UNAVAILABLE))
    return VersionLabels(table, {"m": {"old": "1", "new": "2"}})


def test_labels_that_the_operator_set_need_not_be_loaded_yet(labels: VersionLabels) -> None:
    assert labels.version("m", "old") == "1"
    assert labels.version("m", "new") == "2"
    assert labels.of("m") == {"old": "1", "new": "2"}
    assert labels.of("other") == {}


@pytest.mark.parametrize(("model", "label"), [("m", "x"), ("other", "old"), ("", "")])
def test_unknown_labels(labels: VersionLabels, model: str, label: str) -> None:
    with pytest.raises(InferError, match="Unrecognized servable version label") as caught:
        labels.version(model, label)
    assert caught.value.code is Code.NOT_FOUND


def test_new_labels_replace_the_old_ones(labels: VersionLabels) -> None:
    labels.assign("m", {"stable": "1"})
    assert labels.of("m") == {"stable": "1"}


@pytest.mark.parametrize(
    ("model", "given", "code"),
    [
        ("other", {"x": "1"}, Code.NOT_FOUND),
        ("m", {"x": "2"}, Code.FAILED_PRECONDITION),
        ("m", {"x": "3"}, Code.FAILED_PRECONDITION),
        ("m", {"": "1"}, Code.INVALID_ARGUMENT),
        ("m", {"a/b": "1"}, Code.INVALID_ARGUMENT),
        ("m", {"x" * 257: "1"}, Code.INVALID_ARGUMENT),
        ("m", {str(i): "1" for i in range(LABELS_MAX + 1)}, Code.INVALID_ARGUMENT),
    ],
)
def test_what_cannot_be_assigned(
    labels: VersionLabels, model: str, given: dict[str, str], code: Code
) -> None:
    with pytest.raises(InferError) as caught:
        labels.assign(model, given)
    assert caught.value.code is code
    assert labels.of("m") == {"old": "1", "new": "2"}
