"""One version of a model: from its directory to sessions, and from sessions to a lane.

Knows backends, configurations and lanes. Must not know the table of models, or which versions are
wanted: ``repository`` decides that.

Contract: ``prepare`` blocks and runs on a thread; it gives a version that is warm, or closes what
it opened and raises. ``opened`` is quick and runs on the event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from penstock.backends import catalog
from penstock.backends.base import (
    Backend,
    CloneableSession,
    LoadError,
    ModelSource,
    Session,
    StreamingSession,
)
from penstock.backends.batchable import supports_batching
from penstock.protocol.message import Array, ModelMetadata
from penstock.server.admission import Admission
from penstock.server.lane import Lane
from penstock.server.model_checksums import verify
from penstock.server.model_config import (
    ConfigError,
    ModelConfig,
    declared,
    metadata_specs,
    reshapes,
)
from penstock.server.model_config_complete import complete, load_labels
from penstock.server.model_warmup import learn, warm_up
from penstock.server.models import Loaded
from penstock.server.placement import Placement, place
from penstock.server.policy import policy_of
from penstock.server.repository_layout import ModelDirectory, is_temporary
from penstock.server.sequence_session import in_order, initial_states
from penstock.server.sequences import Sequences
from penstock.server.stream_lane import StreamLane


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What holds for every model. ``queue_jobs_max`` is for those that state none.

    Without ``complete_configs`` a model must state its inputs and outputs. ``code_backends`` are
    those whose artefacts may be programs, ``code_from_requests`` lets clients send such too, and
    whatever else could harm. With ``checksums_required`` a version without any is refused.
    """

    cores: int = 1
    queue_jobs_max: int = 4096
    complete_configs: bool = True
    code_from_requests: bool = False
    code_backends: Container[str] = ()
    checksums_required: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version to load. ``from_request`` says that a client sent its files, and
    ``configured_by_request`` that one sent its configuration.
    """

    model: ModelDirectory
    config: ModelConfig | None
    version: int
    from_request: bool = False
    configured_by_request: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that is loaded but has no lane yet."""

    config: ModelConfig
    sessions: list[Session]
    labels: dict[str, tuple[str, ...]]
    run_ns: int
    load_s: float
    initial: Sequence[Array] = ()
    """The states of a sequence's first request."""

    def close(self) -> None:
        """Closes each session, for a version that is not to be served after all."""
        close_all(self.sessions)


def close_all(sessions: Sequence[Session]) -> None:
    """Closes each session once; the same one may stand in ``sessions`` several times. All of them
    are closed even if one cannot be, which is raised in the end.
    """
    with contextlib.ExitStack() as stack:
        for session in {id(session): session for session in sessions}.values():
            stack.callback(session.close)


def prepare(wanted: Wanted, options: LoadOptions) -> Prepared:
    """Loads and warms up every session of a version. Blocks.

    Raises:
        LoadError, ConfigError, LayoutError: why it cannot be served; whatever a backend out of
            contract raises.
    """
    started = monotonic()
    model, config = wanted.model, wanted.config
    backend, path = _backend_and_artefact(model, config, wanted.version)
    _check_allowed(wanted, backend, options)
    verify(
        path,
        folder=model.directory,
        stated=config.checksums if config else (),
        required=options.checksums_required,
    )
    sessions: list[Session] = []
    try:
        _open(sessions, backend, path, wanted, options)
        done, initial = _completed(sessions, backend, path, wanted, options)
        labels = load_labels(model.directory, done)
        warm_up(done, sessions[0], model.directory)
        run_ns = 0 if done.decoupled else learn(done, sessions[0])
    except BaseException:
        with contextlib.suppress(Exception):  # What went wrong first is what is told.
            close_all(sessions)
        raise
    return Prepared(done, sessions, labels, run_ns, monotonic() - started, initial)


def _open(
    sessions: list[Session], backend: Backend, path: Path, wanted: Wanted, options: LoadOptions
) -> None:
    """Adds a session for each worker, one by one, so that the caller can close them."""
    config = wanted.config
    groups = config.instance_groups if config else ()
    for placement in place(groups, options.cores, getattr(backend, "device", "cpu")):
        source = _source(wanted.model.name, path, config, placement)
        first = backend.load(source)
        sessions.append(first)
        _check_streams(config, first, backend)
        for _ in range(placement.count - 1):
            sessions.append(_another(first, backend, source))


def _completed(
    sessions: list[Session], backend: Backend, path: Path, wanted: Wanted, options: LoadOptions
) -> tuple[ModelConfig, Sequence[Array]]:
    """The configuration with what the sessions say, and the states that a sequence begins with.

    With sequences the sessions are replaced by such that take inputs in the order of a sequence.
    """
    config, model = wanted.config, wanted.model
    session = sessions[0]
    rows_limit = getattr(session, "rows_max", 0)
    batchable = options.complete_configs and supports_batching(session)
    inputs, outputs = session.inputs, session.outputs
    initial: Sequence[Array] = ()
    if config is not None and config.sequence_batching is not None:
        sequences = config.sequence_batching
        sessions[:] = in_order(sessions, sequences)
        inputs, outputs = sessions[0].inputs, sessions[0].outputs
        inputs = inputs[: len(inputs) - len(sequences.hidden_inputs)]
        outputs = outputs[: len(outputs) - len(sequences.hidden_outputs)]
        initial = initial_states(sequences, model.directory)
    done = complete(
        config,
        name=model.name,
        inputs=inputs,
        outputs=outputs,
        batchable=batchable,
        rows_limit=rows_limit,
        backend=backend.name,
        default_model_filename=path.name,
    )
    return done, initial


def opened(prepared: Prepared, wanted: Wanted, options: LoadOptions) -> Loaded:
    """The version with a lane. Its metadata name no other version yet."""
    config, name, version = prepared.config, wanted.model.name, str(wanted.version)
    inputs, outputs = metadata_specs(config)
    input_shapes, output_shapes = reshapes(config)
    admission = Admission(name, inputs, outputs, config.max_batch_size or 0, input_shapes)
    lane = (StreamLane if config.decoupled else Lane)(
        name,
        version,
        prepared.sessions,
        admission,
        policy=policy_of(config.dynamic_batching, options.queue_jobs_max),
        reshapes=output_shapes,
    )
    lane.learned(prepared.run_ns)
    metadata = ModelMetadata(
        name=name,
        version=version,
        versions=(version,),
        platform=config.platform or config.backend,
        inputs=inputs,
        outputs=outputs,
    )
    sequences = None
    if config.sequence_batching is not None:
        first = len(inputs)
        controls = prepared.sessions[0].inputs[first:][: len(config.sequence_batching.controls)]
        sequences = Sequences(
            lane,
            config.sequence_batching,
            prepared.initial,
            [len(spec.shape) for spec in controls],
            len(outputs),
        )
    return Loaded(lane, config, metadata, prepared.labels, prepared.load_s, sequences)


def _source(name: str, path: Path, config: ModelConfig | None, placement: Placement) -> ModelSource:
    device, threads = placement.device, placement.threads
    if config is None:
        return ModelSource(name, path, device, threads)
    rows_max = config.max_batch_size or 0
    return ModelSource(name, path, device, threads, config.parameters, *declared(config), rows_max)


def _another(first: Session, backend: Backend, source: ModelSource) -> Session:
    """A session for one more worker: over the same weights, the same one, or a second load."""
    if isinstance(first, CloneableSession):
        return first.clone()
    return first if first.thread_safe else backend.load(source)


def _check_allowed(wanted: Wanted, backend: Backend, options: LoadOptions) -> None:
    programs = catalog.runs_code(backend.name)
    if not options.code_from_requests:
        _check_request(wanted, backend, programs)
    if programs and backend.name not in options.code_backends:
        raise LoadError(
            f"models of backend '{backend.name}' are programs; to serve them start the server with "
            f"--allow-code {backend.name}"
        )
    if not options.complete_configs:
        _check_complete(wanted.model, wanted.config)


def _check_request(wanted: Wanted, backend: Backend, programs: bool) -> None:
    """What a request may bring where the operator does not trust whoever sends it."""
    if wanted.from_request and (programs or not catalog.takes_uploads(backend.name)):
        what = "are programs" if programs else "can harm the server if they are made for that"
        raise LoadError(
            f"models of backend '{backend.name}' {what}: this server takes them from its "
            "repository only; see --allow-code-upload"
        )
    if wanted.configured_by_request and programs and wanted.config and wanted.config.parameters:
        raise LoadError(
            f"models of backend '{backend.name}' are programs, and parameters choose how they are "
            "run: this server takes those from its repository only; see --allow-code-upload"
        )


def _check_complete(model: ModelDirectory, config: ModelConfig | None) -> None:
    tensors = (*config.inputs, *config.outputs) if config else ()
    open_ = [tensor.name for tensor in tensors if tensor.dtype is None or not tensor.dims]
    if config is None or not config.inputs or not config.outputs or open_:
        missing = f"; {', '.join(open_)} lack data_type or dims" if open_ else ""
        raise ConfigError(
            model.config_path or model.path,
            "with --disable-auto-complete-config the configuration must state all inputs and "
            f"outputs{missing}",
        )


def _backend_and_artefact(
    model: ModelDirectory, config: ModelConfig | None, version: int
) -> tuple[Backend, Path]:
    """The backend that the configuration names, or the one for the file that is there."""
    stated = (config.backend or config.platform) if config else ""
    filename = config.default_model_filename if config else ""
    if stated:
        backend = catalog.get(stated)
        filename = filename or _usual_filename(model.path / str(version), backend)
        return backend, model.artefact(version, filename)
    if model.file or filename:
        path = model.artefact(version, filename)
        return _backend_for(path), path
    folder = model.path / str(version)
    present = sorted(p for p in folder.iterdir() if not is_temporary(p.name))
    candidates = [path for path in present if catalog.for_file(path) is not None]
    if len(candidates) > 1:  # A program's own modules, say, lie beside it.
        candidates = [path for path in candidates if path.stem == "model"]
    if len(candidates) != 1:
        holds = ", ".join(path.name for path in present[:8]) or "nothing"
        raise LoadError(
            f"{folder} holds {holds}: expected one model file of a known kind "
            f"(backends: {', '.join(catalog.offered())}); or name one in config.pbtxt"
        )
    return _backend_for(candidates[0]), candidates[0]


def _usual_filename(folder: Path, backend: Backend) -> str:
    """The backend's default, or the same with another extension that it reads (``model.pt``) where
    only that is there.
    """
    usual = Path(backend.default_filename)
    if not (folder / usual).exists():
        present = (path for path in folder.glob(f"{usual.stem}.*") if not is_temporary(path.name))
        others = [path.name for path in present if catalog.reads(backend.name, path)]
        if len(others) == 1:
            return others[0]
    return backend.default_filename


def _backend_for(path: Path) -> Backend:
    name = catalog.for_file(path)
    if name is None:
        raise LoadError(
            f"no backend is known for {path.name}: ONNX models end with .onnx or .ort, others are "
            "to be exported to ONNX; in a repository config.pbtxt may name a backend"
        )
    return catalog.get(name)


def _check_streams(config: ModelConfig | None, session: Session, backend: Backend) -> None:
    if config is not None and config.decoupled and not isinstance(session, StreamingSession):
        raise LoadError(
            f"model_transaction_policy.decoupled: a session of backend '{backend.name}' gives one "
            "response for each request"
        )
