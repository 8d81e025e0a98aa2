"""Does a request fit a model? Pure: declared specs in, a plan or a typed error out.

The plan depends on the request's signature alone, so it is kept in ``signature.memo``: a client
that sends the same signature again is admitted by one comparison. Error texts follow Triton's,
which tools assert.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod

from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import Signature, TensorSpec
from penstock.server.classification import COUNT_MAX, Classifier


class Plan:
    """How a signature maps to one model.

    ``order`` is None where the arrays already stand in the model's order, else
    ``arrays[order[i]]`` is the model's i-th input. ``shapes`` is None where the arrays already have
    the model's shapes, else the shape for each of its inputs. ``wanted`` are indices of the model's
    outputs. ``classifier`` is None where no output is wanted as classes.
    """

    __slots__ = ("classifier", "key", "order", "rows", "shapes", "wanted")

    def __init__(
        self,
        rows: int,
        key: Hashable,
        order: tuple[int, ...] | None,
        wanted: tuple[int, ...],
        shapes: Sequence[tuple[int, ...]] | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        self.classifier = classifier
        self.shapes = shapes
        self.rows = rows
        self.key = key
        self.order = order
        self.wanted = wanted


class Admission:
    """Checks requests against one model's declared inputs and outputs.

    ``rows_max`` > 0 means that the first dimension of every tensor is the batch (and is declared as
    -1 in the specs), limited to that many rows a request; 0 means that the model does not batch.
    """

    __slots__ = (
        "_input_index", "_output_index", "_reshapes", "_specs", "model", "outputs", "rows_max",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        rows_max: int,
        reshapes: Sequence[tuple[int, ...] | None] = (),
    ) -> None:
        """``inputs`` and ``outputs`` are in the order of the model's session.

        ``reshapes`` are, per input, the shape of a row that the model takes where it is not the one
        that callers send; at most one size of it is -1.
        """
        self._reshapes = tuple(reshapes) if any(r is not None for r in reshapes) else ()
        self.model = model
        self.outputs = tuple(outputs)
        self.rows_max = rows_max
        self._specs = tuple(inputs)
        self._input_index = {spec.name: i for i, spec in enumerate(inputs)}
        self._output_index = {spec.name: i for i, spec in enumerate(outputs)}

    def plan(self, signature: Signature) -> Plan:
        """The plan for ``signature``.

        Raises:
            InferError: INVALID_ARGUMENT naming the tensor that does not fit.
        """
        owner, plan = signature.memo
        if owner is self:
            found: Plan = plan
            return found
        plan = self._make(signature)
        signature.memo = (self, plan)
        return plan

    def _make(self, signature: Signature) -> Plan:
        order = self._order(signature.tensors)
        rows = 1
        shapes: list[tuple[int, ...]] = []
        for spec, position in zip(self._specs, order, strict=True):
            given = signature.tensors[position]
            if given.dtype is not spec.dtype:
                raise _invalid(
                    f"inference input '{spec.name}' data-type is '{given.dtype}', but model "
                    f"'{self.model}' expects '{spec.dtype}'"
                )
            if self.rows_max and not given.shape:
                raise _invalid(
                    f"input '{spec.name}' has no shape but model requires batch dimension for "
                    f"'{self.model}'"
                )
            self._check_shape(spec, given.shape)
            shapes.append(given.shape)
        if self.rows_max:
            rows = self._rows(signature.tensors, order)
        if self._reshapes:
            shapes = [self._reshaped(*pair) for pair in zip(shapes, self._reshapes, strict=True)]
        in_order = order == tuple(range(len(order)))
        return Plan(
            rows,
            tuple([shape[1:] for shape in shapes]) if self.rows_max else None,
            None if in_order else order,
            self._wanted(signature),
            shapes if self._reshapes else None,
            self._classifier(signature),
        )

    def _reshaped(self, shape: tuple[int, ...], row: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape at the model of a tensor that callers send as ``shape``."""
        if row is None:
            return shape
        first = shape[:1] if self.rows_max else ()
        size, fixed = prod(shape[len(first) :]), prod(dim for dim in row if dim >= 0)
        if size % fixed:
            raise _invalid(
                f"an input of shape {_brackets(shape)} cannot be reshaped to {_brackets(row)} for "
                f"model '{self.model}'"
            )
        return (*first, *[size // fixed if dim < 0 else dim for dim in row])

    def _order(self, tensors: Sequence[TensorSpec]) -> tuple[int, ...]:
        positions: dict[int, int] = {}
        for position, tensor in enumerate(tensors):
            if tensor.name == "":
                # GraphPipe: a missing name means the input declared at this place.
                index = position if position < len(self._specs) else None
            else:
                index = self._input_index.get(tensor.name)
            if index is None:
                raise _invalid(
                    f"unexpected inference input '{tensor.name or position}' for model "
                    f"'{self.model}'; its inputs are {_names(self._specs)}"
                )
            if index in positions:
                name = self._specs[index].name
                raise _invalid(f"input '{name}' already exists in request")
            positions[index] = position
        if len(positions) < len(self._specs):
            raise _invalid(self._missing(tensors, positions))
        return tuple(positions[i] for i in range(len(self._specs)))

    def _missing(self, tensors: Sequence[TensorSpec], positions: dict[int, int]) -> str:
        got = _brackets([f"'{tensor.name}'" for tensor in tensors])
        missing = [f"'{s.name}'" for i, s in enumerate(self._specs) if i not in positions]
        return (
            f"expected {len(self._specs)} inputs but got {len(tensors)} inputs for model "
            f"'{self.model}'. Got input(s) {got}, but missing required "
            f"input(s) {_brackets(missing)}. Please provide all required input(s)."
        )

    def _check_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        expected = spec.shape
        if len(shape) == len(expected) and all(
            want in (-1, got) for got, want in zip(shape, expected, strict=True)
        ):
            return
        raise _invalid(
            f"unexpected shape for input '{spec.name}' for model '{self.model}'. Expected "
            f"{_brackets(expected)}, got {_brackets(shape)}"
        )

    def _rows(self, tensors: Sequence[TensorSpec], order: tuple[int, ...]) -> int:
        rows = tensors[order[0]].shape[0] if order else 1
        for spec, position in zip(self._specs, order, strict=True):
            if tensors[position].shape[0] != rows:
                raise _invalid(
                    f"input '{spec.name}' batch size does not match other inputs for '{self.model}'"
                )
        if rows > self.rows_max:
            raise _invalid(
                f"inference request batch-size must be <= {self.rows_max} for '{self.model}'"
            )
        return rows

    def _wanted(self, signature: Signature) -> tuple[int, ...]:
        if not signature.outputs:
            return tuple(range(len(self.outputs)))
        wanted: list[int] = []
        for position, output in enumerate(signature.outputs):
            name = output.name
            if name == "" and position < len(self.outputs):
                name = self.outputs[position].name
            index = self._output_index.get(name)
            if index is None:
                raise _invalid(
                    f"unexpected inference output '{output.name or position}' for model "
                    f"'{self.model}'; its outputs are {_names(self.outputs)}"
                )
            if index in wanted:
                raise _invalid(f"output '{name}' already exists in request")
            wanted.append(index)
        return tuple(wanted)

    def _classifier(self, signature: Signature) -> Classifier | None:
        counts: dict[str, int] = {}
        for position, output in enumerate(signature.outputs):
            count = output.parameters.get("classification")
            if count is None:
                continue
            if not isinstance(count, int) or isinstance(count, bool):
                raise _invalid(
                    "invalid value type for 'classification' parameter, expected int64_param"
                )
            if not 0 < count <= COUNT_MAX:
                raise _invalid("invalid value for 'classification' parameter, expected >= 0")
            if "shared_memory_region" in output.parameters:
                raise _invalid("Output can't set both 'shared_memory_region' and 'classification'")
            counts[output.name or self.outputs[position].name] = count
        return Classifier(counts, batches=self.rows_max > 0) if counts else None


def _invalid(message: str) -> InferError:
    return InferError(Code.INVALID_ARGUMENT, message)


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)


def _brackets(items: Sequence[object]) -> str:
    return "[" + ",".join(map(str, items)) + "]"
