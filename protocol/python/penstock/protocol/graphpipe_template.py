"""Recognises frames that differ from an earlier one in their tensor data and ``config`` alone.

Clients send the same few bytes around different numbers. A *template* remembers everything outside
the data of one decoded frame (its *skeleton*); a frame of the same length with the same skeleton
means the same, so nothing needs to be parsed but the text of ``config``, which counts as data here
because it may hold the request's id.

That is sound only if parsing never looked into a data range: else two frames with equal skeletons
could mean different things, and whoever sends first could decide what others' frames mean. So a
template is made by parsing the frame a second time with reads that are written down, and is refused
if one of them touches a data range. What the parse did is then a function of the skeleton and the
length, and therefore the same for every frame that matches.

Knows: byte ranges. Must not know: fields, messages.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Final, Generic, TypeVar

from penstock.protocol.graphpipe_parse import Parser
from penstock.protocol.graphpipe_read import Frame, Unpack, primitives
from penstock.protocol.limits import WireLimits

Value = TypeVar("Value")
Ranges = list[tuple[int, int]]

SKELETON_BYTES_MAX: Final = 16 << 10
PIECES_MAX: Final = 128
TOTAL_BYTES_MAX: Final = 4 << 20
LENGTHS_MAX: Final = 1024
PER_LENGTH_MAX: Final = 4


class Recording:
    """A frame that notes which bytes were looked at."""

    __slots__ = ("frame", "seen")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.seen: Ranges = []

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(len(self.frame))
        self.seen.append((start, stop))
        return bytes(self.frame[where])


def _noting(layout: struct.Struct) -> Unpack:
    unpack, size = layout.unpack_from, layout.size

    def read(recording: Frame, at: int) -> tuple[object, ...]:
        recording.seen.append((at, at + size))
        return unpack(recording.frame, at)

    return read


_NOTING: Final = primitives(_noting)


def recording_parser(limits: WireLimits) -> Parser:
    """A parser to be given ``Recording`` frames."""
    return Parser(_NOTING, limits)


def skeleton_ranges(length: int, data: Ranges) -> Ranges | None:
    """The ranges outside ``data``; None if that overlaps itself or leaves too much or too many."""
    outside: Ranges = []
    end = nbytes = 0
    for start, stop in sorted(item for item in data if item[0] < item[1]):
        if start < end:
            return None
        if start > end:
            outside.append((end, start))
            nbytes += start - end
        end = stop
    if end < length:
        outside.append((end, length))
        nbytes += length - end
    return outside if nbytes <= SKELETON_BYTES_MAX and len(outside) <= PIECES_MAX else None


def all_inside(seen: Ranges, outside: Ranges) -> bool:
    """Does every range that was read lie within one of the (sorted, disjoint) ranges outside?"""
    starts = [start for start, _ in outside]
    for start, stop in seen:
        if start < stop:
            piece = bisect_right(starts, start) - 1
            if piece < 0 or stop > outside[piece][1]:
                return False
    return True


class Template(Generic[Value]):
    """A skeleton and what it means."""

    __slots__ = ("nbytes", "pieces", "value")

    def __init__(self, frame: Frame, outside: Ranges, value: Value) -> None:
        self.pieces = [(slice(a, b), bytes(frame[a:b])) for a, b in outside]
        self.nbytes = sum(len(piece) for _, piece in self.pieces)
        self.value = value


class TemplateTable(Generic[Value]):
    """A bounded table of templates by frame length.

    Bounds: ``PER_LENGTH_MAX`` templates a length, ``LENGTHS_MAX`` lengths, ``TOTAL_BYTES_MAX``
    bytes of skeletons; a full table is emptied.
    """

    __slots__ = ("_by_length", "_misses", "_nbytes")

    def __init__(self) -> None:
        self._by_length: dict[int, list[Template[Value]]] = {}
        self._misses: dict[int, int] = {}
        self._nbytes = 0

    def find(self, frame: Frame) -> Value | None:
        """What a frame like this meant before."""
        templates = self._by_length.get(len(frame))
        if templates is not None:
            for template in templates:
                for where, piece in template.pieces:
                    # bytes() returns a bytes slice itself; a memoryview's slice is copied, which
                    # is still faster than comparing it element by element as memoryviews do.
                    if bytes(frame[where]) != piece:
                        break
                else:
                    return template.value
        return None

    def wanted(self, length: int) -> bool:
        """Counts a miss of this length; says whether a template is now worth its making.

        It is at the 2nd, 4th, 8th... miss, so that frames which never repeat cost a vanishing
        share of time, however long they go on.
        """
        misses = self._misses.get(length, 0) + 1
        if misses == 1 and len(self._misses) >= LENGTHS_MAX:
            self._misses.clear()
        self._misses[length] = misses
        return misses > 1 and misses & (misses - 1) == 0

    def add(self, frame: Frame, outside: Ranges, value: Value) -> None:
        """Remembers; the oldest template of the length makes room."""
        template = Template(frame, outside, value)
        if self._nbytes + template.nbytes > TOTAL_BYTES_MAX or (
            len(self._by_length) >= LENGTHS_MAX and len(frame) not in self._by_length
        ):
            self._by_length.clear()
            self._nbytes = 0
        templates = self._by_length.setdefault(len(frame), [])
        if len(templates) >= PER_LENGTH_MAX:
            self._nbytes -= templates.pop(0).nbytes
        templates.append(template)
        self._nbytes += template.nbytes
