"""Memory that starts where vector instructions and device copies like it best.

Knows one number. Server and client receive into such memory, so that decoded tensors, which are
views of it, are aligned too.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 64
"""Bytes: a cache line, an AVX-512 register, and what DLPack consumers such as TVM demand."""


def aligned_bytes(size: int, lead: int = 0) -> NDArray[np.uint8]:
    """``size`` uninitialised bytes whose byte number ``lead`` is aligned.

    ``lead`` is the length of what stands before the tensors, as the JSON of a v2 message. Memory
    that is never written is never touched.

    Raises:
        MemoryError: there is no memory.
    """
    block = np.empty(size + ALIGNMENT, np.uint8)
    skip = -(block.__array_interface__["data"][0] + lead) % ALIGNMENT
    return block[skip : skip + size]
