"""What HTTP endpoints and the transport say to each other.

Knows the shape of a call and the media types that both sides name. Must not know either side: the
transport and the front doors both stand on this module and never import each other.

An endpoint is ``endpoint(responder, head, body)``. It answers by one ``responder.reply``, or by
``begin``, any number of ``chunk`` and one ``end``, at once or later. It returns what shall be
cancelled if the client goes away before the answer is complete, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

Buffer = bytes | memoryview

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream; charset=utf-8"


class RequestHead(Protocol):
    """The part of a request's head that endpoints read; see ``transport.head.Head``.

    ``memo`` is the endpoint's own: derived data that follow from the head alone.
    """

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[bytes, bytes]: ...

    memo: Any


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class Responder(Protocol):
    """What answers one request. Whatever is called after the answer is complete does nothing."""

    def reply(
        self,
        status: int,
        content_type: str,
        buffers: Sequence[Buffer],
        fields: bytes = b"",
        reason: str = "",
        close: bool = False,
    ) -> None:
        """Answers the request; further calls do nothing.

        ``buffers`` are bytes or flat byte views and must not change until they are sent. ``fields``
        are further header lines, each ended by CRLF. ``reason`` replaces the reason phrase.
        """
        ...

    def begin(
        self,
        status: int,
        content_type: str,
        fields: bytes = b"",
        drained: Callable[[], None] | None = None,
    ) -> None:
        """Starts an answer whose length is not known yet.

        ``drained`` is called each time that the client has read enough for ``congested`` to end.
        """
        ...

    def chunk(self, buffers: Sequence[Buffer]) -> None:
        """The next part of the body; ``buffers`` as in ``reply``.

        A client that leaves too much unread, in spite of ``congested``, loses the connection.
        """
        ...

    def end(self) -> None:
        """The body is complete."""
        ...

    @property
    def congested(self) -> bool:
        """Whether the client leaves so much unread that no more should be produced now."""
        ...


Endpoint = Callable[[Responder, Any, Any], Cancellable | None]
"""(responder, head, body: ``Buffer``) to what can be cancelled until the answer is complete."""

Refusal = Callable[[RequestHead | None, str], tuple[str, bytes]]
"""(head, text) to the Content-Type and body of an error that the transport itself answers. ``head``
is the last one that could be read on the connection, if any."""


def plain_refusal(head: RequestHead | None, text: str) -> tuple[str, bytes]:
    """Errors as text, for whoever it is."""
    return TEXT, text.encode() + b"\n"
