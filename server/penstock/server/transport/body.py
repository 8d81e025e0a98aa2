"""The memory that a request's body is received into."""

from __future__ import annotations

from penstock.protocol.aligned import aligned_bytes
from penstock.server.transport.head import Head
from penstock.server.transport.status import BadRequest


def body_buffer(head: Head) -> memoryview:
    """A buffer of exactly the body's length.

    It is placed so that the first byte after the endpoint's prefix (the JSON part of a v2 binary
    request) is aligned.

    Raises:
        BadRequest: 503, there is no memory.
    """
    prefix = head.headers.get(b"inference-header-content-length", b"0")
    lead = int(prefix) if prefix.isdigit() and len(prefix) < 10 else 0
    try:
        return aligned_bytes(head.content_length, lead).data
    except MemoryError:
        raise BadRequest(503, "no memory for the request body") from None
