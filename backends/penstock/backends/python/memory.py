"""Arrays in memory that two processes share: where they lie, how they get in and out.

Knows NumPy and Linux' sealed anonymous files. Must not know who talks to whom: both ends of a
worker's socket use it.

Contract: a ``Segment`` never changes its size (seals see to that, so no process can take memory
away under another one's hands). Arrays lie one after another, each aligned. BYTES are packed: the
lengths of all elements, 32 bits each, then their bytes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Sequence
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array

ALIGNMENT: Final = 64
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SEGMENT_BYTES_MIN: Final = 64 << 10

Header = list[tuple[Sequence[int], int]]
"""(shape, bytes) of each array, in order: all that the other side cannot know."""


class Place(NamedTuple):
    """Where an array lies in a segment; ``size`` is in bytes."""

    start: int
    size: int
    shape: tuple[int, ...]


class Segment:
    """Memory that is mapped here. It goes when this and the last array in it have gone."""

    __slots__ = ("root", "size")

    def __init__(self, file: int, size: int) -> None:
        self.size = size
        self.root: Array = np.frombuffer(mmap.mmap(file, size), np.uint8)

    def lent(self) -> bool:
        """Whether an array in this segment is alive: each refers to ``root``."""
        return sys.getrefcount(self.root) > _REFERENCES

    def array(self, place: Place, dtype: DType) -> Array:
        """What lies at ``place``: a view, but for BYTES."""
        if dtype is dt.BYTES:
            return unpacked(bytes(self.root[place.start :][: place.size]), place.shape)
        return np.ndarray(place.shape, dtype.numpy, self.root, place.start)

    def write(self, places: Sequence[Place], arrays: Sequence[Array]) -> None:
        """Copies ``arrays`` as ``stored`` gave them to their places."""
        for place, array in zip(places, arrays, strict=True):
            np.copyto(np.ndarray(array.shape, array.dtype, self.root, place.start), array)


_REFERENCES: Final = 2
"""Of a root that nobody else uses: the segment's and the argument's."""


def make_segment(size: int) -> tuple[Segment, int]:
    """A segment of at least ``size`` bytes, and its file, which is the caller's to close.

    Raises:
        OSError: no memory, or no more files may be open.
    """
    rounded = max(_SEGMENT_BYTES_MIN, 1 << (size - 1).bit_length())
    file = os.memfd_create("penstock-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, rounded)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        return Segment(file, rounded), file
    except BaseException:
        os.close(file)
        raise


def stored(arrays: Sequence[Array]) -> tuple[Header, list[Array]]:
    """How ``arrays`` are told of, and what is copied for each."""
    flat = [packed(array) if array.dtype == dt.BYTES.numpy else array for array in arrays]
    return [(a.shape, f.nbytes) for a, f in zip(arrays, flat, strict=True)], flat


def laid_out(header: Header) -> tuple[list[Place], int]:
    """The place of each array, and the bytes that all of them need."""
    places, at = [], 0
    for shape, size in header:
        places.append(Place(at, size, tuple(shape)))
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return places, at


def matches(header: Header, dtypes: Sequence[DType]) -> bool:
    """Whether arrays of ``dtypes`` can be what ``header`` says; for what another process said."""
    return len(header) == len(dtypes) and all(
        min(shape, default=0) >= 0
        and (4 * prod(shape) <= size if dtype is dt.BYTES else dtype.itemsize * prod(shape) == size)
        for (shape, size), dtype in zip(header, dtypes, strict=True)
    )


def packed(array: Array) -> Array:
    """An object array of ``bytes`` as one run of bytes."""
    items: list[bytes] = array.reshape(-1).tolist()
    lengths = np.fromiter(map(len, items), "<u4", len(items))
    return np.frombuffer(b"".join([lengths.tobytes(), *items]), np.uint8)


def unpacked(data: bytes, shape: tuple[int, ...]) -> Array:
    """The other direction of ``packed``.

    Raises:
        ValueError: the lengths do not add up.
    """
    count = prod(shape)
    lengths: Any = np.frombuffer(data, "<u4", count).tolist() if count else []
    at = 4 * count
    if at + sum(lengths) != len(data):
        raise ValueError("packed elements do not add up")
    out = np.empty(count, object)
    for i, length in enumerate(lengths):
        out[i] = data[at : at + length]
        at += length
    return out.reshape(shape)
