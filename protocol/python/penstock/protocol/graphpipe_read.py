"""Reads FlatBuffers by direct struct reads: numbers, vtables, strings, vectors of tables.

Knows: how FlatBuffers lays things out. Must not know: which tables there are (``graphpipe_parse``).

Contract: whatever the bytes are, a parse ends with a value or ``ProtocolError``. Its work is
bounded by the limits and by the length of the frame, however often the frame refers to the same
place. Alignment, terminating NULs and table sizes are not demanded: deployed writers get them
wrong (SPEC.md §8).

``struct`` does the bounds checks: reading past the end raises ``struct.error``. A *negative*
position would silently count from the end, so the one place where a position can shrink (a table's
vtable) checks for it.

Each reader is built by a factory around the primitive reads, so that the template memo can run the
very same code with reads that are written down (``graphpipe_template``). For that to be sound,
nothing in here may look at ``frame`` other than through ``Primitives``, ``len`` and slicing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits

Frame = Any
"""``bytes``, a read-only ``memoryview`` of bytes, or the template memo's recording stand-in."""
Unpack = Callable[[Frame, int], tuple[Any, ...]]
StructError: Final = struct.error

RANK_MAX: Final = 64
SLOTS_MAX: Final = 6


Fields = Callable[[Frame, int, int], tuple[int, ...]]
"""(frame, vtable, count) → slots."""


class Primitives(NamedTuple):
    """Every read of numbers in a frame. ``slots[n]`` reads n uint16, ``dims[rank]`` int64."""

    u8: Unpack
    u16: Unpack
    u32: Unpack
    i32: Unpack
    i64: Unpack
    slots: tuple[Unpack, ...]
    dims: tuple[Unpack, ...]


def primitives(reader: Callable[[struct.Struct], Unpack]) -> Primitives:
    """The primitive reads, each made by ``reader`` from its struct."""
    return Primitives(
        u8=reader(struct.Struct("<B")),
        u16=reader(struct.Struct("<H")),
        u32=reader(struct.Struct("<I")),
        i32=reader(struct.Struct("<i")),
        i64=reader(struct.Struct("<q")),
        slots=tuple(reader(struct.Struct(f"<{count}H")) for count in range(SLOTS_MAX + 1)),
        dims=tuple(reader(struct.Struct(f"<{rank}q")) for rank in range(RANK_MAX + 1)),
    )


def _unpack_from(layout: struct.Struct) -> Unpack:
    return layout.unpack_from


DIRECT: Final = primitives(_unpack_from)


class Broken(Exception):
    """Bytes at ``offset`` cannot be right; whoever knows the field's name makes the real error."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset

    def at(self, field: str) -> ProtocolError:
        return ProtocolError(self.message, field=field, offset=self.offset)


PAST_END: Final = "points past the end of the frame"


def fields_reader(read: Primitives) -> Fields:
    u16, slots = read.u16, read.slots

    def fields(frame: Frame, vtable: int, count: int) -> tuple[int, ...]:
        """The first ``count`` slots of a vtable; 0 for those that it does not have."""
        if vtable < 0:
            raise Broken("vtable lies before the start of the frame", 0)
        size = u16(frame, vtable)[0]
        present = (size - 4) >> 1
        if present >= count:
            return slots[count](frame, vtable + 4)
        if present < 0 or size & 1:
            raise Broken(f"vtable cannot have {size} bytes", vtable)
        return (*slots[present](frame, vtable + 4), *(0,) * (count - present))

    return fields


def table_fields_reader(
    fields: Fields,
) -> Callable[[Frame, int, int, str], tuple[int, ...]]:
    def table_fields(frame: Frame, vtable: int, count: int, field: str) -> tuple[int, ...]:
        """``fields`` with errors that name the field."""
        try:
            return fields(frame, vtable, count)
        except StructError:
            raise ProtocolError(f"vtable {PAST_END}", field=field, offset=vtable) from None
        except Broken as broken:
            raise broken.at(field) from None

    return table_fields


def root_reader(
    read: Primitives, fields: Fields
) -> Callable[[Frame, int], tuple[int, tuple[int, ...]]]:
    u32, i32 = read.u32, read.i32

    def root(frame: Frame, count: int) -> tuple[int, tuple[int, ...]]:
        """(position, slots) of the root table."""
        at = 0
        try:
            at = u32(frame, 0)[0]
            return at, fields(frame, at - i32(frame, at)[0], count)
        except StructError:
            raise ProtocolError(PAST_END, field="root table", offset=at) from None
        except Broken as broken:
            raise broken.at("root table") from None

    return root


def blob_reader(read: Primitives) -> Callable[[Frame, int, int, str], tuple[bytes, int]]:
    u32 = read.u32

    def blob(frame: Frame, at: int, size_max: int, field: str) -> tuple[bytes, int]:
        """The string that the offset word at ``at`` leads to, and where it begins."""
        try:
            at += u32(frame, at)[0]
            size = u32(frame, at)[0]
        except StructError:
            raise ProtocolError(PAST_END, field=field, offset=at) from None
        if size > size_max:
            raise ProtocolError(f"{size} bytes, at most {size_max}", field=field, offset=at)
        start = at + 4
        if start + size > len(frame):
            raise ProtocolError(f"{size} bytes end past the frame", field=field, offset=at)
        return bytes(frame[start : start + size]), start

    return blob


def table_vector_reader(
    read: Primitives, limits: WireLimits
) -> Callable[[Frame, int, str], list[tuple[int, int]]]:
    u32, i32, count_max = read.u32, read.i32, limits.tensors_max

    def table_vector(frame: Frame, at: int, field: str) -> list[tuple[int, int]]:
        """(table, vtable) positions of the tables that the vector behind ``at`` refers to."""
        try:
            start = at + u32(frame, at)[0]
            count = u32(frame, start)[0]
            if count > count_max:
                raise ProtocolError(f"{count} items, at most {count_max}", field=field, offset=at)
            found = []
            for at in range(start + 4, start + 4 + 4 * count, 4):
                table = at + u32(frame, at)[0]
                found.append((table, table - i32(frame, table)[0]))
        except StructError:
            raise ProtocolError(PAST_END, field=field, offset=at) from None
        return found

    return table_vector
