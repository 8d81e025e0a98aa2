"""Messages as they come: five bytes of prefix, then the message, across any pieces.

Each message that does not arrive at once is received into memory of its own, which is taken when
its length is known. Pure but for that memory.
"""

from __future__ import annotations

from typing import Final

from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.errors import Code, InferError
from penstock.server.http_seam import Buffer
from penstock.server.transport.grpc.wire import PREFIX_BYTES

_COPY_MAX: Final = 64 * 1024
"""Up to this size a message is bytes; larger ones are views of memory that is aligned."""

Framed = tuple[bool, Buffer]
"""(is it compressed, the message)."""


class Assembly:
    """One call's messages. ``have`` of ``need`` bytes of the current one are there."""

    __slots__ = ("_compressed", "_message", "_prefix", "bytes_max", "have", "need")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.have = 0
        self.need = 0
        self._prefix = b""
        self._compressed = False
        self._message: memoryview | None = None

    @property
    def partial(self) -> bool:
        """A message has begun and not ended."""
        return self._message is not None or bool(self._prefix)

    @property
    def remaining(self) -> int:
        """Bytes of the current message still to come, as far as that is known."""
        return self.need - self.have

    def feed(self, data: Buffer, start: int, stop: int) -> list[Framed]:
        """Takes ``data[start:stop]``; gives the messages that are complete now.

        Raises:
            InferError: RESOURCE_EXHAUSTED, a message is too large; INTERNAL, it is no framing.
        """
        done: list[Framed] = []
        while start < stop:
            if self._message is None:
                start = self._begin(data, start, stop, done)
                continue
            size = min(self.remaining, stop - start)
            self._message[self.have : self.have + size] = data[start : start + size]
            start += size
            done += self.filled(size)
        return done

    def absorb(self, data: Buffer, start: int, stop: int) -> bool:
        """As ``feed`` for what is inside of a message, as most of a large one is; False if not."""
        message = self._message
        end = self.have + stop - start
        if message is None or end >= self.need:
            return False
        message[self.have : end] = data[start:stop]
        self.have = end
        return True

    def _begin(self, data: Buffer, start: int, stop: int, done: list[Framed]) -> int:
        """Reads a prefix, and the message behind it if that is all there; gives where it ends."""
        size = min(PREFIX_BYTES - len(self._prefix), stop - start)
        prefix = self._prefix + data[start : start + size]
        start += size
        if len(prefix) < PREFIX_BYTES:
            self._prefix = prefix
            return start
        self._prefix = b""
        if prefix[0] > 1:
            raise InferError(Code.INTERNAL, "a message prefix that is neither 0 nor 1")
        self._compressed = prefix[0] == 1
        need = int.from_bytes(prefix[1:], "big")
        if need > self.bytes_max:
            raise InferError(
                Code.RESOURCE_EXHAUSTED,
                f"Received message larger than max ({need} vs. {self.bytes_max})",
            )
        if need <= min(stop - start, _COPY_MAX):
            done.append((self._compressed, bytes(data[start : start + need])))
            return start + need
        try:
            self._message = aligned_bytes(need).data
        except MemoryError:
            raise InferError(Code.RESOURCE_EXHAUSTED, "no memory for the message") from None
        self.have, self.need = 0, need
        return start

    def room(self) -> memoryview | None:
        """Where the rest of the current message goes."""
        return None if self._message is None else self._message[self.have :]

    def filled(self, nbytes: int) -> list[Framed]:
        """So many bytes came into ``room``."""
        self.have += nbytes
        message = self._message
        if message is None or self.have < self.need:
            return []
        self._message = None
        self.have = self.need = 0
        return [(self._compressed, message)]
