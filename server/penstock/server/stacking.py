"""Rows of several jobs into one array per input. Pure.

A ``Stacker`` belongs to one worker: the arrays that it returns are reused by its next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.message import Array
from penstock.server.job import Job

ARENA_BYTES_MAX = 32 * 1024**2
"""A batch that needs more gets memory of its own, which goes when the batch does."""


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """An uninitialised C-contiguous array whose data are aligned."""
    return aligned_bytes(dtype.itemsize * prod(shape)).view(dtype).reshape(shape)


class Stacker:
    """Gathers the inputs of a batch into arenas that grow to the largest batch seen.

    An arena is kept per input for one row shape at a time; a batch with another row shape replaces
    it. A single job is passed through without a copy when its arrays are aligned and contiguous.
    """

    __slots__ = ("_arenas",)

    def __init__(self, inputs: int) -> None:
        self._arenas: list[Array | None] = [None] * inputs

    def stack(self, jobs: Sequence[Job], rows: int) -> Sequence[Array]:
        """One array per input, of ``rows`` rows in the order of ``jobs``."""
        if len(jobs) == 1:
            return [
                a if a.flags.aligned and a.flags.c_contiguous else a.copy() for a in jobs[0].arrays
            ]
        return [
            self._gather(i, [job.arrays[i] for job in jobs], rows)
            for i in range(len(jobs[0].arrays))
        ]

    def _gather(self, index: int, parts: list[Array], rows: int) -> Array:
        first = parts[0]
        if first.dtype.hasobject:
            return np.concatenate(parts)
        arena = self._arenas[index]
        if arena is None or len(arena) < rows or arena.shape[1:] != first.shape[1:]:
            grown = 1 << (rows - 1).bit_length()
            if grown * (first.nbytes // max(len(first), 1)) > ARENA_BYTES_MAX:
                arena = aligned_empty((rows, *first.shape[1:]), first.dtype)
            else:
                arena = aligned_empty((grown, *first.shape[1:]), first.dtype)
                self._arenas[index] = arena
        out = arena[:rows]
        np.concatenate(parts, out=out)
        return out
