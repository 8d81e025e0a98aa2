"""Large JSON requests piece by piece, so that other threads get their turn.

Python's JSON parsers hold the interpreter from the first byte to the last: a message of tens of
MiB, decoded on a thread, stops an event loop on another one all the same. So long arrays of numbers
are *lifted* out of the text first; what remains is small and parsed as ever, and the numbers are
read a slice at a time, straight into the tensor's memory.

Knows: where ``data`` stands in a text, and what nested numbers of a shape look like. Knows nothing
of requests.

Contract: whatever is not plain (strings, booleans, NaN, faults of any kind) raises ``NotPlain``;
the caller then decodes the whole text as it is, which gives the result or the proper error.
"""

from __future__ import annotations

import re
import secrets
import struct
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from penstock.protocol.dtype import DType
from penstock.protocol.message import Array
from penstock.protocol.oip_tensor import PACK, Body

SPAN_BYTES_MIN: Final = 16 * 1024
"""Shorter arrays stay in the text."""
_SPANS_MAX: Final = 4096
"""Arrays that are looked at; more inputs than any message may have."""
_SLICE_BYTES: Final = 32 * 1024
"""A slice takes a fraction of a millisecond."""
_WINDOW_BYTES: Final = 1 << 20
_START: Final = re.compile(rb'[{,][ \t\r\n]{0,64}"data"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}\[')
_START_BYTES_MAX: Final = 256
_TOKEN: Final = f"lifted-{secrets.token_hex(16)}-"
"""Nobody else can write a text that looks like ours."""
_STRUCTURE: Final = bytes(set(range(256)) - set(b"[],"))
_NO_BRACKETS: Final = bytes.maketrans(b"[]", b"  ")
_numbers = msgspec.json.Decoder(list[int | float])


class NotPlain(Exception):
    """The text has to be decoded as a whole."""


class Lifted:
    """The numbers at ``text[start:end]``, an array that may be nested."""

    __slots__ = ("end", "start", "text")

    def __init__(self, text: bytearray, start: int, end: int) -> None:
        self.text = text
        self.start = start
        self.end = end

    def array(self, dtype: DType, shape: tuple[int, ...]) -> Array:
        """The tensor that the numbers fill; read-only.

        Raises:
            NotPlain: they do not, or are not all numbers of this type.
        """
        code, count = PACK.get(dtype), prod(shape)
        # Each number takes two bytes at least: what was received bounds what is allocated.
        if code is None or code == "?" or not 0 < 2 * count <= self.end - self.start + 1:
            raise NotPlain
        nested = self._is_nested(shape)
        out = np.empty(count, dtype.numpy)
        memory, done, size = out.data.cast("B"), 0, dtype.itemsize
        place, last = self.start + 1, self.end - 1
        while place <= last:
            stop = self.text.find(b",", place + _SLICE_BYTES, last)
            stop = last if stop < 0 else stop
            part = self.text[place:stop]
            if nested:
                part = part.translate(_NO_BRACKETS)
            try:
                values = _numbers.decode(b"[" + part + b"]")
                struct.pack_into(f"<{len(values)}{code}", memory, done * size, *values)
            except (msgspec.MsgspecError, struct.error, OverflowError):
                raise NotPlain from None
            if not values:
                raise NotPlain
            done += len(values)
            place = stop + 1
        if done != count:
            raise NotPlain
        out.flags.writeable = False
        return out.reshape(shape)

    def _is_nested(self, shape: tuple[int, ...]) -> bool:
        """Whether there are arrays in the array; then they must be those of ``shape``."""
        if self.text.find(b"[", self.start + 1, self.end) < 0:
            if self.text.find(b"]", self.start, self.end - 1) >= 0:
                raise NotPlain
            return False
        expected = b""
        for dim in reversed(shape):
            if dim * (len(expected) + 1) > self.end - self.start:
                raise NotPlain  # Longer than the text can be.
            expected = b"[%b]" % b",".join([expected] * dim)
        at = 0
        for place in range(self.start, self.end, _WINDOW_BYTES):
            window = self.text[place : min(place + _WINDOW_BYTES, self.end)]
            found = window.translate(None, _STRUCTURE)
            if expected[at : at + len(found)] != found:
                raise NotPlain
            at += len(found)
        if at != len(expected):
            raise NotPlain
        return True


class Lifting:
    """A text without its long arrays of numbers, which are kept aside.

    ``skeleton`` has a mark of ours in the place of each; ``find`` gives what a mark stands for.
    """

    __slots__ = ("_lifted", "skeleton")

    def __init__(self, text: Body) -> None:
        """
        Raises:
            NotPlain: there is nothing to lift.
        """
        whole = _copied(text)
        self._lifted: list[Lifted] = []
        parts: list[bytes | bytearray] = []
        kept = place = 0
        for _ in range(_SPANS_MAX):
            span = _next_span(whole, place)
            if span is None:
                break
            start, place = span
            if place - start >= SPAN_BYTES_MIN:
                parts += (whole[kept:start], self._mark().encode())
                self._lifted.append(Lifted(whole, start, place))
                kept = place
        if not self._lifted:
            raise NotPlain
        self.skeleton = b"".join((*parts, whole[kept:]))

    def _mark(self) -> str:
        # A list of a string is what the fast parser takes for the data of a tensor.
        return f'["{_TOKEN}{len(self._lifted)}"]'

    def find(self, data: Any) -> Lifted | None:
        """The numbers that parsed ``data`` stand for, if it is a mark."""
        if type(data) is list and len(data) == 1:
            mark = data[0]
            if isinstance(mark, str) and mark.startswith(_TOKEN):
                return self._lifted[int(mark[len(_TOKEN) :])]
        return None


def _copied(text: Body) -> bytearray:
    """A copy that can be searched, made a window at a time: the memory alone takes its time."""
    copy = bytearray()
    for place in range(0, len(text), _WINDOW_BYTES):
        copy += text[place : place + _WINDOW_BYTES]
    return copy


def _next_span(text: bytearray, place: int) -> tuple[int, int] | None:
    """Where the next ``data`` without strings and objects in it begins and ends."""
    while place < len(text):
        stop = min(place + _WINDOW_BYTES, len(text))
        found = _START.search(text, place, stop)
        if found is None:
            if stop == len(text):
                return None
            # A start that lies across the border is found in the next window.
            place = stop - _START_BYTES_MAX
            continue
        start = found.end() - 1
        # In valid JSON what follows the array is a key, or the end of the object.
        quote = text.find(b'"', start)
        limit = quote if quote >= 0 else len(text)
        brace = text.find(b"}", start, limit)
        end = text.rfind(b"]", start, brace if brace >= 0 else limit) + 1
        return start, max(end, start + 1)
    return None
