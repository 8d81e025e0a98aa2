"""Tensors in memory that the client shares: their parameters, reading them, writing them.

Knows: the three parameters of Triton's shared memory extensions, and that a tensor lies in a region
as it does in a binary part. Knows nothing of the wires that the parameters come over, nor of how a
region gets its bytes: ``Regions`` does.

Contract: numeric tensors are views of the region, never copied in; outputs are copied once, into
the region, unless they were made there. Nothing outside of what ``Regions`` gave is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final, NoReturn

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.limits import DEFAULT
from penstock.protocol.message import (
    Array,
    Parameter,
    RegionRef,
    Regions,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_json_wire import check_text, unsigned
from penstock.protocol.oip_tensor import COPY_BYTES_MAX, size_mismatch, view_of

REGION: Final = "shared_memory_region"
BYTE_SIZE: Final = "shared_memory_byte_size"
OFFSET: Final = "shared_memory_offset"
DISABLED: Final = (
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
)


IN_PLACE_BYTES_MIN: Final = 256 * 1024
"""Smaller outputs are never made in place: their copy costs less than to arrange for it."""


class NoRegions:
    """``Regions`` of a server that allows none."""

    def resolve(self, ref: RegionRef) -> NoReturn:
        raise InferError(Code.INVALID_ARGUMENT, DISABLED)

    def target(self, ref: RegionRef) -> NoReturn:
        raise InferError(Code.INVALID_ARGUMENT, DISABLED)


NO_REGIONS: Final[Regions] = NoRegions()


def region_ref(parameters: Mapping[str, object], what: str, name: str) -> RegionRef | None:
    """The reference in the parameters of ``what`` ("input" or "output") ``name``, if there is one.

    Raises:
        ProtocolError: a reference that is incomplete, not of the right types, or beside a wish
            for classes.
    """
    if REGION not in parameters:
        return None
    region = parameters[REGION]
    if not isinstance(region, str):
        raise ProtocolError(
            f"Unable to parse '{REGION}': attempt to access JSON non-string as string",
            field=f"{what} '{name}'",
        )
    check_text(region, "shared memory region name", DEFAULT)
    if BYTE_SIZE not in parameters:
        raise ProtocolError(
            f"Invalid offset + byte size for shared memory region: '{region}'; "
            f"{what} '{name}' has no '{BYTE_SIZE}'"
        )
    if "classification" in parameters:
        raise ProtocolError(f"Output can't set both '{REGION}' and 'classification'", field=name)
    offset = unsigned(parameters.get(OFFSET, 0), OFFSET)
    return RegionRef(region, offset, unsigned(parameters[BYTE_SIZE], BYTE_SIZE))


def region_array(regions: Regions, ref: RegionRef, spec: TensorSpec, model: str) -> Array:
    """The input that lies at ``ref``, as a read-only view; only BYTES elements are copied.

    ``model`` fills error texts.

    Raises:
        InferError: what ``Regions`` refuses.
        ProtocolError: the bytes are not those of a tensor of ``spec``.
    """
    if spec.dtype is not dt.BYTES:
        expected = prod(spec.shape) * spec.dtype.itemsize
        if ref.byte_size != expected:
            raise size_mismatch(spec.name, model, expected, ref.byte_size)
    memory = regions.resolve(ref)
    return view_of(memory.toreadonly(), spec, 0, ref.byte_size, model=model)


def known_region_array(regions: Regions, ref: RegionRef, spec: TensorSpec, model: str) -> Array:
    """As ``region_array``, of a reference that was found to fit ``spec`` before."""
    memory = regions.resolve(ref).toreadonly()
    if spec.dtype is dt.BYTES:
        return view_of(memory, spec, 0, ref.byte_size, model=model)
    return np.ndarray(spec.shape, spec.dtype.numpy, memory)


def region_targets(refs: Mapping[str, RegionRef], regions: Regions) -> Mapping[str, Target]:
    """The memory behind each output's reference: what ``InferRequest.targets`` holds.

    Raises:
        InferError: what ``Regions`` refuses.
    """
    target = regions.target
    targets = {}
    for name, ref in refs.items():  # a comprehension costs a call before Python 3.12
        targets[name] = target(ref)
    return targets


def region_space(target: Target, shape: tuple[int, ...], dtype: dt.DType) -> Array | None:
    """The place of an output as an array that a model may write to while it reads its inputs; None
    where it must be written later, does not fit, or is too small to be worth it."""
    ref, memory, written, alone = target
    if dtype is dt.BYTES or not (alone or written is not None):
        return None
    if not IN_PLACE_BYTES_MIN <= prod(shape) * dtype.itemsize <= ref.byte_size:
        return None
    space: Array = np.ndarray(shape, dtype.numpy, memory)
    return space if space.flags.aligned else None


def write_region(target: Target, array: Array, spec: TensorSpec) -> int:
    """Puts an output into the client's memory; the number of bytes that it takes there.

    ``array`` may overlap the memory; what is there already, as what was made in ``region_space``,
    is not copied.

    Raises:
        InferError: INVALID_ARGUMENT where it does not fit.
    """
    ref, memory, written, _ = target
    if spec.dtype is dt.BYTES:
        size = _write_strings(target, array, spec.name)
    else:
        size = array.nbytes
        if size > ref.byte_size:
            raise _no_room(ref, size, spec.name)
        if size <= COPY_BYTES_MAX:
            memory[:size] = array.tobytes()
        else:
            space: Array = np.ndarray(array.shape, spec.dtype.numpy, memory)
            if size < IN_PLACE_BYTES_MIN or not _is_there(array, space):
                space[...] = array
    if written is not None:
        written(size)
    return size


def _is_there(array: Array, space: Array) -> bool:
    """Whether two arrays of one shape and type are one and the same memory."""
    mine, other = array.__array_interface__, space.__array_interface__
    return bool(mine["data"][0] == other["data"][0]) and array.flags.c_contiguous


def _write_strings(target: Target, array: Array, name: str) -> int:
    values: list[bytes] = array.reshape(-1).tolist()
    size = 4 * len(values) + sum(map(len, values))
    if size > target.ref.byte_size:
        raise _no_room(target.ref, size, name)
    memory, offset = target.memory, 0
    for value in values:
        start = offset + 4
        memory[offset:start] = len(value).to_bytes(4, "little")
        offset = start + len(value)
        memory[start:offset] = value
    return size


def _no_room(ref: RegionRef, size: int, name: str) -> InferError:
    return InferError(
        Code.INVALID_ARGUMENT,
        f"shared memory size specified with the request for output '{name}' "
        f"({ref.byte_size} bytes) should be at least {size} bytes to hold the results",
    )


def region_parameters(ref: RegionRef, size: int) -> dict[str, Parameter]:
    """The parameters of an output in a reply, in place of its ``size`` bytes."""
    parameters: dict[str, Parameter] = {REGION: ref.region}
    if ref.offset:
        parameters[OFFSET] = ref.offset
    parameters[BYTE_SIZE] = size
    return parameters
