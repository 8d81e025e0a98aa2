"""What the declared part of a GraphPipe message means: names, dtype numbers, shapes → Signature.

Knows: the rules that tie a dtype, a shape and a number of bytes together. Must not know: where in a
frame things stand, other than to say so in errors.

A ``SignatureTable`` hands out the same Signature object for the same declaration, so that what the
gateway derives from signatures is derived once even for frames that no template recognises (every
frame with an id of its own).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import AnyDType, DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe_config import FORMS, GraphpipeForm
from penstock.protocol.graphpipe_parse import Tensors
from penstock.protocol.graphpipe_read import Frame
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import Array, OutputRequest, Signature, TensorSpec

_ELEMENTS_MAX: Final = 1 << 58  # so that element counts times 8 bytes stay within 64 bits
_KEY_PARTS_MAX: Final = 256
_KEY_BYTES_MAX: Final = 2048
_SIGNATURES_MAX: Final = 1024


class Declaration:
    """A signature and how to make its arrays from a frame.

    ``views[i]`` is (shape, NumPy dtype) of tensor i. ``sizes`` are the bytes of data that the
    tensors must have, 0 for strings; ``counts`` the strings that each tensor of strings must have.
    """

    __slots__ = ("counts", "signature", "sizes", "views")

    def __init__(self, signature: Signature, limits: WireLimits, tables: list[int], field: str):
        self.signature = signature
        self.views: list[tuple[tuple[int, ...], AnyDType]] = []
        self.sizes: list[int] = []
        self.counts: dict[int, int] = {}
        for i, spec in enumerate(signature.tensors):
            count = _element_count(spec.shape, limits, f"{field}[{i}].shape", tables[i])
            self.views.append((spec.shape, spec.dtype.numpy))
            self.sizes.append(count * spec.dtype.itemsize)
            if spec.dtype is dt.BYTES:
                self.counts[i] = count

    def check(self, tensors: Tensors, field: str) -> None:
        """Raises ``ProtocolError`` unless every tensor has the data that its shape asks for."""
        for i, wanted in enumerate(self.sizes):
            if tensors.sizes[i] != wanted:
                raise ProtocolError(
                    f"shape {list(self.views[i][0])} of {self.signature.tensors[i].dtype} needs "
                    f"{wanted} bytes, there are {tensors.sizes[i]}",
                    field=f"{field}[{i}].data",
                    offset=tensors.starts[i] or tensors.tables[i],
                )
        for i, wanted in self.counts.items():
            if len(tensors.strings[i]) != wanted:
                raise ProtocolError(
                    f"shape {list(self.views[i][0])} needs {wanted} strings, "
                    f"there are {len(tensors.strings[i])}",
                    field=f"{field}[{i}].string_val",
                    offset=tensors.tables[i],
                )

    def arrays(self, frame: Frame, tensors: Tensors, field: str) -> list[Array]:
        """Views into ``frame``; tensors of strings become object arrays of ``bytes``."""
        if tensors.sizes != self.sizes or self.counts:
            self.check(tensors, field)
        ndarray = np.ndarray
        made: list[Array] = []
        if not self.counts:
            for (shape, dtype), start in zip(self.views, tensors.starts, strict=True):
                made.append(ndarray(shape, dtype, frame, start))
            return made
        for i, (shape, dtype) in enumerate(self.views):
            if i in self.counts:
                made.append(np.empty(shape, dtype))
                made[i].reshape(-1)[:] = tensors.strings[i]
            else:
                made.append(ndarray(shape, dtype, frame, tensors.starts[i]))
        return made


class SignatureTable:
    """Declarations by what was declared. Bounded; a full table is emptied."""

    __slots__ = ("_known", "_limits")

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._known: dict[tuple[Any, ...], Declaration] = {}

    def request(
        self,
        names: tuple[bytes, ...],
        tensors: Tensors,
        outputs: tuple[bytes, ...],
        form: GraphpipeForm,
    ) -> Declaration:
        """The declaration of a request. ``names`` may be empty: all tensors are unnamed then."""
        key = (names, tensors.declared, outputs, form.extended, form.error_frames)
        known = self._known.get(key)
        if known is None:
            known = declare_request(names, tensors, outputs, form, self._limits)
            if len(self._known) >= _SIGNATURES_MAX:
                self._known.clear()
            if (
                len(names) + len(outputs) + len(tensors.declared) <= _KEY_PARTS_MAX
                and sum(map(len, names)) + sum(map(len, outputs)) <= _KEY_BYTES_MAX
            ):
                self._known[key] = known
        return known


def declare_request(
    names: tuple[bytes, ...],
    tensors: Tensors,
    outputs: tuple[bytes, ...],
    form: GraphpipeForm,
    limits: WireLimits,
) -> Declaration:
    count = len(tensors.starts)
    if names and len(names) != count:
        raise ProtocolError(f"{len(names)} names for {count} tensors", field="input_names")
    specs = _specs(names or (b"",) * count, tensors, "input_tensors")
    if any(spec.dtype.graphpipe > dt.GRAPHPIPE_LAST_LEGACY for spec in specs):
        form = FORMS[True, form.error_frames]
    wanted = [OutputRequest(_name(raw, f"output_names[{i}]")) for i, raw in enumerate(outputs)]
    signature = Signature(specs, wanted, form=form)
    return Declaration(signature, limits, tensors.tables, "input_tensors")


def declare_reply(tensors: Tensors, limits: WireLimits) -> Declaration:
    specs = _specs((b"",) * len(tensors.starts), tensors, "output_tensors")
    return Declaration(Signature(specs), limits, tensors.tables, "output_tensors")


def dtype_of(number: int, field: str, offset: int) -> DType:
    found = dt.BY_GRAPHPIPE.get(number)
    if found is None:
        what = "type is Null or absent" if number == dt.GRAPHPIPE_NULL else "unknown type"
        raise ProtocolError(f"{what} ({number})", field=field, offset=offset)
    return found


def _specs(names: tuple[bytes, ...], tensors: Tensors, field: str) -> list[TensorSpec]:
    declared = tensors.declared
    return [
        TensorSpec(
            _name(raw, f"input_names[{i}]"),
            dtype_of(declared[2 * i], f"{field}[{i}].type", tensors.tables[i]),
            declared[2 * i + 1],
        )
        for i, raw in enumerate(names)
    ]


def _name(raw: bytes, field: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ProtocolError("name is not UTF-8", field=field) from None


def _element_count(shape: tuple[int, ...], limits: WireLimits, field: str, offset: int) -> int:
    """The product of ``shape``, checked dimension by dimension.

    Zeros are left out of the checked product because NumPy refuses shapes whose other dimensions
    overflow, even if one is zero.
    """
    product, largest = 1, min(limits.elements_max, _ELEMENTS_MAX)
    for size in shape:
        if size < 0:
            raise ProtocolError(f"negative size {size}", field=field, offset=offset)
        product *= size or 1
        if product > largest:
            raise ProtocolError(
                f"{list(shape)} has too many elements, at most {largest}",
                field=field,
                offset=offset,
            )
    return product if all(shape) else 0
