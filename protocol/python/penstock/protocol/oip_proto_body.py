"""From the parts of an inference message to specs and arrays.

Knows: the rules that requests (inputs) and replies (outputs) share: names once, shapes within
limits; values either raw, or typed, or in a region of shared memory. Knows nothing of ids, of
parameters of the message and of memoising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Final

from penstock.protocol import dtype as dt
from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import (
    NO_PARAMETERS,
    Array,
    Parameter,
    RegionRef,
    Regions,
    TensorSpec,
)
from penstock.protocol.oip_json_body import specs_of as _specs_of
from penstock.protocol.oip_json_wire import Tensor
from penstock.protocol.oip_proto_contents import Contents
from penstock.protocol.oip_proto_parse import Parameters, Parts
from penstock.protocol.oip_proto_wire import Buffer
from penstock.protocol.oip_region import BYTE_SIZE, OFFSET, REGION, region_array, region_ref
from penstock.protocol.oip_tensor import size_mismatch, view_of

_REFERENCE: Final = (
    (REGION, str, "string_param"), (BYTE_SIZE, int, "int64_param"), (OFFSET, int, "int64_param"),
)  # fmt: skip

Place = tuple[int, int] | RegionRef | Contents
"""Where a tensor's values are: (start, size) of raw contents in the message, or elsewhere."""


def checked(parameters: Parameters | None) -> Mapping[str, Parameter]:
    """``parameters``, taken over and frozen; all of them have a value."""
    if not parameters:
        return NO_PARAMETERS
    known: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if value is None:
            raise ProtocolError(
                f"invalid value type for '{key}' parameter, expected int64_param, bool_param, or "
                "string_param."
            )
        known[key] = value
    return MappingProxyType(known)


def reference(parameters: Parameters | None, what: str, name: str) -> RegionRef | None:
    """The reference to shared memory among the parameters of a tensor or wanted output."""
    known = checked(parameters)
    if REGION not in known:
        return None
    for key, kind, expected in _REFERENCE:
        if key in known and type(known[key]) is not kind:
            raise ProtocolError(
                f"invalid value type for '{key}' parameter for tensor '{name}', "
                f"expected {expected}."
            )
    return region_ref(known, what, name)


def specs_of(parts: Parts, what: str, limits: WireLimits) -> tuple[TensorSpec, ...]:
    """The specs that the tensors declare. Shapes have no free dimensions."""
    for tensor in parts.tensors:
        if tensor.shape and min(tensor.shape) < 0:
            shape = ",".join(map(str, tensor.shape))
            raise ProtocolError(
                f"All {what} dimensions should be specified for {what} '{tensor.name}' for model "
                f"'{parts.model}', got [{shape}]"
            )
    return _specs_of(parts.tensors, what, limits)


def places_of(parts: Parts, specs: Sequence[TensorSpec], what: str) -> list[Place]:
    """Where the values of each tensor are; raw contents have the right sizes.

    An input in shared memory has no raw contents, an output there has empty ones. Inputs may have
    raw contents behind them that belong to none, as upstream; outputs would be mistaken then.
    """
    places: list[Place] = []
    raw = iter(parts.raw)
    for tensor, spec in zip(parts.tensors, specs, strict=True):
        ref = reference(tensor.parameters, what, spec.name)
        if ref is not None:
            _refuse_contents(tensor, parts, "shared memory")
            if what == "output":
                next(raw, None)
            places.append(ref)
        elif parts.raw:
            _refuse_contents(tensor, parts, f"raw_{what}_contents")
            places.append(_raw_place(next(raw, None), spec, what, parts.model))
        elif isinstance(tensor.data, Contents):
            places.append(tensor.data)
        elif prod(spec.shape):
            raise _no_data(spec, what, parts.model)
        else:
            places.append(Contents())
    if what == "output" and next(raw, None) is not None:
        raise ProtocolError(f"unexpected additional {what} data for model '{parts.model}'")
    return places


def _refuse_contents(tensor: Tensor[Contents | None], parts: Parts, beside: str) -> None:
    if tensor.data is not None:
        raise ProtocolError(
            f"contents field must not be specified when using {beside} for '{tensor.name}' "
            f"for model '{parts.model}'"
        )


def _raw_place(found: tuple[int, int] | None, spec: TensorSpec, what: str, model: str) -> Place:
    if found is None:
        raise _no_data(spec, what, model)
    start, end = found
    if spec.dtype is not dt.BYTES:
        expected = prod(spec.shape) * spec.dtype.itemsize
        if end - start != expected:
            raise size_mismatch(spec.name, model, expected, end - start, what)
    return start, end - start


def _no_data(spec: TensorSpec, what: str, model: str) -> ProtocolError:
    return ProtocolError(
        f"unable to find data for {what} tensor '{spec.name}' for model '{model}' in request."
    )


def array_at(
    place: Place, spec: TensorSpec, message: Buffer, model: str, what: str, regions: Regions
) -> Array:
    """The values at ``place``: views, but for BYTES elements and typed integers."""
    if isinstance(place, Contents):
        return place.array(spec, model, what)
    if isinstance(place, RegionRef):
        return region_array(regions, place, spec, model)
    return view_of(message, spec, place[0], place[1], what, model)
