"""From parsed tensor records and the bytes behind the JSON to specs and arrays.

Knows: the rules that requests (``inputs``) and replies (``outputs``) share: names once, shapes
within limits, data either in the JSON, or in a region of shared memory, or in the binary part,
which holds the tensors one after the other with no gaps. Knows nothing of ids, parameters of the
message and of memoising.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from msgspec import UNSET

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, RegionRef, Regions, TensorSpec
from penstock.protocol.oip_json_large import Lifting
from penstock.protocol.oip_json_wire import Tensor, check_text, unsigned
from penstock.protocol.oip_region import NO_REGIONS, REGION, region_array, region_ref
from penstock.protocol.oip_tensor import (
    Body,
    element_count,
    size_mismatch,
    values_array,
    view_of,
)

Place = int | RegionRef
"""Where a tensor's bytes are: so many of the binary part, or a region."""


def json_end(body: Body, json_length: int | None, limits: WireLimits) -> int:
    """Where the JSON part of ``body`` ends."""
    if json_length is None:
        return len(body)
    if not 0 < json_length <= len(body):
        raise ProtocolError(
            f"inference header size should be in range (0, {len(body)}), got: {json_length}"
        )
    check_json_size(json_length, limits)
    return json_length


def check_json_size(size: int, limits: WireLimits) -> None:
    if size > limits.json_bytes_max:
        raise ProtocolError(
            f"request JSON size of {size} bytes exceeds the maximum allowed input size of "
            f"{limits.json_bytes_max} bytes. Use --http-max-input-size to increase the limit."
        )


def dtype_of(datatype: str, name: str, what: str) -> DType:
    dtype = dt.BY_NAME.get(datatype)
    if dtype is None:
        raise ProtocolError(f"invalid datatype for {what} {name}: '{datatype[:32]}'")
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

    ``model`` and ``what`` ("input" or "output") only fill error texts. ``places`` are, afterwards,
    where the tensors were that are not in the JSON.
    """

    __slots__ = (
        "_body", "_lifting", "_limits", "_model", "_regions", "_typed", "_what", "offset", "places",
    )  # fmt: skip

    def __init__(
        self,
        body: Body,
        offset: int,
        *,
        typed: bool,
        what: str,
        model: str,
        limits: WireLimits,
        regions: Regions = NO_REGIONS,
        lifting: Lifting | None = None,
    ) -> None:
        self._body = body
        self._typed = typed
        self._what = what
        self._model = model
        self._limits = limits
        self._regions = regions
        self._lifting = lifting
        self.offset = offset
        self.places: list[Place] = []

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
            ref = region_ref(parameters, self._what, spec.name)
            if ref is not None:
                return self._shared(tensor, spec, ref)
            size = parameters.get("binary_data_size")
            if size is not None:
                if tensor.data is not UNSET and self._what == "input":
                    raise _not_one(spec.name, "'data' 'binary_data_size'")
                return self._binary(spec, unsigned(size, "binary_data_size"))
        if tensor.data is UNSET and self._what == "input":
            raise _not_one(spec.name)
        if not isinstance(tensor.data, list | int | float | str):
            raise ProtocolError(
                f"{self._what} '{spec.name}' has neither 'data' nor a 'binary_data_size'"
            )
        lifted = self._lifting.find(tensor.data) if self._lifting is not None else None
        if lifted is not None:
            return lifted.array(spec.dtype, spec.shape)
        return values_array(
            tensor.data,
            spec.dtype,
            spec.shape,
            name=spec.name,
            what=self._what,
            depth_max=self._limits.json_depth_max,
            typed=self._typed,
        )

    def _shared(self, tensor: Tensor[Any], spec: TensorSpec, ref: RegionRef) -> Array:
        if self._what == "output":
            raise InferError(
                Code.UNIMPLEMENTED, f"output '{spec.name}' is in shared memory, not in the reply"
            )
        beside = "'data' " if tensor.data is not UNSET else ""
        if "binary_data_size" in (tensor.parameters or ()):
            beside += "'binary_data_size' "
        if beside:
            raise _not_one(spec.name, f"{beside}'{REGION}'")
        self.places.append(ref)
        return region_array(self._regions, ref, spec, self._model)

    def _binary(self, spec: TensorSpec, size: int) -> Array:
        start = self.offset
        if size > len(self._body) - start:
            raise ProtocolError(
                f"unexpected size for {self._what} '{spec.name}', expecting "
                f"{size - (len(self._body) - start)} additional bytes for model '{self._model}'"
            )
        if spec.dtype is not dt.BYTES:
            expected = prod(spec.shape) * spec.dtype.itemsize
            if size != expected:
                raise size_mismatch(spec.name, self._model, expected, size, self._what)
        self.offset = start + size
        self.places.append(size)
        return view_of(self._body, spec, start, size, self._what, self._model)


def _not_one(name: str, fields: str = "") -> ProtocolError:
    return ProtocolError(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in "
        f"'parameters', '{REGION}' in 'parameters'. But "
        + (f"set {fields}" if fields else "no field is set"),
        field=name,
    )
