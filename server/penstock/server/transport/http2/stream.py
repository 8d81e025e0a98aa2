"""One stream: what each side may still send (RFC 9113 §5.2), and what waits for leave to be sent.

Knows windows and frames. Must not know what is spoken in a stream: that is a subclass, which is
told of what arrives. A stream is ``live`` until its own side has ended or it was reset; after that
nothing is sent and nothing is told any more. ``ended`` says that the client's side has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from penstock.server.http_seam import Buffer
from penstock.server.transport.http2.frames import HEAD, WINDOW_MAX, window_update

if TYPE_CHECKING:
    from penstock.server.transport.http2.control import Control

CREDIT_BYTES: Final = 16 * 1024 * 1024
"""The window that each stream begins with: a client may send so much before it is asked for."""
CONGESTED_BYTES: Final = 256 * 1024
"""A stream of replies is asked to pause when so much waits for the client to read."""
JOIN_MAX: Final = 16 * 1024 - 16
"""Replies up to this size are copied into one frame: cheaper than a vector of small parts."""


class Stream:
    """Made by the machine when the client opens it; see the hooks at the end for what to override.

    ``eager`` ones are told of ``begin`` before their first data.
    """

    __slots__ = (
        "_last", "_outgoing", "credit", "ended", "id", "live", "machine", "moved", "outgoing_bytes",
        "pressed", "send_window",
    )  # fmt: skip

    eager: ClassVar[bool] = False

    def __init__(self, machine: Control, number: int) -> None:
        self.machine = machine
        self.id = number
        self.send_window = machine.peer_window
        self.credit = CREDIT_BYTES
        self.ended = False
        self.live = True
        self.pressed = False
        """It was told to be congested, and waits for ``drained``."""
        self.outgoing_bytes = 0
        self.moved = machine.tick
        """The tick of the last progress in either direction."""
        self._outgoing: deque[tuple[bool, Buffer]] | None = None
        """What waits, in order: (counts against the windows, bytes)."""
        self._last = False
        """The end of our side is in ``_outgoing``."""

    # ------------------------------------------------------------------ sending

    @property
    def congested(self) -> bool:
        if self.outgoing_bytes > CONGESTED_BYTES or self.machine.paused:
            self.pressed = True
            return True
        return False

    @property
    def waiting(self) -> bool:
        """Something of ours waits for the client to read."""
        return bool(self._outgoing)

    def transmit(self, head: bytes, payload: Sequence[Buffer], size: int, tail: bytes) -> None:
        """Sends ``head`` (a frame or nothing), ``payload`` of ``size`` bytes as DATA, and ``tail``
        (a frame that ends the stream, or nothing), as soon as the windows allow."""
        machine = self.machine
        if (
            size <= JOIN_MAX
            and size <= self.send_window
            and size <= machine.send_window
            and not self._outgoing
        ):
            self.send_window -= size
            machine.send_window -= size
            machine.pinged = -1
            top = HEAD.pack(size << 8, 0, self.id) if size else b""
            machine.emit(b"".join((head, top, *payload, tail)))
            if tail:
                self.live = False
                machine.finish(self)
            return
        queue = self._outgoing
        if queue is None:
            queue = self._outgoing = deque()
        if head and not queue:
            machine.emit(head)  # It counts against no window, and opens the stream.
        elif head:
            queue.append((False, head))
        queue.extend((True, memoryview(buffer)) for buffer in payload if len(buffer))
        self.outgoing_bytes += size
        if tail:
            queue.append((False, tail))
            self._last = True
        self.moved = machine.tick
        machine.sending[self.id] = self
        machine.pump()

    def take(self, allowed: int) -> list[Buffer]:
        """The frames that may be sent now, of at most ``allowed`` bytes that count."""
        queue = self._outgoing
        frames: list[Buffer] = []
        if queue is None:
            return frames
        allowed = before = min(allowed, self.send_window)
        frame_max = self.machine.peer_frame_max
        while queue:
            counts, piece = queue[0]
            if not counts:
                frames.append(piece)
                queue.popleft()
                continue
            limit = min(frame_max, allowed)
            if limit <= 0:
                break
            size = 0
            at = len(frames)
            while size < limit and queue and queue[0][0]:
                piece = queue[0][1]
                room = limit - size
                if len(piece) <= room:
                    queue.popleft()
                else:
                    queue[0] = (True, piece[room:])
                    piece = piece[:room]
                frames.append(piece)
                size += len(piece)
            frames.insert(at, HEAD.pack(size << 8, 0, self.id))
            allowed -= size
        sent = before - allowed
        self.machine.pinged = -1
        self.send_window -= sent
        self.machine.send_window -= sent
        self.outgoing_bytes -= sent
        return frames

    def sent(self) -> None:
        """Everything that waited is sent."""
        self._outgoing = None
        if self._last:
            self.live = False
            self.machine.finish(self)
        elif self.pressed and not self.machine.paused:
            self.pressed = False
            self.drained()

    def drop_outgoing(self) -> None:
        """Gives up what waits: the client will not read it."""
        self._outgoing = None
        self.outgoing_bytes = 0
        self._last = False
        self.machine.sending.pop(self.id, None)

    @property
    def leaving(self) -> bool:
        """The end of our side waits to be sent; nothing can be added any more."""
        return self._last

    # ------------------------------------------------------------------ receiving

    def grant(self, nbytes: int = CREDIT_BYTES) -> None:
        """Lets the client send ``nbytes`` from now on, if that is worth a frame."""
        nbytes = min(nbytes, WINDOW_MAX)
        if self.credit < nbytes // 2 and not self.ended and self.live:
            self.machine.emit(window_update(self.id, nbytes - self.credit))
            self.credit = nbytes

    # ------------------------------------------------------------------ what a subclass is told

    def begin(self, end: bool) -> None:
        """The stream is open; only for ``eager`` ones. ``end``: the client sends no data at all."""

    def data(self, data: Buffer, start: int, stop: int, end: bool) -> None:
        """``data[start:stop]`` came, perhaps nothing; ``end``: and it was the last of it.

        The bytes are there during the call alone. Raises StreamFault for what breaks the rules.
        """
        raise NotImplementedError

    def room(self) -> memoryview | None:
        """Where the payload may be received into without detour, if it may."""
        return None

    def filled(self, nbytes: int) -> None:
        """So many bytes came into what ``room`` gave."""
        raise NotImplementedError

    def drained(self) -> None:
        """It is no longer congested."""

    def gone(self) -> None:
        """It was reset or the connection was lost; ``live`` is False already."""

    def sweep(self, now_ns: int) -> None:
        """Called once a second."""
