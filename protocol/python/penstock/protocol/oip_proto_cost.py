"""Whether reading a message takes long for its size: told by its outline, before it is read.

Knows: where a request names its element types and has its typed contents. Knows nothing of what
decoding makes of them, and refuses nothing: what is no message is for the decoder to say.

Contract: a few microseconds for what stock clients send, however large; at most ``OUTLINE_MAX``
fields are looked at.
"""

from __future__ import annotations

from typing import Final

from penstock.protocol.errors import ProtocolError
from penstock.protocol.oip_proto_parse import TENSOR
from penstock.protocol.oip_proto_wire import Budget, Buffer, fields

OUTLINE_MAX: Final = 1024
"""Messages of more fields than this are long in reading whatever they say."""
CONTENTS_BYTES_MAX: Final = 64 * 1024
"""Typed contents may be a string a byte or two."""


def is_slow(message: Buffer) -> bool:
    """Whether a large ``message`` has elements that are read one by one."""
    budget = Budget(OUTLINE_MAX)
    try:
        for tag, start, end in fields(message, 0, len(message), budget=budget):
            if tag == TENSOR:
                for inner, a, b in fields(message, start, end, 1, budget):
                    if inner == 0x12 and message[a:b] == b"BYTES":
                        return True
                    if inner == 0x2A and b - a > CONTENTS_BYTES_MAX:
                        return True
    except ProtocolError:
        return budget.left < 0
    return False
