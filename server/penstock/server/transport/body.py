"""The memory that a request's body is received into."""

from __future__ import annotations

from typing import Final

import numpy as np

from penstock.server.transport.head import Head
from penstock.server.transport.status import BadRequest

ALIGNMENT: Final = 64


def body_buffer(head: Head) -> memoryview:
    """A buffer of exactly the body's length.

    It is placed so that the first byte after the endpoint's prefix (the JSON part of a v2 binary
    request) is aligned. Memory that is never received is never touched.

    Raises:
        BadRequest: 503, there is no memory.
    """
    need = head.content_length
    prefix = head.headers.get(b"inference-header-content-length", b"0")
    skew = int(prefix) if prefix.isdigit() and len(prefix) < 10 else 0
    try:
        raw = np.empty(need + ALIGNMENT, np.uint8)
    except MemoryError:
        raise BadRequest(503, "no memory for the request body") from None
    start = -(raw.ctypes.data + skew) % ALIGNMENT
    return raw.data[start : start + need]
