"""Where the outputs of a run may be written at once: the memory that its client shares. Pure.

Knows a session's outputs, and what shapes they had. An engine writes to memory that it is given
only if it is told the shape beforehand, and no graph tells that for sure: so it is what it was the
first time that the inputs had the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from penstock.protocol.message import Array, TensorSpec
from penstock.protocol.oip_region import IN_PLACE_BYTES_MIN, region_space
from penstock.server.job import Job

SHAPES_MAX: Final = 256

_Shape = tuple[int, ...]
_COPIED: Final[tuple[_Shape, ...]] = ()
"""Instead of the shapes where none is sure, or all are too small."""


class Outlets:
    """The places of one session's outputs. Remembers the shapes for ``SHAPES_MAX`` shapes of the
    inputs."""

    __slots__ = ("_by_inputs", "_outputs")

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self._outputs = tuple(outputs)
        self._by_inputs: dict[tuple[_Shape, ...], tuple[_Shape, ...]] = {}

    def places(self, job: Job, inputs: Sequence[Array]) -> list[Array | None] | None:
        """For each output of a run of ``job`` alone the array to write it to, or None; an empty
        list where it is None for all of them, and None while the shapes are not known. No array
        overlaps an input or another array."""
        shapes = self._by_inputs.get(_shapes(inputs))
        if not shapes:
            return None if shapes is None else []
        targets = job.request.targets
        places: list[Array | None] = [None] * len(shapes)
        taken = list(inputs)
        for i in job.wanted:
            spec, shape = self._outputs[i], shapes[i]
            target = targets.get(spec.name)
            if target is None:
                continue
            space = region_space(target, shape, spec.dtype)
            if space is None or any(np.may_share_memory(space, array) for array in taken):
                continue
            places[i] = space
            taken.append(space)
        return places if len(taken) > len(inputs) else []

    def learn(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Notes the shapes of the outputs that the first run of such inputs gave."""
        if len(self._by_inputs) >= SHAPES_MAX:
            self._by_inputs.clear()
        large = any(output.nbytes >= IN_PLACE_BYTES_MIN for output in outputs)
        self._by_inputs[_shapes(inputs)] = _shapes(outputs) if large else _COPIED

    def varies(self, inputs: Sequence[Array]) -> None:
        """Notes that inputs of these shapes do not always give outputs of the same."""
        self._by_inputs[_shapes(inputs)] = _COPIED


def _shapes(arrays: Sequence[Array]) -> tuple[_Shape, ...]:
    return tuple([array.shape for array in arrays])
