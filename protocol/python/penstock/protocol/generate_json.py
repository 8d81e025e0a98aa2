"""Triton's generate extension: one flat JSON object in, one flat JSON object out.

Knows: a key that names an input of the model is that input, ``id`` the request's id, an object
``parameters`` more of the same, and any other key a parameter. Replies have the outputs and the
reply's parameters as keys of their own. Knows nothing of HTTP and of streams.

Contract: whatever the bytes, the outcome is a value or a ``PenstockError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.protocol.errors import InferError, ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import Array, InferReply, InferRequest, Signature, TensorSpec
from penstock.protocol.oip_form import ALL_JSON
from penstock.protocol.oip_json_body import check_json_size
from penstock.protocol.oip_json_wire import check_text, scalars, unsigned
from penstock.protocol.oip_json_write import parameters_bytes
from penstock.protocol.oip_tensor import Body, element_count, json_values, values_array

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_NESTED = "parameters"


def decode_generate(
    body: Body, inputs: Sequence[TensorSpec], limits: WireLimits = DEFAULT
) -> InferRequest:
    """The request in ``body`` to a model with these ``inputs`` (-1 for what is free)."""
    check_json_size(len(body), limits)
    try:
        document = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"failed to parse the request JSON buffer: {error}") from None
    if not isinstance(document, dict):
        raise ProtocolError("attempt to get members for non-object")
    mapping = _Mapping(inputs, limits)
    mapping.add(document)
    return mapping.request()


class _Mapping:
    """The keys of one request, told apart."""

    def __init__(self, inputs: Sequence[TensorSpec], limits: WireLimits) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        self._limits = limits
        self._arrays: dict[str, tuple[TensorSpec, Array]] = {}
        self._parameters: dict[str, Any] = {}
        self._id = ""

    def add(self, document: dict[str, Any], *, nested: bool = False) -> None:
        for key, value in document.items():
            if key == _NESTED and not nested:
                self._add_nested(value)
            elif key in self._inputs:
                self._add_input(self._inputs[key], value)
            elif key == "id" and not nested:
                if not isinstance(value, str):
                    raise ProtocolError(
                        "Unable to parse 'id': attempt to access JSON non-string as string"
                    )
                check_text(value, "id", self._limits)
                self._id = value
            else:
                self._parameters[key] = value

    def _add_nested(self, value: object) -> None:
        if _NESTED in self._inputs:
            raise ProtocolError(
                f"Keyword '{_NESTED}' for nested schema also given as input tensor name"
            )
        if not isinstance(value, dict):
            raise ProtocolError(
                f"Expected JSON object for keyword: '{_NESTED}': "
                "attempt to access JSON non-object as object"
            )
        try:
            self.add(value, nested=True)
        except (InferError, ProtocolError) as error:
            error.message = f"Converting keyword: '{_NESTED}': {error.message}"
            raise

    def _add_input(self, spec: TensorSpec, value: object) -> None:
        if spec.name in self._arrays:
            raise ProtocolError(f"input '{spec.name}' already exists in request")
        data = value if isinstance(value, list) else [value]
        shape = _shape_of(len(data), spec)
        element_count(shape, spec.name, self._limits)
        array = values_array(
            data,
            spec.dtype,
            shape,
            name=spec.name,
            what="input",
            depth_max=self._limits.json_depth_max,
            typed=False,
        )
        self._arrays[spec.name] = (TensorSpec(spec.name, spec.dtype, shape), array)

    def request(self) -> InferRequest:
        parameters = self._parameters
        timeout_us = unsigned(parameters.pop("timeout", 0), "timeout")
        priority = unsigned(parameters.pop("priority", 0), "priority")
        tensors = self._arrays.values()
        return InferRequest(
            Signature([spec for spec, _ in tensors], form=ALL_JSON),
            [array for _, array in tensors],
            id=self._id,
            parameters=scalars(parameters, self._limits),
            timeout_us=timeout_us,
            priority=priority,
        )


def _shape_of(count: int, spec: TensorSpec) -> tuple[int, ...]:
    """``count`` elements in the shape of ``spec``: the innermost free dimension takes what the
    fixed ones leave, other free ones are 1."""
    rest = count
    shape: list[int] = []
    for dim in spec.shape:
        if dim >= 0:
            rest, over = divmod(rest, dim) if dim else (rest, 1)
            if over:
                raise _misfit(spec)
    for dim in reversed(spec.shape):
        if dim < 0:
            dim, rest = rest, 1
        shape.append(dim)
    if rest != 1:
        raise _misfit(spec)
    return tuple(reversed(shape))


def _misfit(spec: TensorSpec) -> ProtocolError:
    return ProtocolError(
        f"The schema can not convert input '{spec.name}' to tensor with proper shape"
    )


def encode_generate(reply: InferReply) -> bytes:
    """``reply`` as one object; a tensor of one element goes without brackets.

    Raises:
        InferError: an output cannot travel as JSON.
    """
    parts: dict[str, bytes] = {}
    if reply.id:
        parts["id"] = _encode(reply.id)
    parts["model_name"] = _encode(reply.model)
    parts["model_version"] = _encode(reply.version)
    for key, value in reply.parameters.items():
        parts.setdefault(key, parameters_bytes({"": value})[len(b'{"":') : -1])
    for spec, array in zip(reply.signature.tensors, reply.arrays, strict=True):
        text = json_values(array, spec.dtype, spec.name)
        parts.setdefault(spec.name, text[1:-1] if array.size == 1 else text)
    return b"{%b}" % b",".join([b"%b:%b" % (_encode(key), parts[key]) for key in sorted(parts)])
