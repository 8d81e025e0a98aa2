"""Loading and unloading by request, and the index of the repository, for every wire.

Knows who may ask for what, names, and Triton's words for refusals. Must not know wires: fronts
decode, call and encode.

Contract: ``load`` returns when the model serves, ``unload`` when nobody finds it any more; requests
that it accepted are answered behind that. Cancelling the await cancels nothing but the waiting. At
most ``PENDING_MAX`` operations are under way.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock.protocol.errors import Code, InferError
from penstock.server.models import ModelState, ModelTable
from penstock.server.repository import LoadFailure, PollFailure, Repository
from penstock.server.repository_layout import LayoutError

PENDING_MAX: Final = 64
NAME_CHARACTERS_MAX: Final = 1024

NOT_EXPLICIT: Final = "explicit model load / unload is not allowed if polling is enabled"
NO_REPOSITORY_NAME: Final = "'repository_name' specification is not supported"


class ControlMode(enum.Enum):
    """Who decides what is loaded: the start alone, the disk from time to time, or requests."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version, or a model on disk of which nothing was ever loaded: then ``state`` is None."""

    name: str
    version: str = ""
    state: ModelState | None = None
    reason: str = ""


class ModelControl:
    """What clients may do to the models of a repository."""

    def __init__(
        self, repository: Repository, models: ModelTable, mode: ControlMode = ControlMode.NONE
    ) -> None:
        self._repository = repository
        self._models = models
        self._mode = mode

    async def load(
        self,
        name: str,
        config: str | None = None,
        files: Mapping[str, bytes | memoryview] | None = None,
        *,
        repository_name: str = "",
    ) -> None:
        """Loads a model as it is on disk, or with the configuration ``config`` (JSON).

        ``files`` by path within the model's directory (``1/model.onnx``) stand instead of those on
        disk; they need a ``config``. A model that did not change is left as it is.

        Raises:
            InferError: it was refused or failed; what served before still does.
        """
        self._check(name, repository_name)
        try:
            await self._repository.load(name, config, files or {})
        except PollFailure as error:
            text = f"failed to load '{name}', failed to poll from model repository: {error}"
            raise InferError(Code.INTERNAL, text) from error
        except LoadFailure as error:
            reasons = "".join(
                f"version {version} is at UNAVAILABLE state: {reason};"
                for version, reason in error.reasons.items()
            )
            text = f"load failed for model '{name}': {reasons}"
            raise InferError(Code.INVALID_ARGUMENT, text) from error

    async def unload(
        self, name: str, dependents: bool = False, *, repository_name: str = ""
    ) -> None:
        """Unloads every version of a model; one that is not loaded is unloaded already.

        ``dependents``: unload what the model is composed of as well. No model here is composed of
        others, so it changes nothing.

        Raises:
            InferError: it was refused.
        """
        self._check(name, repository_name)
        await self._repository.unload(name)

    async def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """Every version that is known, and under explicit control what else lies on disk."""
        entries = [
            IndexEntry(entry.name, entry.version, entry.state, entry.reason)
            for entry in self._models
            if entry.state is ModelState.READY or not ready_only
        ]
        if ready_only or self._mode is not ControlMode.EXPLICIT:
            return entries
        try:
            names = await self._repository.names()
        except LayoutError:  # The disk is away; what is loaded is still true.
            return entries
        known = {entry.name for entry in entries}
        entries += [IndexEntry(name) for name in names if name not in known]
        return sorted(entries, key=lambda entry: entry.name)

    def _check(self, name: str, repository_name: str) -> None:
        if repository_name:
            raise InferError(Code.UNIMPLEMENTED, NO_REPOSITORY_NAME)
        if self._mode is not ControlMode.EXPLICIT:
            raise InferError(Code.UNAVAILABLE, NOT_EXPLICIT)
        if not name:
            raise InferError(
                Code.INVALID_ARGUMENT,
                "Model name cannot be empty. Please enter a valid name to deploy.",
            )
        if "/" in name or "\\" in name or name in (".", ".."):
            raise InferError(
                Code.INVALID_ARGUMENT, "model name must not contain path traversal characters"
            )
        if len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
            raise InferError(Code.INVALID_ARGUMENT, "this is no usable model name")
        if self._repository.pending >= PENDING_MAX:
            raise InferError(
                Code.RESOURCE_EXHAUSTED, f"{PENDING_MAX} loads and unloads are under way already"
            )
