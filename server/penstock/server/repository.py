"""Keeps the table of models in step with the disk: finds, loads, replaces and unloads models.

Knows which versions of a model are wanted, and how to find them. Must not know who asks
(``model_control``, ``repository_poll``), nor wires.

Contract: a version that serves is replaced when its successor is loaded and warm, in one turn of
the event loop: requests find one or the other, and those that the old one accepted are answered by
it. While something of a model serves, a reload succeeds as a whole or changes nothing but the
reasons that the table shows; a first load serves the versions that are good. Work on one model is
done one at a time, on different models in parallel. What was begun is finished, even if nobody
waits for it any more. Loading runs on threads; the table is changed on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from penstock.backends.base import LoadError
from penstock.protocol.errors import Code, InferError
from penstock.server.model_config import ConfigError, Latest, ModelConfig
from penstock.server.model_config_parse import parse_json, parse_pbtxt
from penstock.server.model_loading import LoadOptions, Prepared, Wanted, opened, prepare
from penstock.server.model_upload import write_upload
from penstock.server.models import Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.repository_layout import (
    LayoutError,
    ModelDirectory,
    is_temporary,
    model_names,
    scan,
    versions_to_serve,
)
from penstock.server.repository_stamp import stamp
from penstock.server.residents import Found, Residents

_log = logging.getLogger(__name__)

T = TypeVar("T")
Files = Mapping[str, bytes | memoryview]

RETIRING_MAX: Final = 256
"""Replaced or unloaded models that still answer what they accepted; beyond it nothing is loaded."""
_GONE: Final = "model not found in any model repository"
_CLOSED: Final = "the server is shutting down and loads no models"


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """``roots`` are repositories or single model files.

    ``load_threads`` versions are loaded at a time, each tried again ``load_retries`` times.
    ``config_name`` picks ``configs/<config_name>.pbtxt``.
    """

    roots: tuple[Path, ...]
    load_threads: int = 2
    load_retries: int = 0
    config_name: str = ""
    load: LoadOptions = field(default_factory=LoadOptions)


class PollFailure(Exception):
    """A model cannot be loaded, for a reason that is known before anything is loaded."""


class LoadFailure(Exception):
    """Versions of a model did not load: ``reasons`` by version."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class Repository:
    """Loads the models of ``options.roots`` into ``models`` and owns what it loads."""

    def __init__(self, options: RepositoryOptions, models: ModelTable) -> None:
        self._options = options
        self._models = models
        self._residents = Residents(models)
        self._loaders = ThreadPoolExecutor(options.load_threads, thread_name_prefix="load")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    # ------------------------------------------------------------------ what can be asked

    async def look(self) -> dict[str, Found]:
        """What is on disk now, by name; without what is evidently being copied.

        Raises:
            LayoutError: a root is not a repository.
        """
        looks = await asyncio.to_thread(self._look)
        return {name: found for name, found in looks.items() if not is_temporary(name)}

    async def names(self) -> list[str]:
        """The names of the models on disk now, ordered.

        Raises:
            LayoutError: a root is not a repository.
        """
        return await asyncio.to_thread(model_names, self._options.roots)

    async def load_all(self, names: Iterable[str] | None = None) -> None:
        """Loads every model found, or these; those that cannot be served are in the table too.

        Raises:
            LayoutError: a root is not a repository.
        """
        looks = await asyncio.to_thread(self._look)
        wanted = looks if names is None else dict.fromkeys(names)
        for name in wanted:
            if name not in looks:
                _log.error("model %s is unavailable: %s", name, _GONE)
                self._models.set(ModelVersion(name, "", ModelState.UNAVAILABLE, _GONE))
        await asyncio.gather(*[self.refresh(looks[name]) for name in wanted if name in looks])

    async def refresh(self, found: Found) -> bool:
        """Makes the table agree with ``found``; whether all of it could be loaded."""
        return await self._carry_out(found.model.name, partial(self._refreshed, found))

    async def load(self, name: str, override: str | None, files: Files) -> None:
        """Loads the model as it is on disk now, or as ``override`` and ``files`` say.

        Raises:
            PollFailure, LoadFailure: why not; what served before still does.
            InferError: UNAVAILABLE, the server is shutting down; RESOURCE_EXHAUSTED, too many
                unloaded models are still busy.
        """
        await self._carry_out(name, partial(self._loaded, name, override, files))

    async def unload(self, name: str, *, forget: bool = False) -> None:
        """Unloads every version, if there are any; requests that were accepted are answered.

        ``forget``: the model is gone from disk and shall not be shown any more.
        """
        await self._carry_out(name, partial(self._unloaded, name, forget))

    @property
    def pending(self) -> int:
        """Operations that are under way, whether somebody waits for them or not."""
        return len(self._tasks)

    def known(self) -> list[str]:
        """The names in the table, whatever became of the models."""
        return sorted({entry.name for entry in self._models})

    def differs(self, found: Found) -> bool:
        """Whether ``found`` is something that was not tried yet."""
        return self._residents.tried(found.model.name) != found.stamp

    async def close(self) -> None:
        """Drains and closes every lane, and lets work in progress come to its end."""
        self._closing = True
        await self._residents.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._loaders.shutdown(wait=False)

    # ------------------------------------------------------------------ one at a time per model

    async def _carry_out(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """``work`` under the model's lock, to its end even if the caller is cancelled."""
        task = asyncio.create_task(self._locked(name, work), name=f"model {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # It was noted where it happened, for those who wait no more.

    async def _locked(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        async with lock:
            if self._closing:
                raise InferError(Code.UNAVAILABLE, _CLOSED)
            return await work()

    async def _refreshed(self, found: Found) -> bool:
        try:
            await self._bring(found)
        except (PollFailure, LoadFailure):
            return False
        return True

    async def _loaded(self, name: str, override: str | None, files: Files) -> None:
        if self._residents.retiring >= RETIRING_MAX:
            raise InferError(
                Code.RESOURCE_EXHAUSTED,
                f"{RETIRING_MAX} models that were unloaded or replaced are still busy",
            )
        try:
            found = await asyncio.to_thread(self._find, name, override, files)
        except LayoutError as error:
            raise PollFailure(str(error)) from error
        try:
            await self._bring(found)
        finally:
            if found.upload is not None and not self._residents.uses(found):
                await asyncio.to_thread(found.upload.remove)

    async def _unloaded(self, name: str, forget: bool) -> None:
        self._residents.remove(name, forget=forget)

    # ------------------------------------------------------------------ from disk to table

    async def _bring(self, found: Found) -> None:
        """Serves what was found.

        Raises:
            PollFailure, LoadFailure: see ``load``.
        """
        try:
            config, versions = await asyncio.to_thread(_plan, found)
        except (ConfigError, LayoutError) as error:
            self._residents.fail(found, {"": str(error)})
            raise PollFailure(str(error)) from error
        name = found.model.name
        kept = self._residents.kept(found, versions)
        self._residents.begin(found, versions)
        fresh = [
            Wanted(
                found.model, config, version, found.upload is not None, found.override is not None
            )
            for version in versions
            if version not in kept
        ]
        outcomes = await asyncio.gather(*[self._prepare(wanted) for wanted in fresh])
        loaded, reasons = self._opened(kept, zip(fresh, outcomes, strict=True))
        if self._closing or (reasons and self._residents.serving(name)):
            new = [entry.lane for version, entry in loaded.items() if version not in kept]
            await asyncio.gather(*[lane.close() for lane in new])
            if self._closing:
                raise InferError(Code.UNAVAILABLE, _CLOSED)
        else:
            self._residents.swap(found, loaded)
        if reasons:
            self._residents.fail(found, reasons)
            raise LoadFailure(reasons)

    def _opened(
        self, kept: Mapping[int, Loaded], outcomes: Iterable[tuple[Wanted, Prepared | str]]
    ) -> tuple[dict[int, Loaded], dict[str, str]]:
        """What can serve, in the order of versions, and why others cannot."""
        loaded, reasons = dict(kept), dict[str, str]()
        for wanted, outcome in outcomes:
            if isinstance(outcome, str):
                reasons[str(wanted.version)] = outcome
            else:
                loaded[wanted.version] = opened(outcome, wanted, self._options.load)
                place = (wanted.model.name, wanted.version)
                _log.info("model %s version %d loaded in %.2f s", *place, outcome.load_s)
            self._models.loads.count(failed=isinstance(outcome, str))
        return dict(sorted(loaded.items())), reasons

    async def _prepare(self, wanted: Wanted) -> Prepared | str:
        """The version, or why it cannot be served."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loaders, self._prepared, wanted)

    # ------------------------------------------------------------------ on a thread

    def _prepared(self, wanted: Wanted) -> Prepared | str:
        reason = _CLOSED
        for _ in range(1 + self._options.load_retries):
            if self._closing:
                break
            try:
                return prepare(wanted, self._options.load)
            except (LoadError, ConfigError, LayoutError) as error:
                reason = str(error)
            except Exception as error:  # A backend out of contract must not stop other models.
                _log.exception("loading model %s failed", wanted.model.name)
                reason = f"{type(error).__name__}: {error}"
        return reason

    def _look(self, only: str | None = None) -> dict[str, Found]:
        options = self._options
        models = scan(options.roots, config_name=options.config_name, only=only)
        return {model.name: _found(model) for model in models}

    def _find(self, name: str, override: str | None, files: Files) -> Found:
        if files:
            if override is None:
                raise LayoutError(
                    "Load parameter 'config' must be specified for model file override"
                )
            upload = write_upload(files)
            return replace(_found(upload.model(name), override), upload=upload)
        found = self._look(name).get(name)
        if found is None:
            raise LayoutError(_GONE)
        return found if override is None else _found(found.model, override)


def _found(model: ModelDirectory, override: str | None = None) -> Found:
    try:
        return Found(model, stamp(model, override), override)
    except LayoutError as error:
        model = replace(model, problems=(*model.problems, str(error)))
        return Found(model, stamp(model, override), override)


def _plan(found: Found) -> tuple[ModelConfig | None, Sequence[int]]:
    """The configuration as stated, and the versions that it wants.

    Raises:
        ConfigError: it cannot be served as it is.
    """
    model = found.model
    if model.problems:
        raise ConfigError("", "; ".join(model.problems))
    config = None
    if found.override is not None:
        config = parse_json(found.override, "", name=model.name)
    elif model.config_text is not None:
        config = parse_pbtxt(model.config_text, model.config_path, name=model.name)
    policy = config.version_policy if config is not None else Latest()
    versions = versions_to_serve(policy, model.versions)
    if not versions:
        raise ConfigError(model.path, "the version policy selects no version that exists")
    return config, versions
