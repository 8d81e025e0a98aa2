"""Loads the models of a repository and puts them into the table.

A model that cannot be loaded is entered as UNAVAILABLE with the reason and stops nobody else.
Loading runs on threads; lanes are built on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, monotonic_ns

import numpy as np

from penstock.backends import catalog
from penstock.backends.base import Backend, LoadError, ModelSource, RunError, Session
from penstock.backends.batchable import supports_batching
from penstock.protocol.message import Array, ModelMetadata, TensorSpec
from penstock.server.admission import Admission
from penstock.server.lane import Lane
from penstock.server.model_config import (
    ConfigError,
    ModelConfig,
    Warmup,
    WarmupInput,
    metadata_specs,
    reshapes,
)
from penstock.server.model_config_complete import complete, load_labels
from penstock.server.model_config_parse import parse_pbtxt
from penstock.server.models import Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.placement import place
from penstock.server.policy import policy_of
from penstock.server.repository_layout import (
    LayoutError,
    ModelDirectory,
    scan,
    versions_to_serve,
)

_log = logging.getLogger(__name__)

_LEARNING_RUNS = 5
_SLOW_NS = 50_000_000
"""A model this slow is known well enough after one run; loading need not take longer."""


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """``roots`` are repositories or single model files; ``backends`` limits what may be loaded."""

    roots: tuple[Path, ...]
    load_threads: int = 2
    cores: int = 1
    queue_jobs_max: int = 4096


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A version that is loaded but has no lane yet."""

    config: ModelConfig
    sessions: list[Session]
    labels: dict[str, tuple[str, ...]]
    run_ns: int
    load_s: float


class Repository:
    """Owns the lanes that it builds. Only it changes ``models``."""

    def __init__(self, options: RepositoryOptions, models: ModelTable) -> None:
        self._options = options
        self._models = models

    async def load_all(self) -> None:
        """Loads every model found.

        Raises:
            LayoutError: a root is not a repository.
        """
        found = scan(self._options.roots)
        limit = asyncio.Semaphore(self._options.load_threads)
        await asyncio.gather(*[self._load_model(model, limit) for model in found])

    async def close(self) -> None:
        """Drains and closes every lane."""
        await asyncio.gather(
            *[entry.loaded.lane.close() for entry in self._models if entry.loaded is not None]
        )

    async def _load_model(self, model: ModelDirectory, limit: asyncio.Semaphore) -> None:
        try:
            config = self._read_config(model)
            policy = config.version_policy if config else None
            versions = model.versions[-1:] if policy is None else (
                versions_to_serve(policy, model.versions)
            )  # fmt: skip
            if not versions:
                raise ConfigError(model.path, "the version policy selects no version that exists")
        except (ConfigError, LayoutError) as error:
            self._refuse(model.name, "", str(error))
            return
        for version in versions:
            self._models.set(ModelVersion(model.name, str(version)))
        for version in versions:
            async with limit:
                await self._load_version(model, config, version, versions)

    def _read_config(self, model: ModelDirectory) -> ModelConfig | None:
        if model.problems:
            raise ConfigError("", "; ".join(model.problems))
        if model.config_text is None:
            return None
        return parse_pbtxt(model.config_text, model.config_path, name=model.name)

    def _refuse(self, name: str, version: str, reason: str) -> None:
        _log.error("model %s is unavailable: %s", f"{name} {version}".strip(), reason)
        self._models.set(ModelVersion(name, version, ModelState.UNAVAILABLE, reason))

    async def _load_version(
        self,
        model: ModelDirectory,
        config: ModelConfig | None,
        version: int,
        versions: Sequence[int],
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(None, self._prepare, model, config, version)
        except (LoadError, ConfigError, LayoutError) as error:
            self._refuse(model.name, str(version), str(error))
            return
        except Exception as error:  # A backend out of contract must not stop the other models.
            _log.exception("loading model %s failed", model.name)
            self._refuse(model.name, str(version), f"{type(error).__name__}: {error}")
            return
        loaded = self._open(prepared, model.name, version, versions)
        self._models.set(ModelVersion(model.name, str(version), ModelState.READY, loaded=loaded))
        _log.info("model %s version %s loaded in %.2f s", model.name, version, prepared.load_s)

    # ------------------------------------------------------------------ on a thread

    def _prepare(
        self, model: ModelDirectory, config: ModelConfig | None, version: int
    ) -> _Prepared:
        started = monotonic()
        backend, path = _backend_and_artefact(model, config, version)
        sessions: list[Session] = []
        try:
            for placement in place(config.instance_groups if config else (), self._options.cores):
                source = ModelSource(
                    model.name,
                    path,
                    placement.device,
                    placement.threads,
                    config.parameters if config else {},
                )
                first = backend.load(source)
                sessions.append(first)
                sessions.extend(
                    first if first.thread_safe else backend.load(source)
                    for _ in range(placement.count - 1)
                )
            session = sessions[0]
            done = complete(
                config,
                name=model.name,
                inputs=session.inputs,
                outputs=session.outputs,
                batchable=supports_batching(session),
                backend=backend.name,
                default_model_filename=path.name,
            )
            labels = load_labels(model.directory, done)
            _warm_up(done, session, model.directory)
            run_ns = _learn(done, session)
        except BaseException:
            for opened in {id(opened): opened for opened in sessions}.values():
                opened.close()
            raise
        return _Prepared(done, sessions, labels, run_ns, monotonic() - started)

    # ------------------------------------------------------------------ on the loop

    def _open(
        self, prepared: _Prepared, name: str, version: int, versions: Sequence[int]
    ) -> Loaded:
        config = prepared.config
        inputs, outputs = metadata_specs(config)
        input_shapes, output_shapes = reshapes(config)
        admission = Admission(name, inputs, outputs, config.max_batch_size or 0, input_shapes)
        lane = Lane(
            name,
            str(version),
            prepared.sessions,
            admission,
            policy=policy_of(config.dynamic_batching, self._options.queue_jobs_max),
            reshapes=output_shapes,
        )
        lane.learned(prepared.run_ns)
        metadata = ModelMetadata(
            name=name,
            version=str(version),
            versions=tuple(map(str, versions)),
            platform=config.platform or config.backend,
            inputs=inputs,
            outputs=outputs,
        )
        return Loaded(lane, config, metadata, prepared.labels, prepared.load_s)


def _backend_and_artefact(
    model: ModelDirectory, config: ModelConfig | None, version: int
) -> tuple[Backend, Path]:
    """The backend that the configuration names, or the one for the file that is there."""
    stated = (config.backend or config.platform) if config else ""
    filename = config.default_model_filename if config else ""
    if stated:
        backend = catalog.get(stated)
        return backend, model.artefact(version, filename or backend.default_filename)
    if model.file or filename:
        path = model.artefact(version, filename)
        return _backend_for(path), path
    folder = model.path / str(version)
    candidates = [p for p in sorted(folder.iterdir()) if catalog.for_file(p) is not None]
    if len(candidates) != 1:
        present = ", ".join(p.name for p in sorted(folder.iterdir())) or "nothing"
        raise LoadError(
            f"{folder} holds {present}: expected one model file of a known kind "
            f"(backends: {', '.join(catalog.offered())}); or name one in config.pbtxt"
        )
    return _backend_for(candidates[0]), candidates[0]


def _backend_for(path: Path) -> Backend:
    name = catalog.for_file(path)
    if name is None:
        raise LoadError(
            f"no backend is known for {path.name}: ONNX models end with .onnx or .ort, others are "
            "to be exported to ONNX; in a repository config.pbtxt may name a backend"
        )
    return catalog.get(name)


def _zeros(spec: TensorSpec, rows: int) -> Array:
    shape = [1 if dim < 0 else dim for dim in spec.shape]
    if shape and spec.shape[0] < 0:
        shape[0] = rows
    if spec.dtype.numpy.hasobject:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.dtype.numpy)


def _learn(config: ModelConfig, session: Session) -> int:
    """The shortest run of one row of zeros, in nanoseconds; a long time if the model refuses it."""
    inputs = [_zeros(spec, 1) for spec in session.inputs]
    best = 1 << 40
    try:
        for _ in range(_LEARNING_RUNS):
            started = monotonic_ns()
            session.run(inputs)
            best = min(best, monotonic_ns() - started)
            if best > _SLOW_NS:
                break
    except RunError as error:
        _log.debug("model %s does not run on zeros: %s", config.name, error)
    return best


def _warm_up(config: ModelConfig, session: Session, folder: Path) -> None:
    """Runs the configured warm-up requests.

    Raises:
        LoadError: one failed; a model that fails its own warm-up is not served.
    """
    for warmup in config.model_warmup:
        try:
            inputs = [_warm_input(spec, warmup, config, folder) for spec in session.inputs]
            for _ in range(max(1, warmup.count)):
                session.run(inputs)
        except (RunError, OSError, ValueError) as error:
            raise LoadError(f"warm-up '{warmup.name}' failed: {error}") from error


def _warm_input(spec: TensorSpec, warmup: Warmup, config: ModelConfig, folder: Path) -> Array:
    given = warmup.inputs.get(spec.name)
    if given is None:
        raise LoadError(f"warm-up '{warmup.name}' has no input '{spec.name}'")
    batch = (max(1, warmup.batch_size),) if config.max_batch_size else ()
    made = _made_up(given, (*batch, *given.dims), folder)
    for tensor in config.inputs:
        if tensor.name == spec.name and tensor.reshape is not None:
            return made.reshape((*batch, *tensor.reshape))
    return made


def _made_up(given: WarmupInput, shape: tuple[int, ...], folder: Path) -> Array:
    if given.data == "file":
        raw = (folder / "warmup" / given.filename).read_bytes()
        one = np.frombuffer(raw, given.dtype.numpy).reshape(given.dims)
        return np.ascontiguousarray(np.broadcast_to(one, shape))
    if given.dtype.numpy.hasobject:
        return np.full(shape, b"", dtype=object)
    if given.data == "random":
        values = np.random.default_rng(0).random(shape)
        return np.asarray(values * (1 if given.dtype.numpy.kind == "f" else 2)).astype(
            given.dtype.numpy
        )
    return np.zeros(shape, given.dtype.numpy)
