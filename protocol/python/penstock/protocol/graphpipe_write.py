"""Writes GraphPipe's FlatBuffers frames front to back, around tensor data that is not copied.

Knows: the tables and slots of SPEC.md §2 and the layout rules of §9: numbers naturally aligned,
strings NUL-terminated, the data of every tensor at a multiple of 64 bytes. Must not know: what the
tensors mean.

A frame is a *head* (tables, names, shapes), then per tensor a *gap* (padding and the length of the
data) and the data. Head and gaps depend on the signature alone, so a ``Plan`` of them can be kept
and filled with arrays any number of times.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.graphpipe_config import FORMS, GraphpipeForm, write_config
from penstock.protocol.message import (
    Array,
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
    widen_bf16,
)

Buffer = bytes | memoryview

DATA_ALIGNMENT: Final = 64
FRAME_BYTES_MAX: Final = (1 << 31) - 1
"""Readers hold positions in signed 32-bit numbers."""
PLANS_MAX: Final = 1024
PLAN_BYTES_MAX: Final = 16 << 10

# Inline parts of the tables: vtable slots, as (vtable size, table size, slot offsets...).
_REQUEST: Final = (8, 9, 8, 4)
_INFER_REQUEST: Final = (12, 20, 4, 8, 12, 16)
_INFER_RESPONSE: Final = (8, 12, 4, 8)
_ERROR: Final = (8, 16, 8, 4)
_DATA_TENSOR: Final = (12, 13, 12, 4, 8, 0)
_STRING_TENSOR: Final = (12, 13, 12, 4, 0, 8)
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_I64: Final = struct.Struct("<q")


class HeadWriter:
    """Appends vtables, tables, vectors and strings; offset words are filled in when known."""

    __slots__ = ("_vtables", "buffer")

    def __init__(self) -> None:
        self.buffer = bytearray(4)  # the root offset
        self._vtables: dict[tuple[int, ...], int] = {}

    def align(self, size: int, ahead: int = 0) -> None:
        """Pads so that what follows ``ahead`` bytes from here is aligned to ``size``."""
        self.buffer += bytes(-(len(self.buffer) + ahead) % size)

    def link(self, at: int) -> None:
        """Makes the offset word at ``at`` lead to what is written next."""
        _U32.pack_into(self.buffer, at, len(self.buffer) - at)

    def table(self, slots: tuple[int, ...], link: int, alignment: int = 4) -> int:
        """A zeroed table with this vtable, led to by the offset word at ``link``."""
        vtable = self._vtables.get(slots)
        if vtable is None:
            self.align(2)
            vtable = self._vtables[slots] = len(self.buffer)
            self.buffer += struct.pack(f"<{len(slots)}H", *slots)
        self.align(alignment)
        self.link(link)
        at = len(self.buffer)
        self.buffer += _I32.pack(at - vtable) + bytes(slots[1] - 4)
        return at

    def vector(self, count: int, link: int) -> int:
        """A vector of ``count`` offset words; the position of the first."""
        self.align(4)
        self.link(link)
        self.buffer += _U32.pack(count) + bytes(4 * count)
        return len(self.buffer) - 4 * count

    def string(self, value: bytes, link: int) -> None:
        self.align(4)
        self.link(link)
        self.buffer += _U32.pack(len(value)) + value + b"\0"

    def strings(self, values: Sequence[bytes], link: int) -> None:
        first = self.vector(len(values), link)
        for i, value in enumerate(values):
            self.string(value, first + 4 * i)

    def shape(self, sizes: Sequence[int], link: int) -> None:
        self.align(8, ahead=4)
        self.link(link)
        self.buffer += _U32.pack(len(sizes)) + struct.pack(f"<{len(sizes)}q", *sizes)


Convert = Callable[[Array], Array]


class Plan:
    """How to make a frame from arrays: ``steps`` of (gap, array index, bytes, conversion).

    The first gap begins with the head; without numeric tensors ``head`` is the whole frame.
    ``reusable``: other arrays of the same signature may be filled in, and it is worth keeping.
    """

    __slots__ = ("head", "reusable", "steps")

    def __init__(
        self, head: HeadWriter, data: list[tuple[int, int, int, Convert | None]], count: int
    ) -> None:
        """``data``: (tensor index, offset word that leads to its data, bytes, conversion);
        ``count``: of all tensors. Those without data are strings and stand in the head."""
        self.steps: list[tuple[bytes, int, int, Convert | None]] = []
        gaps = []
        length = len(head.buffer)
        for _, link, size, _ in data:
            padding = -(length + 4) % DATA_ALIGNMENT
            gaps.append(bytes(padding) + _U32.pack(size))
            start = length + padding
            if start + 4 + size > FRAME_BYTES_MAX:
                raise ValueError(f"frame would exceed {FRAME_BYTES_MAX} bytes")
            _U32.pack_into(head.buffer, link, start - link)
            length = start + 4 + size
        self.head = bytes(head.buffer)
        self.reusable = len(data) == count and len(self.head) <= PLAN_BYTES_MAX
        for (index, _, size, convert), gap in zip(data, gaps, strict=True):
            self.steps.append((gap if self.steps else self.head + gap, index, size, convert))

    def fill(self, arrays: Sequence[Array]) -> list[Buffer]:
        """The frame with these arrays, which must have the bytes that the signature declared."""
        if not self.steps:
            return [self.head]
        out: list[Buffer] = []
        for gap, index, size, convert in self.steps:
            array = arrays[index]
            if convert is not None:
                array = convert(array)
            out.append(gap)
            try:
                view = memoryview(array).cast("B")  # type: ignore[arg-type]
            except (TypeError, ValueError, BufferError):
                view = _bytes_of(array)
            if len(view) != size:
                raise ValueError(f"array {index} has {len(view)} bytes, declared are {size}")
            out.append(view)
        return out


def _bytes_of(array: Array) -> memoryview:
    """The bytes of an array that ``memoryview`` does not cast: empty or not contiguous."""
    if array.size == 0:
        return memoryview(b"")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def sent_as(dtype: DType, extended: bool) -> tuple[DType, Convert | None]:
    """What a peer gets for ``dtype``; peers that did not announce the additions crash on them."""
    if extended or dtype.graphpipe <= dt.GRAPHPIPE_LAST_LEGACY:
        return dtype, None
    return (dt.UINT8, None) if dtype is dt.BOOL else (dt.FP32, widen_bf16)


def write_tensors(
    head: HeadWriter,
    link: int,
    specs: Sequence[TensorSpec],
    arrays: Sequence[Array],
    extended: bool,
) -> list[tuple[int, int, int, Convert | None]]:
    """Writes all but the numeric data; returns what a ``Plan`` needs for that."""
    data: list[tuple[int, int, int, Convert | None]] = []
    first = head.vector(len(specs), link)
    for i, spec in enumerate(specs):
        dtype, convert = sent_as(spec.dtype, extended)
        is_text = dtype is dt.BYTES
        table = head.table(_STRING_TENSOR if is_text else _DATA_TENSOR, first + 4 * i)
        head.buffer[table + 12] = dtype.graphpipe
        head.shape(spec.shape, table + 4)
        if is_text:
            head.strings(arrays[i].reshape(-1).tolist(), table + 8)
        else:
            size = dtype.itemsize
            for length in spec.shape:
                size *= length
            data.append((i, table + 8, size, convert))
    return data


def write_request(kind: int, slots: tuple[int, ...]) -> tuple[HeadWriter, int]:
    """A frame that holds the Request table and the zeroed table inside it: (frame, position)."""
    head = HeadWriter()
    request = head.table(_REQUEST, 0)
    head.buffer[request + 8] = kind
    return head, head.table(slots, request + 4)


def encode_request(request: InferRequest, *, extended: bool = True) -> list[Buffer]:
    """The request as a frame; model and version travel in the URL.

    ``extended`` announces in ``config`` that we understand BOOL, BF16 and errors in frames (a
    Penstock server is asked); without it BOOL and BF16 tensors are sent as Uint8 and Float32.

    Raises:
        ValueError, TypeError: a parameter that cannot travel, an array that is not what its spec
            declares, a frame of 2 GiB or more.
    """
    plan, _, _ = _plan_request(request, _config_of(request, extended), extended)
    return plan.fill(request.arrays)


class RequestEncoder:
    """``encode_request`` with a memory: plans by signature and length of ``config``.

    For clients that send the same signature object again and again. Bounds: ``PLANS_MAX`` plans of
    at most ``PLAN_BYTES_MAX`` each. Threads may share it: at worst one of them plans anew.
    """

    __slots__ = ("_extended", "_plans")

    def __init__(self, *, extended: bool = True) -> None:
        self._extended = extended
        self._plans: dict[tuple[Signature, int], tuple[Plan, int, bytes]] = {}

    def encode(self, request: InferRequest) -> list[Buffer]:
        """See ``encode_request``."""
        config = _config_of(request, self._extended)
        key = (request.signature, len(config))
        known = self._plans.get(key)
        if known is None:
            known = _plan_request(request, config, self._extended)
            if known[0].reusable:
                if len(self._plans) >= PLANS_MAX:
                    self._plans.clear()
                self._plans[key] = known
        plan, at, planned = known
        out = plan.fill(request.arrays)
        if config != planned:
            head = bytes(out[0])
            out[0] = head[:at] + config + head[at + len(config) :]
        return out


def _config_of(request: InferRequest, extended: bool) -> bytes:
    return write_config(
        form=FORMS[extended, extended],
        id=request.id,
        timeout_us=request.timeout_us,
        priority=request.priority,
        parameters=request.parameters,
    )


def _plan_request(request: InferRequest, config: bytes, extended: bool) -> tuple[Plan, int, bytes]:
    """(plan, where ``config`` stands in it, ``config``)."""
    signature = request.signature
    head, infer = write_request(1, _INFER_REQUEST)
    head.string(config, infer + 4)
    config_at = len(head.buffer) - 1 - len(config)
    names = [spec.name.encode() for spec in signature.tensors]
    head.strings(names if any(names) else [], infer + 8)
    data = write_tensors(head, infer + 12, signature.tensors, request.arrays, extended)
    head.strings(_output_names(signature.outputs), infer + 16)
    return Plan(head, data, len(signature.tensors)), config_at, config


def _output_names(outputs: Sequence[OutputRequest]) -> list[bytes]:
    return [output.name.encode() for output in outputs]


class ReplyEncoder:
    """Encodes replies; remembers the plan of each reply signature.

    Bounds: ``PLANS_MAX`` plans for each form, of at most ``PLAN_BYTES_MAX`` each. Not for use by
    several threads at once.
    """

    __slots__ = ("_extended", "_legacy")

    def __init__(self) -> None:
        self._legacy: dict[Signature, Plan] = {}
        self._extended: dict[Signature, Plan] = {}

    def encode(self, reply: InferReply, form: object = None) -> list[Buffer]:
        """The reply as a frame. ``form`` is the request's ``signature.form``.

        Raises:
            InferError: OUT_OF_RANGE, the frame would have 2 GiB or more.
            ValueError: an array is not what its spec declares.
        """
        extended = isinstance(form, GraphpipeForm) and form.extended
        plans = self._extended if extended else self._legacy
        plan = plans.get(reply.signature)
        if plan is None:
            plan = self._plan(reply, extended, plans)
        return plan.fill(reply.arrays)

    def _plan(self, reply: InferReply, extended: bool, plans: dict[Signature, Plan]) -> Plan:
        signature = reply.signature
        head = HeadWriter()
        response = head.table((6, 8, 4), 0)
        data = write_tensors(head, response + 4, signature.tensors, reply.arrays, extended)
        try:
            plan = Plan(head, data, len(signature.tensors))
        except ValueError as error:
            raise InferError(Code.OUT_OF_RANGE, f"reply is too large: {error}") from None
        if plan.reusable:
            if len(plans) >= PLANS_MAX:
                plans.clear()
            plans[signature] = plan
        return plan


def encode_error(error: PenstockError) -> bytes:
    """A reply that carries this error and no tensors."""
    head = HeadWriter()
    response = head.table(_INFER_RESPONSE, 0)
    head.vector(0, response + 4)  # old readers do not survive its absence
    first = head.vector(1, response + 8)
    entry = head.table(_ERROR, first, alignment=8)
    _I64.pack_into(head.buffer, entry + 8, error.code.number)
    head.string(error.message.encode("utf-8", "replace"), entry + 4)
    return bytes(head.buffer)
