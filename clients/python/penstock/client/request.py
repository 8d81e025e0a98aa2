"""From what a caller passes to a request message.

Knows: which values may stand for a tensor. Must not know wires, HTTP or clocks.

Arrays that are already C-contiguous and little-endian are used as they are: the message, the
encoder and the socket all read the caller's own memory, so it must not change during the call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import (
    NO_PARAMETERS,
    Array,
    InferRequest,
    OutputRequest,
    Parameter,
    Signature,
    TensorSpec,
    wire_array,
)

Inputs = Mapping[str, ArrayLike] | ArrayLike
"""Arrays by input name, or one value for the model's only (or first, with GraphPipe) input."""
Outputs = Sequence[str | OutputRequest]
DTypes = Mapping[str, str | DType]

_AS_IT_IS: Final = {d.numpy: d for d in dt.ALL if d is not dt.BF16 and d is not dt.BYTES}
_SIGNATURES_MAX: Final = 1024
_NO_DTYPES: Final[DTypes] = {}


class RequestBuilder:
    """Makes requests; those that declare the same tensors share one ``Signature``. Thread-safe."""

    __slots__ = ("_signatures",)

    def __init__(self) -> None:
        self._signatures: dict[tuple[object, ...], Signature] = {}

    def build(
        self,
        model: str,
        inputs: Inputs,
        *,
        outputs: Outputs = (),
        version: str = "",
        id: str = "",
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        dtypes: DTypes | None = None,
        timeout_s: float,
    ) -> InferRequest:
        """The message for one call; a value that is not a mapping becomes an input named ``""``.

        Raises:
            TypeError: a value cannot be sent, or not as the type asked for.
            ValueError: an unknown type name, a negative priority, a name twice.
        """
        if not isinstance(model, str) or not isinstance(version, str):
            raise TypeError(f"model {model!r}, version {version!r}: both are text, as '1'")
        if priority < 0:
            raise ValueError(f"priority is {priority}; 0 is the model's default, 1 the highest")
        named: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {"": inputs}
        wanted = _NO_DTYPES if dtypes is None else dtypes
        if wanted and not wanted.keys() <= named.keys():
            advice = "" if isinstance(inputs, Mapping) else "; name the input: {name: value}"
            unknown = sorted(wanted.keys() - named.keys())
            raise ValueError(f"dtypes for {unknown}: no such inputs{advice}")
        key: list[object] = []
        arrays: list[Array] = []
        for name, value in named.items():
            dtype, array = _tensor(name, value, wanted.get(name))
            key += (name, dtype, array.shape)
            arrays.append(array)
        return InferRequest(
            self._signature(key, outputs),
            arrays,
            model=model,
            version=version,
            id=id,
            parameters=NO_PARAMETERS if parameters is None else parameters,
            timeout_us=max(1, int(timeout_s * 1e6)),
            priority=priority,
        )

    def _signature(self, key: list[Any], outputs: Outputs) -> Signature:
        if isinstance(outputs, str):
            raise TypeError(f"outputs is a sequence of names, as in outputs=({outputs!r},)")
        if any(isinstance(output, OutputRequest) for output in outputs):
            return _signature(key, outputs)  # Not hashable, and rare.
        whole = (*key, None, *outputs)
        found = self._signatures.get(whole)
        if found is None:
            if len(self._signatures) >= _SIGNATURES_MAX:
                self._signatures.clear()
            found = self._signatures[whole] = _signature(key, outputs)
        return found


def timeout_checked(timeout_s: float) -> float:
    """``timeout_s`` if it is a time to wait.

    Raises:
        ValueError: it is not positive or not finite: every call of this client ends.
    """
    if not isinstance(timeout_s, Real) or not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout is {timeout_s}; it must be a positive number of seconds")
    return timeout_s


def _signature(key: list[Any], outputs: Outputs) -> Signature:
    tensors = [TensorSpec(*key[i : i + 3]) for i in range(0, len(key), 3)]
    return Signature(
        tensors, [o if isinstance(o, OutputRequest) else OutputRequest(o) for o in outputs]
    )


def _tensor(name: str, value: Any, wanted: str | DType | None) -> tuple[DType, Array]:
    if wanted is None and type(value) is np.ndarray and value.flags.c_contiguous:
        exact = _AS_IT_IS.get(value.dtype)
        if exact is not None:
            return exact, value
    try:
        return wire_array(*_converted(value, wanted))
    except TypeError as error:
        raise TypeError(f"{_called(name)}: {error}") from None
    except ValueError as error:  # rows of different lengths, an unknown type
        raise ValueError(f"{_called(name)}: {error}") from None


def _called(name: str) -> str:
    return f"input {name!r}" if name else "the input"


def _converted(value: Any, wanted: str | DType | None) -> tuple[object, DType | None]:
    """``value`` in the type asked for, where NumPy calls that "same kind": FP64 to FP32 will do,
    fractions to integers will not."""
    if value is None:
        raise TypeError("None is no tensor")
    if wanted is None:
        return value, None
    dtype = dt.BY_NAME.get(wanted) if isinstance(wanted, str) else wanted
    if dtype is None:
        raise ValueError(f"{wanted!r} is not an element type; those are {', '.join(dt.BY_NAME)}")
    if dtype is dt.BYTES or (dtype is dt.BF16 and hasattr(value, "dtype")):
        return value, dtype
    target = np.float32 if dtype is dt.BF16 else dtype.numpy
    if hasattr(value, "dtype"):
        return np.asarray(value).astype(target, casting="same_kind", copy=False), dtype
    return np.asarray(value, target), dtype
