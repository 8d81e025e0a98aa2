"""What a call can raise besides its result.

Knows: how the protocol's errors are refined for a caller. Must not know sockets or HTTP.

* ``InferError``: the server answered with an error code. ``Unavailable`` and ``DeadlineExceeded``
  are the two kinds that callers treat specially.
* ``ConnectError``: there is no connection, or it broke before the reply was complete.
* ``BadReply``: the peer sent something that is not a reply.
* ``ClientClosed``, ``TypeError``, ``ValueError``: the local caller's mistake; nothing was sent.

All but the last line are ``PenstockError`` with ``code`` and ``message``; ``code.retryable`` is the
only thing that decides about a retry.
"""

from __future__ import annotations

from penstock.protocol.errors import Code, InferError, PenstockError, ProtocolError


class Unavailable(InferError):
    """The server did not execute the request and says that it may be sent again.

    ``retry_after_s`` is the wait that the server asked for, None where it did not.
    """

    def __init__(self, code: Code, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(InferError, TimeoutError):
    """The time of the call is over, whether this side or the server noticed first."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.DEADLINE_EXCEEDED, message)


class ConnectError(PenstockError, ConnectionError):
    """No connection could be made, or it was lost before the reply was complete.

    In the second case the server may have executed the request. The code is UNAVAILABLE, so it is
    sent again: inference has no side effects. A peer whose certificate is not accepted is
    UNAUTHENTICATED.
    """

    def __init__(self, message: str, code: Code = Code.UNAVAILABLE) -> None:
        super().__init__(code, message)


class StaleConnection(ConnectError):
    """The peer closed the connection before the first byte of the reply.

    ``used``: it had served an earlier call, so that this is most likely the end of its idle time.
    """

    def __init__(self, message: str, *, used: bool) -> None:
        super().__init__(message)
        self.used = used


class BadReply(ProtocolError):
    """The peer's reply breaks HTTP or the protocol; code INTERNAL (OUT_OF_RANGE if too large)."""

    def __init__(self, message: str, code: Code = Code.INTERNAL) -> None:
        super().__init__(message, code=code)


class ClientClosed(RuntimeError):
    """The client was used after it was closed."""


def error_of(code: Code, message: str, retry_after_s: float | None = None) -> InferError:
    """The exception for an error that the server answered with."""
    if code.retryable:
        return Unavailable(code, message, retry_after_s)
    if code is Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(message)
    return InferError(code, message)
