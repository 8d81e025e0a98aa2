"""Carries tensors between ordinary host memory and a device, through a little pinned memory.

Knows a device's copies and events; nothing of plans, shapes and dtypes. The device can read and
write pinned memory only by itself, so everything goes through two halves of it: while the device
works on one, the host fills or empties the other, so memory is bounded and large tensors take
little more than the slower of the two copies.

Tensors of one direction are packed into one block of device memory. A block that fits into one half
is carried by one copy, through views of pinned memory that are made once for its shapes.

Contract: one thread at a time, and the stream is empty when a ``send`` begins. It returns when the
device may still be reading, in the stream's order; ``fetch`` returns when all has arrived, and
everything that was put into the stream before it is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from penstock.backends.tensorrt.cuda import Device
from penstock.protocol.message import Array

_ALIGNMENT: Final = 256


@dataclass(frozen=True, slots=True)
class Packed:
    """Where tensors lie in a block of ``nbytes``. ``views`` are their places in pinned memory, if
    that can hold the block."""

    offsets: list[int]
    nbytes: int
    views: list[Array] | None


class _Half:
    """``used`` bytes are taken; ``recorded`` says that the event stands for them;
    ``parts`` are places in the caller's arrays that the bytes belong to."""

    def __init__(self, device: Device, nbytes: int, *, sleeps: bool) -> None:
        self.event = device.event(sleeps=sleeps)
        try:
            self.bytes, self.pinned = device.pin(nbytes)
        except BaseException:
            device.free_event(self.event)
            raise
        self.address = int(self.pinned)
        self.used = 0
        self.recorded = False
        self.parts: list[tuple[Array, int]] = []


class Staging:
    """Two halves of ``half_bytes`` each, for one direction of one stream."""

    def __init__(self, device: Device, stream: Any, half_bytes: int, *, sleeps: bool) -> None:
        self._device = device
        self._stream = stream
        self._size = half_bytes
        self._sleeps = sleeps
        self._first = self._half = _Half(device, half_bytes, sleeps=sleeps)
        try:
            self._other = _Half(device, half_bytes, sleeps=sleeps)
        except BaseException:
            self._free(self._half)
            raise

    def packed(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any]]) -> Packed:
        """How tensors of these shapes lie in one block."""
        offsets, sizes, end = [], [], 0
        for shape, dtype in zip(shapes, dtypes, strict=True):
            offsets.append(end)
            sizes.append(math.prod(shape) * dtype.itemsize)
            end += -(-sizes[-1] // _ALIGNMENT) * _ALIGNMENT
        if end > self._size:
            return Packed(offsets, end, None)
        raw = self._first.bytes
        views = [
            raw[start : start + size].view(dtype).reshape(shape)
            for start, size, shape, dtype in zip(offsets, sizes, shapes, dtypes, strict=True)
        ]
        return Packed(offsets, end, views)

    def send(self, packed: Packed, arrays: Sequence[Array], address: int) -> None:
        """Arrays to a block on the device. They are the caller's again on return."""
        if packed.views is None:
            self._send(zip(arrays, [address + offset for offset in packed.offsets], strict=True))
            return
        for view, array in zip(packed.views, arrays, strict=True):
            view[...] = array
        if packed.nbytes:
            self._device.copy_in(address, self._first.address, packed.nbytes, self._stream)

    def fetch(
        self, packed: Packed, places: Sequence[Array | None], address: int
    ) -> Sequence[Array]:
        """The tensors of a block, in the places given for them or in new arrays.

        Where the block is not a part of pinned memory, all places must be given.
        """
        if packed.views is None:
            given = [place for place in places if place is not None]
            starts = [address + offset for offset in packed.offsets]
            self.fetch_each(zip(given, starts, strict=True))
            return given
        if packed.nbytes:
            self._device.copy_out(self._first.address, address, packed.nbytes, self._stream)
        self._finish()
        made = []
        for view, place in zip(packed.views, places, strict=True):
            if place is None:
                made.append(view.copy())
            else:
                place[...] = view
                made.append(place)
        return made

    def fetch_each(self, pairs: Iterable[tuple[Array, int]]) -> None:
        """From the device addresses into the arrays beside them."""
        self._reset()
        for array, address in pairs:
            data = _flat(array)
            done = 0
            while done < data.nbytes:
                half = self._with_room()
                take = min(self._size - half.used, data.nbytes - done)
                self._device.copy_out(half.address + half.used, address + done, take, self._stream)
                half.parts.append((data[done : done + take], half.used))
                half.used += take
                done += take
        self._record(self._half)
        self._settle(self._other)
        self._settle(self._half)

    def _send(self, pairs: Iterable[tuple[Array, int]]) -> None:
        self._reset()
        for array, address in pairs:
            data = _flat(array)
            done = 0
            while done < data.nbytes:
                half = self._with_room()
                take = min(self._size - half.used, data.nbytes - done)
                half.bytes[half.used : half.used + take] = data[done : done + take]
                self._device.copy_in(address + done, half.address + half.used, take, self._stream)
                half.used += take
                done += take

    def _reset(self) -> None:
        """Forgets what was under way; the stream is empty."""
        for half in (self._half, self._other):
            half.used, half.recorded = 0, False
            half.parts.clear()

    def _finish(self) -> None:
        if self._sleeps:
            self._device.record(self._first.event, self._stream)
            self._device.wait(self._first.event)
        else:
            self._device.drain(self._stream)

    def close(self) -> None:
        try:
            self._free(self._half)
        finally:
            self._free(self._other)

    def _with_room(self) -> _Half:
        if self._half.used == self._size:
            self._record(self._half)
            self._half, self._other = self._other, self._half
            self._settle(self._half)
        return self._half

    def _record(self, half: _Half) -> None:
        self._device.record(half.event, self._stream)
        half.recorded = True

    def _settle(self, half: _Half) -> None:
        if half.recorded:
            self._device.wait(half.event)
        for place, start in half.parts:
            place[:] = half.bytes[start : start + place.nbytes]
        half.used, half.recorded = 0, False
        half.parts.clear()

    def _free(self, half: _Half) -> None:
        try:
            self._device.free_event(half.event)
        finally:
            self._device.unpin(half.pinned)


def _flat(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
