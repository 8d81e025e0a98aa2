"""From JSON text to the records of the Open Inference Protocol, and JSON faults to our errors.

Knows: which keys a request and a reply have and of which JSON type they are; unknown keys are
skipped unseen. Knows nothing of binary parts, element types and what the keys mean.

``parse`` tries three parsers. The first takes ``data`` to be one flat list of numbers or strings,
which is what clients send, and checks that in one pass. What it refuses (nested data, booleans or
plain errors) goes through the second, which takes any ``data``. What holds the tokens NaN or
Infinity, which are not JSON but which Python and Triton write, goes through the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from penstock.protocol.errors import Code, ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import NO_PARAMETERS, Parameter
from penstock.protocol.oip_tensor import DEPTH_TEXT, Body

NOT_UNSIGNED: Final = "attempt to access JSON non-unsigned-integer as unsigned-integer"
_NOT_ARRAY: Final = "attempt to access JSON non-array as array"

Dimension = Annotated[int, msgspec.Meta(ge=0)]
FlatData = list[int | float | str] | UnsetType
D = TypeVar("D")
M = TypeVar("M")


class Tensor(msgspec.Struct, Generic[D], gc=False):
    """One entry of ``inputs`` of a request or ``outputs`` of a reply."""

    name: str
    datatype: str
    shape: list[Dimension]
    parameters: dict[str, Any] | None = None
    data: D | UnsetType = UNSET


class Output(msgspec.Struct, gc=False):
    """One entry of ``outputs`` of a request."""

    name: str
    parameters: dict[str, Any] | None = None


class Request(msgspec.Struct, Generic[D], gc=False):
    inputs: list[Tensor[D]]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None


class Reply(msgspec.Struct, Generic[D], gc=False):
    outputs: list[Tensor[D]]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class Parser(Generic[M]):
    """Parses one kind of message, given as its record with flat and with any data."""

    def __init__(self, message: str, flat: Any, loose: Any) -> None:
        self._message = message
        self._flat = msgspec.json.Decoder(flat)
        self._loose = msgspec.json.Decoder(loose)
        self._loose_type = loose

    def parse(self, text: Body, limits: WireLimits) -> tuple[M, bool]:
        """The record, and whether its ``data`` are known to be flat lists of int, float and str."""
        try:
            return self._flat.decode(text), True
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._parse_loose(text, limits), False

    def _parse_loose(self, text: Body, limits: WireLimits) -> M:
        try:
            try:
                record: M = self._loose.decode(text)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                raw = bytes(text)
                if b"NaN" not in raw and b"Infinity" not in raw:
                    raise
                record = msgspec.convert(_load_python(raw), self._loose_type)
            return record
        except RecursionError:
            raise ProtocolError(DEPTH_TEXT.format(limits.json_depth_max)) from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise _translate(error, self._message) from None


request_parser: Final[Parser[Request[Any]]] = Parser("request", Request[FlatData], Request[Any])
reply_parser: Final[Parser[Reply[Any]]] = Parser("reply", Reply[FlatData], Reply[Any])


def _load_python(raw: bytes) -> object:
    """``json.loads`` of UTF-8, with lone surrogates refused: they cannot be written again."""
    value = json.loads(raw.decode())
    if b"\\ud" in raw.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _translate(error: Exception, kind: str) -> ProtocolError:
    message = str(error)
    if "].shape" in message:
        where = re.search(r"`\$\.(.*)`", message)
        whole = where is not None and where[1].endswith(".shape")
        return ProtocolError(
            f"Unable to parse 'shape': {_NOT_ARRAY if whole else NOT_UNSIGNED}",
            field=where[1] if where else "",
            code=Code.INTERNAL,
        )
    return ProtocolError(f"failed to parse the {kind} JSON buffer: {message}")


# --- parameters -----------------------------------------------------------------------------------


def unsigned(value: object, key: str) -> int:
    """A parameter that counts something: a whole number, perhaps written 5.0 or "5"."""
    if isinstance(value, float):
        whole = value.is_integer()
    else:
        whole = isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit()
    if whole:
        value = int(value)  # type: ignore[call-overload]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ProtocolError(f"Unable to parse '{key}': {NOT_UNSIGNED}")
    return value


def boolean(value: object, key: str) -> bool:
    """A parameter that switches something: true, false, 1 or 0."""
    if isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    raise ProtocolError(f"Unable to parse '{key}': attempt to access JSON non-boolean as boolean")


def scalars(parameters: dict[str, Any], limits: WireLimits) -> Mapping[str, Parameter]:
    """``parameters`` checked to be names with scalar values, and frozen.

    Takes over the dictionary. Whole numbers must fit 64 bits: no other wire has larger ones.
    """
    if not parameters:
        return NO_PARAMETERS
    for key, value in parameters.items():
        if type(value) not in (str, int, float, bool):
            raise ProtocolError(
                f"parameter '{key}' has invalid type. "
                "It should be either 'int', 'bool', 'string', or 'double'."
            )
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            raise ProtocolError(f"parameter '{key}' does not fit 64 bits")
        check_text(key, "parameter name", limits)
        if type(value) is str:
            check_text(value, "parameter value", limits)
    return MappingProxyType(parameters)


def check_text(value: str, what: str, limits: WireLimits) -> None:
    """Refuses names, ids and the like that are longer than the limit, counted in UTF-8."""
    if len(value) * 4 > limits.name_bytes_max and len(value.encode()) > limits.name_bytes_max:
        raise ProtocolError(f"{what} is longer than the maximum {limits.name_bytes_max} bytes")
