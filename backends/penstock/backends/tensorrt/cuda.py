"""The few calls of CUDA's driver that running a plan takes, as objects.

Knows ``cuda.bindings.driver``, which is imported when a device is opened, and how to find out by
ctypes whether there is a driver at all: TensorRT's runtime must not even be constructed without
one. Knows nothing of plans and tensors.

Contract: every failure is ``CudaError``. Memory and handles are freed by whoever made them, on a
thread that made the device current; waiting releases the GIL.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError
from penstock.protocol.message import Array

_DRIVER: Final = "libcuda.so.1"
_NAME_BYTES: Final = 256
_NON_BLOCKING: Final = 1
_BLOCKING_SYNC: Final = 1
_DISABLE_TIMING: Final = 2
_PORTABLE: Final = 1
_FATAL: Final = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT", "CONTAINED", "CONTEXT_IS_DESTROYED", "DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE",
        "EXTERNAL_DEVICE", "HARDWARE_STACK_ERROR", "ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED", "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS", "MPS_CLIENT_TERMINATED", "NVLINK_UNCORRECTABLE",
        "TENSOR_MEMORY_LEAK",
    )
)  # fmt: skip
"""After one of these, every call of this process on this GPU fails with it."""


class CudaError(Exception):
    """A call of the driver failed."""


def driver_missing() -> str:
    """Why nothing can run on a GPU here; empty if something can. Never raises, never crashes."""
    return _probe()[1]


def device_names() -> tuple[str, ...]:
    """``cuda:0`` and so on, with the names of the GPUs; empty without a driver."""
    driver, missing = _probe()
    if missing:
        return ()
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return tuple(f"cuda:{i} ({_name(driver, i)})" for i in range(count.value))


def _probe() -> tuple[Any, str]:
    try:
        driver = ctypes.CDLL(_DRIVER)
        status = driver.cuInit(0)
    except (OSError, AttributeError):
        return None, f"there is no NVIDIA driver ({_DRIVER}) on this machine"
    if status:
        return None, f"the NVIDIA driver finds no GPU that it can use (cuInit says {status})"
    return driver, ""


def _name(driver: Any, ordinal: int) -> str:
    device, text = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    if driver.cuDeviceGet(ctypes.byref(device), ordinal):
        return "unknown"
    driver.cuDeviceGetName(text, _NAME_BYTES, device)
    return text.value.decode(errors="replace")


def bindings() -> Any:
    """``cuda.bindings.driver``.

    Raises:
        LoadError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise LoadError(
            f"backend 'tensorrt' needs CUDA's bindings: pip install 'penstock[tensorrt]' ({error})"
        ) from error


class Device:
    """The primary context of one GPU, which TensorRT and everybody else in the process share.

    ``driver`` is ``cuda.bindings.driver`` or what stands for it. ``capability`` is as in ``9.0``.
    """

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver = driver
        self._call(driver.cuInit(0))
        count = self._call(driver.cuDeviceGetCount())
        if ordinal >= count:
            raise CudaError(f"there is no cuda:{ordinal}; this machine has {count} CUDA devices")
        device = self._call(driver.cuDeviceGet(ordinal))
        attributes = driver.CUdevice_attribute
        major, minor = (
            self._call(driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        raw = self._call(driver.cuDeviceGetName(_NAME_BYTES, device))
        version = self._call(driver.cuDriverGetVersion())
        self.name = raw.split(b"\0", 1)[0].decode(errors="replace")
        self.capability = f"{major}.{minor}"
        self.driver_version = f"{version // 1000}.{version % 1000 // 10}"
        self._device = device
        self._context = self._call(driver.cuDevicePrimaryCtxRetain(device))

    def make_current(self) -> None:
        """For the calling thread, until anybody makes another so, as libraries may."""
        self._call(self._driver.cuCtxSetCurrent(self._context))

    def close(self) -> None:
        """Once nothing of this device is used any more."""
        self._call(self._driver.cuDevicePrimaryCtxRelease(self._device))

    def stream(self) -> Any:
        """A queue that does not wait for the default stream."""
        return self._call(self._driver.cuStreamCreate(_NON_BLOCKING))

    def free_stream(self, stream: Any) -> None:
        self._call(self._driver.cuStreamDestroy(stream))

    def event(self, *, sleeps: bool) -> Any:
        """``sleeps``: whoever waits for it gives its core away, and wakes some µs later."""
        flags = _DISABLE_TIMING | (_BLOCKING_SYNC if sleeps else 0)
        return self._call(self._driver.cuEventCreate(flags))

    def free_event(self, event: Any) -> None:
        self._call(self._driver.cuEventDestroy(event))

    def record(self, event: Any, stream: Any) -> None:
        self._call(self._driver.cuEventRecord(event, stream))

    def wait(self, event: Any) -> None:
        """Until what was in the stream when the event was recorded is done."""
        self._call(self._driver.cuEventSynchronize(event))

    def drain(self, stream: Any) -> None:
        """Until the stream has nothing left to do."""
        self._call(self._driver.cuStreamSynchronize(stream))

    def allocate(self, nbytes: int) -> Any:
        """Device memory; ``int`` of it is the address."""
        return self._call(self._driver.cuMemAlloc(nbytes))

    def free(self, memory: Any) -> None:
        self._call(self._driver.cuMemFree(memory))

    def pin(self, nbytes: int) -> tuple[Array, Any]:
        """Host memory that the device can read by itself, as bytes; and what ``unpin`` takes."""
        address = self._call(self._driver.cuMemHostAlloc(nbytes, _PORTABLE))
        raw = (ctypes.c_uint8 * nbytes).from_address(int(address))
        return np.ctypeslib.as_array(raw), address

    def unpin(self, memory: Any) -> None:
        self._call(self._driver.cuMemFreeHost(memory))

    def copy_in(self, device: int, host: int, nbytes: int, stream: Any) -> None:
        self._call(self._driver.cuMemcpyHtoDAsync(device, host, nbytes, stream))

    def copy_out(self, host: int, device: int, nbytes: int, stream: Any) -> None:
        self._call(self._driver.cuMemcpyDtoHAsync(host, device, nbytes, stream))

    def _call(self, answer: tuple[Any, ...]) -> Any:
        status = answer[0]
        if status != 0:
            name = getattr(status, "name", str(status))
            _, text = self._driver.cuGetErrorString(status)
            words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            lost = "; this process has lost the GPU: start it again" if name in _FATAL else ""
            raise CudaError(f"{name}: {words}{lost}")
        return answer[1] if len(answer) > 1 else None
