"""The outputs of a batch back into one reply per job. Pure.

Replies of the same size share their signature, so that codecs recognise them and need not encode
names and shapes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from penstock.protocol.message import Array, InferReply, Signature, TensorSpec
from penstock.server.job import Job, State

SIGNATURES_MAX: Final = 4096

_Known = dict[tuple[int, tuple[int, ...]], Signature]
"""Signatures by rows and wanted outputs, for one shape of the outputs."""


class Splitter:
    """Makes the replies of one model version.

    ``outputs`` are declared in the session's order; ``batches`` says whether their first dimension
    is the batch. ``reshapes`` are, per output, the shape of a row for callers where it is not the
    model's. ``whole`` is for outputs that belong to one job, with as many rows as they like.
    Remembers at most ``SIGNATURES_MAX`` signatures.
    """

    __slots__ = (
        "_batches", "_by_shape", "_count", "_cuts", "_model", "_outputs", "_reshapes", "_version",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        version: str,
        outputs: Sequence[TensorSpec],
        batches: bool,
        reshapes: Sequence[tuple[int, ...] | None] = (),
        *,
        whole: bool = False,
    ) -> None:
        self._reshapes = tuple(reshapes) if any(r is not None for r in reshapes) else ()
        self._model = model
        self._version = version
        self._outputs = tuple(outputs)
        self._batches = batches
        self._cuts = batches and not whole
        self._by_shape: dict[object, _Known] = {}
        self._count = 0

    def split(self, jobs: Sequence[Job], outputs: Sequence[Array]) -> list[InferReply | None]:
        """The reply of each job, views of ``outputs``; None for jobs that are done already.

        Raises:
            ValueError: an output cannot have the shape that is declared for it.
        """
        if self._reshapes:
            outputs = [self._reshaped(*p) for p in zip(outputs, self._reshapes, strict=True)]
        known = self._known(outputs)
        alone = len(jobs) == 1 or not self._cuts
        model, version = self._model, self._version
        replies: list[InferReply | None] = []
        # Neighbours in a batch are mostly alike: one look-up then serves them all.
        rows = -1
        wanted: tuple[int, ...] = ()
        signature: Signature | None = None
        row = 0
        for job in jobs:
            first, row = row, row + job.rows
            if job.state is State.DONE:
                replies.append(None)
                continue
            if job.rows != rows or job.wanted is not wanted or signature is None:
                rows, wanted = job.rows, job.wanted
                signature = known.get((rows, wanted)) or self._declare(known, job, outputs)
            arrays: list[Array] = []
            for i in wanted:  # a comprehension costs a call before Python 3.12
                arrays.append(outputs[i] if alone else outputs[i][first:row])
            replies.append(InferReply(signature, arrays, model, version, job.request.id))
        return replies

    def _reshaped(self, output: Array, row: tuple[int, ...] | None) -> Array:
        if row is None:
            return output
        return output.reshape((len(output), *row) if self._batches else row)

    def _known(self, outputs: Sequence[Array]) -> _Known:
        if self._cuts:
            key = tuple([output.shape[1:] for output in outputs])
        else:
            key = tuple([output.shape for output in outputs])
        known = self._by_shape.get(key)
        if known is None:
            self._make_room()
            known = self._by_shape[key] = {}
        return known

    def _declare(self, known: _Known, job: Job, outputs: Sequence[Array]) -> Signature:
        specs = []
        for i in job.wanted:
            declared, shape = self._outputs[i], outputs[i].shape
            full = (job.rows, *shape[1:]) if self._cuts else shape
            specs.append(TensorSpec(declared.name, declared.dtype, full))
        self._make_room()
        signature = known[(job.rows, job.wanted)] = Signature(specs)
        return signature

    def _make_room(self) -> None:
        self._count += 1
        if self._count > SIGNATURES_MAX:
            self._count = 1
            self._by_shape.clear()
