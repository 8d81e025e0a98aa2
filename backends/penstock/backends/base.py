"""The contract between the gateway and whatever runs models, on one screen.

A *backend* makes *sessions*; a session is one model loaded on one device. The gateway calls
``run`` from one thread at a time unless the session says it is ``thread_safe``. Knows nothing of
requests, queues or wires. ``penstock.backends.conformance.check_backend`` proves an implementation.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from penstock.protocol.message import Array, TensorSpec


class LoadError(Exception):
    """A model artefact cannot be loaded. The message is for the operator: what and why."""


class RunError(Exception):
    """A run failed. The message reaches the callers whose rows were in the batch.

    ``caller_fault`` is True where the inputs were at fault (a shape that the graph refuses), False
    where the device or the model is.
    """

    def __init__(self, message: str, *, caller_fault: bool = False) -> None:
        super().__init__(message)
        self.caller_fault = caller_fault


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: an artefact on disk and the operator's wishes.

    ``options`` are the backend's own (string to string, as in Triton's ``parameters``); a backend
    refuses those that it does not know, by name. ``threads`` is how many cores one run may use.
    ``device`` is ``cpu`` or ``cuda:N``: a backend that cannot honour it raises LoadError, it never
    falls back in silence.
    """

    name: str
    path: Path
    device: str = "cpu"
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)


class Session(Protocol):
    """A loaded model.

    ``inputs`` and ``outputs`` are the model's own declarations with the batch dimension included;
    -1 is a free dimension.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    thread_safe: bool

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Arrays in the order of ``inputs`` to arrays in the order of ``outputs``.

        Inputs are C-contiguous and aligned; they belong to the caller again on return, so an output
        must not alias one. Outputs are C-contiguous and belong to the caller. Blocks until the
        results are there; releases the GIL while it computes where the engine allows.

        Raises:
            RunError: the run failed; the session stays usable.
        """
        ...

    def close(self) -> None:
        """Frees what the session holds. Idempotent; no ``run`` is in progress."""
        ...


class StreamingSession(Session, Protocol):
    """A session that can also answer one request any number of times (*decoupled* models).

    A model that can only do that refuses ``run`` with RunError.
    """

    def stream(self, inputs: Sequence[Array]) -> Generator[Sequence[Array], None, None]:
        """As ``run``, but yields zero or more times; each time arrays in the order of ``outputs``.

        The inputs stay the session's until the generator is exhausted or closed. It is advanced and
        closed by one thread; closing it early means that nobody wants the rest, and must leave the
        session usable.
        """
        ...


class Backend(Protocol):
    """Makes sessions of one engine. ``name`` is the ``backend`` of config.pbtxt."""

    name: str
    default_filename: str

    def load(self, source: ModelSource) -> Session:
        """Loads a model; blocks, may take long, is called off the event loop.

        Raises:
            LoadError: with a reason that an operator can act on.
        """
        ...
