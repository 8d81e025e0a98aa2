"""Names for versions, such as ``stable`` and ``canary``: which version a label stands for now.

Knows the model table. A label may be given to a loaded version only while the server runs; labels
that the operator set at the start are held against the table when they are used, because versions
come and go. Error texts follow TensorFlow Serving's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.server.models import ModelTable

LABELS_MAX: Final = 64
"""Labels of one model."""
LABEL_BYTES_MAX: Final = 256


class VersionLabels:
    """The labels of all models of a table."""

    def __init__(
        self, models: ModelTable, labels: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._models = models
        self._labels = {model: dict(named) for model, named in (labels or {}).items()}

    def version(self, model: str, label: str) -> str:
        """The version that ``label`` stands for.

        Raises:
            InferError: NOT_FOUND, there is no such label.
        """
        version = self._labels.get(model, {}).get(label)
        if version is None:
            raise InferError(
                Code.NOT_FOUND, f"Unrecognized servable version label: {label} of model '{model}'"
            )
        return version

    def of(self, model: str) -> Mapping[str, str]:
        """Label to version."""
        return self._labels.get(model, {})

    def check(self, model: str, labels: Mapping[str, str]) -> None:
        """Whether ``assign`` would take these.

        Raises:
            InferError: NOT_FOUND for a model, FAILED_PRECONDITION for a version that is not loaded,
                INVALID_ARGUMENT for labels beyond the limits.
        """
        loaded = {v.version for v in self._models.versions(model) if v.loaded is not None}
        if not self._models.versions(model):
            raise InferError(Code.NOT_FOUND, f"Request for unknown model: '{model}' is not found")
        if len(labels) > LABELS_MAX:
            raise InferError(Code.INVALID_ARGUMENT, f"more than {LABELS_MAX} labels for '{model}'")
        for label, version in labels.items():
            if not 0 < len(label.encode("utf-8", "replace")) <= LABEL_BYTES_MAX or "/" in label:
                raise InferError(Code.INVALID_ARGUMENT, f"'{label[:64]}' cannot be a label")
            if version not in loaded:
                raise InferError(
                    Code.FAILED_PRECONDITION,
                    f"label '{label}' of model '{model}' cannot stand for version {version}, "
                    "which is not loaded",
                )

    def assign(self, model: str, labels: Mapping[str, str]) -> None:
        """Replaces the labels of a model; raises as ``check`` does and then changes nothing."""
        self.check(model, labels)
        self._labels[model] = dict(labels)
