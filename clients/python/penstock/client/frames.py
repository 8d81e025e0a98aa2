"""GraphPipe request frames whose constant part is kept.

Knows: that an encoded frame is constant bytes and the arrays' own memory by turns. Must not know
what the bytes mean: ``graphpipe.encode_request`` makes every frame the first time.

A frame depends on the signature, the timeout and the priority; only the arrays differ from call to
call. Requests with an id or parameters of their own, with strings or with empty arrays are encoded
afresh. Threads may share an encoder: the worst that a race does is to encode twice.
"""

from __future__ import annotations

from typing import Final

from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe
from penstock.protocol.graphpipe import Buffer
from penstock.protocol.message import InferRequest, Signature

FRAMES_MAX: Final = 256
GAPS_BYTES_MAX: Final = 16 << 10


class FrameEncoder:
    """Encodes requests; keeps the constant parts of at most ``FRAMES_MAX`` frames."""

    __slots__ = ("_gaps",)

    def __init__(self) -> None:
        self._gaps: dict[tuple[Signature, int, int], list[Buffer]] = {}

    def encode(self, request: InferRequest) -> list[Buffer]:
        """As ``graphpipe.encode_request``; the arrays must be C-contiguous."""
        if request.id or request.parameters:
            return graphpipe.encode_request(request)
        key = (request.signature, request.timeout_us, request.priority)
        gaps = self._gaps.get(key)
        if gaps is None:
            return self._first(key, request)
        out: list[Buffer] = []
        for gap, array in zip(gaps, request.arrays, strict=True):
            out += (gap, array.data.cast("B"))
        return out

    def _first(self, key: tuple[Signature, int, int], request: InferRequest) -> list[Buffer]:
        buffers = graphpipe.encode_request(request)
        gaps, data = buffers[::2], buffers[1::2]
        if (
            not any(0 in s.shape or s.dtype is dt.BYTES for s in request.signature.tensors)
            and [len(view) for view in data] == [array.nbytes for array in request.arrays]
            and sum(map(len, gaps)) <= GAPS_BYTES_MAX
        ):
            if len(self._gaps) >= FRAMES_MAX:
                self._gaps.clear()
            self._gaps[key] = gaps
        return buffers
