"""Replies and requests of the Open Inference Protocol over HTTP, from messages to buffers.

Knows: how a message is laid out as JSON and binary parts. Knows nothing of HTTP: the caller puts
the returned JSON length, when there is one, into the header Inference-Header-Content-Length.

Speed: all of a message's JSON but ids, parameters and values is the same for equal signatures, so
it is written once (a *layout*) and kept. Arrays are not copied, only handed on as buffers.

Contract: arrays have the dtype and shape that their signature declares. The buffers share memory
with the arrays, which must not change until the buffers are sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError
from penstock.protocol.message import (
    NO_TARGETS,
    Array,
    InferReply,
    InferRequest,
    Parameter,
    RegionRef,
    Signature,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_form import ALL_JSON, OipForm
from penstock.protocol.oip_json_memo import keep
from penstock.protocol.oip_region import write_region
from penstock.protocol.oip_tensor import Buffer, buffer_of, json_values, strings_bytes

LAYOUTS_MAX: Final = 1024
NO_REFS: Final[Mapping[str, RegionRef]] = MappingProxyType({})
_encode = msgspec.json.Encoder().encode


class _Layout:
    """The constant pieces of the JSON of a message, and what goes between and behind them.

    ``open`` ends where the id goes. ``fixed`` is all that follows when nothing in it changes, else
    empty, and then ``pieces[i]`` goes before what changes of tensor i (its data or the size of its
    BYTES) and ``close`` at the end. ``whole`` is the fixed JSON of a message without an id.
    ``sizes`` are those of the binary parts that are known. ``shared`` says which tensors go to
    memory of the client, behind the piece of which nothing goes.
    """

    __slots__ = ("binary", "close", "fixed", "open", "pieces", "shared", "sizes", "specs", "whole")

    def __init__(
        self,
        open: bytes,
        key: bytes,
        specs: Sequence[TensorSpec],
        binary: Sequence[bool],
        close: bytes = b"}",
        regions: Mapping[str, RegionRef] = NO_REFS,
    ) -> None:
        self.open = open
        self.specs = specs
        self.binary = binary
        self.shared = [spec.name in regions for spec in specs]
        self.pieces: list[bytes] = []
        self.sizes: list[int] = []
        piece = b'"%b":[' % key
        for spec, is_binary in zip(specs, binary, strict=True):
            piece += b'{"name":%b,"datatype":"%b","shape":%b' % (
                _encode(spec.name),
                spec.dtype.name.encode(),
                _encode(spec.shape),
            )
            if spec.name in regions:
                # Triton names no parameters here, and its C++ client fails where there are some
                # but no binary_data_size.
                self.pieces.append(piece)
                piece = b"},"
                continue
            if is_binary and spec.dtype is not dt.BYTES:
                size = math.prod(spec.shape) * spec.dtype.itemsize
                piece += b',"parameters":{"binary_data_size":%d}},' % size
                self.pieces.append(b"")
                self.sizes.append(size)
                continue
            piece += b',"parameters":{"binary_data_size":' if is_binary else b',"data":'
            self.pieces.append(piece)
            piece = b"}}," if is_binary else b"},"
        self.close = piece.removesuffix(b",") + b"]" + close
        self.fixed = b"" if any(self.pieces) else self.close
        self.whole = open + self.fixed


def _write(
    layout: _Layout,
    arrays: Sequence[Array],
    middle: bytes,
    what: str,
    targets: Mapping[str, Target] = NO_TARGETS,
) -> tuple[list[Buffer], int | None]:
    """The buffers of a message, and the length of its JSON if bytes follow that."""
    if not layout.fixed:
        return _write_pieces(layout, arrays, middle, what, targets)
    text = layout.open + middle + layout.fixed if middle else layout.whole
    buffers: list[Buffer] = [buffer_of(array) for array in arrays]
    sizes = [len(buffer) for buffer in buffers]
    if sizes != layout.sizes:  # would put the reader out of step
        raise ValueError(f"arrays of {sizes} bytes given for declared {layout.sizes}")
    if not any(sizes):
        return [text], None
    buffers.insert(0, text)
    return buffers, len(text)


def _write_pieces(
    layout: _Layout,
    arrays: Sequence[Array],
    middle: bytes,
    what: str,
    targets: Mapping[str, Target],
) -> tuple[list[Buffer], int | None]:
    parts = [layout.open, middle]
    buffers: list[Buffer] = [b""]
    rows = zip(layout.pieces, layout.specs, layout.binary, layout.shared, arrays, strict=True)
    for piece, spec, is_binary, is_shared, array in rows:
        if array.shape != spec.shape:
            raise ValueError(f"array of shape {array.shape} given for declared {spec}")
        parts.append(piece)
        if is_shared:
            write_region(targets[spec.name], array, spec)
        elif not is_binary:
            parts.append(json_values(array, spec.dtype, spec.name, what))
        elif spec.dtype is dt.BYTES:
            strings = strings_bytes(array)
            parts.append(b"%d" % len(strings))
            buffers.append(strings)
        else:
            buffers.append(buffer_of(array))
    parts.append(layout.close)
    text = b"".join(parts)
    if not any(map(len, buffers)):
        return [text], None
    buffers[0] = text
    return buffers, len(text)


class ReplyEncoder:
    """Encodes replies; one per server, used from one thread."""

    def __init__(self) -> None:
        # Holds the signatures and forms, so that an identity never comes to mean another one.
        self._layouts: dict[tuple[Signature, OipForm, str, str], _Layout] = {}

    def encode(
        self, reply: InferReply, form: object, targets: Mapping[str, Target] = NO_TARGETS
    ) -> tuple[list[Buffer], int | None]:
        """The body in pieces, and the length of its JSON if there are binary data behind it.

        ``form`` is ``signature.form`` of the request, any but an ``OipForm`` means JSON;
        ``targets`` are the request's. What belongs there is written there by this call.

        Raises:
            InferError: an output cannot travel in the form that was asked for, or does not fit the
                memory that is to hold it.
            ValueError: an array is not what the signature declares.
        """
        wanted = form if isinstance(form, OipForm) else ALL_JSON
        key = (reply.signature, wanted, reply.model, reply.version)
        layout = self._layouts.get(key)
        if layout is None:
            layout = _reply_layout(*key)
            keep(self._layouts, key, layout, LAYOUTS_MAX)
        middle = b'"id":%b,' % _encode(reply.id) if reply.id else b""
        if reply.parameters:
            middle += b'"parameters":%b,' % parameters_bytes(reply.parameters)
        return _write(layout, reply.arrays, middle, "output", targets)


def _reply_layout(signature: Signature, form: OipForm, model: str, version: str) -> _Layout:
    return _Layout(
        b'{"model_name":%b,"model_version":%b,' % (_encode(model), _encode(version)),
        b"outputs",
        signature.tensors,
        [form.is_binary(spec.name) for spec in signature.tensors],
        regions=form.regions,
    )


def parameters_bytes(parameters: Mapping[str, Parameter]) -> bytes:
    plain = dict(parameters)
    if any(isinstance(v, float) and not math.isfinite(v) for v in plain.values()):
        return json.dumps(plain, separators=(",", ":")).encode()
    return _encode(plain)


def encode_error(message: str) -> bytes:
    """The body of every answer that is not a success."""
    return _encode({"error": message.encode(errors="replace").decode()})


# --- client side ----------------------------------------------------------------------------------


class RequestEncoder:
    """Encodes requests; used from one thread.

    ``binary`` sends inputs as binary data, ``binary_outputs`` asks for outputs as binary data
    unless the request's own output parameters say otherwise.
    """

    def __init__(self, *, binary: bool = True, binary_outputs: bool = True) -> None:
        self._binary = binary
        self._binary_outputs = binary_outputs
        self._layouts: dict[Signature, _Layout] = {}

    def encode(self, request: InferRequest) -> tuple[list[Buffer], int | None]:
        """The body in pieces, and the length of its JSON if there are binary data behind it.

        Raises:
            ValueError: an array is not what the signature declares, or is FP16, BF16 or strings
                that are not UTF-8, and is to go as JSON.
        """
        signature = request.signature
        layout = self._layouts.get(signature)
        if layout is None:
            layout = self._layout(signature)
            keep(self._layouts, signature, layout, LAYOUTS_MAX)
        middle = b'"id":%b,' % _encode(request.id) if request.id else b""
        if request.parameters or request.priority or request.timeout_us:
            middle += b'"parameters":%b,' % parameters_bytes(self._parameters(request))
        elif self._binary_outputs and not signature.outputs:
            middle += b'"parameters":{"binary_data_output":true},'
        try:
            return _write(layout, request.arrays, middle, "input")
        except InferError as error:  # here it is the caller's own mistake
            raise ValueError(error.message) from None

    def _parameters(self, request: InferRequest) -> dict[str, Parameter]:
        parameters = dict(request.parameters)
        if request.priority:
            parameters["priority"] = request.priority
        if request.timeout_us:
            parameters["timeout"] = request.timeout_us
        if self._binary_outputs and not request.signature.outputs:
            parameters["binary_data_output"] = True
        return parameters

    def _layout(self, signature: Signature) -> _Layout:
        close = b"}"
        if signature.outputs:
            outputs = [
                {
                    "name": o.name,
                    "parameters": {"binary_data": self._binary_outputs, **o.parameters},
                }
                for o in signature.outputs
            ]
            close = b',"outputs":%b}' % _encode(outputs)
        binary = [self._binary] * len(signature.tensors)
        return _Layout(b"{", b"inputs", signature.tensors, binary, close)


def encode_request(
    request: InferRequest, *, binary: bool = True, binary_outputs: bool = True
) -> tuple[list[Buffer], int | None]:
    """``RequestEncoder`` for a single request."""
    return RequestEncoder(binary=binary, binary_outputs=binary_outputs).encode(request)
