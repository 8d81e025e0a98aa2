"""The body of a load request: {"parameters": {"config": "...", "file:1/model.onnx": "<base64>"}}.

Knows the model repository extension's JSON. Must not know what is done with it. Blocking for large
bodies, so for threads; it works in pieces, so that the event loop gets the GIL in between.
"""

from __future__ import annotations

import binascii
from typing import Final, NamedTuple

import msgspec

from penstock.protocol.errors import Code, InferError
from penstock.server.http_seam import Buffer

_PIECE: Final = 1 << 18
"""Characters of base64 at a time; a multiple of four."""
_FILE: Final = "file:"


class LoadRequest(NamedTuple):
    """``config`` is JSON, None where it is absent; ``files`` by path in the model's directory."""

    config: str | None
    files: dict[str, bytes | memoryview]


class _Body(msgspec.Struct):
    parameters: dict[str, msgspec.Raw] = {}


def decode_load(body: Buffer) -> LoadRequest:
    """What ``body`` asks for; an empty one asks for nothing in particular.

    Raises:
        InferError: INVALID_ARGUMENT, it is something else.
    """
    if not len(body):
        return LoadRequest(None, {})
    try:
        parameters = msgspec.json.decode(body, type=_Body).parameters
    except (ValueError, RecursionError) as error:
        raise InferError(
            Code.INVALID_ARGUMENT, f"failed to parse the request JSON buffer: {error}"
        ) from None
    config, files = None, dict[str, bytes | memoryview]()
    for name, raw in parameters.items():
        if name == "config":
            config = _text(name, raw)
        elif name.startswith(_FILE):
            files[name[len(_FILE) :]] = _file(name, raw)
        else:
            raise InferError(
                Code.INVALID_ARGUMENT,
                f"unexpected load parameter {name!r}; known are 'config' and 'file:<path>'",
            )
    return LoadRequest(config, files)


def _text(name: str, raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except ValueError as error:
        raise InferError(
            Code.INVALID_ARGUMENT, f"load parameter {name!r} is not a string: {error}"
        ) from None


def _file(name: str, raw: msgspec.Raw) -> memoryview:
    given = memoryview(raw)
    if given[0] != ord('"'):
        raise InferError(Code.INVALID_ARGUMENT, f"load parameter {name!r} is not a string")
    try:
        return _decoded(given[1:-1])
    except binascii.Error:  # Escaped slashes, or lines, perhaps: rare, but legal.
        text = _text(name, raw).encode().translate(None, b" \t\r\n")
    try:
        return _decoded(memoryview(text))
    except binascii.Error as error:
        raise InferError(
            Code.INVALID_ARGUMENT, f"load parameter {name!r} is not base64: {error}"
        ) from None


def _decoded(characters: memoryview) -> memoryview:
    decoded = bytearray()
    for start in range(0, len(characters), _PIECE):
        piece = characters[start : start + _PIECE]
        made = binascii.a2b_base64(piece, strict_mode=True)
        if len(made) * 4 != len(piece) * 3 and start + _PIECE < len(characters):
            raise binascii.Error("padding in the middle")
        decoded += made
    return memoryview(decoded)
