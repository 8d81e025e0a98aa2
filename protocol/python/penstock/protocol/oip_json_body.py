"""From parsed tensor records and the bytes behind the JSON to specs and arrays.

Knows: the rules that requests (``inputs``) and replies (``outputs``) share: names once, shapes
within limits, data either in the JSON or in the binary part, which holds the tensors one after the
other with no gaps. Knows nothing of ids, parameters of the message and of memoising.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, TensorSpec
from penstock.protocol.oip_json_wire import Tensor, check_text, unsigned
from penstock.protocol.oip_tensor import (
    Body,
    element_count,
    object_array,
    strings_of,
    values_array,
)


def json_end(body: Body, json_length: int | None, limits: WireLimits) -> int:
    """Where the JSON part of ``body`` ends."""
    if json_length is None:
        return len(body)
    if not 0 < json_length <= len(body):
        raise ProtocolError(
            f"Inference-Header-Content-Length {json_length} does not fit a body of "
            f"{len(body)} bytes"
        )
    if json_length > limits.config_bytes_max:
        raise ProtocolError(
            f"request JSON size of {json_length} bytes exceeds the maximum allowed input size of "
            f"{limits.config_bytes_max} bytes"
        )
    return json_length


def dtype_of(datatype: str, name: str, what: str) -> DType:
    dtype = dt.BY_NAME.get(datatype)
    if dtype is None:
        raise ProtocolError(f"{what} '{name}' has unknown datatype '{datatype[:32]}'")
    return dtype


def specs_of(
    tensors: Sequence[Tensor[Any]], what: str, limits: WireLimits
) -> tuple[TensorSpec, ...]:
    """The specs that the records declare. Shapes have no free dimensions."""
    if len(tensors) > limits.tensors_max:
        raise ProtocolError(f"{len(tensors)} {what}s, more than the maximum {limits.tensors_max}")
    specs: dict[str, TensorSpec] = {}
    for tensor in tensors:
        name = tensor.name
        check_text(name, f"{what} name", limits)
        if name in specs:
            message = "request" if what == "input" else "reply"
            raise ProtocolError(f"{what} '{name}' already exists in {message}")
        dtype = dtype_of(tensor.datatype, name, what)
        count = element_count(tensor.shape, name, limits, what)
        if dtype is dt.BYTES and count > limits.strings_max:
            raise ProtocolError(
                f"shape of {what} '{name}' causes total element count to exceed maximum size of "
                f"{limits.strings_max}"
            )
        specs[name] = TensorSpec(name, dtype, tuple(tensor.shape))
    return tuple(specs.values())


class BodyReader:
    """Walks one message's tensors, JSON and binary, in their order.

    ``model`` and ``what`` ("input" or "output") only fill error texts.
    """

    __slots__ = ("_body", "_limits", "_model", "_typed", "_what", "all_binary", "offset")

    def __init__(
        self, body: Body, offset: int, *, typed: bool, what: str, model: str, limits: WireLimits
    ) -> None:
        self._body = body
        self._typed = typed
        self._what = what
        self._model = model
        self._limits = limits
        self.offset = offset
        self.all_binary = True

    def arrays(self, tensors: Sequence[Tensor[Any]], specs: Sequence[TensorSpec]) -> list[Array]:
        """All tensors; afterwards ``offset`` is the end of the body, or it was an error."""
        arrays = [self._array(t, spec) for t, spec in zip(tensors, specs, strict=True)]
        if self.offset != len(self._body):
            raise ProtocolError(
                f"unexpected additional {self._what} data for model '{self._model}'"
            )
        return arrays

    def _array(self, tensor: Tensor[Any], spec: TensorSpec) -> Array:
        parameters = tensor.parameters
        if parameters:
            if "shared_memory_region" in parameters:
                refuse_shared_memory(self._what, spec.name)
            size = parameters.get("binary_data_size")
            if size is not None:
                return self._binary(spec, unsigned(size, "binary_data_size"))
        self.all_binary = False
        if not isinstance(tensor.data, list | int | float | str):
            raise ProtocolError(
                f"{self._what} '{spec.name}' has neither 'data' nor a 'binary_data_size'"
            )
        return values_array(
            tensor.data,
            spec.dtype,
            spec.shape,
            name=spec.name,
            what=self._what,
            depth_max=self._limits.json_depth_max,
            typed=self._typed,
        )

    def _binary(self, spec: TensorSpec, size: int) -> Array:
        start = self.offset
        if spec.dtype is not dt.BYTES:
            expected = _count(spec.shape) * spec.dtype.itemsize
            if size != expected:
                raise size_mismatch(spec.name, self._model, expected, size, self._what)
        if size > len(self._body) - start:
            raise ProtocolError(
                f"unexpected size for {self._what} '{spec.name}', expecting "
                f"{size - (len(self._body) - start)} additional bytes for model '{self._model}'"
            )
        self.offset = start + size
        return view_of(self._body, spec, start, size, self._what)


def view_of(body: Body, spec: TensorSpec, start: int, size: int, what: str = "input") -> Array:
    """The tensor at ``body[start : start + size]``; only BYTES elements are copied."""
    if spec.dtype is dt.BYTES:
        count = _count(spec.shape)
        strings = strings_of(body[start : start + size], count, spec.name, what)
        return object_array(strings, spec.shape)
    return np.ndarray(spec.shape, spec.dtype.numpy, body, start)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def size_mismatch(
    name: str, model: str, expected: int, got: int, what: str = "input"
) -> ProtocolError:
    return ProtocolError(
        f"{what} byte size mismatch for {what} '{name}' for model '{model}'. "
        f"Expected {expected}, got {got}"
    )


def refuse_shared_memory(what: str, name: str) -> NoReturn:
    raise InferError(
        Code.UNIMPLEMENTED,
        f"shared memory is not supported; send {what} '{name}' in the message itself",
    )
