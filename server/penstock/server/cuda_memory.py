"""Opens memory of a GPU that a client shares by a CUDA IPC handle.

Knows: the few calls of CUDA's libraries that this takes, by ctypes; they are looked for when the
first region is registered, and nothing of CUDA is needed to install or to start. Knows nothing of
regions' names and of requests.

Inputs and outputs are in host memory here, so bytes are copied from the device when a request is
read and to it when its reply is written; both wait for the copy.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any, Final

from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.errors import Code, InferError

HANDLE_BYTES: Final = 64
_LAZY_PEER_ACCESS: Final = 1
_TO_DEVICE: Final = 1
_TO_HOST: Final = 2
_RUNTIMES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_DRIVER: Final = "libcuda.so.1"

_log = logging.getLogger(__name__)


class Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class CudaRuntime:
    """CUDA's runtime and driver. Failures are ``ValueError`` with what CUDA says of them."""

    def __init__(self, runtime: Any, driver: Any) -> None:
        """Takes two ``ctypes.CDLL``; ``AttributeError`` if one lacks a function."""
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        self._open = runtime.cudaIpcOpenMemHandle
        self._open.argtypes = (ctypes.POINTER(pointer), Handle, ctypes.c_uint)
        self._close = runtime.cudaIpcCloseMemHandle
        self._close.argtypes = (pointer,)
        self._copy = runtime.cudaMemcpy
        self._copy.argtypes = (pointer, pointer, size, ctypes.c_int)
        self._range = driver.cuMemGetAddressRange_v2
        self._range.argtypes = (ctypes.POINTER(pointer), ctypes.POINTER(size), pointer)
        self._runtime = runtime

    def open(self, raw_handle: bytes, device: int) -> tuple[int, int]:
        """The address of the memory behind the handle, and how many bytes there are."""
        address, before = ctypes.c_void_p(), ctypes.c_int()
        base, size = ctypes.c_void_p(), ctypes.c_size_t()
        runtime = self._runtime
        self._check(runtime.cudaGetDevice(ctypes.byref(before)))
        self._check(runtime.cudaSetDevice(ctypes.c_int(device)))
        try:
            handle = Handle.from_buffer_copy(raw_handle)
            self._check(self._open(ctypes.byref(address), handle, _LAZY_PEER_ACCESS))
            if self._range(ctypes.byref(base), ctypes.byref(size), address):
                self.close(address.value or 0)
                raise ValueError("the size of the memory cannot be had")
        finally:
            runtime.cudaSetDevice(before)  # others use this thread too
        first = address.value or 0
        return first, (base.value or 0) + size.value - first

    def close(self, address: int) -> None:
        self._close(address)

    def to_host(self, host: int, device: int, byte_size: int) -> None:
        self._check(self._copy(host, device, byte_size, _TO_HOST))

    def to_device(self, device: int, host: int, byte_size: int) -> None:
        self._check(self._copy(device, host, byte_size, _TO_DEVICE))

    def _check(self, status: int) -> None:
        if status:
            said = self._runtime.cudaGetErrorString(status) or b"unknown error"
            raise ValueError(f"CUDA error {status}: {said.decode(errors='replace')}")


class CudaMapping:
    """Memory of a GPU; closed when neither this nor what it gave is held any more."""

    def __init__(self, runtime: CudaRuntime, address: int) -> None:
        self._runtime = runtime
        self._address = self.memory_key = address
        weakref.finalize(self, runtime.close, address)

    def read(self, offset: int, byte_size: int) -> memoryview | None:
        """See ``shared_memory.Mapping``. The bytes are a copy in the host's memory."""
        host = aligned_bytes(byte_size)
        try:
            self._runtime.to_host(host.ctypes.data, self._address + offset, byte_size)
        except ValueError as error:
            raise InferError(Code.INTERNAL, f"failed to copy from the GPU: {error}") from None
        return host.data

    def write(
        self, offset: int, byte_size: int
    ) -> tuple[memoryview, Callable[[int], None] | None] | None:
        """See ``shared_memory.Mapping``. What is written reaches the GPU by ``written``."""
        host = aligned_bytes(byte_size)

        def written(count: int) -> None:
            try:
                self._runtime.to_device(self._address + offset, host.ctypes.data, count)
            except ValueError as error:
                raise InferError(Code.INTERNAL, f"failed to copy to the GPU: {error}") from None

        return host.data, written

    def guard(self, offset: int, byte_size: int) -> None:
        """See ``shared_memory.Mapping``."""


def open_cuda(raw_handle: bytes, device: int, byte_size: int) -> CudaMapping:
    """The memory behind a handle; see ``shared_memory.OpenCuda``."""
    return cuda_mapping(cuda_runtime(), raw_handle, device, byte_size)


def cuda_mapping(
    runtime: CudaRuntime, raw_handle: bytes, device: int, byte_size: int
) -> CudaMapping:
    """``open_cuda`` by a given runtime."""
    if len(raw_handle) != HANDLE_BYTES or not 0 <= device < 1 << 31:
        raise ValueError("not the handle or the number of a device")
    try:
        address, size = runtime.open(raw_handle, device)
    except ValueError as error:
        # Clients are told no more than that their arguments are wrong.
        _log.warning("cannot open a CUDA IPC handle: %s", error)
        raise
    mapping = CudaMapping(runtime, address)
    if byte_size > size:
        raise ValueError(f"the memory has {size} bytes")
    return mapping


@functools.cache
def cuda_runtime() -> CudaRuntime:
    """The libraries of this machine. ``LookupError`` where there are none."""
    for name in _RUNTIMES:
        try:
            return CudaRuntime(ctypes.CDLL(name), ctypes.CDLL(_DRIVER))
        except (OSError, AttributeError):
            continue
    raise LookupError("CUDA is not there")
