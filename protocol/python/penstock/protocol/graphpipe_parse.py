"""Parses GraphPipe's requests and tensors into the parts that stand in the frame.

Knows: the tables and slots of SPEC.md §2. Must not know: what a dtype number means, what ``config``
holds, NumPy. The contract of ``graphpipe_read`` holds here too: a value or ``ProtocolError``,
bounded work, no demands on alignment, no looking at ``frame`` other than through ``Primitives``,
``len`` and slicing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe_read import (
    PAST_END,
    RANK_MAX,
    Broken,
    Fields,
    Frame,
    Primitives,
    StructError,
    blob_reader,
    fields_reader,
    root_reader,
    table_fields_reader,
    table_vector_reader,
)
from penstock.protocol.limits import WireLimits

REQ_INFER: Final = 1
REQ_METADATA: Final = 2
STRING_TYPE: Final = 12


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


NO_TENSORS: Final = Tensors((), [], [], [], {})
# What a NamedTuple's own constructor does, at a third of its cost.
_new_tensors = partial(tuple.__new__, Tensors)
_new_parts = partial(tuple.__new__, RequestParts)


class Parser:
    """The parse functions over one set of primitive reads and limits. Stateless."""

    __slots__ = ("bare", "blob", "infer", "root", "table_fields", "table_vector", "tensors")

    def __init__(self, read: Primitives, limits: WireLimits) -> None:
        fields = fields_reader(read)
        self.blob = blob_reader(read)
        self.table_fields = table_fields_reader(fields)
        self.root = root_reader(read, fields)
        self.table_vector = table_vector_reader(read, limits)
        self.tensors = _tensors_reader(read, limits, fields)
        self.infer, self.bare = _infer_readers(read, limits, fields, self.tensors)


class StringPool:
    """The strings made so far for one frame, and what is left of its allowance.

    Writers may refer to one string many times (shared strings), but distinct strings do not
    overlap: their sizes cannot add up to more than the frame. Nor do vectors of strings: each
    element has an offset word of its own. So neither the bytes copied nor the elements made exceed
    what the frame's length explains, however often it refers to one place.
    """

    __slots__ = ("count_left", "made", "room")

    def __init__(self, count_max: int, length: int) -> None:
        self.count_left = min(count_max, length // 4)
        self.room = length
        self.made: dict[int, bytes] = {}


def _strings_reader(read: Primitives) -> Callable[[Frame, int, StringPool], list[bytes]]:
    u32 = read.u32

    def strings(frame: Frame, at: int, pool: StringPool) -> list[bytes]:
        """The strings of the vector that the offset word at ``at`` leads to."""
        length, made = len(frame), pool.made
        start = at + u32(frame, at)[0]
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
    fields: Fields,
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
                    pool = pool or StringPool(limits.strings_max, length)
                    found = strings(frame, at, pool) if text_slot else []
                    if found and (size or number != STRING_TYPE):
                        raise Broken(f"strings in a tensor with data or of type {number}", at)
                    if number == STRING_TYPE:
                        texts[len(starts)] = found
                declared += (number, dims)
                tables.append(table)
                starts.append(start)
                sizes.append(size)
        except StructError:
            problem = Broken(PAST_END, at)
        except Broken as broken:
            problem = broken
        else:
            return _new_tensors((tuple(declared), tables, starts, sizes, texts))
        raise problem.at(field if part is None else f"{field}[{len(starts)}]{part}")

    return tensors


def _names_reader(
    read: Primitives, limits: WireLimits
) -> Callable[[Frame, int, str], tuple[bytes, ...]]:
    u32, names_max, name_max = read.u32, limits.tensors_max, limits.name_bytes_max

    def names(frame: Frame, at: int, field: str) -> tuple[bytes, ...]:
        """The names of the vector that the offset word at ``at`` leads to."""
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
            problem = Broken(PAST_END, at)
        except Broken as broken:
            problem = broken
        else:
            return tuple(found)
        raise problem.at(f"{field}[{len(found)}]" if started else field)

    return names


def _infer_readers(
    read: Primitives,
    limits: WireLimits,
    fields: Fields,
    tensors: Callable[[Frame, int, str], Tensors],
) -> tuple[Callable[[Frame], RequestParts | bytes], Callable[[Frame], RequestParts]]:
    """(reader of a Request, reader of an InferRequest that is the root itself)."""
    u8, u32, i32 = read.u8, read.u32, read.i32
    blob = blob_reader(read)
    names, config_max = _names_reader(read, limits), limits.config_bytes_max

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
            slots = fields(frame, at - i32(frame, at)[0], 4)
        except StructError:
            raise ProtocolError(PAST_END, field=field, offset=at) from None
        except Broken as broken:
            raise broken.at(field) from None
        if kind == REQ_METADATA:
            return blob(frame, at + slots[0], config_max, "config")[0] if slots[0] else b""
        return contents(frame, at, slots)

    def bare(frame: Frame) -> RequestParts:
        """The parts of the InferRequest that is the root of ``frame``."""
        at = 0
        try:
            at = u32(frame, 0)[0]
            slots = fields(frame, at - i32(frame, at)[0], 4)
        except StructError:
            raise ProtocolError(PAST_END, field="root table", offset=at) from None
        except Broken as broken:
            raise broken.at("root table") from None
        return contents(frame, at, slots)

    def contents(frame: Frame, at: int, slots: Sequence[int]) -> RequestParts:
        config_slot, names_slot, tensors_slot, outputs_slot = slots
        config, config_start = (
            blob(frame, at + config_slot, config_max, "config") if config_slot else (b"", 0)
        )
        return _new_parts(
            (
                config,
                config_start,
                names(frame, at + names_slot, "input_names") if names_slot else (),
                tensors(frame, at + tensors_slot, "input_tensors") if tensors_slot else NO_TENSORS,
                names(frame, at + outputs_slot, "output_names") if outputs_slot else (),
            )
        )

    return infer, bare
