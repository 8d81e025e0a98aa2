"""Opening CUDA IPC handles, by libraries that are only functions here, called as C calls them."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import RegionRef
from penstock.server import cuda_memory
from penstock.server.cuda_memory import HANDLE_BYTES, CudaRuntime, Handle, cuda_mapping
from penstock.server.shared_memory import Kind, SharedMemory

_INT, _POINTER, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
LENT = bytes(range(HANDLE_BYTES))
"""The only handle that opens."""


class FakeCuda:
    """CUDA's runtime and driver in one. ``memory`` is the GPU's; ``fails`` names what fails."""

    def __init__(self, byte_size: int = 4096) -> None:
        self.memory = (ctypes.c_char * byte_size)()
        self.opened = self.device = 0
        self.devices: list[int] = []
        self.fails = ""
        address = ctypes.addressof(self.memory)

        def open_handle(pointer: Any, handle: Any, flags: int) -> int:
            self.devices.append(self.device)
            if bytes(handle) != LENT or flags != 1 or self.fails == "open":
                return 400
            self.opened += 1
            pointer[0] = address + 256
            return 0

        def close_handle(pointer: int) -> int:
            assert pointer == address + 256
            self.opened -= 1
            return 0

        def copy(to: int, start: int, size: int, kind: int) -> int:
            device = start if kind == 2 else to
            assert address + 256 <= device <= device + size <= address + byte_size
            if self.fails == "copy":
                return 700
            ctypes.memmove(to, start, size)
            return 0

        def size_of(base: Any, size: Any, pointer: int) -> int:
            base[0], size[0] = address, byte_size
            return 1 if self.fails == "range" else 0

        self._keep(open_handle, close_handle, copy, size_of)

    def _keep(self, open_handle: Any, close_handle: Any, copy: Any, size_of: Any) -> None:
        def get_device(pointer: Any) -> int:
            pointer[0] = self.device
            return 0

        def set_device(device: int) -> int:
            self.device = device
            return 0

        out = ctypes.POINTER(_POINTER)
        self.cudaIpcOpenMemHandle = _function(open_handle, out, Handle, ctypes.c_uint)
        self.cudaIpcCloseMemHandle = _function(close_handle, _POINTER)
        self.cudaMemcpy = _function(copy, _POINTER, _POINTER, _SIZE, _INT)
        self.cudaGetDevice = _function(get_device, ctypes.POINTER(_INT))
        self.cudaSetDevice = _function(set_device, _INT)
        self.cudaGetErrorString = _Named(b"it does not work")
        self.cuMemGetAddressRange_v2 = _function(size_of, out, ctypes.POINTER(_SIZE), _POINTER)


class _Named:
    def __init__(self, text: bytes) -> None:
        self._text = text

    def __call__(self, status: int) -> bytes:
        return self._text


def _function(call: Callable[..., int], *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(_INT, *arguments)(call)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def test_reads_and_writes(cuda: FakeCuda) -> None:
    cuda.memory[256:261] = b"input"
    mapping = cuda_mapping(CudaRuntime(cuda, cuda), LENT, 3, 100)
    assert cuda.devices == [3]
    assert cuda.device == 0  # as it was before
    assert mapping.read(0, 5) == b"input"
    place = mapping.write(50, 10)
    assert place is not None
    host, written = place
    host[:6] = b"output"
    assert written is not None
    assert bytes(cuda.memory[306:312]) == bytes(6)
    written(6)
    assert bytes(cuda.memory[306:316]) == b"output" + bytes(4)


def test_closes_when_nobody_holds_it(cuda: FakeCuda) -> None:
    mapping = cuda_mapping(CudaRuntime(cuda, cuda), LENT, 0, 100)
    place = mapping.write(0, 10)
    del mapping
    gc.collect()
    assert cuda.opened == 1
    del place
    gc.collect()
    assert cuda.opened == 0


@pytest.mark.parametrize("fails", ["open", "range"])
def test_what_does_not_open(cuda: FakeCuda, fails: str, caplog: pytest.LogCaptureFixture) -> None:
    cuda.fails = fails
    with pytest.raises(ValueError):
        cuda_mapping(CudaRuntime(cuda, cuda), LENT, 0, 100)
    assert "cannot open a CUDA IPC handle" in caplog.text
    assert cuda.opened == cuda.device == 0


@pytest.mark.parametrize(
    ("handle", "device", "byte_size"),
    [(LENT[1:], 0, 1), (LENT + b"x", 0, 1), (bytes(64), 0, 1), (LENT, -1, 1), (LENT, 1 << 31, 1),
     (LENT, 0, 4096 - 256 + 1)],
)  # fmt: skip
def test_arguments_that_are_wrong(
    cuda: FakeCuda, handle: bytes, device: int, byte_size: int
) -> None:
    with pytest.raises(ValueError):
        cuda_mapping(CudaRuntime(cuda, cuda), handle, device, byte_size)
    gc.collect()
    assert cuda.opened == 0


def test_copies_that_fail_are_the_requests_errors(cuda: FakeCuda) -> None:
    mapping = cuda_mapping(CudaRuntime(cuda, cuda), LENT, 0, 100)
    place = mapping.write(0, 4)
    assert place is not None
    assert place[1] is not None
    cuda.fails = "copy"
    with pytest.raises(InferError, match="from the GPU: CUDA error 700: it does not work") as read:
        mapping.read(0, 4)
    with pytest.raises(InferError, match="failed to copy to the GPU") as wrote:
        place[1](4)
    assert read.value.code is wrote.value.code is Code.INTERNAL


def test_through_the_registry(cuda: FakeCuda) -> None:
    runtime = CudaRuntime(cuda, cuda)
    memory = SharedMemory(True, open_cuda=lambda *asked: cuda_mapping(runtime, *asked))
    memory.register_cuda("g", LENT, 0, 3840)
    cuda.memory[300:304] = b"here"
    assert memory.resolve(RegionRef("g", 44, 4)) == b"here"
    memory.unregister("g", Kind.CUDA)
    gc.collect()
    assert cuda.opened == 0


def test_a_machine_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_memory, "_DRIVER", "libcuda-is-not-here.so.1")
    cuda_memory.cuda_runtime.cache_clear()
    with pytest.raises(LookupError):
        cuda_memory.open_cuda(LENT, 0, 1)
