"""Runs models on OpenVINO: its own IR, ONNX and TensorFlow Lite files.

Knows OpenVINO's requests and their errors; options are read by ``options``, files by
``runtime``, declarations by ``model``. Knows nothing of queues and batches.

Contract, beyond ``base``: one compiled model, and for each worker a *request* of its own, made by
``clone``; a run releases the GIL. Inputs are shared with the engine, outputs are copies that it
made for the caller. BF16 travels as ``uint16`` bits; strings are refused at load, and 64-bit
integers that do not fit the 32 bits that the engine computes in at a run.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from penstock.backends.base import CompileTask, Engine, LoadError, ModelSource, RunError
from penstock.backends.checks import refusal
from penstock.backends.openvino.ir import export
from penstock.backends.openvino.model import follow_rows, specs, too_wide, warn_of_narrowing
from penstock.backends.openvino.options import Plan, plan
from penstock.backends.openvino.runtime import clean, engine, found, model_file, read
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array

SOON_S: Final = 0.005
"""Only runs that take longer are worth interrupting. The engine cannot interrupt the way of running
that is quickest to begin; the other one costs 12 us more."""


class OpenVinoBackend:
    """Makes ``OpenVinoSession``s. Stateless; ``load`` may be called from any thread."""

    name = "openvino"
    default_filename = "model.xml"

    def engine(self) -> Engine:
        """See ``Probing.engine``."""
        return found()

    def load(self, source: ModelSource) -> OpenVinoSession:
        """Loads an ``.xml`` (with its ``.bin`` beside it), ``.onnx`` or ``.tflite`` file, or the
        ``model.xml``, ``.onnx`` or ``.tflite`` of a directory.

        Raises:
            LoadError: the package is missing, a file or an option is refused, the device cannot be
                had, or the model speaks of more than numbers.
        """
        ov, core = engine()
        path = model_file(source)
        wanted = plan(source, core.available_devices)
        try:
            compiled = _Compiled(ov, core, read(ov, core, path), wanted, source)
            session = compiled.session()
        except LoadError as error:
            raise LoadError(f"{source.name}: {error}") from error
        except Exception as error:
            raise LoadError(f"cannot load {path}: {clean(error)}") from error
        if wanted.device == "CPU":
            warn_of_narrowing(source.name, (*session.inputs, *session.outputs))
        return session

    def compile(self, task: CompileTask) -> Path:
        """See ``Compiling.compile``: a ``model.xml`` and its ``model.bin``."""
        return export(task, self.default_filename)


class _Compiled:
    """A model compiled for some runs side by side; workers beyond them get it compiled again."""

    def __init__(self, ov: Any, core: Any, model: Any, wanted: Plan, source: ModelSource) -> None:
        self.ov = ov
        self.inputs = specs("input", model.inputs, source.inputs)
        self.outputs = specs("output", model.outputs, source.outputs)
        self.symbols, self.shapes = follow_rows(ov, model, self.inputs, self.outputs)
        self.input_types = [port.get_element_type() for port in model.inputs]
        self.output_types = [port.get_element_type() for port in model.outputs]
        self._core, self._model, self._plan = core, model, wanted
        self._making = threading.Lock()
        self._streams_left = 0
        self._made: Any = None

    def session(self) -> OpenVinoSession:
        """A session over the same weights, for one more thread."""
        with self._making:
            if not self._streams_left:
                device, properties = self._plan.device, dict(self._plan.properties)
                self._made = self._core.compile_model(self._model, device, properties)
                self._streams_left = self._made.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._streams_left -= 1
            # The class's own method wraps the request into one that looks into every array once
            # more at each run: 35 us of 68 for a small model.
            request = self.ov.CompiledModel.__base__.create_infer_request(self._made)
        return OpenVinoSession(self, request)


class OpenVinoSession:
    """One request of a compiled model: one run at a time.

    ``symbols`` has for every input, then every output, a word that is the same where the engine
    ties the first dimensions to each other (None where one is fixed).
    """

    thread_safe = False

    def __init__(self, compiled: _Compiled, request: Any) -> None:
        self.inputs, self.outputs = compiled.inputs, compiled.outputs
        self.symbols = compiled.symbols
        self._compiled: _Compiled | None = compiled
        self._request = request
        self._tensor = compiled.ov.Tensor
        self._plain = [
            (spec.dtype.numpy, kind)
            for spec, kind in zip(self.inputs, compiled.input_types, strict=True)
        ]
        self._wide = [i for i, s in enumerate(self.inputs) if s.dtype in (dt.INT64, dt.UINT64)]
        self._kinds = [spec.dtype.numpy for spec in self.outputs]
        self._output_types = compiled.output_types
        self._shapes = compiled.shapes
        self._quick_bytes = -1
        """Inputs of at most so many bytes have been run in less than SOON_S."""
        self._state = threading.Lock()
        self._interruptible = False

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        return self._results(inputs, False)

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array | None]) -> Sequence[Array]:
        """See ``BoundSession.run_into``; copies only where no shape is known before the run."""
        why = refusal(self.inputs, inputs)
        if why is not None or self._request is None:
            raise RunError(why or "the session is closed", caller_fault=why is not None)
        kept: dict[int, Any] = {}
        try:
            for i, given in enumerate(outputs):
                if given is not None and self._surely_fits(i, given, inputs):
                    kept[i] = self._request.get_output_tensor(i)
                    bound = self._tensor(given, given.shape, self._output_types[i])
                    self._request.set_output_tensor(i, bound)
            results = self._results(inputs, True)
            return [
                given if i in kept and given is not None else self._put(i, result, given)
                for i, (result, given) in enumerate(zip(results, outputs, strict=True))
            ]
        finally:
            # The engine goes on to write to what it was given last, whosever that is by then.
            for i, own in kept.items():
                self._request.set_output_tensor(i, own)

    def clone(self) -> OpenVinoSession:
        """See ``CloneableSession.clone``."""
        if self._compiled is None:
            raise LoadError("the session is closed")
        try:
            return self._compiled.session()
        except Exception as error:
            raise LoadError(f"no further session: {clean(error)}") from error

    def interrupt(self) -> None:
        """See ``InterruptibleSession.interrupt``; runs that end soon anyway are let end."""
        with self._state:
            if self._interruptible:
                self._request.cancel()

    def close(self) -> None:
        """See ``Session.close``."""
        self._request = self._compiled = None

    def _results(self, inputs: Sequence[Array], share: bool) -> list[Array]:
        """The outputs, as copies or (``share``) as views that the next run overwrites."""
        if len(inputs) != len(self._plain):
            raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
        feed, size = {}, 0
        for i, (array, (dtype, kind)) in enumerate(zip(inputs, self._plain)):  # noqa: B905 - as above
            if array.dtype != dtype:  # the engine would take any array for bits
                raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
            feed[i] = self._tensor(array, array.shape, kind)
            size += array.nbytes
        for i in self._wide:
            why = too_wide(self.inputs[i], inputs[i])
            if why is not None:
                raise RunError(why, caller_fault=True)
        began = perf_counter()
        try:
            if size <= self._quick_bytes:
                made = list(self._request.infer(feed, share, False).values())
            else:
                made = self._run_interruptibly(feed, share)
        except Exception as error:
            raise self._refused(error, inputs) from error
        if perf_counter() - began > SOON_S:
            self._quick_bytes = min(self._quick_bytes, size - 1)
        elif size > self._quick_bytes:
            self._quick_bytes = size
        # BF16 comes as FP16, which has as many bits.
        return [a if a.dtype == k else a.view(k) for a, k in zip(made, self._kinds)]  # noqa: B905

    def _run_interruptibly(self, feed: dict[int, Any], share: bool) -> list[Array]:
        request = self._request
        with self._state:
            request.start_async(feed, None)
            self._interruptible = True
        try:
            request.wait()
        finally:
            with self._state:
                self._interruptible = False
        views = [request.get_output_tensor(i).data for i in range(len(self.outputs))]
        return views if share else [view.copy() for view in views]

    def _surely_fits(self, index: int, given: Array, inputs: Sequence[Array]) -> bool:
        """Whether output ``index`` will have the shape of ``given``; False also where unknown.

        The engine would not write at all into an array that is too small, without a word.
        """
        shape = self._shapes[index]
        if shape is None or given.dtype != self._kinds[index]:
            return False
        rows = {len(a) for a, s in zip(inputs, self.inputs, strict=True) if s.shape[:1] == (-1,)}
        if shape[:1] == (-1,):
            return len(rows) == 1 and given.shape == (*rows, *shape[1:])
        return given.shape == shape

    def _put(self, index: int, result: Array, given: Array | None) -> Array:
        """``result``, a view, copied to where the caller wants it."""
        if given is None:
            return result.copy()
        if given.shape != result.shape:
            raise RunError(
                f"output {self.outputs[index].name!r} has shape {list(result.shape)}, "
                f"its place {list(given.shape)}",
                caller_fault=True,
            )
        np.copyto(given, result)
        return given

    def _refused(self, error: Exception, inputs: Sequence[Array]) -> RunError:
        if self._request is None:
            return RunError("the session is closed")
        text = str(error)
        if "was canceled" in text:
            return RunError("the run was interrupted, as nobody wants its results any more")
        why = refusal(self.inputs, inputs)
        if why is not None:
            return RunError(why, caller_fault=True)
        # Shapes fit one by one, but not together, or not what the model does with them.
        open_ = any(-1 in spec.shape for spec in self.inputs)
        return RunError(clean(error), caller_fault=open_ and "shape" in text.lower())


__all__ = ["OpenVinoBackend", "OpenVinoSession"]
