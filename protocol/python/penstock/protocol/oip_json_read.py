"""Requests of the Open Inference Protocol over HTTP, from a complete body to an ``InferRequest``.

Knows: the keys and parameters of a request, and which requests are alike. Knows nothing of models,
HTTP and of how replies are written, except that it keeps the client's wishes in ``signature.form``.

Speed: clients send the same JSON again and again in front of changing binary tensors. Once the
same JSON was seen twice, what it means is kept (a *plan*), and decoding is a look-up and one NumPy
view a tensor. Request ids, which do change, are cut out of the key where they stand first, as they
do in what Triton's clients send.

Contract: equal JSON always gives an equal result, remembered or not. Requests alike in all but the
tensor values share one ``Signature`` as long as it is remembered. Everything remembered is bounded
in number and in size. Whatever the bytes, the outcome is a value or a ``PenstockError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from penstock.protocol.errors import Code, PenstockError, ProtocolError
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
from penstock.protocol.oip_form import ALL_BINARY, ALL_JSON, OipForm
from penstock.protocol.oip_json_body import (
    BodyReader,
    Place,
    check_json_size,
    json_end,
    specs_of,
)
from penstock.protocol.oip_json_large import Lifting, NotPlain
from penstock.protocol.oip_json_memo import (
    PLAN_JSON_BYTES_MAX,
    Plans,
    arrays_at,
    keep,
)
from penstock.protocol.oip_json_wire import (
    NOT_UNSIGNED,
    Output,
    Request,
    boolean,
    check_text,
    request_parser,
    scalars,
    unsigned,
)
from penstock.protocol.oip_region import NO_REGIONS, region_ref, region_targets
from penstock.protocol.oip_tensor import Body

ID_BYTES_MAX: Final = 128
"""Longer ids are not cut out of the text."""
LARGE_JSON_BYTES_MIN: Final = 64 * 1024
"""Longer texts are read a piece at a time; see ``oip_json_large``."""
SIGNATURES_MAX: Final = 1024
SIGNATURE_SIZE_MAX: Final = 8192
"""Of a signature that is remembered: characters of its names and strings, and what specs weigh."""
_SPEC_SIZE: Final = 64

_ndarray = np.ndarray
_ID_KEY: Final = re.compile(rb'"id"[ \t\r\n]*:')


class RequestDecoder:
    """Decodes request bodies; one per server, used from one thread.

    What it remembers is bounded as ``oip_json_memo`` says, and by ``SIGNATURES_MAX``. ``regions``
    is the memory that clients share; what it gives is asked for anew for each request.
    """

    def __init__(self, limits: WireLimits = DEFAULT, regions: Regions = NO_REGIONS) -> None:
        self._limits = limits
        self._regions = regions
        self._all_shared = False
        """Whether there was a request without binary data that is worth remembering."""
        self._id_bytes_max = min(ID_BYTES_MAX, limits.name_bytes_max)
        self._plans = Plans()
        self._find = self._plans.table.get
        # Apart, or a body could begin where the id of another was cut out.
        self._plans_behind_id = Plans()
        self._signatures: dict[object, Signature] = {}

    def decode(self, body: Body, json_length: int | None, model: str = "") -> InferRequest:
        """The request in ``body``, whose arrays are views into it.

        ``body`` is contiguous and of bytes; ``json_length`` is the value of the header
        Inference-Header-Content-Length, ``None`` without it. For 0 see ``oip_raw``.
        ``model`` only fills error texts; the caller sets the request's model and version.
        """
        if json_length is None and self._all_shared and 0 < len(body) <= PLAN_JSON_BYTES_MAX:
            json_length = len(body)
        if json_length is None or not 0 < json_length <= PLAN_JSON_BYTES_MAX:
            return self._decode_new(body, json_length, model, None)
        key = body[:json_length]
        if type(key) is not bytes:
            key = bytes(key)
        length = len(key)
        request_id = ""
        plan = self._find(key)
        if plan is None:
            key, request_id = _without_id(key, self._id_bytes_max)
            if request_id:
                plan = self._plans_behind_id.table.get(key)
            if plan is None:
                return self._decode_new(body, json_length, model, key)
        signature, binary_bytes, views, _, extras = plan
        if len(body) != length + binary_bytes or length != json_length:
            return self._decode_new(body, json_length, model, None)  # will say what is wrong
        if views is not None:
            arrays = []
            for shape, dtype, offset in views:
                arrays.append(_ndarray(shape, dtype, body, length + offset))
        else:
            arrays = arrays_at(plan, body, length, "input", model, self._regions)
        request = InferRequest(signature, arrays)
        if extras is not None:
            request.id, request.parameters, request.timeout_us, request.priority, refs = extras
            if refs:
                request.targets = region_targets(refs, self._regions)
        if request_id:
            request.id = request_id
        return request

    def _decode_new(
        self, body: Body, json_length: int | None, model: str, key: bytes | None
    ) -> InferRequest:
        limits = self._limits
        end = json_end(body, json_length, limits)
        check_json_size(end, limits)
        text = body if end == len(body) else memoryview(body)[:end]
        if end > LARGE_JSON_BYTES_MIN:
            try:
                return self._decode_large(body, end, text, model)
            except NotPlain:
                pass
        parsed, typed = request_parser.parse(text, limits)
        reader = BodyReader(
            body,
            end,
            typed=typed,
            what="input",
            model=model,
            limits=limits,
            regions=self._regions,
        )
        request = self._read(parsed, reader)
        if len(reader.places) == len(request.arrays):
            if key is not None:
                self._remember(key, reader.places, request)
            elif json_length is None and reader.places:
                self._all_shared = True
        return request

    def _decode_large(self, body: Body, end: int, text: Body, model: str) -> InferRequest:
        """As ``_decode_new``, a piece at a time; raises ``NotPlain`` where that cannot be."""
        limits = self._limits
        lifting = Lifting(text)
        try:
            parsed, typed = request_parser.parse(lifting.skeleton, limits)
            reader = BodyReader(
                body,
                end,
                typed=typed,
                what="input",
                model=model,
                limits=limits,
                regions=self._regions,
                lifting=lifting,
            )
            return self._read(parsed, reader)
        except PenstockError:
            raise NotPlain from None  # The whole text gives the right words for the error.

    def _read(self, parsed: Request[Any], reader: BodyReader) -> InferRequest:
        signature, request_id, parameters, timeout_us, priority = self._head(parsed)
        arrays = reader.arrays(parsed.inputs, signature.tensors)
        request = InferRequest(
            signature,
            arrays,
            id=request_id,
            parameters=parameters,
            timeout_us=timeout_us,
            priority=priority,
        )
        refs = signature.form.regions
        if refs:
            request.targets = region_targets(refs, self._regions)
        return request

    def _head(
        self, parsed: Request[Any]
    ) -> tuple[Signature, str, Mapping[str, Parameter], int, int]:
        """Everything that the JSON declares, checked, but for the tensor data."""
        timeout_us = priority = 0
        binary_default = False
        parameters = parsed.parameters
        if parameters:
            if "binary_data_output" in parameters:
                value = parameters.pop("binary_data_output")
                binary_default = boolean(value, "binary_data_output")
            if "timeout" in parameters:
                timeout_us = unsigned(parameters.pop("timeout"), "timeout")
            if "priority" in parameters:
                priority = unsigned(parameters.pop("priority"), "priority")
        rest = NO_PARAMETERS
        if parameters:
            _check_reserved(parameters)
            rest = scalars(parameters, self._limits)
        request_id = parsed.id or ""
        check_text(request_id, "id", self._limits)
        return self._signature(parsed, binary_default), request_id, rest, timeout_us, priority

    def _signature(self, parsed: Request[Any], binary_default: bool) -> Signature:
        wanted = parsed.outputs or ()
        key = (
            binary_default,
            tuple([(t.name, t.datatype, tuple(t.shape)) for t in parsed.inputs]),
            tuple([(o.name, _hashable(o.parameters)) for o in wanted]),
        )
        found = self._signatures.get(key)
        if found is None:
            specs = specs_of(parsed.inputs, "input", self._limits)
            outputs, form = _outputs(wanted, binary_default, self._limits)
            found = Signature(specs, outputs, form=form)
            if _size(found) <= SIGNATURE_SIZE_MAX:
                keep(self._signatures, key, found, SIGNATURES_MAX)
        return found

    def _remember(self, key: bytes, places: Sequence[Place], request: InferRequest) -> None:
        whole = key[:1] != b'"'
        if not whole and (b"\\" in key or _ID_KEY.search(key)):
            return  # a second id, perhaps, which would override the one that was cut out
        plans = self._plans if whole else self._plans_behind_id
        if not plans.wants(key):
            return
        extras = (
            request.id if whole else "",
            request.parameters,
            request.timeout_us,
            request.priority,
            request.signature.form.regions,
        )
        plain = not any(extras)
        plans.add(key, request.signature, places, None if plain else extras)


def _without_id(text: bytes, id_bytes_max: int) -> tuple[bytes, str]:
    """``text`` from the end of the id on, and the id, if that comes first; else all of it and "".

    The remainder starts with a quotation mark, as no text that parses does. Ids that
    are not what they look like (escapes, control characters, over-long) are left where they are.
    """
    start = 7 if text.startswith(b'{"id":"') else 8 if text.startswith(b'{"id": "') else 0
    if start:
        end = text.find(b'"', start)
        raw = text[start:end]
        if end > start and len(raw) <= id_bytes_max and b"\\" not in raw:
            try:
                request_id = raw.decode()
            except UnicodeDecodeError:
                return text, ""
            if request_id.isprintable():
                return text[end:], request_id
    return text, ""


def _hashable(parameters: dict[str, Any] | None) -> object:
    """A key that tells 1, 1.0 and true apart; ``repr`` for the nested values that are no good."""
    if not parameters:
        return None
    return tuple(
        [
            (k, type(v), v if isinstance(v, str | int | float) else repr(v))
            for k, v in parameters.items()
        ]
    )


def _outputs(
    wanted: Sequence[Output], binary_default: bool, limits: WireLimits
) -> tuple[tuple[OutputRequest, ...], OipForm]:
    if len(wanted) > limits.tensors_max:
        raise ProtocolError(f"{len(wanted)} outputs, more than the maximum {limits.tensors_max}")
    outputs: dict[str, OutputRequest] = {}
    binary: dict[str, bool] = {}
    regions: dict[str, RegionRef] = {}
    for output in wanted:
        name = output.name
        check_text(name, "output name", limits)
        if name in outputs:
            raise ProtocolError(f"output '{name}' already exists in request")
        given = output.parameters
        if given and "classification" in given:
            _check_classes(given)
        parameters = scalars(given, limits) if given else NO_PARAMETERS
        ref = region_ref(parameters, "output", name)
        if ref is not None:
            regions[name] = ref
        outputs[name] = OutputRequest(name, parameters)
        chosen = parameters.get("binary_data")
        binary[name] = binary_default if chosen is None else boolean(chosen, "binary_data")
        if ref is not None and chosen:
            raise ProtocolError("Output can't set both 'shared_memory_region' and 'binary_data'")
    if regions:
        form = OipForm(binary_default, MappingProxyType(binary), MappingProxyType(regions))
        return tuple(outputs.values()), form
    return tuple(outputs.values()), _form(binary, binary_default)


def _check_classes(parameters: dict[str, Any]) -> None:
    """0 is no wish, as in Triton's HTTP; other protocols have their own idea of it."""
    count = parameters["classification"]
    if type(count) is not int or count < 0:
        raise ProtocolError(f"Unable to set 'classification': {NOT_UNSIGNED}", code=Code.INTERNAL)
    if not count:
        del parameters["classification"]


def _check_reserved(parameters: dict[str, Any]) -> None:
    """Refuses what only the server may say, and what sequences cannot be told by."""
    if any(key.startswith("triton_") for key in parameters):
        raise ProtocolError(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not "
            "be specified."
        )
    if not isinstance(parameters.get("sequence_id", ""), str):
        unsigned(parameters["sequence_id"], "sequence_id")
    for key in ("sequence_start", "sequence_end"):
        if not isinstance(parameters.get(key, False), bool):
            raise ProtocolError(
                f"Unable to parse '{key}': attempt to access JSON non-boolean as boolean"
            )


def _form(binary: dict[str, bool], default: bool) -> OipForm:
    """One of the two shared forms where it says the same about every output that can be sent."""
    if not binary:
        return ALL_BINARY if default else ALL_JSON
    chosen = set(binary.values())
    if len(chosen) == 1:
        return ALL_BINARY if True in chosen else ALL_JSON
    return OipForm(default, MappingProxyType(binary))


def _size(signature: Signature) -> int:
    size = sum(_SPEC_SIZE + len(s.name) + 8 * len(s.shape) for s in signature.tensors)
    for output in signature.outputs:
        size += _SPEC_SIZE + len(output.name)
        size += sum(len(k) + len(str(v)) for k, v in output.parameters.items())
    return size
