"""What libraries of decision trees have in common: one matrix in, one matrix out.

Knows the options and specs that they share, and how an engine's answer becomes the declared output.
Must not know an engine: each brings ``predict``.

Contract: a missing value is NaN. The one input and the one output are called ``input`` and after
the answer's kind, unless the configuration declares other names. Sessions are ``thread_safe``
where the engine is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.checks import refusal
from penstock.backends.loading import one_line
from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array, TensorSpec

KINDS: Final = ("prediction", "raw", "leaf")
"""What a model can answer: the objective's own value (probabilities of a classifier), the sum of
the leaves, or the number of the leaf in each tree."""

Predict = Callable[[Array], Array]


def kind_of(source: ModelSource) -> str:
    """Option ``output``.

    Raises:
        LoadError: another value than those of ``KINDS``.
    """
    kind = source.options.get("output", KINDS[0])
    if kind not in KINDS:
        raise LoadError(f"option 'output' is {kind!r}; it must be one of {', '.join(KINDS)}")
    return kind


class TreeSession:
    """A loaded model with ``features`` columns in and as many out as ``predict`` gives.

    ``predict`` takes [n, features] in C order and gives [n] or [n, columns] that nobody else has.
    """

    def __init__(
        self,
        source: ModelSource,
        features: int,
        predict: Predict,
        *,
        result_types: Sequence[DType],
        thread_safe: bool = True,
    ) -> None:
        kind = kind_of(source)
        self.thread_safe = thread_safe
        self.inputs = (_input(source, features),)
        probe = predict(np.zeros((1, features), self.inputs[0].dtype.numpy))
        self.outputs = (_output(source, kind, probe.size, result_types),)
        self._features = features
        self._in_type = self.inputs[0].dtype.numpy
        self._out_type = self.outputs[0].dtype.numpy
        self._row_shape = self.outputs[0].shape[1:]
        self._predict = predict

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        fits = len(inputs) == 1 and inputs[0].dtype == self._in_type
        if not fits or inputs[0].ndim != 2 or inputs[0].shape[1] != self._features:
            raise RunError(str(refusal(self.inputs, inputs)), caller_fault=True)
        try:
            made = self._predict(inputs[0])
        except RunError:
            raise
        except Exception as error:
            raise RunError(one_line(error)) from error
        made = np.ascontiguousarray(made, self._out_type)
        return [made.reshape(len(inputs[0]), *self._row_shape)]

    def close(self) -> None:
        """See ``Session.close``."""
        self._predict = _closed


def _closed(_: Array) -> Array:
    raise RunError("the session is closed")


def _input(source: ModelSource, features: int) -> TensorSpec:
    stated = _stated(source.inputs, "input")
    name, dtype = (stated.name, stated.dtype) if stated else ("input", dt.FP32)
    if dtype not in (dt.FP32, dt.FP64):
        raise LoadError(f"input {name!r} is declared {dtype}; trees take FP32 or FP64")
    return TensorSpec(name, dtype, (-1, features))


def _output(
    source: ModelSource, kind: str, columns: int, result_types: Sequence[DType]
) -> TensorSpec:
    """The first of ``result_types``, unless another of them is declared."""
    types = (dt.INT32,) if kind == "leaf" else tuple(result_types)
    stated = _stated(source.outputs, "output")
    if stated is None:
        return TensorSpec(kind, types[0], (-1, columns))
    if stated.dtype not in types:
        known = " or ".join(dtype.name for dtype in types)
        raise LoadError(f"output {stated.name!r} is declared {stated.dtype}; it can be {known}")
    flat = columns == 1 and len(stated.shape) == 1
    return TensorSpec(stated.name, stated.dtype, (-1,) if flat else (-1, columns))


def _stated(specs: Sequence[TensorSpec], what: str) -> TensorSpec | None:
    if len(specs) > 1:
        names = ", ".join(spec.name for spec in specs)
        raise LoadError(f"trees have one {what}, a matrix, but the configuration states {names}")
    return specs[0] if specs else None


__all__ = ["KINDS", "Predict", "TreeSession", "kind_of"]
