"""Memory that a reply is received into, so that the decoded arrays can be views of it.

Knows: how it grows. Must not know sockets or protocols.

The memory belongs to one reply alone: whoever holds a decoded array keeps the whole body alive.
"""

from __future__ import annotations

from penstock.protocol.aligned import aligned_bytes


class Growing:
    """Aligned memory for a body whose length is not known beforehand; doubles when it is full."""

    __slots__ = ("_array", "filled")

    def __init__(self, size: int = 1 << 16) -> None:
        self._array = aligned_bytes(size)
        self.filled = 0

    def room(self, least: int) -> memoryview:
        """The unused rest, at least ``least`` bytes; add to ``filled`` what was put into it."""
        if self._array.size - self.filled < least:
            larger = aligned_bytes(max(self.filled + least, 2 * self._array.size))
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
