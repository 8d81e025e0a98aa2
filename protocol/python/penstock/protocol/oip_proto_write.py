"""Replies and requests of the Open Inference Protocol over gRPC, from messages to buffers.

Knows: how the fields of a message are laid out, in the order of their numbers. Knows nothing of
gRPC's framing.

Speed: all of a message but id, parameters and values is the same for equal signatures, so it is
written once (a *layout*) and kept. Large arrays are not copied, only handed on as buffers.

Contract: arrays have the dtype and shape that their signature declares. Values always go into raw
contents, one entry a tensor. The buffers share memory with the arrays, which must not change until
the buffers are sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from penstock.protocol import dtype as dt
from penstock.protocol.message import (
    NO_TARGETS,
    Array,
    InferReply,
    InferRequest,
    RegionRef,
    Signature,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_form import ALL_BINARY, OipForm
from penstock.protocol.oip_json_memo import keep
from penstock.protocol.oip_proto_wire import Buffer, field, opening, parameter_fields, varint
from penstock.protocol.oip_region import region_parameters, write_region
from penstock.protocol.oip_tensor import COPY_BYTES_MAX, buffer_of, strings_bytes

LAYOUTS_MAX: Final = 1024
_ID, _PARAMETERS, _TENSORS = 3, 4, 5
_REQUEST_OUTPUTS, _RAW_INPUTS, _RAW_OUTPUTS = 6, 7, 6
_UINT64_PARAMETER: Final = b"\x28"


class _Layout:
    """The constant pieces of a message.

    ``open`` goes before id and parameters, ``middle`` behind them, ``openings[i]`` before the raw
    contents of tensor i. ``sizes`` are those that the last two are for: numbers vary with BYTES
    alone. ``plain`` says that there are neither BYTES nor tensors that go elsewhere; where all of
    them do, ``tail`` is all that follows id and parameters.
    """

    __slots__ = (
        "_close",
        "_raw",
        "_refs",
        "_specs",
        "middle",
        "open",
        "openings",
        "plain",
        "sizes",
        "tail",
    )

    def __init__(
        self,
        model: str,
        version: str,
        specs: Sequence[TensorSpec],
        raw: int,
        close: bytes = b"",
        regions: Mapping[str, RegionRef] | None = None,
    ) -> None:
        self.open = _text(1, model) + _text(2, version)
        self.middle = b""
        self.openings: list[bytes] = []
        self.sizes: list[int] | None = None
        self.tail = b""
        self._specs = specs
        self._raw = raw
        self._close = close
        self._refs = [regions.get(spec.name) if regions else None for spec in specs]
        self.plain = not any(self._refs) and all(spec.dtype is not dt.BYTES for spec in specs)

    def payloads(
        self, arrays: Sequence[Array], targets: Mapping[str, Target]
    ) -> tuple[list[Buffer], list[int]]:
        """The raw contents, and the bytes of each tensor wherever it goes; writes to regions."""
        buffers: list[Buffer] = []
        sizes: list[int] = []
        for spec, ref, array in zip(self._specs, self._refs, arrays, strict=True):
            if array.shape != spec.shape:
                raise ValueError(f"array of shape {array.shape} given for declared {spec}")
            if ref is not None:
                sizes.append(write_region(targets[spec.name], array, spec))
                buffers.append(b"")
                continue
            buffer = strings_bytes(array) if spec.dtype is dt.BYTES else buffer_of(array)
            sizes.append(len(buffer))
            buffers.append(buffer)
        return buffers, sizes

    def fit(self, sizes: list[int]) -> None:
        """Makes the pieces for tensors of these sizes, which those of numbers cannot choose."""
        for spec, size in zip(self._specs, sizes, strict=True):
            expected = math.prod(spec.shape) * spec.dtype.itemsize
            if spec.dtype is not dt.BYTES and size != expected:  # would put the reader out of step
                raise ValueError(f"array of {size} bytes given for declared {spec}")
        rows = list(zip(self._specs, self._refs, sizes, strict=True))
        if self.sizes is None or any(self._refs):
            self.middle = b"".join([_tensor(*row) for row in rows]) + self._close
        self.openings = [opening(self._raw, 0 if ref else size) for _, ref, size in rows]
        if all(self._refs):
            self.tail = self.middle + b"".join(self.openings)
        self.sizes = sizes


def _text(number: int, text: str) -> bytes:
    return field(number, text.encode()) if text else b""


def _tensor(spec: TensorSpec, ref: RegionRef | None, size: int) -> bytes:
    content = _text(1, spec.name) + _text(2, spec.dtype.name)
    if spec.shape:
        content += field(3, b"".join(map(varint, spec.shape)))
    if ref is not None:
        content += parameter_fields(4, region_parameters(ref, size))
    return field(_TENSORS, content)


def _write(
    layout: _Layout,
    run: list[bytes],
    arrays: Sequence[Array],
    targets: Mapping[str, Target] = NO_TARGETS,
) -> list[Buffer]:
    """The buffers of a message that begins with ``run``."""
    if layout.plain:
        buffers = [buffer_of(array) for array in arrays]
        sizes = [len(buffer) for buffer in buffers]
    else:
        buffers, sizes = layout.payloads(arrays, targets)
    if sizes != layout.sizes:
        layout.fit(sizes)
    if layout.tail:
        run.append(layout.tail)
        return [b"".join(run)]
    run.append(layout.middle)
    out: list[Buffer] = []
    for start, buffer in zip(layout.openings, buffers, strict=True):
        run.append(start)
        if len(buffer) <= COPY_BYTES_MAX:
            run.append(buffer)  # type: ignore[arg-type]  # join takes views too
        else:
            out.append(b"".join(run))
            out.append(buffer)
            run = []
    if run:
        out.append(b"".join(run))
    return out


class ReplyEncoder:
    """Encodes ``ModelInferResponse``; one per server, used from one thread."""

    def __init__(self) -> None:
        # Holds the signatures and forms, so that an identity never comes to mean another one.
        self._layouts: dict[tuple[Signature, OipForm, str, str], _Layout] = {}

    def encode(
        self,
        reply: InferReply,
        form: object = ALL_BINARY,
        targets: Mapping[str, Target] = NO_TARGETS,
    ) -> list[Buffer]:
        """The message in pieces.

        ``form`` is ``signature.form`` of the request, ``targets`` are the request's. What belongs
        there is written there by this call.

        Raises:
            InferError: an output does not fit the memory that is to hold it.
            ValueError: an array is not what the signature declares.
        """
        wanted = form if isinstance(form, OipForm) else ALL_BINARY
        key = (reply.signature, wanted, reply.model, reply.version)
        layout = self._layouts.get(key)
        if layout is None:
            specs = reply.signature.tensors
            layout = _Layout(
                reply.model, reply.version, specs, _RAW_OUTPUTS, regions=wanted.regions
            )
            keep(self._layouts, key, layout, LAYOUTS_MAX)
        run = [layout.open]
        if reply.id:
            run.append(field(_ID, reply.id.encode()))
        if reply.parameters:
            run.append(parameter_fields(_PARAMETERS, reply.parameters))
        return _write(layout, run, reply.arrays, targets)


def encode_stream_response(content: Sequence[Buffer] | str, id: str = "") -> list[Buffer]:
    """One ``ModelStreamInferResponse``: a reply as ``ReplyEncoder`` gives it, or an error message.

    ``id`` is that of the request that failed; a reply has its own.
    """
    if isinstance(content, str):
        error = _text(1, content.encode(errors="replace").decode())
        return [error + field(2, _text(_ID, id)) if id else error]
    first, *rest = content or [b""]
    head = opening(2, sum(map(len, content)))
    if len(first) <= COPY_BYTES_MAX:
        return [b"".join((head, first)), *rest]
    return [head, *content]


# --- client side ----------------------------------------------------------------------------------


class RequestEncoder:
    """Encodes ``ModelInferRequest``; used from one thread."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Signature, str, str], _Layout] = {}

    def encode(self, request: InferRequest) -> list[Buffer]:
        """The message in pieces.

        Raises:
            ValueError: an array is not what the signature declares, or a parameter cannot be sent.
        """
        key = (request.signature, request.model, request.version)
        layout = self._layouts.get(key)
        if layout is None:
            signature, model, version = key
            outputs = b"".join(
                [
                    field(_REQUEST_OUTPUTS, _text(1, o.name) + parameter_fields(2, o.parameters))
                    for o in signature.outputs
                ]
            )
            layout = _Layout(model, version, signature.tensors, _RAW_INPUTS, outputs)
            keep(self._layouts, key, layout, LAYOUTS_MAX)
        run = [layout.open]
        if request.id:
            run.append(field(_ID, request.id.encode()))
        if request.parameters or request.timeout_us or request.priority:
            run.append(_request_parameters(request))
        return _write(layout, run, request.arrays)


def _request_parameters(request: InferRequest) -> bytes:
    parameters = dict(request.parameters)
    if request.timeout_us:
        parameters["timeout"] = request.timeout_us
    found = parameter_fields(_PARAMETERS, parameters)
    if request.priority:
        value = _UINT64_PARAMETER + varint(request.priority)
        found += field(_PARAMETERS, _text(1, "priority") + field(2, value))
    return found
