"""Whatever offsets and sizes clients name: no byte outside of a region is read or written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.protocol import dtype as dt
from penstock.protocol.errors import PenstockError
from penstock.protocol.message import Array, InferReply, RegionRef, Signature, TensorSpec
from penstock.protocol.oip_json import ReplyEncoder, RequestDecoder
from penstock.server.shared_memory import Kind, SharedMemory
from penstock.server.system_memory import map_system

OBJECT_SIZE = 3 * 4096
REGIONS = {"a": (0, 4096), "b": (4096, 4096), "c": (100, 5000), "d": (OBJECT_SIZE - 1, 1)}
"""Of one object; a, b and c overlap or touch."""

numbers = st.one_of(
    st.integers(0, 2 * OBJECT_SIZE),
    st.sampled_from([0, 1, 4095, 4096, 4097, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]),
    st.integers(-5, 1 << 66),
)


@contextmanager
def registry() -> Iterator[tuple[SharedMemory, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        path.write_bytes(np.random.default_rng(7).bytes(OBJECT_SIZE))
        memory = SharedMemory(True, map_system=partial(map_system, folder=Path(folder)))
        for name, (offset, size) in REGIONS.items():
            memory.register_system(name, "/object", offset, size)
        yield memory, path


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[SharedMemory, Path]]:
    with registry() as made:
        yield made


def request_of(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> bytes:
    return json.dumps({"inputs": inputs, "outputs": outputs}).encode()


def place(ref: RegionRef) -> dict[str, Any]:
    return {
        "shared_memory_region": ref.region,
        "shared_memory_offset": ref.offset,
        "shared_memory_byte_size": ref.byte_size,
    }


near = st.integers(0, 6000)
refs = st.one_of(
    st.builds(RegionRef, st.sampled_from([*REGIONS, "e"]), numbers, numbers),
    st.builds(RegionRef, st.sampled_from([*REGIONS, "e"]), near, near),
)


@settings(max_examples=400, deadline=None)
@given(ref=refs, count=st.none() | near)
def test_inputs(shared: tuple[SharedMemory, Path], ref: RegionRef, count: int | None) -> None:
    """``count`` elements of a byte each; None: as many as are referred to."""
    memory, path = shared
    count = min(abs(ref.byte_size), 1 << 40) if count is None else count
    content = path.read_bytes()
    tensor = {"name": "X", "shape": [count], "datatype": "UINT8", "parameters": place(ref)}
    decoder = RequestDecoder(regions=memory)
    body = request_of([tensor], [])
    start, size = REGIONS.get(ref.region, (0, -1))
    fits = 0 <= ref.offset < size and ref.offset + count <= size and ref.byte_size == count
    for _ in range(3):  # new, seen, remembered
        try:
            (array,) = decoder.decode(body, None).arrays
        except PenstockError:
            assert not fits
            continue
        assert fits
        assert array.tobytes() == content[start + ref.offset :][:count]


@settings(max_examples=400, deadline=None)
@given(ref=refs, array=st.binary(max_size=5000), strings=st.booleans())
def test_outputs(
    shared: tuple[SharedMemory, Path], ref: RegionRef, array: bytes, strings: bool
) -> None:
    memory, path = shared
    before = path.read_bytes()
    value: Array = np.frombuffer(array, "u1")
    raw = array
    if strings:
        value = np.array([array[:9], array[9:]], object)
        raw = b"".join(len(part).to_bytes(4, "little") + part for part in value.tolist())
    spec = TensorSpec("Y", dt.BYTES if strings else dt.UINT8, value.shape)
    given = {"name": "X", "shape": [1], "datatype": "UINT8", "data": [1]}
    body = request_of([given], [{"name": "Y", "parameters": place(ref)}])
    start, size = REGIONS.get(ref.region, (0, -1))
    inside = 0 <= ref.offset < size and 0 <= ref.byte_size <= size - ref.offset
    fits = inside and len(raw) <= ref.byte_size
    expected = before
    if fits:
        first = start + ref.offset
        expected = before[:first] + raw + before[first + len(raw) :]
    try:
        request = RequestDecoder(regions=memory).decode(body, None)
        reply = InferReply(Signature([spec]), [value])
        ReplyEncoder().encode(reply, request.signature.form, request.targets)
    except PenstockError:
        assert not fits
    else:
        assert fits
    assert path.read_bytes() == expected


@settings(max_examples=400, deadline=None)
@given(offset=numbers, size=numbers)
def test_registration(shared: tuple[SharedMemory, Path], offset: int, size: int) -> None:
    memory, path = shared
    fits = offset >= 0 and size > 0 and offset + size <= OBJECT_SIZE
    try:
        memory.register_system("new", "object", offset, size)
    except PenstockError:
        assert not fits
        return
    assert fits
    content = bytes(memory.resolve(RegionRef("new", 0, size)))
    memory.unregister("new", Kind.SYSTEM)
    assert content == path.read_bytes()[offset : offset + size]


class Registrations(RuleBasedStateMachine):
    """Regions come and go, under the same few names, while views of them are held."""

    def __init__(self) -> None:
        super().__init__()
        self._made = registry()
        self.memory, self.path = self._made.__enter__()
        self.memory.unregister("", Kind.SYSTEM)
        self.known: dict[str, tuple[int, int]] = {}
        self.content = bytearray(self.path.read_bytes())
        self.held: list[tuple[memoryview, int]] = []

    @rule(name=st.sampled_from("xyz"), offset=numbers, size=numbers)
    def register(self, name: str, offset: int, size: int) -> None:
        allowed = offset >= 0 and size > 0 and offset + size <= OBJECT_SIZE
        try:
            self.memory.register_system(name, "object", offset, size)
        except PenstockError:
            assert name in self.known or not allowed
            return
        assert name not in self.known
        assert allowed
        self.known[name] = offset, size

    @rule(name=st.sampled_from(["x", "y", "z", ""]))
    def unregister(self, name: str) -> None:
        self.memory.unregister(name, Kind.SYSTEM)
        self.known = {n: at for n, at in self.known.items() if name not in ("", n)}

    @rule(name=st.sampled_from("xyz"), offset=st.integers(0, 5000), size=st.integers(0, 5000))
    def hold(self, name: str, offset: int, size: int) -> None:
        start, known = self.known.get(name, (0, -1))
        try:
            view = self.memory.resolve(RegionRef(name, offset, size))
        except PenstockError:
            assert not (offset < known and offset + size <= known)
            return
        self.held.append((view, start + offset))

    @rule(name=st.sampled_from("xyz"), offset=st.integers(0, 5000), data=st.binary(max_size=50))
    def write(self, name: str, offset: int, data: bytes) -> None:
        try:
            target = self.memory.target(RegionRef(name, offset, len(data)))
        except PenstockError:
            return
        target.memory[:] = data
        start = self.known[name][0] + offset
        self.content[start : start + len(data)] = data

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @invariant()
    def everybody_sees_the_object(self) -> None:
        assert self.path.read_bytes() == self.content
        for view, start in self.held:
            assert view == self.content[start : start + len(view)]
        found = [(r.name, (r.offset, r.byte_size)) for r in self.memory.status("", Kind.SYSTEM)]  # type: ignore[union-attr]
        assert dict(found) == self.known

    def teardown(self) -> None:
        self.held.clear()
        self._made.__exit__(None, None, None)


TestRegistrations = Registrations.TestCase
TestRegistrations.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
