"""How a reply to a request in the v1 JSON form is written: one member a form, kept as
``signature.form`` of the request. Also the table that finds signatures again.

Knows nothing of bodies.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from penstock.protocol.dtype import DType
from penstock.protocol.message import Array, InferRequest, Signature, TensorSpec
from penstock.protocol.oip_json_memo import keep

SIGNATURES_MAX: Final = 1024


class Form(enum.Enum):
    """The value is the key that the results stand under."""

    ROWS = "predictions"
    """A list with an entry for each row; entries are objects where there are several outputs."""
    COLUMNS = "outputs"
    """A tensor, or an object of tensors where there are several outputs."""
    COLUMNS_AS_PREDICTIONS = "predictions "
    """As ``COLUMNS``, under the key ``predictions``."""
    CLASSES = "results"
    """For each row a list of pairs of label and score."""
    VALUES = "results "
    """For each row a number."""

    @property
    def key(self) -> str:
        return self.value.rstrip()


class SignatureTable:
    """Signatures by what they declare, so that what follows from one is derived once. Bounded."""

    def __init__(self) -> None:
        self._known: dict[object, Signature] = {}

    def request(self, form: Form, columns: Mapping[str, tuple[DType, Array]]) -> InferRequest:
        """A request for these tensors, whose reply is to be written as ``form``."""
        declared = tuple([(name, dtype, a.shape) for name, (dtype, a) in columns.items()])
        key = (form, declared)
        signature = self._known.get(key)
        if signature is None:
            signature = Signature([TensorSpec(*spec) for spec in declared], form=form)
            keep(self._known, key, signature, SIGNATURES_MAX)
        return InferRequest(signature, [array for _, array in columns.values()])
