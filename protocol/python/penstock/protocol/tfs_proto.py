"""TensorFlow Serving's Predict over gRPC: bytes to messages and back.

Knows: ``PredictRequest`` and ``PredictResponse`` with their ``ModelSpec``. Other messages of that
API are rare, small and left to the protobuf library. Knows nothing of gRPC and of models.

Contract: as for ``oip_proto_wire`` and ``tf_tensor``: nothing but ``PenstockError`` is raised for
any bytes, tensors are views of the message, replies are buffers that share memory with the arrays,
which must not change until they are sent.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe_template import TemplateTable, skeleton_ranges
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import (
    Array,
    InferReply,
    InferRequest,
    OutputRequest,
    Signature,
    TensorSpec,
)
from penstock.protocol.oip_json_memo import keep
from penstock.protocol.oip_proto_wire import (
    Budget,
    Buffer,
    field,
    fields,
    opening,
    signed,
    text_at,
    varint,
)
from penstock.protocol.predict_json import SIGNATURE, check_signature
from penstock.protocol.tf_tensor import (
    FIELDS,
    MessageBudget,
    read_tensor,
    tensor_head,
    values_buffer,
    values_size,
)

REMEMBERED_MAX: Final = 1024


class PredictCall(NamedTuple):
    """A request and the version label that came with it; a label excludes a version."""

    request: InferRequest
    label: str


class _Known(NamedTuple):
    """What all messages mean that differ in their raw contents only, whose arrays ``views`` are."""

    signature: Signature
    views: list[tuple[tuple[int, ...], Any, int]]
    model: str
    version: str
    label: str


class PredictReader:
    """Reads requests; one per server, used from one thread. Remembers a bounded number of
    signatures, and of messages outside their raw tensor contents."""

    def __init__(self, limits: WireLimits = DEFAULT) -> None:
        self._limits = limits
        self._signatures: dict[object, Signature] = {}
        self._templates: TemplateTable[_Known] = TemplateTable()

    def read(self, data: Buffer) -> PredictCall:
        """The call that ``data`` asks for.

        Raises:
            ProtocolError: the bytes are no such request, or one that cannot be served.
        """
        known = self._templates.find(data)
        if known is None:
            return self._read_new(data)
        signature, views, model, version, label = known
        arrays = [np.ndarray(shape, dtype, data, start) for shape, dtype, start in views]
        return PredictCall(InferRequest(signature, arrays, model, version), label)

    def _read_new(self, data: Buffer) -> PredictCall:
        limits = self._limits
        spec = ("", "", "")
        inputs: dict[str, tuple[DType, Array, int]] = {}
        outputs: list[str] = []
        budget = MessageBudget()
        for tag, a, b in fields(data, 0, len(data), 0, budget):
            if tag == 0x12:
                name, dtype, array, start = _read_entry(data, a, b, limits, budget)
                inputs[name] = (dtype, array, start)
            elif tag == 0x0A:
                spec = _read_spec(data, a, b, spec, limits, budget)
            elif tag == 0x1A:
                outputs.append(text_at(data, a, b, "output name", limits))
            else:
                continue
            if max(len(inputs), len(outputs)) > limits.tensors_max:
                raise ProtocolError(f"more than the maximum {limits.tensors_max} tensors")
        signature = self._signature(inputs, outputs)
        if self._templates.wanted(len(data)):
            self._remember(data, signature, inputs, spec)
        arrays = [tensor[1] for tensor in inputs.values()]
        model, version, label = spec
        return PredictCall(InferRequest(signature, arrays, model, version), label)

    def _signature(
        self, inputs: dict[str, tuple[DType, Array, int]], outputs: list[str]
    ) -> Signature:
        declared = tuple([(name, dtype, a.shape) for name, (dtype, a, _) in inputs.items()])
        key = (declared, tuple(outputs))
        signature = self._signatures.get(key)
        if signature is None:
            specs = [TensorSpec(*spec) for spec in declared]
            signature = Signature(specs, [OutputRequest(name) for name in outputs])
            keep(self._signatures, key, signature, REMEMBERED_MAX)
        return signature

    def _remember(
        self,
        data: Buffer,
        signature: Signature,
        inputs: dict[str, tuple[DType, Array, int]],
        spec: tuple[str, str, str],
    ) -> None:
        tensors = inputs.values()
        if any(start < 0 for _, _, start in tensors):
            return
        contents = [(start, start + array.nbytes) for _, array, start in tensors]
        outside = skeleton_ranges(len(data), contents)
        if outside is not None:
            views = [(array.shape, dtype.numpy, start) for dtype, array, start in tensors]
            self._templates.add(data, outside, _Known(signature, views, *spec))


def _read_entry(
    data: Buffer, start: int, end: int, limits: WireLimits, budget: MessageBudget
) -> tuple[str, DType, Array, int]:
    name = ""
    where = (0, 0)
    for tag, a, b in fields(data, start, end, 1, budget):
        if tag == 0x0A:
            name = text_at(data, a, b, "input name", limits)
        elif tag == 0x12:
            where = (a, b)
    return name, *read_tensor(data, *where, name, limits, budget)


def _read_spec(
    data: Buffer,
    start: int,
    end: int,
    known: tuple[str, str, str],
    limits: WireLimits,
    budget: Budget,
) -> tuple[str, str, str]:
    """(model, version, label); refuses a signature that there is not."""
    model, version, label = known
    for tag, a, b in fields(data, start, end, 1, budget):
        if tag == 0x0A:
            model = text_at(data, a, b, "model name", limits)
        elif tag == 0x12:
            version, label = "0", ""
            for inner, value, _ in fields(data, a, b, 2, budget):
                if inner == 0x08:
                    version = str(signed(value))
        elif tag == 0x1A:
            check_signature(text_at(data, a, b, "signature name", limits))
        elif tag == 0x22:
            version, label = "", text_at(data, a, b, "version label", limits)
    return model, version, label


# --- replies --------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """What is the same in all replies of a signature.

    ``heads[i]`` stands before the values of tensor i: all of it where the size of the values is
    known, else the name and the tensor's head. ``spec`` ends the message.
    """

    heads: list[tuple[bytes, bytes]]
    sizes: list[int]
    spec: bytes


class PredictWriter:
    """Writes replies; one per server, used from one thread."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Signature, str, str], _Layout] = {}

    def write(self, reply: InferReply) -> list[Buffer]:
        """The message in pieces.

        Raises:
            ValueError: an array is not what the signature declares.
        """
        key = (reply.signature, reply.model, reply.version)
        layout = self._layouts.get(key)
        if layout is None:
            layout = _layout(*key)
            keep(self._layouts, key, layout, REMEMBERED_MAX)
        buffers: list[Buffer] = []
        rows = zip(reply.signature.tensors, reply.arrays, layout.heads, layout.sizes, strict=True)
        for spec, array, (head, tensor), size in rows:
            values = values_buffer(array, spec.dtype)
            if size < 0:
                head = _entry_head(head, tensor, spec.dtype, len(values))
            elif size != len(values):  # would put the reader out of step
                raise ValueError(f"array of {len(values)} bytes given for declared {spec}")
            buffers.append(head)
            buffers.append(values)
        buffers.append(layout.spec)
        return buffers


def _layout(signature: Signature, model: str, version: str) -> _Layout:
    heads, sizes = [], []
    for spec in signature.tensors:
        name = field(1, spec.name.encode())
        tensor = tensor_head(spec.dtype, spec.shape)
        size = values_size(spec.dtype, math.prod(spec.shape))
        if size >= 0:
            name = _entry_head(name, tensor, spec.dtype, size)
        heads.append((name, tensor))
        sizes.append(size)
    number = varint(int(version)) if version.isdigit() else b"\0"
    named = field(1, model.encode()) + field(2, b"\x08" + number) + field(3, SIGNATURE.encode())
    return _Layout(heads, sizes, field(2, named))


def _entry_head(name: bytes, tensor: bytes, dtype: DType, size: int) -> bytes:
    """Everything of an entry of ``outputs`` but its ``size`` bytes of values."""
    if dtype is not dt.BYTES:
        tensor += opening(FIELDS[dtype], size)
    content = name + opening(2, len(tensor) + size) + tensor
    return opening(1, len(content) + size) + content
