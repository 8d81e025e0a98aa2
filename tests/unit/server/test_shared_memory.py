"""The registry: names, bounds, the texts that Triton's tools expect, and who holds what."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import RegionRef
from penstock.server.shared_memory import (
    RESERVED_KEY_PREFIX,
    CudaRegion,
    Kind,
    SharedMemory,
    SystemRegion,
)
from penstock.server.system_memory import map_system

SIZE = 8192
HANDLE = bytes(64)


class FakeMapping:
    """Host memory that stands for a GPU's; counts what reaches it."""

    def __init__(self, byte_size: int) -> None:
        self.device = bytearray(byte_size)
        self.memory_key = id(self)

    def read(self, offset: int, byte_size: int) -> memoryview | None:
        return memoryview(bytes(self.device[offset : offset + byte_size]))

    def write(
        self, offset: int, byte_size: int
    ) -> tuple[memoryview, Callable[[int], None] | None] | None:
        host = bytearray(byte_size)

        def written(count: int) -> None:
            self.device[offset : offset + count] = host[:count]

        return memoryview(host), written

    def guard(self, offset: int, byte_size: int) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name[:1].encode() * SIZE)
    return tmp_path


@pytest.fixture
def made(folder: Path) -> Callable[..., SharedMemory]:
    def make(allowed: bool = True, **options: Any) -> SharedMemory:
        options.setdefault("open_cuda", lambda handle, device, size: FakeMapping(size))
        return SharedMemory(allowed, map_system=partial(map_system, folder=folder), **options)

    return make


@pytest.fixture
def memory(made: Callable[..., SharedMemory]) -> SharedMemory:
    return made()


def refused(code: Code, text: str, call: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(InferError) as caught:
        call(*arguments)
    assert caught.value.message == text
    assert caught.value.code is code


def test_status_and_the_end(memory: SharedMemory) -> None:
    memory.register_system("a", "/one", 0, 100)
    memory.register_cuda("g", HANDLE, 1, 64)
    memory.register_system("b", "two", 4, 50)
    one, two = SystemRegion("a", "/one", 0, 100), SystemRegion("b", "two", 4, 50)
    gpu = CudaRegion("g", 1, 64)
    assert memory.status("", Kind.SYSTEM) == [one, two]
    assert memory.status("b", Kind.SYSTEM) == [two]
    assert memory.status("", Kind.CUDA) == memory.status("g", Kind.CUDA) == [gpu]
    memory.unregister("g", Kind.SYSTEM)  # of the other kind: not there
    memory.unregister("absent", Kind.SYSTEM)
    memory.unregister("a", Kind.SYSTEM)
    assert memory.status("", Kind.SYSTEM) == [two]
    assert memory.status("", Kind.CUDA) == [gpu]
    memory.unregister("", Kind.SYSTEM)
    assert memory.status("", Kind.SYSTEM) == []
    assert memory.status("", Kind.CUDA) == [gpu]
    memory.close()
    assert memory.status("", Kind.CUDA) == []


def test_texts_of_status(memory: SharedMemory) -> None:
    memory.register_system("a", "one", 0, 1)
    memory.register_cuda("g", HANDLE, 0, 1)
    for kind, name, text in (
        (Kind.SYSTEM, "x", "Unable to find system shared memory region: 'x'"),
        (Kind.CUDA, "x", "Unable to find cuda shared memory region: 'x'"),
        (
            Kind.SYSTEM,
            "g",
            "The region named 'g' is registered as CUDA shared memory, not system shared memory",
        ),
        (
            Kind.CUDA,
            "a",
            "The region named 'a' is registered as system shared memory, not CUDA shared memory",
        ),
    ):
        refused(Code.NOT_FOUND, text, memory.status, name, kind)


def test_what_cannot_be_registered(memory: SharedMemory) -> None:
    system, cuda = memory.register_system, memory.register_cuda
    invalid, args = Code.INVALID_ARGUMENT, "failed to register shared memory region 'a': "
    refused(Code.INTERNAL, "Unable to open shared memory region: '/no'", system, "a", "/no", 0, 1)
    refused(Code.INTERNAL, "Unable to open shared memory region: '../x'", system, "a", "../x", 0, 1)
    for offset, size in ((0, SIZE + 1), (SIZE, 1), (0, 0), (-1, 1), (0, -1)):
        refused(invalid, args + "invalid args", system, "a", "one", offset, size)
    refused(invalid, args + "invalid args", cuda, "a", HANDLE, 0, 0)
    empty = "failed to register shared memory region '': invalid args"
    refused(invalid, empty, system, "", "one", 0, 1)
    key = "/triton_python_backend_shm_region_1"
    reserved = (
        f"cannot register shared memory region 'a' with key '{key}' as the key contains the "
        "reserved prefix 'triton_python_backend_shm_region_'"
    )
    refused(invalid, reserved, system, "a", key, 0, 1)
    assert memory.status("", Kind.SYSTEM) == memory.status("", Kind.CUDA) == []


def test_one_set_of_names(memory: SharedMemory) -> None:
    memory.register_system("a", "one", 0, 1)
    memory.register_cuda("g", HANDLE, 0, 1)
    for name in "ag":
        taken = f"shared memory region '{name}' already in manager"
        refused(Code.ALREADY_EXISTS, taken, memory.register_system, name, "two", 0, 1)
        refused(Code.ALREADY_EXISTS, taken, memory.register_cuda, name, HANDLE, 0, 1)


def test_no_cuda_and_a_handle_that_is_none(made: Callable[..., SharedMemory]) -> None:
    def open_cuda(error: Exception, *_: Any) -> Any:
        raise error

    memory = made(open_cuda=partial(open_cuda, LookupError("none")))
    text = "failed to register CUDA shared memory region: 'g', GPUs not supported"
    refused(Code.INVALID_ARGUMENT, text, memory.register_cuda, "g", HANDLE, 0, 1)
    memory = made(open_cuda=partial(open_cuda, ValueError("no")))
    text = "failed to register shared memory region 'g': invalid args"
    refused(Code.INVALID_ARGUMENT, text, memory.register_cuda, "g", HANDLE, 0, 1)


def test_limits(made: Callable[..., SharedMemory]) -> None:
    memory = made(regions_max=2, mapped_bytes_max=1000)
    memory.register_system("a", "one", 0, 600)
    with pytest.raises(InferError, match="all regions together may have 1000 bytes") as caught:
        memory.register_cuda("b", HANDLE, 0, 401)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    memory.register_cuda("b", HANDLE, 0, 400)
    with pytest.raises(InferError, match="there are 2 already") as caught:
        memory.register_system("c", "one", 0, 1)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    memory.unregister("", Kind.SYSTEM)
    memory.register_system("c", "two", 0, 600)  # room again, of both


def test_disabled(made: Callable[..., SharedMemory]) -> None:
    memory = made(allowed=False)
    text = (
        "Client shared memory is disabled. "
        "Start the server with '--allow-client-shm=true' to enable."
    )
    refused(Code.INVALID_ARGUMENT, text, memory.register_system, "a", "one", 0, 1)
    refused(Code.INVALID_ARGUMENT, text, memory.register_cuda, "a", HANDLE, 0, 1)
    refused(Code.INVALID_ARGUMENT, text, memory.resolve, RegionRef("a", 0, 1))
    refused(Code.INVALID_ARGUMENT, text, memory.target, RegionRef("a", 0, 1))
    assert memory.status("", Kind.SYSTEM) == []
    memory.unregister("", Kind.SYSTEM)


def test_bounds(memory: SharedMemory) -> None:
    memory.register_system("a", "one", 96, 1000)
    for call in (memory.resolve, memory.target):
        refused(
            Code.NOT_FOUND,
            "Unable to find shared memory region: 'x'",
            call,
            RegionRef("x", 0, 1),
        )
        for offset in (1000, 1 << 70, -1):
            text = "Invalid offset for shared memory region: 'a'"
            refused(Code.INVALID_ARGUMENT, text, call, RegionRef("a", offset, 0))
        for offset, size in ((0, 1001), (999, 2), (1, 1 << 70), (0, -1)):
            text = "Invalid offset + byte size for shared memory region: 'a'"
            refused(Code.INVALID_ARGUMENT, text, call, RegionRef("a", offset, size))
    assert memory.resolve(RegionRef("a", 999, 1)) == b"o"
    assert memory.resolve(RegionRef("a", 0, 0)) == b""


def test_inputs_and_outputs_are_the_clients_memory(memory: SharedMemory, folder: Path) -> None:
    memory.register_system("a", "one", 96, 1000)
    target = memory.target(RegionRef("a", 4, 8))
    assert target.written is None
    target.memory[:] = b"an array"
    view = memory.resolve(RegionRef("a", 0, 16))
    assert view == b"ooooan arrayoooo"
    assert (folder / "one").read_bytes()[100:108] == b"an array"
    assert np.shares_memory(np.frombuffer(view, "u1"), np.frombuffer(target.memory, "u1"))


def test_outputs_of_a_gpu_reach_it_when_they_are_written(
    made: Callable[..., SharedMemory],
) -> None:
    opened: list[FakeMapping] = []

    def open_cuda(handle: bytes, device: int, byte_size: int) -> FakeMapping:
        opened.append(FakeMapping(byte_size))
        return opened[0]

    memory = made(open_cuda=open_cuda)
    memory.register_cuda("g", HANDLE, 0, 64)
    target = memory.target(RegionRef("g", 8, 4))
    target.memory[:] = b"here"
    assert bytes(opened[0].device) == bytes(64)
    assert target.written is not None
    target.written(4)
    assert memory.resolve(RegionRef("g", 6, 8)) == b"\0\0here\0\0"


def test_unregistered_while_in_flight(memory: SharedMemory, folder: Path) -> None:
    memory.register_system("a", "one", 0, SIZE)
    view = memory.resolve(RegionRef("a", 0, SIZE))
    target = memory.target(RegionRef("a", 0, 5))
    memory.unregister("a", Kind.SYSTEM)
    refused(
        Code.NOT_FOUND,
        "Unable to find shared memory region: 'a'",
        memory.resolve,
        RegionRef("a", 0, 1),
    )
    memory.register_system("a", "two", 0, 100)  # another of that name, at once
    target.memory[:] = b"still"
    assert bytes(view[:6]) == b"stillo"
    assert (folder / "one").read_bytes()[:5] == b"still"
    assert memory.resolve(RegionRef("a", 0, 3)) == b"ttt"
    memory.close()
    assert view[5] == ord("o")
    assert str(folder / "one") in Path("/proc/self/maps").read_text()
    del view, target
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_a_file_cut_short_is_an_error(memory: SharedMemory, folder: Path) -> None:
    memory.register_system("a", "one", 0, SIZE)
    os.truncate(folder / "one", 100)
    for call in (memory.resolve, memory.target):
        with pytest.raises(InferError, match="'a'; its memory is smaller now"):
            call(RegionRef("a", 0, 101))
        call(RegionRef("a", 0, 100))


def test_known_places_are_looked_after(memory: SharedMemory, folder: Path) -> None:
    """What was given before is given again only as long as it would be given anew."""
    ref = RegionRef("a", 8, 4)
    memory.register_system("a", "one", 0, SIZE)
    assert memory.resolve(ref) == b"oooo"
    target = memory.target(ref)
    assert memory.target(ref) is target
    target.memory[:] = b"next"
    assert memory.resolve(ref) == b"next"
    assert memory.resolve(ref).readonly
    for again in (memory.resolve, memory.target):
        os.truncate(folder / "one", 11)
        with pytest.raises(InferError, match="'a'; its memory is smaller now"):
            again(ref)
        os.truncate(folder / "one", SIZE)
        again(ref)
    memory.unregister("a", Kind.SYSTEM)
    for again in (memory.resolve, memory.target):
        refused(Code.NOT_FOUND, "Unable to find shared memory region: 'a'", again, ref)
    memory.register_system("a", "two", 0, SIZE)
    assert memory.resolve(ref) == b"tttt"
    memory.unregister("", Kind.SYSTEM)
    memory.register_system("a", "one", 0, 10)
    with pytest.raises(InferError, match=r"Invalid offset \+ byte size"):
        memory.resolve(ref)


def test_known_places_are_bounded_and_hold_nothing(
    memory: SharedMemory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.server.shared_memory.PLACES_MAX", 8)
    memory.register_system("a", "one", 0, SIZE)
    memory.register_system("b", "two", 0, SIZE)
    for offset in range(20):
        memory.resolve(RegionRef("a", offset, 4))
        assert 0 < len(memory._places) <= 8
    memory.target(RegionRef("b", 0, 4))
    memory.unregister("a", Kind.SYSTEM)
    memory.unregister("b", Kind.SYSTEM)
    assert not memory._places
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_the_same_object_under_two_names(memory: SharedMemory) -> None:
    memory.register_system("a", "one", 0, SIZE)
    memory.register_system("b", "one", 0, SIZE // 2)
    memory.target(RegionRef("a", 0, 5)).memory[:] = b"twice"
    memory.unregister("a", Kind.SYSTEM)
    assert memory.resolve(RegionRef("b", 0, 5)) == b"twice"


@pytest.mark.parametrize(("descriptors", "regions"), [(-1, 1024), (1 << 20, 1024), (1024, 256)])
def test_regions_leave_descriptors_to_connections(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, regions: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (descriptors, descriptors))
    assert SharedMemory(True)._regions_max == regions


def test_a_long_key_is_cut_in_errors(memory: SharedMemory) -> None:
    for key in ("k" * 100_000, f"{RESERVED_KEY_PREFIX}{'k' * 100_000}"):
        with pytest.raises(InferError) as caught:
            memory.register_system("a", key, 0, 1)
        assert len(caught.value.message) < 600
