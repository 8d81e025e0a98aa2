"""Bodies of TensorFlow Serving's REST API and of KServe v1: predict, classify, regress.

Knows: rows (``instances`` to ``predictions``), columns (``inputs`` to ``outputs``), examples with
their context, and that types come from the model's declared inputs. Knows nothing of HTTP.

A row of a model with one input may be the bare value; the rows of others are objects by name. Flat
rows are given the declared shape (``json_values.fitted``). Whether names and shapes fit the model
is for admission to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.json_values import Document, array_of, encoded, fitted, is_bytes, values_of
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import Array, InferReply, InferRequest, TensorSpec
from penstock.protocol.oip_tensor import Body
from penstock.protocol.predict_form import Form, SignatureTable

SIGNATURE: Final = "serving_default"
"""The name of the one signature that a model has here."""
_FLOATS: Final = (dt.FP16, dt.FP32, dt.FP64, dt.BF16)
RANK_MAX: Final = 8
"""Dimensions of tensors whose numbers are checked by the parser."""
_NO_LABELS: Final[Mapping[str, Sequence[str]]] = {}

T = TypeVar("T")
Inputs = Sequence[TensorSpec]
Columns = dict[str, tuple[DType, Array]]


class _Predict(msgspec.Struct, gc=False):
    signature_name: str | None = None
    instances: Any = UNSET
    inputs: Any = UNSET


class _Examples(msgspec.Struct, gc=False):
    examples: list[dict[str, Any]]
    signature_name: str | None = None
    context: dict[str, Any] | None = None


class _Floats(msgspec.Struct, Generic[T], gc=False):
    """As ``_Predict``, of numbers alone: the parser checks them in the pass that it makes anyway,
    which for large tensors takes a third off."""

    signature_name: str | None = None
    instances: T | UnsetType = UNSET
    inputs: T | UnsetType = UNSET


_predict = Document(_Predict)
_examples = Document(_Examples)


class PredictDecoder:
    """Reads requests; one per server, used from one thread. Remembers a bounded number of
    signatures."""

    def __init__(self, limits: WireLimits = DEFAULT) -> None:
        self._limits = limits
        self._signatures = SignatureTable()

    def predict(self, body: Body, inputs: Inputs, columns: Form = Form.COLUMNS) -> InferRequest:
        """The request in the body of ``:predict`` for a model with these inputs; ``columns`` is how
        columns are answered.

        Raises:
            ProtocolError: the body is not such a request.
        """
        read: Any = None
        if len(inputs) == 1 and inputs[0].dtype in _FLOATS:
            read = _read_floats(body, len(inputs[0].shape))
        floats = read is not None
        if read is None:
            read = _predict.read(body)
        check_signature(read.signature_name)
        return self.tensors(read.instances, read.inputs, inputs, columns, floats=floats)

    def tensors(
        self,
        rows: object,
        named: object,
        inputs: Inputs,
        columns: Form = Form.COLUMNS,
        *,
        floats: bool = False,
    ) -> InferRequest:
        """The request that the values of ``instances`` and ``inputs`` stand for, one of which is
        UNSET; ``floats`` as in ``array_of``."""
        if rows is not UNSET and named is not UNSET:
            raise ProtocolError("expecting only one of 'inputs' or 'instances' keys")
        if rows is not UNSET:
            return self._signatures.request(Form.ROWS, self._rows(rows, inputs, floats))
        if named is UNSET:
            raise ProtocolError("Missing 'inputs' or 'instances' key")
        return self._signatures.request(columns, self._columns(named, inputs, floats))

    def examples(self, body: Body, inputs: Inputs, form: Form) -> InferRequest:
        """The request in the body of ``:classify`` or ``:regress``; ``form`` is the reply's.

        Features that the model has no input for are left out, as TensorFlow does.
        """
        read = _examples.read(body)
        check_signature(read.signature_name)
        return self.features(read.examples, read.context or {}, inputs, form)

    def features(
        self,
        examples: Sequence[Mapping[str, object]],
        context: Mapping[str, object],
        inputs: Inputs,
        form: Form,
    ) -> InferRequest:
        """The request that examples stand for: for each a value or a list by feature."""
        if not examples:
            raise ProtocolError("'examples' value is an empty array")
        found: dict[str, list[Any]] = {}
        for spec in inputs:
            name = spec.name
            values = [example.get(name, context.get(name, UNSET)) for example in examples]
            if UNSET in values:
                at = values.index(UNSET)
                raise ProtocolError(f"example {at} has no feature '{name}', nor has the context")
            found[name] = values
        return self._signatures.request(form, self._typed(found, inputs))

    def _rows(self, rows: object, inputs: Inputs, floats: bool) -> Columns:
        """The tensors that a list of rows stands for."""
        if type(rows) is not list:
            raise ProtocolError("Expecting 'instances' to be a list/array")
        if not rows:
            raise ProtocolError("No values in 'instances' array")
        if type(rows[0]) is dict and not is_bytes(rows[0]):
            return self._typed(_by_name(rows), inputs)
        return self._typed({_only(inputs, "instances").name: rows}, inputs, floats)

    def _columns(self, columns: object, inputs: Inputs, floats: bool) -> Columns:
        """The tensors of an object by name, or the one that a bare value stands for."""
        if type(columns) is dict and not is_bytes(columns):
            return self._typed(columns, inputs)
        return self._typed({_only(inputs, "inputs").name: columns}, inputs, floats)

    def _typed(
        self, columns: Mapping[str, object], inputs: Inputs, floats: bool = False
    ) -> Columns:
        declared = {spec.name: spec for spec in inputs}
        typed = {}
        for name, values in columns.items():
            spec = declared.get(name)
            if spec is None:
                names = ", ".join(f"'{known}'" for known in declared)
                raise ProtocolError(
                    f"the model has no input '{name[:256]}'; its inputs are {names}"
                )
            array = array_of(values, spec.dtype, name, self._limits, floats=floats)
            typed[name] = (spec.dtype, fitted(array, spec.shape))
        return typed


@lru_cache(maxsize=RANK_MAX)
def _floats_decoder(rank: int) -> msgspec.json.Decoder[Any]:
    kind: Any = float
    for _ in range(rank):
        kind = list[kind]
    return msgspec.json.Decoder(_Floats[kind])


def _read_floats(body: Body, rank: int) -> Any:
    """The record, if the body holds ``rank`` lists in each other and numbers in them, else None."""
    if not 0 < rank <= RANK_MAX:
        return None
    try:
        return _floats_decoder(rank).decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def check_signature(name: str | None) -> None:
    """Refuses every signature but the one there is."""
    if name not in (None, "", SIGNATURE):
        raise ProtocolError(f'Serving signature name: "{name[:256]}" not found in signature def')


def _only(inputs: Inputs, key: str) -> TensorSpec:
    if len(inputs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise ProtocolError(f"'{key}' must hold objects by name: the model's inputs are {names}")
    return inputs[0]


def _by_name(rows: list[Any]) -> dict[str, list[Any]]:
    names = rows[0].keys()
    for number, row in enumerate(rows):
        if type(row) is not dict or row.keys() != names:
            raise ProtocolError(f"element {number} of 'instances' has not the names of the first")
    return {name: [row[name] for row in rows] for name in names}


# --- replies --------------------------------------------------------------------------------------


def encode_reply(
    reply: InferReply, form: Form, rows: int, labels: Mapping[str, Sequence[str]] = _NO_LABELS
) -> bytes:
    """The body that answers a request of ``rows`` rows.

    ``labels`` are those of the model's outputs that have them, for ``Form.CLASSES``.

    Raises:
        InferError: the outputs have not the shape that the form needs.
    """
    if form is Form.CLASSES:
        return encoded({form.key: classes(reply, rows, labels)})
    if form is Form.VALUES:
        return encoded({form.key: numbers(reply, rows)})
    if form is Form.ROWS:
        for spec in reply.signature.tensors:
            _check_rows(spec, rows)
    columns = {
        spec.name: values_of(array, spec.dtype, spec.name)
        for spec, array in zip(reply.signature.tensors, reply.arrays, strict=True)
    }
    if len(columns) == 1:
        (only,) = columns.values()
        return encoded({form.key: only})
    if form is Form.ROWS:
        by_row = zip(*columns.values(), strict=True)
        return encoded({form.key: [dict(zip(columns, row, strict=True)) for row in by_row]})
    return encoded({form.key: columns})


def _check_rows(spec: TensorSpec, rows: int) -> None:
    if not spec.shape or spec.shape[0] != rows:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"output '{spec.name}' of shape {list(spec.shape)} has no entry for each of {rows} "
            "rows; send 'inputs' instead of 'instances' to get whole tensors",
        )


def classes(
    reply: InferReply, rows: int, labels: Mapping[str, Sequence[str]]
) -> list[list[tuple[str, float]]]:
    """Pairs of label and score for each row; raises as ``encode_reply`` does."""
    scores, values = _floats(reply, "scores", rows)
    if scores.shape[1:2] != values.shape[1:] or values.ndim != 2:
        raise _unfit("classify", f"output '{scores.name}' of shape {list(scores.shape)}")
    texts = _class_texts(reply, values, labels.get(scores.name, ()))
    return [
        list(zip(names, row, strict=True))
        for names, row in zip(texts, values.tolist(), strict=True)
    ]


def _class_texts(reply: InferReply, values: Array, labels: Sequence[str]) -> list[list[str]]:
    """The texts of each score: the model's own, those of its label file, or their numbers."""
    rows, count = values.shape
    for spec, array in zip(reply.signature.tensors, reply.arrays, strict=True):
        if spec.dtype is dt.BYTES and array.shape == values.shape:
            return [[text.decode("utf-8", "replace") for text in row] for row in array.tolist()]
    return [[*labels[:count], *map(str, range(len(labels), count))]] * rows


def numbers(reply: InferReply, rows: int) -> list[float]:
    """One number for each row; raises as ``encode_reply`` does."""
    spec, values = _floats(reply, "outputs", rows)
    if values.size != rows:
        raise _unfit("regress", f"output '{spec.name}' of shape {list(spec.shape)}")
    flat: list[float] = values.reshape(-1).tolist()
    return flat


def _floats(reply: InferReply, name: str, rows: int) -> tuple[TensorSpec, Array]:
    """The output called ``name``, or the only one of floats."""
    found = [
        (spec, array)
        for spec, array in zip(reply.signature.tensors, reply.arrays, strict=True)
        if spec.dtype in _FLOATS and spec.dtype is not dt.BF16
    ]
    found = [pair for pair in found if pair[0].name == name] or found
    if len(found) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in reply.signature.tensors)
        raise _unfit("classify" if name == "scores" else "regress", f"outputs {names}")
    _check_rows(found[0][0], rows)
    return found[0]


def _unfit(method: str, what: str) -> InferError:
    expected = "[N, classes]" if method == "classify" else "[N] or [N, 1]"
    return InferError(
        Code.FAILED_PRECONDITION,
        f"a model with {what} cannot {method}: expected one output of floats, {expected}",
    )
