"""Tables as clients of MLflow and SageMaker send them: pandas' JSON forms and CSV.

Knows: ``dataframe_split``, ``dataframe_records`` and CSV with or without a line of names. Knows
nothing of HTTP and of replies.

A table fits a model in one of two ways. Where the model's inputs have the columns' names, each
column is an input. Where it has a single input of another name, the columns together are the rows
of that, in their order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.errors import ProtocolError
from penstock.protocol.json_values import Document, array_of, fitted
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.message import Array, TensorSpec
from penstock.protocol.oip_tensor import Body

_TRUTHS: Final = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
_FLOATS: Final = (dt.FP16, dt.BF16, dt.FP32, dt.FP64)

Columns = dict[str, tuple[DType, Array]]


class Table(NamedTuple):
    """``rows`` of equal length; ``names`` is empty where the columns have none."""

    names: Sequence[str]
    rows: Sequence[Sequence[Any]]


class _Split(msgspec.Struct, gc=False):
    data: list[list[Any]]
    columns: list[str] | None = None


_split = Document(_Split)
_records = Document(list[dict[str, Any]])


def split_table(value: object) -> Table:
    """The table that the value of ``dataframe_split`` is; its index is not looked at."""
    read = _split.of(value)
    names = read.columns or []
    return _checked(Table(names, read.data))


def records_table(value: object) -> Table:
    """The table that the value of ``dataframe_records`` is."""
    records = _records.of(value)
    if not records:
        raise ProtocolError("the table has no rows")
    names = list(records[0])
    for number, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise ProtocolError(f"record {number} has not the columns of the first")
    return Table(names, [[record[name] for name in names] for record in records])


def csv_table(text: Body, header: bool | None = None) -> Table:
    """The table in a CSV text (UTF-8).

    Without ``header`` the first line has the names unless all its cells are numbers. A first column
    whose name is empty, which is how pandas writes its index, is left out.
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(str(bytes(text), "utf-8-sig"))) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a CSV text: {error}") from None
    if not lines:
        raise ProtocolError("the table has no rows")
    if header is None:
        header = not all(map(_is_number, lines[0]))
    names: list[str] = lines.pop(0) if header else []
    table = _checked(Table(names, lines))
    if names and names[0] == "":
        return Table(names[1:], [row[1:] for row in lines])
    return table


def _checked(table: Table) -> Table:
    width = len(table.names) or (len(table.rows[0]) if table.rows else 0)
    if not table.rows or not width:
        raise ProtocolError("the table has no rows")
    if set(map(len, table.rows)) != {width}:
        raise ProtocolError(f"the rows of the table have not all {width} columns")
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def columns_for(
    table: Table, inputs: Sequence[TensorSpec], *, text: bool = False, limits: WireLimits = DEFAULT
) -> Columns:
    """The tensors that ``table`` stands for; ``text`` says that all cells are strings, as in CSV.

    Raises:
        ProtocolError: a cell is not what the input takes, or columns are missing.
    """
    names = list(table.names)
    if len(set(names)) != len(names):
        raise ProtocolError("two columns have the same name")
    wanted = {spec.name for spec in inputs}
    if len(inputs) != 1 or wanted == set(names):
        if missing := sorted(wanted - set(names)):
            raise ProtocolError(f"the table has no column '{missing[0]}', which is an input")
        if unknown := sorted(set(names) - wanted):
            raise ProtocolError(f"the model has no input for column '{unknown[0][:256]}'")
        places = {name: place for place, name in enumerate(names)}
        found = {}
        for spec in inputs:
            cells = [row[places[spec.name]] for row in table.rows]
            found[spec.name] = _typed(_cells(cells, spec) if text else cells, spec, limits)
        return found
    (only,) = inputs
    rows: list[Any] = [_cells(row, only) if text else row for row in table.rows]
    return {only.name: _typed(rows, only, limits)}


def _typed(values: list[Any], spec: TensorSpec, limits: WireLimits) -> tuple[DType, Array]:
    array = array_of(values, spec.dtype, spec.name, limits)
    return spec.dtype, fitted(array, spec.shape)


def _cells(cells: Sequence[str], spec: TensorSpec) -> list[Any]:
    """Cells of a CSV text as values of the input's type; an empty one is NaN among floats."""
    try:
        if spec.dtype is dt.BYTES:
            return list(cells)
        if spec.dtype is dt.BOOL:
            return [_TRUTHS[cell] for cell in cells]
        if spec.dtype in _FLOATS:
            return [float(cell) if cell else float("nan") for cell in cells]
        return list(map(_integer, cells))
    except (ValueError, KeyError) as error:
        raise ProtocolError(
            f"a cell cannot be read as {spec.dtype} for input '{spec.name}': {error}"
        ) from None


def _integer(cell: str) -> int | float:
    return float(cell) if "." in cell or "e" in cell or "E" in cell else int(cell)
