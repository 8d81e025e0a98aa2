"""Protocol buffers' wire format, as far as the inference messages need it.

Knows: tags, varints, lengths, groups, map entries of ``InferParameter``. Knows nothing of which
field means what, but for the two fields of such an entry and the five of a parameter.

Contract: what google.protobuf refuses is refused, and what it takes is taken, for any bytes: tags
of up to 5 bytes, varints and lengths of up to 10 with their upper bits dropped, fields of an
unexpected wire type and groups skipped. Readers are stricter only where limits say so. Nothing is
copied but names and other short texts. Positions are those in the whole message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sized
from typing import Final

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Parameter

Buffer = bytes | memoryview

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
"""Wire types: the lower three bits of a tag."""

FIELDS_MAX: Final = 1 << 16
"""Fields of one message and all those in it, known or not: each is a turn of a Python loop."""
DEPTH_MAX: Final = 100
"""Messages and groups within each other, as in google.protobuf."""
_TAG_BYTES_MAX: Final = 5
_VARINT_BYTES_MAX: Final = 10
_TAG_MAX: Final = (1 << 32) - 1
_LENGTH_MAX: Final = (1 << 31) - 1
_INT64_MAX: Final = (1 << 63) - 1
_UINT64_MAX: Final = (1 << 64) - 1

_double = struct.Struct("<d")


def varint_at(data: Buffer, at: int, bytes_max: int = _VARINT_BYTES_MAX) -> tuple[int, int]:
    """The varint at ``at``, not cut to 64 bits, and the position behind it."""
    value = shift = 0
    for position in range(at, at + bytes_max):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise ProtocolError("malformed protobuf message: number too long", offset=at)


class Budget:
    """How many fields may still come. Messages within each other share one."""

    __slots__ = ("left",)

    def __init__(self, fields_max: int = FIELDS_MAX) -> None:
        self.left = fields_max


def fields(
    data: Buffer, at: int, end: int, depth: int = 0, budget: Budget | None = None
) -> Iterator[tuple[int, int, int]]:
    """The fields of the message ``data[at:end]`` in their order, as (tag, a, b).

    ``a`` and ``b`` bound the contents; of a varint ``a`` is the value (unsigned, 64 bits) and ``b``
    the end. Groups are skipped. ``depth`` counts the messages around this one.

    Raises:
        ProtocolError: the bytes are no message, or one of more fields than ``budget`` has left.
    """
    groups: list[int] = []
    budget = budget or Budget()
    try:
        while at < end:
            start, tag = at + 1, data[at]
            if tag > 0x7F:
                tag, start = varint_at(data, at, _TAG_BYTES_MAX)
            kind = tag & 7
            if tag < 8 or tag > _TAG_MAX:
                raise ProtocolError("malformed protobuf message: no such field", offset=at)
            budget.left -= 1
            if budget.left < 0:
                raise ProtocolError("too many fields in one protobuf message", offset=at)
            if kind == BYTES:
                size = data[start]
                start += 1
                if size > 0x7F:
                    size, start = varint_at(data, start - 1)
                    size &= _UINT64_MAX
                    if size > _LENGTH_MAX:
                        raise _truncated(at)
                at = stop = start + size
            elif kind == VARINT:
                value, at = data[start], start + 1
                if value > 0x7F:
                    value, at = varint_at(data, start)
                start, stop = value & _UINT64_MAX, at
            elif kind in (FIXED32, FIXED64):
                at = stop = start + (4 if kind == FIXED32 else 8)
            elif kind == GROUP and len(groups) < DEPTH_MAX - depth:
                groups.append(tag + 1)
                at = start
                continue
            elif kind == GROUP_END and groups and groups[-1] == tag:
                groups.pop()
                at = start
                continue
            else:
                raise ProtocolError(f"malformed protobuf message: wire type {kind}", offset=at)
            if at > end:
                break
            if not groups:
                yield tag, start, stop
    except IndexError:
        raise _truncated(end) from None
    if at != end or groups:
        raise _truncated(end)


def _truncated(offset: int) -> ProtocolError:
    return ProtocolError("malformed protobuf message: truncated", offset=offset)


def signed(value: int) -> int:
    """An int64 from its varint."""
    return value if value <= _INT64_MAX else value - (1 << 64)


def text_at(data: Buffer, start: int, end: int, what: str, limits: WireLimits) -> str:
    """The string ``data[start:end]``, at most ``limits.name_bytes_max`` bytes of UTF-8."""
    if end - start > limits.name_bytes_max:
        raise ProtocolError(f"{what} is longer than the maximum {limits.name_bytes_max} bytes")
    try:
        return str(data[start:end], "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8", offset=start) from None


# --- parameters -----------------------------------------------------------------------------------


def read_parameter(
    data: Buffer,
    start: int,
    end: int,
    into: dict[str, Parameter | None],
    limits: WireLimits,
    depth: int = 1,
    budget: Budget | None = None,
) -> None:
    """Adds one entry of a map of parameters; None is one without a value.

    Raises:
        ProtocolError: the bytes are no entry, or there are too many.
    """
    key = ""
    value: Parameter | None = None
    budget = budget or Budget()
    for tag, a, b in fields(data, start, end, depth, budget=budget):
        if tag == 0x0A:
            key = text_at(data, a, b, "parameter name", limits)
        elif tag == 0x12:
            inner = fields(data, a, b, depth + 1, budget=budget)
            value = _parameter_value(data, inner, value, limits)
    into[key] = value
    check_number(into, "parameters", limits)


def check_number(found: Sized, what: str, limits: WireLimits) -> None:
    """Refuses lists of names or tensors that are longer than the limit."""
    if len(found) > limits.tensors_max:
        raise ProtocolError(f"more than the maximum {limits.tensors_max} {what}")


def _parameter_value(
    data: Buffer,
    inner: Iterator[tuple[int, int, int]],
    value: Parameter | None,
    limits: WireLimits,
) -> Parameter | None:
    for tag, a, b in inner:
        if tag == 0x08:
            value = a != 0
        elif tag == 0x10:
            value = signed(a)
        elif tag == 0x1A:
            value = text_at(data, a, b, "parameter value", limits)
        elif tag == 0x21:
            (value,) = _double.unpack_from(data, a)
        elif tag == 0x28:
            value = a
    return value


def parameter_fields(number: int, parameters: Mapping[str, Parameter]) -> bytes:
    """``parameters`` as the map in field ``number``. Whole numbers are int64 if they fit.

    Raises:
        ValueError: a whole number that does not fit 64 bits.
    """
    parts = []
    for key, value in parameters.items():
        if isinstance(value, bool):
            choice = b"\x08\x01" if value else b"\x08\x00"
        elif isinstance(value, int):
            choice = _whole_number(key, value)
        elif isinstance(value, str):
            choice = field(3, value.encode())
        else:
            choice = b"\x21" + _double.pack(value)
        parts.append(field(number, field(1, key.encode()) + field(2, choice)))
    return b"".join(parts)


def _whole_number(key: str, value: int) -> bytes:
    if -_INT64_MAX - 1 <= value <= _INT64_MAX:
        return b"\x10" + varint(value & _UINT64_MAX)
    if 0 < value <= _UINT64_MAX:
        return b"\x28" + varint(value)
    raise ValueError(f"parameter '{key}' does not fit 64 bits")


# --- writing --------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """``value`` (0 to 2**64 - 1) as a varint."""
    if value < 0x80:
        return value.to_bytes(1, "little")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def opening(number: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of field ``number``."""
    if number < 16 and size < 0x80:
        return bytes((number << 3 | BYTES, size))
    return varint(number << 3 | BYTES) + varint(size)


def field(number: int, content: bytes) -> bytes:
    """A whole string, bytes or message field."""
    return opening(number, len(content)) + content
