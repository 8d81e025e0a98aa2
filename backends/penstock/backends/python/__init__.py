"""Runs users' classes: a ``model.py`` with ``predict``, in a process of its own or in this one.

Knows which of the two an option asks for, and threads of this process. Must not know shared memory
or sockets; ``session`` has the process. A model is a program: loading one runs it, and a
server does so only where it was told that it may.

Contract, beyond ``base``: ``isolation: process`` (the default) survives whatever the model does;
``isolation: thread`` runs it in this process, where it can end or block everything. See
``docs/backends/python.md`` for what a class may look like.
"""

from __future__ import annotations

import importlib.util
import itertools
import platform
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource, RunError, Session
from penstock.backends.checks import refusal
from penstock.backends.python import host as python_host
from penstock.backends.python.host import Hosted
from penstock.backends.python.model import BadInput, Context
from penstock.backends.python.options import Recipe, read_options, recipe_of
from penstock.backends.python.output import Traces, log_trace
from penstock.backends.python.session import open_session
from penstock.protocol.message import Array

_IMPORTING: Final = threading.Lock()
"""Models may have siblings of the same names: each is imported with the table to itself."""
_NUMBERS: Final = itertools.count()
_FORMS_MAX: Final = 256


class PythonBackend:
    """Makes sessions of ``model.py`` files. Stateless; ``load`` may be called from any thread."""

    name = "python"
    default_filename = "model.py"

    def engine(self) -> Engine:
        """This interpreter; models on other devices than the CPU find them by themselves."""
        return Engine(f"{platform.python_implementation()} {platform.python_version()}", ("cpu",))

    def load(self, source: ModelSource) -> Session:
        """Loads a file, or the ``model.py`` of a directory.

        Raises:
            LoadError: an option or device is refused, there is no such file, or it makes no model.
        """
        options = read_options(source)
        path = source.path / self.default_filename if source.path.is_dir() else source.path
        if not path.is_file():
            raise LoadError(f"{source.name}: there is no file {path}")
        recipe = recipe_of(source, path)
        if options.process:
            return open_session(recipe, options)
        return open_thread_session(recipe, options.load_timeout_s)


class ThreadSession:
    """A model in this process. Its inputs are read-only to it."""

    def __init__(self, hosted: Hosted, model: str, module: str) -> None:
        self.inputs, self.outputs = hosted.inputs, hosted.outputs
        self.thread_safe = hosted.thread_safe
        self._hosted: Hosted | None = hosted
        self._model = model
        self._module = module
        self._traces = Traces()
        self._forms: set[Any] = set()

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        hosted = self._ready(inputs)
        try:
            return hosted.run(_read_only(inputs))
        except RunError as error:
            self._log(error)
            raise

    def close(self) -> None:
        """See ``Session.close``."""
        hosted, self._hosted = self._hosted, None
        sys.modules.pop(self._module, None)
        if hosted is None:
            return
        try:
            hosted.close()
        except (Exception, SystemExit) as error:
            log_trace(self._traces, self._model, _trace(error))

    def _ready(self, inputs: Sequence[Array]) -> Hosted:
        hosted = self._hosted
        if hosted is None:
            raise RunError("the session is closed")
        form = tuple([(array.dtype, array.shape) for array in inputs])
        if form not in self._forms:
            why = refusal(self.inputs, inputs)
            if why is not None:
                raise RunError(why, caller_fault=True)
            if len(self._forms) >= _FORMS_MAX:
                self._forms.clear()
            self._forms.add(form)
        return hosted

    def _log(self, error: RunError) -> None:
        if not error.caller_fault:
            log_trace(self._traces, self._model, _trace(error.__cause__ or error))


class ThreadStreamingSession(ThreadSession):
    """One whose ``predict`` is a generator."""

    def stream(self, inputs: Sequence[Array]) -> Generator[Sequence[Array], None, None]:
        """See ``StreamingSession.stream``."""
        hosted = self._ready(inputs)
        try:
            yield from hosted.stream(_read_only(inputs))
        except RunError as error:
            self._log(error)
            raise


def open_thread_session(recipe: Recipe, load_timeout_s: int) -> ThreadSession:
    """A session of a model that is made in this process, on a thread that can be given up.

    Raises:
        LoadError: it cannot be made, or not in time; then its thread goes on until it ends by
            itself.
    """
    made: list[Hosted | LoadError] = []
    module = f"penstock_model_{next(_NUMBERS)}"

    def make() -> None:
        try:
            made.append(python_host.load(recipe, _importer(module, load_timeout_s), own=True))
        except LoadError as error:
            made.append(error)

    thread = threading.Thread(target=make, name=f"{recipe.name} load", daemon=True)
    thread.start()
    thread.join(load_timeout_s)
    if not made:
        raise LoadError(
            f"cannot load {recipe.path}: it needed more than {load_timeout_s} s, its "
            "load_timeout_s; its thread cannot be ended before the server is"
        )
    if isinstance(made[0], LoadError):
        raise made[0]
    kind = ThreadStreamingSession if made[0].streams else ThreadSession
    return kind(made[0], recipe.name, module)


def _importer(name: str, wait_s: float) -> Callable[[Path], ModuleType]:
    """Imports a model's file beside others that have siblings of the same names."""

    def imported(path: Path) -> ModuleType:
        if not _IMPORTING.acquire(timeout=wait_s):
            raise LoadError("another model that is being imported takes too long")
        writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        folder, before = str(path.parent), set(sys.modules)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            return _module(name, path)
        finally:
            sys.path.remove(folder)
            for sibling in set(sys.modules) - before - {name}:
                if _lies_in(sys.modules[sibling], path.parent):
                    del sys.modules[sibling]
            sys.dont_write_bytecode = writes
            _IMPORTING.release()

    return imported


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path.name} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    # Data classes look their own module up while they are made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).is_relative_to(folder)


def _read_only(inputs: Sequence[Array]) -> list[Array]:
    views = [array.view() for array in inputs]
    for view in views:
        view.flags.writeable = False
    return views


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


__all__ = ["BadInput", "Context", "PythonBackend", "ThreadSession"]
