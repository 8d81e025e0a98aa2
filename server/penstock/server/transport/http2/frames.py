"""HTTP/2's numbers (RFC 9113 §6, §7, §11) and the making of single frames. Pure.

Knows the layout of frames. Must not know connections, streams or gRPC.
"""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9

# Kinds of frames.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags.
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

# Settings.
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

# Error codes.
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
FRAME_MAX_DEFAULT: Final = 2**14
FRAME_MAX_LARGEST: Final = 2**24 - 1
STREAM_ID_MAX: Final = 2**31 - 1

HEAD: Final = struct.Struct(">IBI")
"""Length (24 bits) and kind (8 bits), flags, stream."""
_SHORT: Final = struct.Struct(">IBII")
_PAIR: Final = struct.Struct(">IBIII")
SETTING: Final = struct.Struct(">HI")


class ConnectionFault(Exception):
    """The peer broke a rule in a way that ends the connection; ``code`` goes into GOAWAY."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamFault(Exception):
    """The peer broke a rule in one stream alone; ``code`` goes into RST_STREAM."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(pairs: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*pair) for pair in pairs.items()))


def window_update(stream: int, increment: int) -> bytes:
    return _SHORT.pack(4 << 8 | WINDOW_UPDATE, 0, stream, increment)


def rst_stream(stream: int, code: int) -> bytes:
    return _SHORT.pack(4 << 8 | RST_STREAM, 0, stream, code)


def goaway(last: int, code: int, text: str = "") -> bytes:
    note = text.encode()
    return _PAIR.pack((8 + len(note)) << 8 | GOAWAY, 0, 0, last, code) + note


def headers(stream: int, block: bytes, *, end: bool, frame_max: int = FRAME_MAX_DEFAULT) -> bytes:
    """HEADERS and, for a block that is larger than a frame may be, CONTINUATION."""
    flags = END_STREAM if end else 0
    first, rest = block[:frame_max], block[frame_max:]
    frames = [frame(HEADERS, flags if rest else flags | END_HEADERS, stream, first)]
    while rest:
        first, rest = rest[:frame_max], rest[frame_max:]
        frames.append(frame(CONTINUATION, 0 if rest else END_HEADERS, stream, first))
    return b"".join(frames)


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)
