"""Requests of the Open Inference Protocol over gRPC, from a message to an ``InferRequest``.

Knows: the parameters of a request, and which requests are alike. Knows nothing of gRPC's framing,
of models, and of how replies are written, except that it keeps the client's wishes in
``signature.form``.

Speed: see ``oip_proto_memo``. Once two messages alike were seen, decoding a further one is a
comparison of bytes and one NumPy view a tensor.

Contract: equal messages always give equal results, remembered or not, and those that
google.protobuf would give; ``oip_proto_wire`` says how. Requests alike in model, version, tensors
and wanted outputs share one ``Signature`` as long as it is remembered. Everything remembered is
bounded in number and in size. Whatever the bytes, the outcome is a value or a ``PenstockError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import (
    NO_PARAMETERS,
    InferRequest,
    OutputRequest,
    Parameter,
    RegionRef,
    Regions,
    Signature,
)
from penstock.protocol.oip_form import ALL_BINARY, OipForm
from penstock.protocol.oip_json_memo import keep
from penstock.protocol.oip_proto_body import array_at, checked, places_of, reference, specs_of
from penstock.protocol.oip_proto_memo import Templates
from penstock.protocol.oip_proto_parse import Parameters, Parts, parse_request
from penstock.protocol.oip_proto_wire import Buffer, check_number, fields, read_parameter
from penstock.protocol.oip_region import NO_REGIONS, region_targets

SIGNATURES_MAX: Final = 1024
SIGNATURE_BYTES_MAX: Final = 8192
"""Of a signature that is remembered: its tensors and outputs as they were in the message, and what
specs weigh."""
_SPEC_BYTES: Final = 64
PARAMETERS_MAX: Final = 1024
PARAMETERS_BYTES_MAX: Final = 1024

_RESERVED: Final = "triton_"
_RESERVED_FOR_CLIENTS: Final = "triton_enable_empty_final_response"
_TYPES: Final = (
    ("timeout", (int,), "int64_param"),
    ("priority", (int,), "int64_param or uint64_param"),
    ("sequence_id", (int, str), "int64_param or string_param"),
    ("sequence_start", (bool,), "bool_param"),
    ("sequence_end", (bool,), "bool_param"),
)

_ndarray = np.ndarray
_name = itemgetter(0)


class Extras(NamedTuple):
    """What the parameters of a request say."""

    parameters: Mapping[str, Parameter] = NO_PARAMETERS
    timeout_us: int = 0
    priority: int = 0


class RequestDecoder:
    """Decodes ``ModelInferRequest`` messages; one per server, used from one thread.

    What it remembers is bounded as ``oip_proto_memo`` says, and by the constants above.
    ``regions`` is the memory that clients share; what it gives is asked for anew for each request.
    """

    def __init__(self, limits: WireLimits = DEFAULT, regions: Regions = NO_REGIONS) -> None:
        self._limits = limits
        self._regions = regions
        self._templates: Templates[Mapping[str, RegionRef]] = Templates(limits)
        self._find = self._templates.find
        self._extras: dict[bytes, Extras] = {}
        self._entries: dict[bytes, Parameters] = {}
        self._signatures: dict[object, Signature] = {}

    def decode(self, message: Buffer) -> InferRequest:
        """The request in ``message``, whose arrays are views into it.

        ``message`` is contiguous and of bytes.

        Raises:
            ProtocolError: it is no request.
            InferError: what it refers to is refused.
        """
        found = self._find(message)
        if found is None:
            return self._decode_new(message)
        template, at, id_bytes, parameter_bytes = found
        _, views, _, signature, model, version, refs = template
        extras: Extras | None = None
        try:
            request_id = id_bytes.decode()
            if parameter_bytes:
                extras = self._extras.get(parameter_bytes) or self._read_extras(parameter_bytes)
        except (UnicodeDecodeError, ProtocolError):
            return self._decode_new(message)  # will say what is wrong, and where
        if views is None:
            arrays = template.arrays(message, at, "input", self._regions)
        else:
            arrays = []
            for shape, dtype, offset in views:
                arrays.append(_ndarray(shape, dtype, message, at + offset))
        request = InferRequest(signature, arrays, model, version, request_id)
        if extras is not None:
            request.parameters, request.timeout_us, request.priority = extras
        if refs:
            request.targets = region_targets(refs, self._regions)
        return request

    def _decode_new(self, message: Buffer) -> InferRequest:
        parts = parse_request(message, self._limits)
        extras = _extras(parts.parameters)
        signature = self._signature(parts)
        places = places_of(parts, signature.tensors, "input")
        arrays = [
            array_at(place, spec, message, parts.model, "input", self._regions)
            for place, spec in zip(places, signature.tensors, strict=True)
        ]
        request = InferRequest(signature, arrays, parts.model, parts.version, parts.id, *extras)
        refs = signature.form.regions
        if refs:
            request.targets = region_targets(refs, self._regions)
        self._templates.add(message, signature, places, parts.model, parts.version, refs)
        return request

    def _read_extras(self, parameter_bytes: bytes) -> Extras:
        """What a run of whole fields says that are nothing but parameters."""
        parameters: Parameters = {}
        for _, a, b in fields(parameter_bytes, 0, len(parameter_bytes)):
            entry_bytes = parameter_bytes[a:b]
            entry = self._entries.get(entry_bytes)
            if entry is None:
                entry = {}
                read_parameter(entry_bytes, 0, b - a, entry, self._limits)
                keep(self._entries, entry_bytes, entry, PARAMETERS_MAX)
            parameters.update(entry)
        check_number(parameters, "parameters", self._limits)
        extras = _extras(parameters)
        if len(parameter_bytes) <= PARAMETERS_BYTES_MAX:
            keep(self._extras, parameter_bytes, extras, PARAMETERS_MAX)
        return extras

    def _signature(self, parts: Parts) -> Signature:
        key = (
            parts.model,
            parts.version,
            tuple([(t.name, t.datatype, tuple(t.shape)) for t in parts.tensors]),
            tuple([(o.name, _typed(o.parameters)) for o in parts.outputs]),
        )
        found = self._signatures.get(key)
        if found is None:
            _refuse_nameless(parts)
            specs = specs_of(parts, "input", self._limits)
            outputs, form = _outputs(parts)
            found = Signature(specs, outputs, form=form)
            if parts.head_bytes + _SPEC_BYTES * len(specs) <= SIGNATURE_BYTES_MAX:
                keep(self._signatures, key, found, SIGNATURES_MAX)
        return found


def _extras(parameters: Parameters) -> Extras:
    if not parameters:
        return Extras()
    known = checked(parameters)
    for key, kinds, expected in _TYPES:
        if key in known and type(known[key]) not in kinds:
            raise ProtocolError(f"invalid value type for '{key}' parameter, expected {expected}.")
    for key in known:
        if key.startswith(_RESERVED) and key != _RESERVED_FOR_CLIENTS:
            raise ProtocolError(
                f"parameter keys starting with '{_RESERVED}' are reserved for Triton usage. Only "
                f"the following keys starting with '{_RESERVED}' are allowed: "
                f"{_RESERVED_FOR_CLIENTS}"
            )
    timeout_us, priority = int(known.get("timeout", 0)), int(known.get("priority", 0))
    if priority < 0:
        raise ProtocolError("invalid value for 'priority', expected value >= 0.")
    rest = {key: value for key, value in known.items() if key not in ("timeout", "priority")}
    # Upstream takes a time below zero for an unsigned one, that is, for none.
    return Extras(MappingProxyType(rest), max(timeout_us, 0), priority)


def _refuse_nameless(parts: Parts) -> None:
    for what, named in (("input", parts.tensors), ("output", parts.outputs)):
        if any(not tensor.name for tensor in named):
            raise ProtocolError(f"unexpected inference {what} '' for model '{parts.model}'")


def _typed(parameters: Parameters | None) -> object:
    """A key that tells 1, 1.0 and true apart, and minds no order: C++ writes maps in a new one each
    time."""
    return parameters and tuple(sorted([(k, type(v), v) for k, v in parameters.items()], key=_name))


def _outputs(parts: Parts) -> tuple[tuple[OutputRequest, ...], OipForm]:
    outputs: dict[str, OutputRequest] = {}
    regions: dict[str, RegionRef] = {}
    for output in parts.outputs:
        name = output.name
        # One that is asked for twice is given once, as upstream; the last word counts.
        outputs[name] = OutputRequest(name, checked(output.parameters))
        regions.pop(name, None)
        ref = reference(output.parameters, "output", name)
        if ref is not None:
            regions[name] = ref
    form = OipForm(True, regions=MappingProxyType(regions)) if regions else ALL_BINARY
    return tuple(outputs.values()), form
