"""The contract between the gateway and whatever runs models, on one screen.

A *backend* makes *sessions*; a session is one model loaded on one device. The gateway calls
``run`` from one thread at a time unless the session says it is ``thread_safe``. Knows nothing of
requests, queues or wires. ``penstock.backends.conformance.check_backend`` proves an implementation.

``Backend`` and ``Session`` are what every implementation has. The protocols between them are
abilities that a session or a backend may have besides; ``isinstance`` tells, at load time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

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
    falls back in silence. ``path`` may be a directory where the engine keeps several files.

    ``inputs`` and ``outputs`` are what the configuration declares, in its order and with the batch
    dimension, for engines that cannot ask their artefact; empty where it declares none in full.
    ``rows_max`` is the configured largest batch; 0 where none is configured.
    """

    name: str
    path: Path
    device: str = "cpu"
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    rows_max: int = 0


class Session(Protocol):
    """A loaded model.

    ``inputs`` and ``outputs`` are the model's own declarations with the batch dimension included;
    -1 is a free dimension. ``rows_max``, where a session has it, is the largest batch that it
    takes; 0 is no limit.
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


@runtime_checkable
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


@runtime_checkable
class CloneableSession(Session, Protocol):
    """A session that others can be made of for less than loading the model again."""

    def clone(self) -> Session:
        """A session over the same weights for one more thread; each is closed on its own.

        Raises:
            LoadError: there is not enough memory, or the device refuses another.
        """
        ...


@runtime_checkable
class InterruptibleSession(Session, Protocol):
    """A session whose run can be stopped because nobody wants its results any more."""

    def interrupt(self) -> None:
        """Makes a ``run`` that is in progress raise RunError soon; without one, does nothing.

        Called on any thread. Must not touch a run that begins after it.
        """
        ...


@runtime_checkable
class OffLoopSession(Session, Protocol):
    """A session that says whether its runs may wait for something that ends at no known time, such
    as another process. Where they may, a gateway must not make them on its event loop, however
    short they were so far.
    """

    off_loop: bool


@runtime_checkable
class BoundSession(Session, Protocol):
    """A session that can write results where the caller wants them."""

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        """As ``run``, but output ``i`` is written to ``outputs[i]`` unless that is None.

        The given arrays are C-contiguous, aligned and of the dtype of their spec, which is not
        BYTES; none overlaps an input or another one. Returns all outputs, a given one as itself.

        Raises:
            RunError: as ``run``, and if an output does not have the shape of the array given for
                it; then the contents of the arrays are undefined.
        """
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """What a backend would run on, here and now.

    ``missing`` says in a sentence why it cannot run anything, and what to install; empty if it can.
    """

    version: str = ""
    devices: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class CompileTask:
    """An ONNX model to be turned into an engine's own artefact.

    ``into`` is an empty directory for the artefact, under the backend's ``default_filename``, and
    whatever must lie beside it. ``target`` is the engine's word for a processor; empty is the one
    of this machine. ``rows_max`` is the largest batch that is to be served, 0 for a model without a
    batch dimension. ``budget_s`` bounds the search for good code; ``progress`` is told of every
    step: what is done now, and the share of the whole that lies behind, from 0 to 1.
    """

    model: Path
    into: Path
    target: str = ""
    rows_max: int = 0
    budget_s: float = 0.0
    options: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, float], None] = lambda _step, _share: None


class Backend(Protocol):
    """Makes sessions of one engine. ``name`` is the ``backend`` of config.pbtxt.

    ``device``, where a backend has it, is where models run that their configuration places nowhere;
    it is ``cpu`` else.
    """

    name: str
    default_filename: str

    def load(self, source: ModelSource) -> Session:
        """Loads a model; blocks, may take long, is called off the event loop.

        Raises:
            LoadError: with a reason that an operator can act on.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """A backend that can tell what it runs on without loading a model."""

    def engine(self) -> Engine:
        """Looks, cheaply and without side effects on running models. Never raises."""
        ...


@runtime_checkable
class Compiling(Protocol):
    """A backend that makes its artefacts from ONNX models."""

    def compile(self, task: CompileTask) -> Path:
        """The artefact it made. Blocks, may take ``budget_s`` and more.

        Raises:
            LoadError: the model or an option cannot be compiled, and why.
        """
        ...
