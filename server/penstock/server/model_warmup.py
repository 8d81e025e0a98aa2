"""The runs that a session makes before it is served: the configured warm-up, and a measurement.

Knows sessions and configurations. Must not know lanes or the event loop: all of this happens on a
loading thread.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from time import monotonic_ns
from typing import Final, cast

import numpy as np

from penstock.backends.base import LoadError, RunError, Session, StreamingSession
from penstock.protocol.message import Array, TensorSpec
from penstock.server.model_config import ModelConfig, Warmup, WarmupInput

_log = logging.getLogger(__name__)

_LEARNING_RUNS: Final = 5
_WARM_RESPONSES_MAX: Final = 64
"""Read of a stream in a warm-up: some models never stop by themselves."""
_SLOW_NS: Final = 50_000_000
"""A model this slow is known well enough after one run; loading need not take longer."""


def _zeros(spec: TensorSpec, rows: int) -> Array:
    shape = [1 if dim < 0 else dim for dim in spec.shape]
    if shape and spec.shape[0] < 0:
        shape[0] = rows
    if spec.dtype.numpy.hasobject:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.dtype.numpy)


def learn(config: ModelConfig, session: Session) -> int:
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


def warm_up(config: ModelConfig, session: Session, folder: Path) -> None:
    """Runs the configured warm-up requests.

    Raises:
        LoadError: one failed; a model that fails its own warm-up is not served.
    """
    sequences = config.sequence_batching
    hidden = sequences.hidden_inputs if sequences is not None else ()
    for warmup in config.model_warmup:
        try:
            inputs = [
                _zeros(spec, max(1, warmup.batch_size))
                if spec.name in hidden
                else _warm_input(spec, warmup, config, folder)
                for spec in session.inputs
            ]
            for _ in range(max(1, warmup.count)):
                _run_once(config, session, inputs)
        except (RunError, OSError, ValueError) as error:
            raise LoadError(f"warm-up '{warmup.name}' failed: {error}") from error


def _run_once(config: ModelConfig, session: Session, inputs: Sequence[Array]) -> None:
    if not config.decoupled:
        session.run(inputs)
        return
    with closing(cast("StreamingSession", session).stream(inputs)) as parts:
        for _ in islice(parts, _WARM_RESPONSES_MAX):
            pass


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
