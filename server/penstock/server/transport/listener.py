"""What all connections of one HTTP port share: limits, the memo of heads, the starts of replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from penstock.server.http_seam import Endpoint, Refusal, plain_refusal
from penstock.server.transport.head import Head, HeadMemo
from penstock.server.transport.port import Port
from penstock.server.transport.status import REASON_MAX, reason_of

_HEAD_SCRATCH_BYTES: Final = 16 * 1024
_REPLY_HEADS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one port; times in seconds."""

    connections_max: int = 16_384
    body_bytes_max: int = 2 * 1024**3
    bodies_bytes_max: int = 8 * 1024**3
    """Received and not yet answered, over all connections (bodies that take several reads)."""
    idle_timeout_s: int = 600
    read_timeout_s: int = 30
    """A request must make some progress in this time."""
    write_timeout_s: int = 60
    """A client must read some of its reply in this time."""
    unsent_bytes_max: int = 64 * 1024**2
    """Of an answer that is streamed, left unread by the client."""
    linger_s: int = 2


class Http1Listener(Port):
    """One listening port (or unix socket) and its connections.

    ``resolve`` gives the endpoint for a head; it never fails (there is one for "not found").
    ``refusal`` words an error that HTTP itself finds.
    """

    def __init__(
        self,
        resolve: Callable[[Head], Endpoint],
        protocol: Callable[[Http1Listener], asyncio.BaseProtocol],
        limits: HttpLimits | None = None,
        refusal: Refusal = plain_refusal,
    ) -> None:
        self.limits = limits or HttpLimits()
        super().__init__(self.limits)
        self.resolve = resolve
        self.refusal = refusal
        self.heads = HeadMemo()
        self.head_scratch = self.scratch[:_HEAD_SCRATCH_BYTES]
        """For the start of a request: the rest of a large body then goes where it stays."""
        self.date = b""
        self._protocol = protocol
        self._reply_heads: dict[tuple[int, str, str], bytes] = {}

    def connect(self) -> asyncio.BaseProtocol:
        return self._protocol(self)

    def reply_head(self, status: int, content_type: str, reason: str) -> bytes:
        """The status line and the Content-Type field."""
        if len(reason) > REASON_MAX:  # Clients have a say in it, and it is kept.
            reason = reason[: REASON_MAX + 1]
        key = (status, content_type, reason)
        known = self._reply_heads.get(key)
        if known is None:
            if len(self._reply_heads) >= _REPLY_HEADS_MAX:
                self._reply_heads.clear()
            text = f"HTTP/1.1 {status} {reason_of(status, reason)}\r\n"
            if content_type:
                text += f"Content-Type: {content_type}\r\n"
            known = self._reply_heads[key] = text.encode("ascii")
        return known

    def ticked(self) -> None:
        self.date = f"Date: {formatdate(usegmt=True)}\r\n".encode("ascii")
