"""What is loaded of each model, and how one version takes over from another.

Knows the table of models, lanes and stamps. Must not know how models are found or loaded.

Contract: everything here happens on the event loop, each change of the table in one turn of it.
What leaves the table answers the requests that it accepted, behind everybody's back, and then frees
its sessions and its files.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.server.lane import Lane
from penstock.server.model_upload import Upload
from penstock.server.models import UNLOADED, Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.repository_layout import ModelDirectory
from penstock.server.repository_stamp import ModelStamp

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """One look at a model, and what a request said about it.

    ``override`` replaces the configuration on disk; ``upload`` has the files, if a request brought
    them.
    """

    model: ModelDirectory
    stamp: ModelStamp
    override: str | None = None
    upload: Upload | None = None


@dataclass(slots=True)
class _Resident:
    """What of a model is loaded, and what was tried last, whether it loaded or not."""

    served: ModelStamp | None = None
    tried: ModelStamp | None = None
    upload: Upload | None = None


class Residents:
    """The models of one table. Only it changes the table."""

    def __init__(self, models: ModelTable) -> None:
        self._models = models
        self._known: dict[str, _Resident] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def retiring(self) -> int:
        """How many models were replaced or unloaded and are still busy."""
        return len(self._retiring)

    def tried(self, name: str) -> ModelStamp | None:
        """What was tried last of this model."""
        known = self._known.get(name)
        return None if known is None else known.tried

    def uses(self, found: Found) -> bool:
        """Whether the files that came with ``found`` are in use."""
        known = self._known.get(found.model.name)
        return known is not None and known.upload is found.upload

    def kept(self, found: Found, versions: Sequence[int]) -> dict[int, Loaded]:
        """Those of ``versions`` that serve already just as they were found."""
        served = self._of(found).served
        return {
            version: loaded
            for version, loaded in self.serving(found.model.name).items()
            if version in versions and found.stamp.same(served, version)
        }

    def serving(self, name: str) -> dict[int, Loaded]:
        """What serves of this model, by version."""
        entries = self._models.versions(name)
        return {int(entry.version): entry.loaded for entry in entries if entry.loaded is not None}

    def begin(self, found: Found, versions: Sequence[int]) -> None:
        """Notes the attempt; those of ``versions`` that do not serve yet are LOADING."""
        self._of(found).tried = found.stamp
        serving = self.serving(found.model.name)
        for version in versions:
            if version not in serving:
                self._models.set(ModelVersion(found.model.name, str(version)))

    def fail(self, found: Found, reasons: Mapping[str, str]) -> None:
        """Shows why versions did not load; "" is the whole model. What serves goes on serving.

        Of a model that a request brought nothing is kept, unless some of it serves.
        """
        name = found.model.name
        self._of(found).tried = found.stamp
        for version, reason in reasons.items():
            _log.error("model %s did not load: %s", f"{name} {version}".strip(), reason)
        entries = {entry.version: entry for entry in self._models.versions(name)}
        serves = any(entry.loaded is not None for entry in entries.values())
        for entry in entries.values():
            reason = reasons.get(entry.version, reasons.get("", ""))
            if entry.loaded is None:
                if not entry.leaving:
                    self._models.discard(entry)
            elif reason:
                text = f"the version loaded before serves, because a reload failed: {reason}"
                self._models.set(replace(entry, reason=text))
        for version, reason in reasons.items():
            old = entries.get(version)
            if (version or not serves) and (old is None or old.loaded is None):
                self._models.set(ModelVersion(name, version, ModelState.UNAVAILABLE, reason))
        if found.upload is not None and not serves:
            self._drop(name)

    def swap(self, found: Found, loaded: Mapping[int, Loaded]) -> None:
        """From now on ``loaded`` is what serves of the model, and nothing else."""
        name, resident = found.model.name, self._of(found)
        versions = tuple(map(str, loaded))
        before = self.serving(name)
        for version, new in loaded.items():
            told = replace(new, metadata=replace(new.metadata, versions=versions))
            entry = ModelVersion(name, str(version), ModelState.READY, loaded=told)
            self._models.set(entry)
        leaving = [
            ModelVersion(name, str(v), ModelState.UNLOADING) for v in before if v not in loaded
        ]
        for entry in leaving:
            self._models.set(entry)
        staying = [new.lane for new in loaded.values()]
        lanes = [old.lane for old in before.values() if old.lane not in staying]
        upload = resident.upload if resident.upload is not found.upload else None
        resident.served, resident.upload = found.stamp, found.upload
        self._forget_stale(found.model, {*versions, *(entry.version for entry in leaving)})
        self._retire(name, lanes, leaving, upload)

    def remove(self, name: str, *, forget: bool) -> None:
        """Nothing of the model serves from now on. ``forget``: it is not shown either, in the end.

        A model that a request brought is forgotten in any case.
        """
        upload = self._known.pop(name, _Resident()).upload
        forget = forget or upload is not None
        lanes, leaving = [], []
        for entry in self._models.versions(name):
            if entry.loaded is not None:
                lanes.append(entry.loaded.lane)
                leaving.append(ModelVersion(name, entry.version, ModelState.UNLOADING))
                self._models.set(leaving[-1])
            elif forget or not entry.version:
                self._models.discard(entry)
            elif entry.state is ModelState.UNAVAILABLE:
                self._models.set(replace(entry, reason=UNLOADED))
        self._retire(name, lanes, leaving, upload, forget=forget)

    async def close(self) -> None:
        """Everything leaves; returns when all of it has."""
        for name in {entry.name for entry in self._models}:
            upload = self._known.pop(name, _Resident()).upload
            lanes = [loaded.lane for loaded in self.serving(name).values()]
            self._retire(name, lanes, (), upload)
        while self._retiring:
            await asyncio.wait(self._retiring)

    def _of(self, found: Found) -> _Resident:
        return self._known.setdefault(found.model.name, _Resident())

    def _drop(self, name: str) -> None:
        self._known.pop(name, None)
        for entry in self._models.versions(name):
            if entry.loaded is None:
                self._models.discard(entry)

    def _forget_stale(self, model: ModelDirectory, wanted: set[str]) -> None:
        """Versions that left the disk, and what was wrong with the model before."""
        on_disk = set(map(str, model.versions))
        for entry in self._models.versions(model.name):
            if entry.state is not ModelState.UNAVAILABLE or entry.version in wanted:
                continue
            if entry.version in on_disk and entry.reason == UNLOADED:
                continue
            self._models.discard(entry)

    def _retire(
        self,
        name: str,
        lanes: Sequence[Lane],
        leaving: Sequence[ModelVersion],
        upload: Upload | None,
        *,
        forget: bool = False,
    ) -> None:
        if lanes or upload is not None:
            task = asyncio.create_task(self._retired(lanes, leaving, upload, forget))
            task.set_name(f"retire {name}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _retired(
        self,
        lanes: Sequence[Lane],
        leaving: Sequence[ModelVersion],
        upload: Upload | None,
        forget: bool,
    ) -> None:
        await asyncio.gather(*[lane.close() for lane in lanes])
        if upload is not None:
            await asyncio.to_thread(upload.remove)
        await asyncio.to_thread(_return_memory)
        for entry in leaving:
            if self._models.entry(entry.name, entry.version) is not entry:
                continue  # It was loaded again meanwhile.
            if forget:
                self._models.discard(entry)
            else:
                self._models.set(replace(entry, state=ModelState.UNAVAILABLE, reason=UNLOADED))


def _return_memory() -> None:
    """Gives freed memory back to the system, which glibc would rather keep for the next model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
