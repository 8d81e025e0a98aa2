"""``cuda.bindings.driver`` without a GPU: the calls that we make, with lazy streams.

Nothing that is put into a stream happens before somebody waits for it, so whoever reads too early,
or reuses memory that is still to be read, gets wrong results. Misuse raises AssertionError.
``test_tensorrt_fakes`` holds names and parameters against the real module.
"""

# ruff: noqa: N802, N803
from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


OK = CUresult.CUDA_SUCCESS
LOST = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS


class Stream:
    def __init__(self, context: object) -> None:
        self.context = context
        self.queue: list[Callable[[], None]] = []

    def __int__(self) -> int:
        return id(self)

    def run(self, until: object = None) -> None:
        while self.queue and (until is None or until in self.queue):
            self.queue.pop(0)()


class Event:
    def __init__(self, flags: int) -> None:
        self.sleeps = bool(flags & 1)
        self.recorded: Callable[[], None] | None = None
        self.stream: Stream | None = None


class FakeDriver:
    """``devices`` GPUs that share ``memory_bytes``. ``lost`` makes whatever touches one fail, from
    the next wait on, as after a bad kernel: launches and copies before it do not know yet."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
    )

    def __init__(self, memory_bytes: int = 1 << 30, devices: int = 1) -> None:
        self.memory_bytes = memory_bytes
        self.devices = devices
        self.device_memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.events: list[Event] = []
        self.retained = 0
        self.lost = False
        self.known_lost = False
        self.waits = 0
        self._current = threading.local()
        self._lock = threading.RLock()

    def cuInit(self, Flags):
        return (OK,)

    def cuDeviceGetCount(self):
        return OK, self.devices

    def cuDeviceGet(self, ordinal):
        return OK, ordinal

    def cuDeviceGetAttribute(self, attrib, dev):
        return OK, {75: 9, 76: 0}[attrib]

    def cuDeviceGetName(self, length, dev):
        return OK, b"Fake H200".ljust(length, b"\0")

    def cuDriverGetVersion(self):
        return OK, 13000

    def cuGetErrorString(self, error):
        return OK, error.name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()

    def cuDevicePrimaryCtxRetain(self, dev):
        with self._lock:
            self.retained += 1
        return OK, f"primary {dev}"

    def cuDevicePrimaryCtxRelease(self, dev):
        with self._lock:
            self.retained -= 1
            assert self.retained >= 0, "released more often than retained"
        return (OK,)

    def cuCtxSetCurrent(self, ctx):
        assert ctx in (f"primary {i}" for i in range(self.devices)), f"{ctx!r} is no context"
        self._current.context = ctx
        return (OK,)

    def cuStreamCreate(self, Flags):
        context = self._needs_context()
        if self.known_lost:
            return LOST, None
        assert Flags == 1, "a stream that waits for the default stream serialises everything"
        stream = Stream(context)
        self.streams[int(stream)] = stream
        return OK, stream

    def cuStreamDestroy(self, hStream):
        self._needs_context(hStream.context)
        if self.known_lost:
            return (LOST,)
        assert not hStream.queue, "the stream is destroyed with work in it"
        del self.streams[int(hStream)]
        return (OK,)

    def cuStreamSynchronize(self, hStream):
        return self._wait(hStream, None)

    def cuEventCreate(self, Flags):
        self._needs_context()
        event = Event(Flags)
        self.events.append(event)
        return OK, event

    def cuEventDestroy(self, hEvent):
        self._needs_context()
        if self.known_lost:
            return (LOST,)
        self.events.remove(hEvent)
        return (OK,)

    def cuEventRecord(self, hEvent, hStream):
        self._needs_context(hStream.context)
        if self.known_lost:
            return (LOST,)
        assert hEvent in self.events, "the event is gone"

        def reached() -> None:
            pass

        hEvent.recorded, hEvent.stream = reached, hStream
        hStream.queue.append(reached)
        return (OK,)

    def cuEventSynchronize(self, hEvent):
        assert hEvent.recorded is not None, "nobody recorded the event"
        return self._wait(hEvent.stream, hEvent.recorded)

    def cuMemAlloc(self, bytesize):
        self._needs_context()
        if self.known_lost:
            return LOST, None
        with self._lock:
            held = sum(len(block) for block in self.device_memory.values())
            if bytesize <= 0:
                return CUresult.CUDA_ERROR_INVALID_VALUE, 0
            if held + bytesize > self.memory_bytes:
                return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
            block = (ctypes.c_uint8 * bytesize)()
            self.device_memory[ctypes.addressof(block)] = block
            return OK, ctypes.addressof(block)

    def cuMemFree(self, dptr):
        self._needs_context()
        if self.known_lost:
            return (LOST,)
        for stream in list(self.streams.values()):
            stream.run()  # as the real one waits for the device
        with self._lock:
            del self.device_memory[dptr]
        return (OK,)

    def cuMemHostAlloc(self, bytesize, Flags):
        self._needs_context()
        if self.known_lost:
            return LOST, None
        block = (ctypes.c_uint8 * bytesize)()
        self.pinned[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cuMemFreeHost(self, p):
        self._needs_context()
        if self.known_lost:
            return (LOST,)
        assert not any(stream.queue for stream in self.streams.values() if stream.queue), (
            "pinned memory is freed while copies wait"
        )
        del self.pinned[p]
        return (OK,)

    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream):
        return (self._copy(dstDevice, srcHost, ByteCount, hStream, dstDevice, srcHost),)

    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream):
        return (self._copy(dstHost, srcDevice, ByteCount, hStream, srcDevice, dstHost),)

    def check_device(self, address: int, nbytes: int) -> None:
        """That these bytes are within one allocation that was not freed."""
        assert _within(self.device_memory, address, nbytes), "no such device memory"

    def held(self) -> int:
        """Everything that somebody has to free."""
        kinds = (self.device_memory, self.pinned, self.streams, self.events)
        return self.retained + sum(len(kind) for kind in kinds)

    def _copy(self, to, source, nbytes, stream, device, host) -> CUresult:
        self._needs_context(stream.context)
        if self.known_lost:
            return LOST
        assert int(stream) in self.streams, "the stream is gone"
        self.check_device(device, nbytes)
        assert _within(self.pinned, host, nbytes), "the device copies from pinned memory only"
        stream.queue.append(lambda: ctypes.memmove(to, source, nbytes))
        return OK

    def _wait(self, stream, until):
        self._needs_context(stream.context)
        self.waits += 1
        if self.lost:
            self.known_lost = True
            stream.queue.clear()
            return (LOST,)
        stream.run(until)
        return (OK,)

    def _needs_context(self, wanted: object = None) -> object:
        current = getattr(self._current, "context", None)
        assert current is not None, "no context is current on this thread"
        assert wanted in (None, current), f"{current} is current, and not {wanted}"
        assert self.retained > 0, "the context is gone"
        return current


def _within(blocks: dict[int, Any], address: int, nbytes: int) -> bool:
    return any(
        base <= address and address + nbytes <= base + len(block)
        for base, block in list(blocks.items())
    )
