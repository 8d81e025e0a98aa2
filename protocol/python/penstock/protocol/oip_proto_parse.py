"""From the bytes of an inference message to its parts, with nothing taken for granted.

Knows: the fields of ``ModelInferRequest`` and ``ModelInferResponse``, which differ in the number of
their raw contents only (and in the outputs that a request asks for). Knows nothing of what the
parts mean together: element types, sizes, shared memory.

Contract: as ``oip_proto_wire``: fields in any order, the last one of a kind wins, sub-messages that
come in pieces are merged. Raw contents are not looked into, only where they are is noted.
"""

from __future__ import annotations

from typing import Final

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Parameter
from penstock.protocol.oip_json_wire import Output, Tensor
from penstock.protocol.oip_proto_contents import Contents
from penstock.protocol.oip_proto_wire import (
    Budget,
    Buffer,
    check_number,
    fields,
    read_parameter,
    signed,
    text_at,
    varint_at,
)

MODEL, VERSION, ID, PARAMETERS, TENSOR = 0x0A, 0x12, 0x1A, 0x22, 0x2A
"""The tags that both messages have in common."""
OUTPUT: Final = 0x32
RAW_INPUT: Final = 0x3A
RAW_OUTPUT: Final = 0x32

Parameters = dict[str, Parameter | None]


class Parts:
    """What one message says. ``raw`` are the ranges of the raw contents, ``head_bytes`` is what
    tensors and wanted outputs take without typed contents."""

    __slots__ = (
        "budget", "head_bytes", "id", "model", "outputs", "parameters", "raw", "tensors", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self.model = self.version = self.id = ""
        self.parameters: Parameters = {}
        self.tensors: list[Tensor[Contents | None]] = []
        self.outputs: list[Output] = []
        self.raw: list[tuple[int, int]] = []
        self.head_bytes = 0
        self.budget = Budget()


def parse_request(data: Buffer, limits: WireLimits) -> Parts:
    """The parts of a ``ModelInferRequest``."""
    return _parse(data, limits, "input", RAW_INPUT, OUTPUT)


def parse_reply(data: Buffer, limits: WireLimits) -> Parts:
    """The parts of a ``ModelInferResponse``."""
    return _parse(data, limits, "output", RAW_OUTPUT, None)


def _parse(
    data: Buffer, limits: WireLimits, what: str, raw_tag: int, output_tag: int | None
) -> Parts:
    parts = Parts()
    budget = parts.budget
    for tag, a, b in fields(data, 0, len(data), budget=budget):
        if tag == raw_tag:
            parts.raw.append((a, b))
            check_number(parts.raw, f"raw {what}s", limits)
        elif tag == TENSOR:
            parts.tensors.append(_tensor(data, a, b, what, limits, parts))
            check_number(parts.tensors, f"{what}s", limits)
        elif tag == output_tag:
            parts.outputs.append(_output(data, a, b, limits, budget))
            parts.head_bytes += b - a
            check_number(parts.outputs, "outputs", limits)
        elif tag == PARAMETERS:
            read_parameter(data, a, b, parts.parameters, limits, budget=budget)
        elif tag == ID:
            parts.id = text_at(data, a, b, "id", limits)
        elif tag == MODEL:
            parts.model = text_at(data, a, b, "model name", limits)
        elif tag == VERSION:
            parts.version = text_at(data, a, b, "model version", limits)
    return parts


def _tensor(
    data: Buffer, start: int, end: int, what: str, limits: WireLimits, parts: Parts
) -> Tensor[Contents | None]:
    name = datatype = ""
    shape: list[int] = []
    parameters: Parameters = {}
    contents: Contents | None = None
    parts.head_bytes += end - start
    budget = parts.budget
    for tag, a, b in fields(data, start, end, 1, budget=budget):
        if tag == 0x0A:
            name = text_at(data, a, b, f"{what} name", limits)
        elif tag == 0x12:
            datatype = text_at(data, a, b, "datatype", limits)
        elif tag == 0x1A:
            _read_shape(data, a, b, shape, limits)
        elif tag == 0x18:
            _add_dimension(shape, a, limits)
        elif tag == 0x22:
            read_parameter(data, a, b, parameters, limits, 2, budget)
        elif tag == 0x2A:
            contents = contents or Contents()
            contents.read(data, a, b, limits, budget)
            parts.head_bytes -= b - a
    return Tensor(name, datatype, shape, parameters or None, contents)


def _read_shape(data: Buffer, at: int, end: int, shape: list[int], limits: WireLimits) -> None:
    while at < end:
        try:
            value, at = varint_at(data, at)
        except IndexError:
            at = end + 1
        if at > end:
            raise ProtocolError("malformed protobuf message: truncated", field="shape", offset=end)
        _add_dimension(shape, value & (1 << 64) - 1, limits)


def _add_dimension(shape: list[int], value: int, limits: WireLimits) -> None:
    shape.append(signed(value))
    if len(shape) > limits.rank_max:
        raise ProtocolError(f"a shape of more than the maximum {limits.rank_max} dimensions")


def _output(data: Buffer, start: int, end: int, limits: WireLimits, budget: Budget) -> Output:
    name = ""
    parameters: Parameters = {}
    for tag, a, b in fields(data, start, end, 1, budget=budget):
        if tag == 0x0A:
            name = text_at(data, a, b, "output name", limits)
        elif tag == 0x12:
            read_parameter(data, a, b, parameters, limits, 2, budget)
    return Output(name, parameters or None)
