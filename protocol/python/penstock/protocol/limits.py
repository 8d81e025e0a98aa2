"""How large a message may be before it is refused unread.

Every codec takes a ``WireLimits``; whatever a peer sends costs at most what these numbers allow.
The size of a whole frame is the transport's limit, not ours: codecs see complete frames.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Upper bounds that a decoder checks before it allocates or loops."""

    tensors_max: int = 1024
    """Tensors in one message, and names in one list."""
    rank_max: int = 32
    """Dimensions of one tensor (NumPy itself stops at 64)."""
    elements_max: int = 1 << 40
    """Elements of one tensor: bounds shape products before they are multiplied out."""
    strings_max: int = 1 << 24
    """Elements of one BYTES tensor: each costs a Python object."""
    name_bytes_max: int = 4096
    """Bytes of one name, id or string parameter."""
    config_bytes_max: int = 1 << 20
    """Bytes of GraphPipe's ``config``."""
    json_bytes_max: int = 64 << 20
    """Bytes of a JSON message, or of the JSON part of one with binary tensors, as in Triton."""
    json_depth_max: int = 100
    """Nesting of JSON tensor data, as in Triton."""


DEFAULT = WireLimits()
