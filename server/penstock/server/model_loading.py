"""One version of a model: from its directory to sessions, and from sessions to a lane.

Knows backends, configurations and lanes. Must not know the table of models, or which versions are
wanted: ``repository`` decides that.

Contract: ``prepare`` blocks and runs on a thread; it gives a version that is warm, or closes what
it opened and raises. ``opened`` is quick and runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from penstock.backends import catalog
from penstock.backends.base import Backend, LoadError, ModelSource, Session
from penstock.backends.batchable import supports_batching
from penstock.protocol.message import Array, ModelMetadata
from penstock.server.admission import Admission
from penstock.server.lane import Lane
from penstock.server.model_config import ConfigError, ModelConfig, metadata_specs, reshapes
from penstock.server.model_config_complete import complete, load_labels
from penstock.server.model_warmup import learn, warm_up
from penstock.server.models import Loaded
from penstock.server.placement import place
from penstock.server.policy import policy_of
from penstock.server.repository_layout import ModelDirectory
from penstock.server.sequence_session import in_order, initial_states
from penstock.server.sequences import Sequences
from penstock.server.stream_lane import StreamLane
from penstock.server.stream_worker import can_stream


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What holds for every model. ``queue_jobs_max`` is for those that state none.

    Without ``complete_configs`` a model must state its inputs and outputs. ``code_from_requests``
    lets clients send artefacts that are programs.
    """

    cores: int = 1
    queue_jobs_max: int = 4096
    complete_configs: bool = True
    code_from_requests: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version to load. ``from_request`` says that a client sent its files."""

    model: ModelDirectory
    config: ModelConfig | None
    version: int
    from_request: bool = False


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
    """Closes each session once; the same one may stand in ``sessions`` several times."""
    for session in {id(session): session for session in sessions}.values():
        session.close()


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
    sessions: list[Session] = []
    try:
        for placement in place(config.instance_groups if config else (), options.cores):
            source = ModelSource(
                model.name,
                path,
                placement.device,
                placement.threads,
                config.parameters if config else {},
            )
            first = backend.load(source)
            sessions.append(first)
            _check_streams(config, first, backend)
            sessions.extend(
                first if first.thread_safe else backend.load(source)
                for _ in range(placement.count - 1)
            )
        session = sessions[0]
        batchable = options.complete_configs and supports_batching(session)
        inputs, outputs = session.inputs, session.outputs
        initial: Sequence[Array] = ()
        if config is not None and config.sequence_batching is not None:
            sequences = config.sequence_batching
            sessions[:] = in_order(sessions, sequences)
            session = sessions[0]
            inputs = session.inputs[: len(inputs) - len(sequences.hidden_inputs)]
            outputs = session.outputs[: len(outputs) - len(sequences.hidden_outputs)]
            initial = initial_states(sequences, model.directory)
        done = complete(
            config,
            name=model.name,
            inputs=inputs,
            outputs=outputs,
            batchable=batchable,
            backend=backend.name,
            default_model_filename=path.name,
        )
        labels = load_labels(model.directory, done)
        warm_up(done, session, model.directory)
        run_ns = 0 if done.decoupled else learn(done, session)
    except BaseException:
        close_all(sessions)
        raise
    return Prepared(done, sessions, labels, run_ns, monotonic() - started, initial)


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


def _check_allowed(wanted: Wanted, backend: Backend, options: LoadOptions) -> None:
    if wanted.from_request and not options.code_from_requests and catalog.runs_code(backend.name):
        raise LoadError(
            f"models of backend '{backend.name}' are programs, which this server takes from its "
            "repository only; see --allow-code-upload"
        )
    if not options.complete_configs:
        _check_complete(wanted.model, wanted.config)


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


def _check_streams(config: ModelConfig | None, session: Session, backend: Backend) -> None:
    if config is not None and config.decoupled and not can_stream(session):
        raise LoadError(
            f"model_transaction_policy.decoupled: a session of backend '{backend.name}' gives one "
            "response for each request"
        )
