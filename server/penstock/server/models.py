"""The table of models and versions: who serves a name now, and why a version does not.

Lookups are dictionary reads; only the repository changes the table. Error texts follow Triton's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import ModelMetadata
from penstock.server.lane import Lane
from penstock.server.model_config import ModelConfig


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


@dataclass(slots=True)
class ModelVersion:
    """One version of a model. ``loaded`` is set exactly while it is READY."""

    name: str
    version: str
    state: ModelState = ModelState.LOADING
    reason: str = ""
    loaded: Loaded | None = None


class ModelTable:
    """All models that are known, whether they can be served or not.

    ``default_model`` is what requests without a model name get; empty means the only model there
    is, if there is only one.
    """

    def __init__(self, default_model: str = "") -> None:
        self.default_model = default_model
        self._models: dict[str, dict[str, ModelVersion]] = {}
        # By name, then by version as requested; "" is the highest READY version.
        self._ready: dict[str, dict[str, Loaded]] = {}

    def find(self, name: str, version: str = "") -> Loaded:
        """The loaded model that serves this name and version now.

        Raises:
            InferError: NOT_FOUND for a name or version that is not known, UNAVAILABLE for one that
                is not ready.
        """
        versions = self._ready.get(name)
        if versions is not None:
            loaded = versions.get(version)
            if loaded is not None:
                return loaded
        if not name:
            return self.find(self._default(), version)
        raise self._absence(name, version)

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version known of a model, in ascending order; empty for an unknown name."""
        return sorted(self._models.get(name, {}).values(), key=_version_key)

    def __iter__(self) -> Iterator[ModelVersion]:
        for name in sorted(self._models):
            yield from self.versions(name)

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
            f"no model is named in the request and there is no default model; models: {names}",
        )

    def _absence(self, name: str, version: str) -> InferError:
        versions = self._models.get(name)
        unknown = f"Request for unknown model: '{name}'"
        if versions is None:
            return InferError(Code.NOT_FOUND, f"{unknown} is not found")
        if not version:
            reasons = "; ".join(v.reason for v in versions.values() if v.reason)
            text = f"{unknown} has no available versions"
            return InferError(Code.UNAVAILABLE, f"{text}: {reasons}" if reasons else text)
        entry = versions.get(version)
        if entry is None:
            entry = versions.get("")  # The whole model was refused, for a reason worth telling.
        if entry is None:
            return InferError(Code.NOT_FOUND, f"{unknown} version {version} is not found")
        text = f"{unknown} version {version} is not at ready state"
        return InferError(Code.UNAVAILABLE, f"{text}: {entry.reason}" if entry.reason else text)


def _version_key(entry: ModelVersion) -> tuple[int, str]:
    return (int(entry.version) if entry.version.isdigit() else -1, entry.version)
