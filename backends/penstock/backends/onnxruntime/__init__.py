"""Loads ONNX models into ONNX Runtime, on the CPU or a CUDA device.

Knows how the engine loads and what it says when it does not; options are read by
``options``, devices by ``provider``, and what was loaded is run by
``session``. The engine itself is imported when the first model is loaded, or when it is
asked for.

Contract, beyond ``base``: models with inputs or outputs that are no tensors are refused.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

from penstock.backends import loading
from penstock.backends.base import Engine, LoadError, ModelSource
from penstock.backends.onnxruntime.options import run_options, session_options
from penstock.backends.onnxruntime.provider import check_chosen, has_cuda, providers
from penstock.backends.onnxruntime.session import DTYPES, OnnxRuntimeSession, session_of
from penstock.backends.onnxruntime_errors import clean, load_reason
from penstock.backends.tensorrt.cuda import device_names

_LOADING: Final = threading.Lock()
"""Creating sessions at the same time from several threads is racy inside the engine."""


class OnnxRuntimeBackend:
    """Makes ``OnnxRuntimeSession``s. Stateless; ``load`` may be called from any thread."""

    name = "onnxruntime"
    default_filename = "model.onnx"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        try:
            ort = _engine()
        except LoadError as error:
            return Engine(missing=str(error))
        gpus = device_names() if has_cuda(ort) else ()
        return Engine(ort.__version__, ("cpu", *gpus))

    def load(self, source: ModelSource) -> OnnxRuntimeSession:
        """Loads an ``.onnx`` or ``.ort`` file, or the ``model.onnx`` of a directory.

        Raises:
            LoadError: the package is missing, the file or an option is refused, the device cannot
                be had, or the model speaks of more than tensors.
        """
        ort = _engine()
        path = loading.artefact(source, self.default_filename)
        wanted = providers(ort, source)
        options, options_of_runs = session_options(ort, source), run_options(ort, source)
        try:
            with _LOADING:
                # The engine's own fallback prints to stdout and goes on with the CPU.
                made = ort.InferenceSession(str(path), options, wanted, enable_fallback=0)
                made.disable_fallback()
        except Exception as error:
            raise LoadError(f"cannot load {path}: {load_reason(error)}") from error
        check_chosen(source, wanted, made.get_providers())
        return session_of(source.name, made, options_of_runs, ort)


def _engine() -> Any:
    # Newer engines report usage to their maker from a thread, and keep a database in the home
    # directory for it. Only this variable stops both, and it is read at the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return loading.engine("onnxruntime", "onnxruntime", "onnx")


__all__ = ["DTYPES", "OnnxRuntimeBackend", "OnnxRuntimeSession", "clean"]
