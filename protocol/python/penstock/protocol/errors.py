"""The closed table of error codes and the exceptions that carry them.

Knows: every code's number, HTTP status, gRPC status and whether a caller may retry; the table is
published as ``protocol/codes.json`` and a test holds the two together. Knows nothing of transports:
they look the statuses up here, nobody else speaks of them.

Who raises what:

* ``ProtocolError``: the peer sent bytes that break the protocol. Says where and in which field.
* ``InferError``: a request that was understood is answered with an error code.
* ``TypeError``/``ValueError``: the local caller misused an API. Never sent to a peer.
"""

from __future__ import annotations

import enum


class Code(enum.Enum):
    """One row of the table: (number, HTTP status, gRPC status number, retryable).

    Numbers are gRPC's canonical ones so that one number means the same on every wire.
    ``retryable`` means: the same request may succeed if it is sent again, and sending it again does
    no harm because it was not executed.
    """

    CANCELLED = (1, 499, 1, False)
    UNKNOWN = (2, 500, 2, False)
    INVALID_ARGUMENT = (3, 400, 3, False)
    DEADLINE_EXCEEDED = (4, 504, 4, False)
    NOT_FOUND = (5, 404, 5, False)
    ALREADY_EXISTS = (6, 409, 6, False)
    PERMISSION_DENIED = (7, 403, 7, False)
    RESOURCE_EXHAUSTED = (8, 503, 8, True)
    FAILED_PRECONDITION = (9, 400, 9, False)
    OUT_OF_RANGE = (11, 413, 11, False)
    UNIMPLEMENTED = (12, 501, 12, False)
    INTERNAL = (13, 500, 13, False)
    UNAVAILABLE = (14, 503, 14, True)
    UNAUTHENTICATED = (16, 401, 16, False)

    def __init__(self, number: int, http_status: int, grpc_status: int, retryable: bool) -> None:
        self.number = number
        self.http_status = http_status
        self.grpc_status = grpc_status
        self.retryable = retryable


BY_NUMBER = {code.number: code for code in Code}


def code_of_number(number: int) -> Code:
    """The code with this number; ``UNKNOWN`` for numbers outside the table."""
    return BY_NUMBER.get(number, Code.UNKNOWN)


class PenstockError(Exception):
    """Base of the errors that have a code and a message for the caller."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled as type(*args) by default, which these signatures refuse.
        return _rebuild, (type(self), self.args, self.__dict__)


class InferError(PenstockError):
    """A request that was understood cannot be answered with a result."""


class ProtocolError(PenstockError):
    """Bytes from a peer that are not a message.

    ``offset`` is the position of the first byte that cannot be right, counted from the start of the
    frame (-1 where the format has no positions, as in parsed JSON). ``field`` is the path of the
    field being read, for example ``input_tensors[0].shape``.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        offset: int = -1,
        code: Code = Code.INVALID_ARGUMENT,
    ) -> None:
        where = [part for part in (field, f"offset {offset}" if offset >= 0 else "") if part]
        super().__init__(code, f"{message} ({', '.join(where)})" if where else message)
        self.field = field
        self.offset = offset


def _rebuild(
    kind: type[PenstockError], args: tuple[object, ...], state: dict[str, object]
) -> PenstockError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
