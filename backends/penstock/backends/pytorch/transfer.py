"""Takes arrays to where PyTorch computes, and brings results back.

Knows NumPy arrays, tensors and CUDA streams. Must not know artefacts.

Contract: what ``give`` makes is valid while the given arrays are; what ``take`` makes is the
caller's alone. On the CPU nothing is copied that need not be; on CUDA everything goes through
page-locked memory on one stream, and ``take`` returns when it has arrived.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from penstock.backends.base import RunError
from penstock.backends.pytorch.programs import DTYPES, Program
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array


class Transfer(Protocol):
    """One way there and back. ``lane`` is entered around ``give``, the program and ``take``."""

    def lane(self) -> contextlib.AbstractContextManager[Any]: ...

    def give(self, arrays: Sequence[Array]) -> list[Any]: ...

    def take(self, made: Sequence[Any], given: Sequence[Any]) -> list[Array]: ...


class CpuTransfer:
    """Tensors over the memory of arrays, and arrays over the memory of tensors."""

    def __init__(self, torch: Any, made: Program) -> None:
        self._torch = torch
        self._program = made
        self._types = {getattr(torch, name): dtype for name, dtype in DTYPES.items()}

    def lane(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def give(self, arrays: Sequence[Array]) -> list[Any]:
        copies = not self._program.borrows
        pairs = zip(arrays, self._program.inputs, strict=True)
        return [
            _tensor(self._torch, array.copy() if copies else array, spec.dtype is dt.BF16)
            for array, spec in pairs
        ]

    def take(self, made: Sequence[Any], given: Sequence[Any]) -> list[Array]:
        _check(made, self._program, self._types)
        weights = self._program.weights
        if weights is None:
            return [_array(self._torch, tensor.clone()) for tensor in made]
        # Views of inputs, of weights and of each other are not the caller's alone.
        taken = {*weights, *(tensor.untyped_storage().data_ptr() for tensor in given)}
        arrays = []
        for tensor in made:
            place = tensor.untyped_storage().data_ptr()
            arrays.append(_array(self._torch, tensor.clone() if place in taken else tensor))
            taken.add(place)
        return arrays


class CudaTransfer:
    """One stream; page-locked memory comes from PyTorch's cache, which waits for the stream."""

    def __init__(self, torch: Any, made: Program, device: str) -> None:
        self._torch = torch
        self._program = made
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)
        self._types = {getattr(torch, name): dtype for name, dtype in DTYPES.items()}

    def lane(self) -> contextlib.AbstractContextManager[Any]:
        lane: contextlib.AbstractContextManager[Any] = self._torch.cuda.stream(self._stream)
        return lane

    def give(self, arrays: Sequence[Array]) -> list[Any]:
        given = []
        for array, spec in zip(arrays, self._program.inputs, strict=True):
            there = _tensor(self._torch, array, spec.dtype is dt.BF16)
            locked = self._torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            locked.copy_(there)
            given.append(locked.to(self._device, non_blocking=True))
        return given

    def take(self, made: Sequence[Any], given: Sequence[Any]) -> list[Array]:
        _check(made, self._program, self._types)
        locked = []
        for tensor in made:
            here = self._torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            here.copy_(tensor, non_blocking=True)
            locked.append(here)
        self._stream.synchronize()
        return [_array(self._torch, tensor) for tensor in locked]


class _Writable:
    """Memory that PyTorch may think writable; it warns of any other, once for each process."""

    def __init__(self, array: Array) -> None:
        self.array = array
        place = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (place, False)}


def _tensor(torch: Any, array: Array, bf16: bool) -> Any:
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if bf16 else tensor


def _array(torch: Any, tensor: Any) -> Array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    array: Array = tensor.numpy()
    return array


def _check(made: Sequence[Any], program: Program, types: dict[Any, Any]) -> None:
    """Whether the program gives what was declared; of some kinds only the operator says what."""
    if len(made) != len(program.outputs):
        raise RunError(f"the model gave {len(made)} outputs, not {len(program.outputs)}")
    for tensor, spec in zip(made, program.outputs, strict=True):
        if types.get(tensor.dtype) is not spec.dtype or tensor.dim() != len(spec.shape):
            raise RunError(
                f"the model gave output {spec.name!r} as {tensor.dtype} {list(tensor.shape)}, but "
                f"it is declared {spec.dtype.name} {list(spec.shape)}"
            )
