"""The messages that every codec reads and writes: one request type, one reply type.

A message is a *signature* (everything but the tensor bytes: names, dtypes, shapes, wanted outputs)
and the *arrays* that fill it, in the signature's order. The split is what keeps the gateway fast:
clients send the same signature again and again, codecs recognise it and hand out the same object,
and whoever needs something derived from it (checks, stack keys, encoded heads) derives it once per
signature instead of once per request.

Arrays are NumPy arrays of ``spec.dtype.numpy``; decoders make them as views into the received
buffer (read-only, perhaps unaligned), so the buffer lives as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType

Array = NDArray[Any]
Parameter = str | int | float | bool
NO_PARAMETERS: Final[Mapping[str, Parameter]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Declared name, dtype and shape of a tensor; -1 is a dimension of any size."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """One output that a request asks for.

    ``parameters`` are what the client attached to it (``binary_data``, ``classification``...).
    """

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=lambda: NO_PARAMETERS)


class RegionRef(NamedTuple):
    """Where a tensor lies in memory that the client shares: bytes from ``offset`` of ``region``."""

    region: str
    offset: int
    byte_size: int


Resolve = Callable[[RegionRef], memoryview]
"""Gives the bytes that a reference names, ``byte_size`` of them; raises ``InferError`` if there is
no such region, if it is too small, or if shared memory is not allowed. Called for each tensor of
each request: a region may be registered anew under its name at any time."""


class Target(NamedTuple):
    """Memory of the client that an output is written to.

    ``memory`` is writable, ``ref.byte_size`` bytes long, and stays valid as long as it is held.
    ``written(n)`` is called once its first n bytes are in place, where that is not all that there
    is to do (device memory). ``alone`` says that no input can lie in this memory under another
    address, so it may be written to before the inputs are done with, if it does not overlap them.
    """

    ref: RegionRef
    memory: memoryview
    written: Callable[[int], None] | None = None
    alone: bool = False


class Regions(Protocol):
    """The clients' shared memory as codecs see it; ``Resolve`` says what both raise."""

    def resolve(self, ref: RegionRef) -> memoryview:
        """The bytes of an input; see ``Resolve``."""
        ...

    def target(self, ref: RegionRef) -> Target:
        """Where an output goes. Asked for when the request is read, so that a wrong name fails
        before the model runs, and what is unregistered meanwhile stays there for the reply."""
        ...


NO_TARGETS: Final[Mapping[str, Target]] = MappingProxyType({})


class Signature:
    """Everything about a message but its tensor bytes. Immutable; compared by identity.

    Two requests that share the signature object are alike in all that is declared here, so results
    derived from it may be kept in ``memo`` (owned by the lane that answered last) or in a bounded
    table keyed by the object itself. ``form`` is what the codec that read the message needs in
    order to write the reply; nobody else looks into it.
    """

    __slots__ = ("form", "memo", "outputs", "tensors")

    def __init__(
        self,
        tensors: Sequence[TensorSpec],
        outputs: Sequence[OutputRequest] = (),
        *,
        form: Any = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.outputs = tuple(outputs)
        self.form = form
        self.memo: tuple[object, Any] = (None, None)
        """(owner, value): derived data of one owner; another owner overwrites it."""


class InferRequest:
    """One inference request. ``arrays[i]`` has the dtype and shape of ``signature.tensors[i]``.

    ``model`` empty means the default model, ``version`` empty the version policy's choice.
    ``timeout_us`` 0 means none; ``priority`` 0 means the model's default, 1 is the highest.
    ``targets``, by output name, are where outputs go that the client wants in its own memory.
    Name the arguments after ``arrays``; on the hot path they are positional, which is faster.
    """

    __slots__ = (
        "arrays", "id", "model", "parameters", "priority", "signature", "targets", "timeout_us",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        signature: Signature,
        arrays: Sequence[Array],
        model: str = "",
        version: str = "",
        id: str = "",
        parameters: Mapping[str, Parameter] = NO_PARAMETERS,
        timeout_us: int = 0,
        priority: int = 0,
    ) -> None:
        self.signature = signature
        self.arrays = arrays
        self.model = model
        self.version = version
        self.id = id
        self.parameters = parameters
        self.timeout_us = timeout_us
        self.priority = priority
        self.targets = NO_TARGETS


class InferReply:
    """The answer to one request; ``arrays[i]`` belongs to ``signature.tensors[i]``."""

    __slots__ = ("arrays", "id", "model", "parameters", "signature", "version")

    def __init__(
        self,
        signature: Signature,
        arrays: Sequence[Array],
        model: str = "",
        version: str = "",
        id: str = "",
        parameters: Mapping[str, Parameter] = NO_PARAMETERS,
    ) -> None:
        self.signature = signature
        self.arrays = arrays
        self.model = model
        self.version = version
        self.id = id
        self.parameters = parameters

    def named(self) -> dict[str, Array]:
        """The outputs by name, without copies."""
        return {
            spec.name: array
            for spec, array in zip(self.signature.tensors, self.arrays, strict=True)
        }


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server tells about one model. Shapes hold -1 for the batch and other free sizes."""

    name: str
    version: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    server: str = ""
    description: str = ""


def wire_array(value: object, dtype: DType | None = None) -> tuple[DType, Array]:
    """``value`` as a C-contiguous little-endian array ready for an encoder, and its wire type.

    Copies only what must be converted. ``dtype=BF16`` takes either the 16 bits as uint16, an
    ``ml_dtypes`` bfloat16 array, or a float array, which is rounded to nearest even.
    Strings become an object array of ``bytes`` (UTF-8 for ``str``).

    Raises:
        TypeError: ``value`` has a type that cannot travel, or not the one asked for.
    """
    array: Array = np.asarray(value)
    if dtype is None:
        dtype = dt.of_numpy(array.dtype)
    if dtype is dt.BYTES:
        return dtype, _bytes_array(array)
    if dtype is dt.BF16:
        return dtype, _bf16_bits(array)
    if dt.of_numpy(array.dtype) is not dtype:
        raise TypeError(f"array of {array.dtype} given where {dtype} ({dtype.numpy}) is expected")
    return dtype, np.asarray(array, dtype=dtype.numpy, order="C")


def _bytes_array(array: Array) -> Array:
    out = np.empty(array.shape, dtype=object)
    flat = out.reshape(-1)
    for i, item in enumerate(array.reshape(-1).tolist()):
        if isinstance(item, str):
            flat[i] = item.encode()
        elif isinstance(item, bytes | bytearray | memoryview):
            flat[i] = bytes(item)
        else:
            raise TypeError(f"BYTES elements are bytes or str, not {type(item).__name__}")
    return out


def _bf16_bits(array: Array) -> Array:
    if array.dtype.name == "bfloat16":
        return np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
    if array.dtype == np.uint16:
        return np.asarray(array, dtype=dt.BF16.numpy, order="C")
    if array.dtype.kind != "f":
        raise TypeError(f"array of {array.dtype} given where BF16 is expected")
    bits = np.asarray(array, dtype="<f4", order="C").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = np.isnan(array)
    return np.where(quiet_nan, np.uint32(0x7FC0), rounded).astype("<u2").reshape(array.shape)


def widen_bf16(bits: Array) -> Array:
    """The float32 values of BF16 bits (exact)."""
    return (bits.astype("<u4") << 16).view("<f4").reshape(bits.shape)
