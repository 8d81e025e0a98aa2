"""Rows of several jobs into one array per input."""

import numpy as np
import pytest

from penstock.protocol.aligned import ALIGNMENT
from penstock.server.stacking import Stacker, aligned_empty


@pytest.mark.parametrize("dtype", ["u1", "<f2", "<i4", "<f8", "?"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (7, 0)])
def test_aligned_empty(dtype, shape):
    array = aligned_empty(shape, np.dtype(dtype))
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_rows_stand_in_the_order_of_the_jobs(new_job):
    jobs = [
        new_job(rows, arrays=[np.full((rows, 2), rows, "<i4"), np.full((rows,), -rows, "<f4")])
        for rows in (2, 1, 3)
    ]
    first, second = Stacker(2).stack(jobs, 6)
    assert first.tolist() == [[2, 2], [2, 2], [1, 1], [3, 3], [3, 3], [3, 3]]
    assert second.tolist() == [-2, -2, -1, -3, -3, -3]
    assert (first.dtype, second.dtype) == (np.dtype("<i4"), np.dtype("<f4"))
    for array in (first, second):
        assert array.flags.c_contiguous
        assert array.ctypes.data % ALIGNMENT == 0


def test_a_single_job_is_not_copied(new_job):
    array = np.arange(6, dtype="<i4").reshape(3, 2)
    array.flags.writeable = False
    (out,) = Stacker(1).stack([new_job(3, arrays=[array])], 3)
    assert out is array


def test_a_single_unaligned_job_is_copied(new_job):
    raw = bytes(1) + np.arange(6, dtype="<i4").tobytes()
    array = np.frombuffer(raw, "<i4", offset=1).reshape(3, 2)
    assert not array.flags.aligned
    (out,) = Stacker(1).stack([new_job(3, arrays=[array])], 3)
    assert out.flags.aligned
    assert out.flags.c_contiguous
    assert np.array_equal(out, array)


def test_a_single_job_that_is_not_contiguous_is_copied(new_job):
    """Backends are promised C-contiguous inputs; callers in the same process may bring others."""
    array = np.arange(12, dtype="<i4").reshape(3, 4)[:, ::2]
    (out,) = Stacker(1).stack([new_job(3, arrays=[array])], 3)
    assert out.flags.c_contiguous
    assert out.tolist() == [[0, 2], [4, 6], [8, 10]]


def test_unaligned_parts_are_gathered(new_job):
    raw = bytes(1) + np.arange(4, dtype="<i8").tobytes()
    part = np.frombuffer(raw, "<i8", offset=1).reshape(2, 2)
    (out,) = Stacker(1).stack([new_job(2, arrays=[part]), new_job(2, arrays=[part])], 4)
    assert out.tolist() == [[0, 1], [2, 3]] * 2


def test_the_arena_grows_and_is_used_again(new_job):
    def stack(count, width=3):
        jobs = [new_job(1, arrays=[np.full((1, width), i, "<i4")]) for i in range(count)]
        (out,) = stacker.stack(jobs, count)
        assert out.tolist() == [[i] * width for i in range(count)]
        return out

    stacker = Stacker(1)
    five = stack(5)
    assert np.shares_memory(stack(8), five)  # grown to the next power of two
    assert np.shares_memory(stack(2), five)
    assert not np.shares_memory(stack(9), five)
    other = stack(4, width=7)
    assert np.shares_memory(stack(4, width=7), other)


def test_strings_are_gathered_without_an_arena(new_job):
    def job(*texts):
        return new_job(len(texts), arrays=[np.array(texts, dtype=object).reshape(-1, 1)])

    stacker = Stacker(1)
    (first,) = stacker.stack([job(b"a", b"bb"), job(b"")], 3)
    (second,) = stacker.stack([job(b"x"), job(b"y")], 2)
    assert first.tolist() == [[b"a"], [b"bb"], [b""]]
    assert second.tolist() == [[b"x"], [b"y"]]


def test_inputs_of_one_batch_do_not_share_an_arena(new_job):
    jobs = [
        new_job(1, arrays=[np.full((1, 2), i, "<i4"), np.full((1, 2), -i, "<i4")]) for i in (1, 2)
    ]
    first, second = Stacker(2).stack(jobs, 2)
    assert not np.shares_memory(first, second)
    assert (first == -second).all()


@pytest.mark.parametrize("rows", [[0, 0], [0, 2], [2, 0, 1]])
def test_jobs_without_rows(new_job, rows):
    jobs = [new_job(n, arrays=[np.full((n, 2), i, "<i4")]) for i, n in enumerate(rows)]
    (out,) = Stacker(1).stack(jobs, sum(rows))
    assert out.tolist() == [[i, i] for i, n in enumerate(rows) for _ in range(n)]


def test_an_arena_beyond_the_limit_is_not_kept(new_job, monkeypatch):
    monkeypatch.setattr("penstock.server.stacking.ARENA_BYTES_MAX", 1024)
    stacker = Stacker(1)
    small = [new_job(arrays=[np.ones((1, 4), "f4")]) for _ in range(2)]
    (kept,) = stacker.stack(small, 2)
    wide = [new_job(rows=3, arrays=[np.full((3, 100), i, "f4")]) for i in range(2)]
    (first,), (second,) = stacker.stack(wide, 6), stacker.stack(wide, 6)
    assert first.shape == (6, 100)
    assert first[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert not np.shares_memory(first, second)
    assert np.shares_memory(stacker.stack(small, 2)[0], kept)
