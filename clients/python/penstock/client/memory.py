"""Memory that a reply is received into, so that the decoded arrays can be views of it.

Knows: alignment. Must not know sockets or protocols.

The memory belongs to one reply alone: whoever holds a decoded array keeps the whole body alive.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes: a cache line, and what SIMD code and device copies like best."""


def aligned(size: int, lead: int = 0) -> memoryview:
    """``size`` writable, uninitialised bytes whose byte number ``lead`` is 64-byte aligned.

    ``lead`` is the length of the JSON before the tensors of a v2 reply.
    """
    return _aligned(size, lead).data


def _aligned(size: int, lead: int) -> npt.NDArray[np.uint8]:
    block = np.empty(size + ALIGNMENT, np.uint8)
    skip = -(block.__array_interface__["data"][0] + lead) % ALIGNMENT
    return block[skip : skip + size]


class Growing:
    """Aligned memory for a body whose length is not known beforehand; doubles when it is full."""

    __slots__ = ("_array", "filled")

    def __init__(self, size: int = 1 << 16) -> None:
        self._array = _aligned(size, 0)
        self.filled = 0

    def room(self, least: int) -> memoryview:
        """The unused rest, at least ``least`` bytes; add to ``filled`` what was put into it."""
        if self._array.size - self.filled < least:
            larger = _aligned(max(self.filled + least, 2 * self._array.size), 0)
            larger[: self.filled] = self._array[: self.filled]
            self._array = larger
        return self._array.data[self.filled :]

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` in."""
        self.room(len(data))[: len(data)] = data
        self.filled += len(data)

    def done(self) -> memoryview:
        """What was received."""
        return self._array.data[: self.filled]
