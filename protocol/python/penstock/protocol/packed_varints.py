"""Many varints at once: the packed integers of protocol buffers, read and written by NumPy.

Contract: whatever the bytes, reading gives values or raises; memory is in proportion to the input,
and writing takes a bounded amount beside its result.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from penstock.protocol.errors import ProtocolError
from penstock.protocol.message import Array
from penstock.protocol.oip_proto_wire import Buffer

_VARINT_BYTES_MAX: Final = 10
_CHUNK: Final = 1 << 16
"""Values written at a time: each costs up to 100 bytes meanwhile."""


def read_varints(packed: Buffer) -> Array:
    """The values of ``packed``, as unsigned 64 bits.

    Raises:
        ProtocolError: the last one is cut off, or one is too long.
    """
    octets = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    values = octets[ends].astype(np.uint64)
    if ends.size == octets.size:
        return values
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts
    if not ends.size or ends[-1] != octets.size - 1 or lengths.max() >= _VARINT_BYTES_MAX:
        raise ProtocolError("malformed protobuf message: packed numbers are cut off or too long")
    values <<= (7 * lengths).astype(np.uint64)
    for place in range(int(lengths.max())):
        longer = lengths > place
        septets = (octets[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= septets << np.uint64(7 * place)
    return values


def write_varints(values: Array) -> bytes:
    """The integers of ``values`` in C order; negative ones as 64 bits, as the format wants them."""
    flat = values.reshape(-1).astype(np.int64 if values.dtype.kind == "i" else np.uint64)
    flat = flat.view(np.uint64)
    parts = [_write(flat[i : i + _CHUNK]) for i in range(0, flat.size, _CHUNK)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(values: Any) -> bytes:
    width = max(1, (int(values.max()).bit_length() + 6) // 7)
    if width == 1:
        octets: bytes = values.astype(np.uint8).tobytes()
        return octets
    rest = values[:, None] >> (7 * np.arange(width, dtype=np.uint64))
    there = rest > 0
    there[:, 0] = True
    septets = (rest & np.uint64(0x7F)).astype(np.uint8)
    septets[:, :-1] |= there[:, 1:].astype(np.uint8) << 7
    return bytes(septets[there])
