"""What gRPC methods and the transports below them say to each other.

Knows the shape of a call. Must not know either side: the transports (our own HTTP/2 and grpcio) and
the front doors both stand on this module and never import each other. gRPC's framing, compression,
metadata encoding, deadlines and flow control are the transport's; a method sees whole messages.

Everything here happens on the event loop's thread. A unary method is ``method(call, head,
message)``: it answers by one ``call.reply`` or ``call.fail``, at once or later, and returns what
shall be cancelled if the client goes away or the deadline passes before that, or None. A streaming
method is ``method(call, head)`` and returns a ``Stream`` that is told of what the client sends; it
answers by any number of ``call.send`` and one ``call.finish`` or ``call.fail``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.protocol.errors import PenstockError
from penstock.server.http_seam import Buffer, Cancellable

Trailers = Sequence[tuple[str, str]]
"""Further metadata of a reply: lower-case ASCII names and printable ASCII values."""


class CallHead(Protocol):
    """What the client's headers say. One object may serve many calls whose headers are alike.

    ``path`` is ``/package.Service/Method``. ``metadata`` holds the client's own fields (none that
    begin with ``:``, none of gRPC's) under lower-case names; repeated ones are joined by ``,``;
    ``-bin`` values are decoded to bytes. ``memo`` is the method's own: data that follow from the
    head alone.
    """

    @property
    def path(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str | bytes]: ...

    memo: Any


class Call(Protocol):
    """One call in progress. What is called after its end does nothing."""

    @property
    def deadline_ns(self) -> int:
        """When the client stops waiting, in ``time.monotonic_ns``; 0 means never."""
        ...

    @property
    def congested(self) -> bool:
        """Whether the client leaves so much unread that a stream should produce no more now."""
        ...

    def reply(self, buffers: Sequence[Buffer], trailers: Trailers = ()) -> None:
        """Answers a unary call: one message, the parts of which are sent without being joined
        first if they are large, and status OK. The buffers must not change until they are sent."""
        ...

    def send(self, buffers: Sequence[Buffer]) -> None:
        """One message of a stream of replies; as ``reply`` but the call goes on."""
        ...

    def resume(self) -> None:
        """The stream is not ``full`` any more: messages held back may come."""
        ...

    def finish(self, trailers: Trailers = ()) -> None:
        """Ends the call with status OK."""
        ...

    def fail(self, error: PenstockError, trailers: Trailers = ()) -> None:
        """Ends the call with the gRPC status of ``error.code`` and ``error.message``."""
        ...


class Stream(Protocol):
    """The method's side of a streaming call."""

    def received(self, message: Buffer) -> None:
        """One message of the client.

        The transport leaves further messages with the client (flow control) while
        ``call.congested`` or ``full``; ``call.resume`` says that it is not full any more.
        """
        ...

    @property
    def full(self) -> bool:
        """Whether so many messages are in progress that no further one should come now."""
        ...

    def half_closed(self) -> None:
        """The client sends no more; it still reads."""
        ...

    def drained(self) -> None:
        """The call is no longer congested."""
        ...

    def cancel(self) -> None:
        """The client is gone or its deadline has passed: nothing can be sent any more."""
        ...


UnaryMethod = Callable[[Call, Any, Buffer], Cancellable | None]
StreamMethod = Callable[[Call, Any], Stream]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: exactly one of ``unary`` and ``stream`` is there.

    ``request_bytes_max`` 0 means the transport's own limit.
    """

    path: str
    unary: UnaryMethod | None = None
    stream: StreamMethod | None = None
    request_bytes_max: int = 0


Methods = Mapping[str, Method]
"""By path. A path that is not there is answered UNIMPLEMENTED."""
