"""Arrays in shared memory come out as they went in, and nobody reads beyond its end."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest

from penstock.backends.python.memory import (
    ALIGNMENT,
    Segment,
    laid_out,
    make_segment,
    matches,
    packed,
    stored,
    unpacked,
)
from penstock.protocol import dtype as dt

ARRAYS = [
    (dt.FP32, np.arange(6, dtype=np.float32).reshape(2, 3)),
    (dt.BYTES, np.array([[b"", b"abc"], [b"\0" * 300, b"z"]], object)),
    (dt.BOOL, np.array(True)),
    (dt.BYTES, np.empty((0, 2), object)),
    (dt.INT64, np.empty((3, 0), np.int64)),
    (dt.FP16, np.ones(7, np.float16)),
]


def test_arrays_come_out_on_the_other_side_as_they_went_in() -> None:
    kinds, arrays = [kind for kind, _ in ARRAYS], [array for _, array in ARRAYS]
    header, flat = stored(arrays)
    assert matches(header, kinds)
    places, size = laid_out(header)
    assert all(place.start % ALIGNMENT == 0 for place in places)
    segment, file = make_segment(size)
    other = Segment(file, segment.size)
    os.close(file)
    segment.write(places, flat)
    for place, kind, array in zip(places, kinds, arrays, strict=True):
        out = other.array(place, kind)
        assert out.dtype == kind.numpy
        np.testing.assert_array_equal(out, array)


def test_a_segment_knows_whether_it_is_in_use() -> None:
    segment, file = make_segment(1000)
    os.close(file)
    (place,), _ = laid_out([((4,), 16)])
    assert not segment.lent()
    array = segment.array(place, dt.FP32)
    part = array[1:].reshape(3, 1)
    del array
    assert segment.lent()
    del part
    assert not segment.lent()


def test_nobody_can_take_a_segments_memory_away() -> None:
    segment, file = make_segment(1000)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 10)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 2 * segment.size)
    assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    os.close(file)


@pytest.mark.parametrize(
    ("header", "kinds"),
    [
        ([([2], 8)], []),
        ([([2], 8)], [dt.FP64]),
        ([([-2], -8)], [dt.FP32]),
        ([([-1, -2], 8)], [dt.FP32]),
        ([([2], 9)], [dt.FP32]),
        ([([3], 11)], [dt.BYTES]),
        ([([1 << 62, 4], 0)], [dt.FP32]),
    ],
)
def test_headers_that_cannot_be_are_found(header: list, kinds: list) -> None:
    assert not matches(header, kinds)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\1\0\0\0\0\0\0\0", b"\0" * 9])
def test_packed_elements_that_do_not_add_up_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpacked(data, (2,))


def test_elements_of_any_bytes_are_packed() -> None:
    items = np.array([b"", b"\0", bytes(range(256)) * 300], object)
    assert list(unpacked(packed(items).tobytes(), (3,))) == list(items)
