"""Runs models that TVM compiled to libraries (``.so``), with TVM's runtime alone.

Knows TVM's runtime: virtual machines, tensors, thread pools. What a file is worth is found out by
``library`` before it is loaded; ``compile`` makes such files. The engine is imported when a
model is loaded, without its compiler (250 MB) unless somebody else in this process has it already.

Contract, beyond ``base``: a session has a virtual machine of its own and is for one thread at a
time; ``clone`` makes another over the same library, so constants are there once. Inputs are shared
with the engine where they are aligned, outputs are arrays over memory that the engine gave away. A
run uses at most ``threads`` threads, whose pool belongs to the calling thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.backends.base import CompileTask, Engine, LoadError, ModelSource, RunError
from penstock.backends.checks import refusal, unknown_option
from penstock.backends.loading import artefact, one_line
from penstock.backends.tvm.library import (
    Sidecar,
    missing_features,
    private_copy,
    read_library,
    read_sidecar,
)
from penstock.protocol.aligned import ALIGNMENT, aligned_bytes
from penstock.protocol.message import Array, TensorSpec

INSTALL: Final = "pip install 'penstock[tvm]'"
OPTIONS: Final = frozenset({"function", "allocator"})
_ALLOCATORS: Final = ("pooled", "naive")
_BIG_CORES: Final = 1
_RUNTIME_ALONE: Final = "TVM_USE_RUNTIME_LIB"
_SPINS: Final = "2000"
"""How often an idle pool thread looks for work before it sleeps: some 20 us, not 3 ms."""

_IMPORTING = threading.Lock()
_SIZING = threading.Lock()
_pool = threading.local()


class TvmBackend:
    """Makes ``TvmSession``s. Stateless; ``load`` may be called from any thread."""

    name = "tvm"
    default_filename = "model.so"

    def engine(self) -> Engine:
        """See ``Probing.engine``. Imports nothing."""
        try:
            found = version("apache-tvm")
        except PackageNotFoundError:
            return Engine(missing=f"backend 'tvm' needs its engine: {INSTALL}")
        cuda = ("cuda",) if Path("/dev/nvidiactl").exists() else ()
        return Engine(found, ("cpu", *cuda))

    def load(self, source: ModelSource) -> TvmSession:
        """Loads a library, or the ``model.so`` of a directory.

        Raises:
            LoadError: the package is missing, the file is not a library that TVM made for this
                machine, its tensors are not known, an option or the device is refused.
        """
        function, allocator = _options(source)
        path = artefact(source, self.default_filename)
        sidecar = read_sidecar(path)
        content = read_library(path, sidecar)
        _check_machine(path, sidecar, source)
        inputs, outputs = _declared(path, sidecar, source)
        tvm = runtime()
        _check_version(path, sidecar, tvm)
        library = _Library(tvm, path, content, _device(tvm, source), function, allocator)
        symbols = sidecar.symbols if sidecar else ()
        # What one way lends another may not, so the first run does not tell.
        lends = True if sidecar and sidecar.branches else None
        return TvmSession(library, inputs, outputs, source.threads, symbols, lends)

    def compile(self, task: CompileTask) -> Path:
        """See ``Compiling.compile``."""
        from penstock.backends.tvm.compile import compile_model

        return compile_model(task)


class _Library:
    """A loaded library and how machines are made over it."""

    def __init__(
        self, tvm: Any, path: Path, content: bytes, device: Any, function: str, allocator: str
    ) -> None:
        self.tvm, self.path, self.device = tvm, path, device
        self.function, self.allocator = function, allocator
        try:
            self._descriptor = private_copy(content)
            # The public load_module takes the kind from the name, and never lets go of a library.
            load = tvm.get_global_func("ffi.Module.load_from_file.so")
            self.module = load(f"/proc/self/fd/{self._descriptor}", "so")
        except Exception as error:
            raise LoadError(f"cannot load {path}: {one_line(error)}") from error

    def __del__(self) -> None:
        # Not before the library has gone: another under the same name would be taken for it.
        self.__dict__.pop("module", None)
        if descriptor := self.__dict__.pop("_descriptor", None):
            os.close(descriptor)

    def machine(self) -> tuple[Any, Any]:
        """A new virtual machine, and its function."""
        vm = importlib.import_module("tvm.runtime.vm")
        try:
            made = vm.VirtualMachine(self.module, self.device, self.allocator)
            return made, made[self.function]
        except Exception as error:
            raise LoadError(
                f"{self.path} cannot be run: {one_line(error)}; a model has a function "
                f"{self.function!r}, or option 'function' says which"
            ) from error


class TvmSession:
    """One loaded model with a machine of its own. ``symbols`` are those of ``Sidecar``.

    ``lends`` is whether outputs may be memory of the inputs or of constants; None is found out.
    """

    thread_safe = False

    def __init__(
        self,
        library: _Library,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int,
        symbols: tuple[str | None, ...] = (),
        lends: bool | None = None,
    ) -> None:
        self.inputs, self.outputs, self.symbols = inputs, outputs, symbols
        self._library: _Library | None = library
        self._threads = threads
        self._machine, self._run = library.machine()
        self._tensor = library.tvm.runtime.from_dlpack
        self._on_cpu = library.device.type == "cpu"
        self._lends = lends
        arity = int(self._machine.module["get_function_arity"](library.function))
        if arity != len(inputs):
            raise LoadError(
                f"{library.path}: function {library.function!r} takes {arity} tensors, but "
                f"{len(inputs)} inputs are declared"
            )

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        if getattr(_pool, "threads", 0) != self._threads:
            size_pool(sys.modules["tvm"], self._threads)
        try:
            outputs = self._outputs([self._given(array) for array in inputs])
            if self._lends is None:
                self._check_outputs(outputs)
                if all(array.size for array in inputs):  # Else there is nothing to lend.
                    self._lends = self._on_cpu and self._finds_lent(inputs)
        except Exception as error:
            raise self._refused(error, inputs) from error
        return outputs if self._lends is False else [array.copy() for array in outputs]

    def _outputs(self, given: Sequence[Any]) -> list[Array]:
        made = self._run(*given)
        tensors = (made,) if hasattr(made, "__dlpack__") else made
        return [self._taken(tensor) for tensor in tensors]

    def _check_outputs(self, outputs: Sequence[Array]) -> None:
        """Only a library without a sidecar can give others than those that are declared."""
        found = [(array.dtype, array.ndim) for array in outputs]
        if found != [(spec.dtype.numpy, len(spec.shape)) for spec in self.outputs]:
            made = ", ".join(f"{array.dtype} {list(array.shape)}" for array in outputs)
            declared = ", ".join(f"{s.name} {s.dtype.numpy} {list(s.shape)}" for s in self.outputs)
            raise RunError(f"the model gives {made}, but what is declared is {declared}")

    def _finds_lent(self, inputs: Sequence[Array]) -> bool:
        """Whether an output is an input's memory or a constant's: at each run, or at none."""
        mine = [_aligned(array) for array in inputs]
        first, second = (self._outputs([self._tensor(a) for a in mine]) for _ in range(2))
        return any(np.may_share_memory(one, other) for one in first for other in (*mine, *second))

    def clone(self) -> TvmSession:
        """See ``CloneableSession.clone``."""
        if self._library is None:
            raise LoadError("the session is closed")
        lends = self._lends
        return TvmSession(
            self._library, self.inputs, self.outputs, self._threads, self.symbols, lends
        )

    def close(self) -> None:
        """See ``Session.close``."""
        self._run = _closed
        self._machine = self._library = None

    def _given(self, array: Array) -> Any:
        if not (self._on_cpu and array.size):  # NumPy gives no strides to what is empty.
            assert self._library is not None
            return self._library.tvm.runtime.tensor(array, device=self._library.device)
        at = array.__array_interface__["data"][0]
        if at % ALIGNMENT:
            array = _aligned(array)
        elif not array.flags.writeable:
            array = np.asarray(_Shared(array, at))
        return self._tensor(array)

    def _taken(self, tensor: Any) -> Array:
        array: Array = np.from_dlpack(tensor) if self._on_cpu else tensor.numpy()
        return array

    def _refused(self, error: Exception, inputs: Sequence[Array]) -> RunError:
        if isinstance(error, RunError):
            return error
        said = refusal(self.inputs, inputs)
        # Sizes that must agree between inputs, and indices, are checked by the model itself.
        checked = isinstance(error, IndexError) or "match_cast error" in str(error)
        caller = said is not None or checked
        return RunError(said or one_line(error), caller_fault=caller)


def _aligned(array: Array) -> Array:
    room: Array = aligned_bytes(array.nbytes).view(array.dtype).reshape(array.shape)
    np.copyto(room, array)
    return room


class _Shared:
    """Read-only memory, shown as if it could be written: NumPy refuses to lend it out otherwise.

    The engine only reads its inputs.
    """

    def __init__(self, array: Array, at: int) -> None:
        self.array = array
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (at, False),
        }


def runtime() -> Any:
    """TVM, imported without its compiler unless this process has it already.

    Raises:
        LoadError: it is not installed, or broken.
    """
    with _IMPORTING:
        if "tvm" in sys.modules:
            return sys.modules["tvm"]
        set_environment()
        before = os.environ.get(_RUNTIME_ALONE)
        os.environ[_RUNTIME_ALONE] = "1"
        try:
            return importlib.import_module("tvm")
        except (ImportError, RuntimeError, OSError) as error:
            raise LoadError(
                f"backend 'tvm' needs its engine: {INSTALL} ({one_line(error)})"
            ) from error
        finally:
            # Only the import reads it, and programs that we start may want to compile.
            del os.environ[_RUNTIME_ALONE]
            if before is not None:
                os.environ[_RUNTIME_ALONE] = before


def set_environment() -> None:
    """What TVM's thread pools read from the environment, unless the operator set it."""
    os.environ.setdefault("TVM_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", _SPINS)


def size_pool(tvm: Any, threads: int) -> None:
    """Gives the calling thread a pool of ``threads`` workers, itself among them.

    A pool is made with the size of the list of CPUs given, which is also kept as a limit for all;
    the second call takes that back. What runs in between on others does so on one thread.
    """
    configure = tvm.get_global_func("runtime.config_threadpool")
    with _SIZING:
        configure(_BIG_CORES, threads, [str(i) for i in range(threads)])
        configure(_BIG_CORES, threads)
    _pool.threads = threads


def _options(source: ModelSource) -> tuple[str, str]:
    for key in source.options:
        if key not in OPTIONS:
            raise unknown_option(key, OPTIONS, "tvm")
    allocator = source.options.get("allocator", "pooled")
    if allocator not in _ALLOCATORS:
        raise LoadError(f"option 'allocator' is {allocator!r}; it must be pooled or naive")
    return source.options.get("function", "main"), allocator


def _check_machine(path: Path, sidecar: Sidecar | None, source: ModelSource) -> None:
    if sidecar is None:
        return
    if sidecar.device != source.device.partition(":")[0]:
        raise LoadError(
            f"{path} is compiled for {sidecar.device}, but device {source.device!r} is wanted"
        )
    if missing := missing_features(sidecar.features):
        raise LoadError(
            f"{path} is compiled for a processor with {', '.join(missing)}, which this one lacks; "
            "compile it here, or for an older one (penstock compile --target x86-64-v3)"
        )


def _check_version(path: Path, sidecar: Sidecar | None, tvm: Any) -> None:
    wanted, have = (sidecar.tvm if sidecar else ""), str(tvm.__version__)
    if sidecar is not None and wanted.split(".")[:2] != have.split(".")[:2]:
        raise LoadError(f"{path} is compiled by TVM {wanted}, this is {have}: compile it again")


def _declared(
    path: Path, sidecar: Sidecar | None, source: ModelSource
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if sidecar is not None:
        return sidecar.inputs, sidecar.outputs
    if not source.outputs:
        raise LoadError(
            f"{path} does not tell its inputs and outputs: there is no "
            f"{path.with_suffix('.json').name} of penstock compile beside it, so config.pbtxt must "
            "declare all of them, in the order of the function's arguments"
        )
    return source.inputs, source.outputs


def _device(tvm: Any, source: ModelSource) -> Any:
    kind, _, number = source.device.partition(":")
    if source.device == "cpu":
        return tvm.cpu()
    if kind == "cuda" and number.isdecimal():
        device = tvm.cuda(int(number))
        if device.exist:
            return device
        raise LoadError(f"{source.name}: device {source.device!r} is not there for TVM")
    raise LoadError(f"{source.name}: backend 'tvm' runs on cpu or cuda:N, not {source.device!r}")


def _closed(*_: object) -> Any:
    raise RunError("the session is closed")


__all__ = ["TvmBackend", "TvmSession", "runtime", "set_environment", "size_pool"]
