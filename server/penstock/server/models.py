"""The table of models and versions: who serves a name now, and why a version does not.

Lookups are dictionary reads; only the repository changes the table. Error texts follow Triton's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import ModelMetadata
from penstock.server.lane import Lane
from penstock.server.model_config import ModelConfig
from penstock.server.sequences import Sequences

UNLOADED: Final = "unloaded"
"""The reason of a version that nobody wants any more, in Triton's words."""
_DIGITS_MAX: Final = 20
_TOLD_MAX: Final = 100
"""Characters of a version that is none, in the error."""


class ModelState(enum.Enum):
    """The states of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a READY version consists of."""

    lane: Lane
    config: ModelConfig
    metadata: ModelMetadata
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    load_s: float = 0.0
    sequences: Sequences | None = None
    """Of a model whose requests belong to sequences."""


@dataclass(slots=True)
class ModelVersion:
    """One version of a model. ``loaded`` is set exactly while it is READY."""

    name: str
    version: str
    state: ModelState = ModelState.LOADING
    reason: str = ""
    loaded: Loaded | None = None

    @property
    def leaving(self) -> bool:
        """Whether it was unloaded, or is being unloaded, on purpose."""
        return self.state is ModelState.UNLOADING or self.reason == UNLOADED


@dataclass(slots=True)
class LoadCounts:
    """Versions that were loaded, and that failed to, since the start."""

    succeeded: int = 0
    failed: int = 0

    def count(self, *, failed: bool) -> None:
        if failed:
            self.failed += 1
        else:
            self.succeeded += 1


class ModelTable:
    """All models that are known, whether they can be served or not.

    ``default_model`` is what requests without a model name get; empty means the only model there
    is, if there is only one.
    """

    def __init__(self, default_model: str = "") -> None:
        self.default_model = default_model
        self.loads = LoadCounts()
        self._models: dict[str, dict[str, ModelVersion]] = {}
        # By name, then by version as requested; "" is the highest READY version.
        self._ready: dict[str, dict[str, Loaded]] = {}

    def find(self, name: str, version: str = "") -> Loaded:
        """The loaded model that serves this name and version now.

        Raises:
            InferError: INVALID_ARGUMENT for a version that is no number, NOT_FOUND for a name or
                version that is not known, UNAVAILABLE for one that is not ready.
        """
        versions = self._ready.get(name)
        if versions is not None:
            loaded = versions.get(version)
            if loaded is not None:
                return loaded
        if not name:
            return self.find(self._default(), version)
        number = version_number(version)
        if number != version:
            return self.find(name, number)
        raise self._absence(name, version)

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version known of a model, in ascending order; empty for an unknown name."""
        return sorted(self._models.get(name, {}).values(), key=_version_key)

    def __iter__(self) -> Iterator[ModelVersion]:
        for name in sorted(self._models):
            yield from self.versions(name)

    def entry(self, name: str, version: str) -> ModelVersion | None:
        """What is known of one version."""
        return self._models.get(name, {}).get(version)

    def discard(self, entry: ModelVersion) -> None:
        """Forgets a version, and the model with its last one."""
        versions = self._models.get(entry.name, {})
        versions.pop(entry.version, None)
        if not versions:
            self._models.pop(entry.name, None)
        self._rebuild(entry.name)

    def set(self, entry: ModelVersion) -> None:
        """Adds or replaces a version. A version without a number stands for a whole model that
        cannot be served."""
        self._models.setdefault(entry.name, {})[entry.version] = entry
        self._rebuild(entry.name)

    def _rebuild(self, name: str) -> None:
        ready = {v.version: v.loaded for v in self.versions(name) if v.loaded is not None}
        if ready:
            self._ready[name] = {"": list(ready.values())[-1], **ready}
        else:
            self._ready.pop(name, None)

    def _default(self) -> str:
        if self.default_model:
            return self.default_model
        if len(self._models) == 1:
            return next(iter(self._models))
        names = ", ".join(sorted(self._models)) or "none"
        raise InferError(
            Code.NOT_FOUND,
            "Request for unknown model: '' is not found: no model is named in the request and "
            f"there is no default model; models: {names}",
        )

    def _absence(self, name: str, version: str) -> InferError:
        versions = self._models.get(name)
        unknown = f"Request for unknown model: '{name}'"
        if versions is None:
            return InferError(Code.NOT_FOUND, f"{unknown} is not found")
        if not version:
            leaving = all(v.leaving for v in versions.values())
            told = "; ".join(v.reason for v in versions.values() if v.reason)
            text = f"{unknown} has no available versions"
            # To come again makes sense unless the model was taken away on purpose.
            code = Code.NOT_FOUND if leaving else Code.UNAVAILABLE
            return InferError(code, f"{text}: {told}" if told else text)
        entry = versions.get(version)
        if entry is None:
            entry = versions.get("")  # The whole model was refused, for a reason worth telling.
        if entry is None:
            return InferError(Code.NOT_FOUND, f"{unknown} version {version} is not found")
        text = f"{unknown} version {version} is not at ready state"
        return InferError(Code.UNAVAILABLE, f"{text}: {entry.reason}" if entry.reason else text)


def version_number(version: str) -> str:
    """``version`` as its folder is called; empty stays empty.

    Raises:
        InferError: INVALID_ARGUMENT, it is no number.
    """
    if not version:
        return version
    if len(version) <= _DIGITS_MAX and version.isascii() and version.isdigit():
        number = int(version)
        if number < 1 << 63:
            return str(number)
    raise InferError(
        Code.INVALID_ARGUMENT,
        f"failed to get model version from specified version string '{version[:_TOLD_MAX]}' "
        "(details: stol), version should be an integral value > 0",
    )


def _version_key(entry: ModelVersion) -> tuple[int, str]:
    return (int(entry.version) if entry.version.isdigit() else -1, entry.version)
