"""Reads GraphPipe's FlatBuffers tables by direct struct reads.

Knows: the tables and slots of SPEC.md §2 and how FlatBuffers lays them out. Must not know: what a
dtype number means, what ``config`` holds, NumPy.

Contract: whatever the bytes are, a parse ends with a value or ``ProtocolError``. Its work is
bounded by the limits and by the length of the frame, however often the frame refers to the same
place. Alignment, terminating NULs and table sizes are not demanded: deployed writers get them
wrong (SPEC.md §8).

``struct`` does the bounds checks: reading past the end raises ``struct.error``. A *negative*
position would silently count from the end, so the one place where a position can shrink (a table's
vtable) checks for it.

The parser is built by a factory around its primitive reads, so that the template memo can run the
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
REQ_INFER: Final = 1
REQ_METADATA: Final = 2
STRING_TYPE: Final = 12


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


class Tensors(NamedTuple):
    """A vector of tensors as found. ``declared`` alternates dtype number and dims.

    ``tables[i]`` is the position of tensor i. ``sizes[i]`` is the number of bytes of its data,
    which begins at ``starts[i]``; ``strings[i]`` are its elements if it is of type String.
    """

    declared: tuple[Any, ...]
    tables: list[int]
    starts: list[int]
    sizes: list[int]
    strings: dict[int, list[bytes]]


class RequestParts(NamedTuple):
    """An InferRequest as found. ``config`` begins at ``config_start``."""

    config: bytes
    config_start: int
    names: tuple[bytes, ...]
    tensors: Tensors
    outputs: tuple[bytes, ...]


class Broken(Exception):
    """Bytes at ``offset`` cannot be right; whoever knows the field's name makes the real error."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset

    def at(self, field: str) -> ProtocolError:
        return ProtocolError(self.message, field=field, offset=self.offset)


NO_TENSORS: Final = Tensors((), [], [], [], {})
_PAST_END: Final = "points past the end of the frame"


class Parser:
    """The parse functions over one set of primitive reads and limits. Stateless."""

    __slots__ = ("blob", "infer", "root", "table_fields", "table_vector", "tensors")

    def __init__(self, read: Primitives, limits: WireLimits) -> None:
        fields = _fields_reader(read)
        self.blob = _blob_reader(read)
        self.table_fields = _table_fields_reader(fields)
        self.root = _root_reader(read, fields)
        self.table_vector = _table_vector_reader(read, limits)
        self.tensors = _tensors_reader(read, limits, fields)
        self.infer = _infer_reader(read, limits, fields, self.tensors)


def _fields_reader(read: Primitives) -> Callable[[Frame, int, int], tuple[int, ...]]:
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
        return slots[present](frame, vtable + 4) + (0,) * (count - present)

    return fields


def _table_fields_reader(
    fields: Callable[[Frame, int, int], tuple[int, ...]],
) -> Callable[[Frame, int, int, str], tuple[int, ...]]:
    def table_fields(frame: Frame, vtable: int, count: int, field: str) -> tuple[int, ...]:
        """``fields`` with errors that name the field."""
        try:
            return fields(frame, vtable, count)
        except StructError:
            raise ProtocolError(f"vtable {_PAST_END}", field=field, offset=vtable) from None
        except Broken as broken:
            raise broken.at(field) from None

    return table_fields


def _root_reader(
    read: Primitives, fields: Callable[[Frame, int, int], tuple[int, ...]]
) -> Callable[[Frame, int], tuple[int, tuple[int, ...]]]:
    u32, i32 = read.u32, read.i32

    def root(frame: Frame, count: int) -> tuple[int, tuple[int, ...]]:
        """(position, slots) of the root table."""
        at = 0
        try:
            at = u32(frame, 0)[0]
            return at, fields(frame, at - i32(frame, at)[0], count)
        except StructError:
            raise ProtocolError(_PAST_END, field="root table", offset=at) from None
        except Broken as broken:
            raise broken.at("root table") from None

    return root


def _blob_reader(read: Primitives) -> Callable[[Frame, int, int, str], tuple[bytes, int]]:
    u32 = read.u32

    def blob(frame: Frame, at: int, size_max: int, field: str) -> tuple[bytes, int]:
        """The string that the offset word at ``at`` leads to, and where it begins."""
        try:
            at += u32(frame, at)[0]
            size = u32(frame, at)[0]
        except StructError:
            raise ProtocolError(_PAST_END, field=field, offset=at) from None
        if size > size_max:
            raise ProtocolError(f"{size} bytes, at most {size_max}", field=field, offset=at)
        start = at + 4
        if start + size > len(frame):
            raise ProtocolError(f"{size} bytes end past the frame", field=field, offset=at)
        return bytes(frame[start : start + size]), start

    return blob


def _table_vector_reader(
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
            raise ProtocolError(_PAST_END, field=field, offset=at) from None
        return found

    return table_vector


class StringPool:
    """The strings made so far for one frame, and what is left of its allowance.

    Writers may refer to one string many times (shared strings), but distinct strings do not
    overlap: their sizes cannot add up to more than the frame. That bounds the bytes which a small
    frame can make us copy.
    """

    __slots__ = ("count_left", "made", "room")

    def __init__(self, count_left: int, room: int) -> None:
        self.count_left = count_left
        self.room = room
        self.made: dict[int, bytes] = {}


def _strings_reader(read: Primitives) -> Callable[[Frame, int, StringPool], list[bytes]]:
    u32 = read.u32

    def strings(frame: Frame, start: int, pool: StringPool) -> list[bytes]:
        """The strings of the vector at ``start``."""
        length, made = len(frame), pool.made
        count = u32(frame, start)[0]
        if count > pool.count_left:
            raise Broken(f"{count} more strings, {pool.count_left} left of the limit", start)
        if start + 4 + 4 * count > length:
            raise Broken(f"{count} strings end past the frame", start)
        pool.count_left -= count
        found = []
        for at in range(start + 4, start + 4 + 4 * count, 4):
            where = at + u32(frame, at)[0]
            item = made.get(where)
            if item is None:
                size = u32(frame, where)[0]
                pool.room -= size
                if pool.room < 0 or where + 4 + size > length:
                    raise Broken(f"string of {size} bytes overlaps others or the end", where)
                item = made[where] = bytes(frame[where + 4 : where + 4 + size])
            found.append(item)
        return found

    return strings


def _tensors_reader(
    read: Primitives,
    limits: WireLimits,
    fields: Callable[[Frame, int, int], tuple[int, ...]],
) -> Callable[[Frame, int, str], Tensors]:
    u8, u32, i32, dims_of = read.u8, read.u32, read.i32, read.dims
    count_max, rank_max = limits.tensors_max, min(limits.rank_max, RANK_MAX)
    strings = _strings_reader(read)

    def tensors(frame: Frame, at: int, field: str) -> Tensors:
        """The tensors of the vector that the offset word at ``at`` leads to."""
        length = len(frame)
        declared: list[Any] = []
        tables: list[int] = []
        starts: list[int] = []
        sizes: list[int] = []
        texts: dict[int, list[bytes]] = {}
        pool = None
        known_vtable = number_slot = shape_slot = data_slot = text_slot = -1
        part: str | None = None
        try:
            at += u32(frame, at)[0]
            count = u32(frame, at)[0]
            if count > count_max:
                raise Broken(f"{count} tensors, at most {count_max}", at)
            first = at + 4
            for at in range(first, first + 4 * count, 4):
                part = ""
                table = at + u32(frame, at)[0]
                vtable = table - i32(frame, table)[0]
                if vtable != known_vtable:
                    number_slot, shape_slot, data_slot, text_slot = fields(frame, vtable, 4)
                    known_vtable = vtable
                number = u8(frame, table + number_slot)[0] if number_slot else 0
                dims: tuple[int, ...] = ()
                if shape_slot:
                    part = ".shape"
                    at = table + shape_slot
                    at += u32(frame, at)[0]
                    rank = u32(frame, at)[0]
                    if rank > rank_max:
                        raise Broken(f"{rank} dimensions, at most {rank_max}", at)
                    dims = dims_of[rank](frame, at + 4)
                start = size = 0
                if data_slot:
                    part = ".data"
                    at = table + data_slot
                    at += u32(frame, at)[0]
                    size = u32(frame, at)[0]
                    start = at + 4
                    if start + size > length:
                        raise Broken(f"{size} bytes end past the frame", at)
                if text_slot or number == STRING_TYPE:
                    part = ".string_val"
                    at = table + text_slot
                    found: list[bytes] = []
                    if text_slot:
                        pool = pool or StringPool(limits.strings_max, length)
                        found = strings(frame, at + u32(frame, at)[0], pool)
                    if found and (size or number != STRING_TYPE):
                        raise Broken(f"strings in a tensor with data or of type {number}", at)
                    if number == STRING_TYPE:
                        texts[len(starts)] = found
                declared += (number, dims)
                tables.append(table)
                starts.append(start)
                sizes.append(size)
        except StructError:
            problem = Broken(_PAST_END, at)
        except Broken as broken:
            problem = broken
        else:
            return Tensors(tuple(declared), tables, starts, sizes, texts)
        raise problem.at(field if part is None else f"{field}[{len(starts)}]{part}")

    return tensors


def _infer_reader(
    read: Primitives,
    limits: WireLimits,
    fields: Callable[[Frame, int, int], tuple[int, ...]],
    tensors: Callable[[Frame, int, str], Tensors],
) -> Callable[[Frame], RequestParts | bytes]:
    u8, u32, i32 = read.u8, read.u32, read.i32
    blob = _blob_reader(read)
    names_max, name_max, config_max = (
        limits.tensors_max, limits.name_bytes_max, limits.config_bytes_max,
    )  # fmt: skip

    def names(frame: Frame, at: int, field: str) -> tuple[bytes, ...]:
        found: list[bytes] = []
        started = False
        try:
            at += u32(frame, at)[0]
            count = u32(frame, at)[0]
            if not count:
                return ()
            if count > names_max:
                raise Broken(f"{count} names, at most {names_max}", at)
            length, first, started = len(frame), at + 4, True
            for at in range(first, first + 4 * count, 4):
                start = at + u32(frame, at)[0]
                size = u32(frame, start)[0]
                end = start + 4 + size
                if size > name_max or end > length:
                    raise Broken(f"name of {size} bytes, at most {name_max} in the frame", start)
                found.append(bytes(frame[start + 4 : end]))
        except StructError:
            problem = Broken(_PAST_END, at)
        except Broken as broken:
            problem = broken
        else:
            return tuple(found)
        raise problem.at(f"{field}[{len(found)}]" if started else field)

    def infer(frame: Frame) -> RequestParts | bytes:
        """The parts of an InferRequest; for a MetadataRequest its ``config``."""
        field, at, kind = "root table", 0, 0
        try:
            table = u32(frame, 0)[0]
            kind_slot, req_slot = fields(frame, table - i32(frame, table)[0], 2)
            field, at = "req_type", table
            kind = u8(frame, table + kind_slot)[0] if kind_slot else 0
            if kind not in (REQ_INFER, REQ_METADATA):
                raise Broken(f"request type {kind} is unknown", table + kind_slot)
            field = "req"
            if not req_slot:
                raise Broken("request is absent", table)
            at = table + req_slot
            at += u32(frame, at)[0]
            config_slot, names_slot, tensors_slot, outputs_slot = fields(
                frame, at - i32(frame, at)[0], 4
            )
        except StructError:
            raise ProtocolError(_PAST_END, field=field, offset=at) from None
        except Broken as broken:
            raise broken.at(field) from None
        config, config_start = (
            blob(frame, at + config_slot, config_max, "config") if config_slot else (b"", 0)
        )
        if kind == REQ_METADATA:
            return config
        return RequestParts(
            config,
            config_start,
            names(frame, at + names_slot, "input_names") if names_slot else (),
            tensors(frame, at + tensors_slot, "input_tensors") if tensors_slot else NO_TENSORS,
            names(frame, at + outputs_slot, "output_names") if outputs_slot else (),
        )

    return infer
