"""Runs PyTorch's artefacts: ``torch.export`` archives, AOTInductor packages and TorchScript.

Knows how PyTorch is set up and how its sessions run; the artefacts are ``programs``'. The
engine is imported when the first model is loaded.

Contract, beyond ``base``: sessions are ``thread_safe``; a clone shares the weights and has a CUDA
stream of its own. All of an artefact's kinds may be programs of their author's: pickles, Python
source, machine code. How many cores a run uses is set for the thread that runs it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, Final

from penstock.backends.base import Engine, LoadError, ModelSource, RunError
from penstock.backends.checks import cuda_number, known_options, refusal, whole
from penstock.backends.loading import artefact, engine, one_line
from penstock.backends.pytorch.archive import opened
from penstock.backends.pytorch.programs import RUNNERS, Program, program
from penstock.backends.pytorch.transfer import CpuTransfer, CudaTransfer, Transfer
from penstock.protocol.message import Array

_OPTIONS: Final = frozenset({"runners"})
_LOADING: Final = threading.Lock()
"""Loading changes filters of warnings and tables of the tracer, which belong to the process."""
_thread: Final = threading.local()


class PyTorchBackend:
    """Makes ``PyTorchSession``s. ``load`` may be called from any thread."""

    name = "pytorch"
    default_filename = "model.pt2"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        try:
            torch = _engine()
        except LoadError as error:
            return Engine(missing=str(error))
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return Engine(torch.__version__, ("cpu", *(f"cuda:{i}" for i in range(count))))

    def load(self, source: ModelSource) -> PyTorchSession:
        """Loads an archive of any of the three kinds; the content tells which, not the name.

        Raises:
            LoadError: the package is missing; the file, an option or the device is refused; or the
                program takes or does what cannot be served.
        """
        torch = _engine()
        known_options(source.options, _OPTIONS, self.name)
        whole("runners", source.options.get("runners", RUNNERS), 1)
        _check_device(torch, source)
        path = artefact(source, self.default_filename)
        archive = opened(path)
        try:
            with _LOADING:
                made = program(torch, source, path, archive)
        except LoadError:
            raise
        except Exception as error:  # deserialisers of three kinds, and pickle among them
            raise LoadError(
                f"cannot load {path}: {type(error).__name__}: {one_line(error)}"
            ) from error
        return PyTorchSession(torch, made, source)


class PyTorchSession:
    """A program on a device; ``symbols`` has the first dimensions' names of those that tell."""

    thread_safe = True

    def __init__(self, torch: Any, made: Program, source: ModelSource) -> None:
        self.inputs, self.outputs, self.symbols = made.inputs, made.outputs, made.symbols
        self._program = made
        self._torch = torch
        self._source = source
        self._transfer: Transfer = (
            CpuTransfer(torch, made)
            if source.device == "cpu"
            else CudaTransfer(torch, made, source.device)
        )
        self._call = made.call

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        refused = refusal(self.inputs, inputs)
        if refused:
            raise RunError(refused, caller_fault=True)
        _use_threads(self._torch, self._source.threads)
        try:
            with self._torch.inference_mode(), self._transfer.lane():
                given = self._transfer.give(inputs)
                return self._transfer.take(self._call(given), given)
        except RunError:
            raise
        except AssertionError as error:  # a guard of the export: sizes that do not go together
            raise RunError(one_line(error), caller_fault=True) from error
        except Exception as error:
            raise RunError(_reason(error)) from error

    def clone(self) -> PyTorchSession:
        """See ``CloneableSession.clone``."""
        try:
            return PyTorchSession(self._torch, self._program, self._source)
        except RuntimeError as error:
            raise LoadError(f"no further stream on {self._source.device}: {error}") from error

    def close(self) -> None:
        """See ``Session.close``."""
        self._call = _closed


def _engine() -> Any:
    return engine("torch", "pytorch", "pytorch")


def _check_device(torch: Any, source: ModelSource) -> None:
    number = cuda_number(source, "pytorch")
    if number is None:
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        raise LoadError(
            f"device {source.device!r} was asked for, but torch {torch.__version__} finds {count} "
            "CUDA devices here"
        )


def _use_threads(torch: Any, count: int) -> None:
    """How many cores this thread's runs may use: models with other numbers may run on it too."""
    if getattr(_thread, "count", 0) != count:
        # A thread's first question takes over the number that any thread set last; from then on
        # setting it is for this thread alone.
        torch.get_num_threads()
        torch.set_num_threads(count)
        _thread.count = count


def _reason(error: Exception) -> str:
    """The sentence before PyTorch's listing of C++ frames."""
    text = re.split(r"Exception raised from |\nThe following operation failed", str(error))[0]
    return one_line(text) if text.strip() else type(error).__name__


def _closed(_: list[Any]) -> Sequence[Any]:
    raise RunError("the session is closed")
