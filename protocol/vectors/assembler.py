"""A small assembler of GraphPipe frames for ``make_vectors``.

It shares nothing with the codec. It can leave out what deployed writers leave out (terminating
NULs, alignment), and remembers where everything stands so that frames can be broken on purpose.
"""

from __future__ import annotations

import struct
from typing import Any

U8, I64 = "<B", "<q"


class Num:
    """A number that stands in the table itself."""

    def __init__(self, layout: str, value: int) -> None:
        self.layout, self.value = layout, value


class Raw:
    """A vector: its count and its bytes. ``align`` is for what follows the count."""

    def __init__(self, count: int, body: bytes, align: int = 1) -> None:
        self.count, self.body, self.align = count, body, align


class Table:
    """Slots by number; an absent slot is None. ``label`` names it in ``Frame.marks``."""

    def __init__(self, label: str, *slots: Any) -> None:
        self.label, self.slots = label, slots


class Frame:
    """One assembled frame; ``marks`` are positions of tables and of what their slots lead to."""

    def __init__(
        self, root: Table, *, nul: bool = True, aligned: bool = True, vtable_last: bool = False
    ) -> None:
        self.out = bytearray(4)
        self.marks: dict[str, int] = {}
        self.nul, self.aligned, self.vtable_last = nul, aligned, vtable_last
        self.shared: dict[int, int] = {}
        self.write(root, 0, root.label)
        self.kept = root

    def pad(self, align: int, ahead: int = 0) -> None:
        if not self.aligned:  # everything but words of 4 bytes goes where it falls: 4 past 8
            align = min(align, 4)
            if ahead and (len(self.out) + 4) % 8 == 0:
                self.out += bytes(4)
        self.out += bytes(-(len(self.out) + ahead) % align)

    def lead(self, link: int) -> None:
        struct.pack_into("<I", self.out, link, len(self.out) - link)

    def write(self, value: Any, link: int, path: str) -> None:
        if id(value) in self.shared and not isinstance(value, bytes):
            struct.pack_into("<I", self.out, link, self.shared[id(value)] - link)
            return
        if isinstance(value, Table):
            self.table(value, link, path)
        elif isinstance(value, bytes):
            self.pad(4)
            self.lead(link)
            self.marks[path] = len(self.out)
            self.out += struct.pack("<I", len(value)) + value + (b"\0" if self.nul else b"")
        elif isinstance(value, list):
            self.pad(4)
            self.lead(link)
            self.marks[path] = len(self.out)
            self.out += struct.pack("<I", len(value)) + bytes(4 * len(value))
            first = len(self.out) - 4 * len(value)
            for i, item in enumerate(value):
                self.write(item, first + 4 * i, f"{path}[{i}]")
        else:
            self.pad(value.align, ahead=4)
            self.pad(4)
            self.lead(link)
            self.marks[path] = len(self.out)
            self.out += struct.pack("<I", value.count) + value.body

    def table(self, value: Table, link: int, path: str) -> None:
        places, inline = [], bytearray(4)
        for slot in value.slots:
            if slot is None:
                places.append(0)
                continue
            layout = slot.layout if isinstance(slot, Num) else "<I"
            inline += bytes(-len(inline) % struct.calcsize(layout))
            places.append(len(inline))
            inline += struct.pack(layout, slot.value if isinstance(slot, Num) else 0)
        vtable = struct.pack(f"<{2 + len(places)}H", 4 + 2 * len(places), len(inline), *places)
        self.pad(8)
        if not self.vtable_last:
            self.out += vtable
            self.pad(8)
        self.lead(link)
        at = len(self.out)
        self.marks[path] = self.marks[value.label] = self.shared[id(value)] = at
        self.out += inline
        start = at - len(vtable) - (-len(vtable) % 8 if self.aligned else -len(vtable) % 4)
        if self.vtable_last:
            self.pad(2)
            start = len(self.out)
            self.out += vtable
        self.marks[f"{path} vtable"] = start
        struct.pack_into("<i", self.out, at, at - start)
        names = NAMES[value.label][: len(places)]
        for place, slot, name in zip(places, value.slots, names, strict=True):
            if place and not isinstance(slot, Num):
                prefix = "" if value.label in ROOTS else f"{path}."
                self.marks[f"{prefix}{name} link"] = at + place
                self.write(slot, at + place, f"{prefix}{name}")

    def patched(self, mark: str, layout: str, value: int, ahead: int = 0) -> bytes:
        out = bytearray(self.out)
        struct.pack_into(layout, out, self.marks[mark] + ahead, value)
        return bytes(out)


ROOTS = ("Request", "InferRequest", "MetadataRequest", "InferResponse", "MetadataResponse")
NAMES = {
    "Request": ("req_type", "req"),
    "InferRequest": ("config", "input_names", "input_tensors", "output_names"),
    "MetadataRequest": ("config",),
    "InferResponse": ("output_tensors", "errors"),
    "Tensor": ("type", "shape", "data", "string_val"),
    "Error": ("code", "message"),
    "MetadataResponse": ("name", "version", "server", "description", "inputs", "outputs"),
    "IO": ("name", "description", "shape", "type"),
}


def shape(*sizes: int) -> Raw:
    return Raw(len(sizes), struct.pack(f"<{len(sizes)}q", *sizes), align=8)


def data(body: bytes) -> Raw:
    return Raw(len(body), body, align=4)


def tensor(number: int | None, sizes: Raw | None, body: Any) -> Table:
    kind = None if number is None else Num(U8, number)
    if isinstance(body, list):
        return Table("Tensor", kind, sizes, None, body)
    return Table("Tensor", kind, sizes, body if body is None else data(body), None)


def request(
    *slots: Any, kind: int | None = 1, label: str = "InferRequest", **options: Any
) -> Frame:
    inner = Table(label, *slots) if slots or label != "InferRequest" else None
    return Frame(Table("Request", None if kind is None else Num(U8, kind), inner), **options)


def reply(*slots: Any, **options: Any) -> Frame:
    return Frame(Table("InferResponse", *slots), **options)


def metadata(inputs: Any, outputs: Any) -> Frame:
    texts = (b"model", b"3", b"server", b"words")
    return Frame(Table("MetadataResponse", *texts, inputs, outputs))


def io(name: bytes, number: int | None, sizes: Raw | None) -> Table:
    return Table("IO", name, b"", sizes, None if number is None else Num(U8, number))


FLOATS = struct.pack("<4f", 1, 2, 3, 4)
ONE = tensor(10, shape(2, 2), FLOATS)
