"""Tables as JSON and CSV: which tensors they stand for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.dataframe import (
    Table,
    columns_for,
    csv_table,
    records_table,
    split_table,
)
from penstock.protocol.errors import ProtocolError
from penstock.protocol.message import TensorSpec

MATRIX = (TensorSpec("x", dt.FP32, (-1, 3)),)
COLUMNS = (
    TensorSpec("age", dt.INT64, (-1, 1)),
    TensorSpec("name", dt.BYTES, (-1,)),
    TensorSpec("paid", dt.BOOL, (-1, 1)),
)


def tensors(table: Table, inputs: tuple[TensorSpec, ...], *, text: bool = False) -> dict[str, Any]:
    return {name: a.tolist() for name, (_, a) in columns_for(table, inputs, text=text).items()}


def test_one_input_takes_all_columns() -> None:
    split = split_table({"columns": ["a", "b", "c"], "data": [[1, 2, 3]]})
    assert tensors(split, MATRIX) == {"x": [[1, 2, 3]]}
    nameless = split_table(json.loads(b'{"data":[[1,2,3],[4,5,6]],"index":[7,8]}'))
    assert tensors(nameless, MATRIX) == {"x": [[1, 2, 3], [4, 5, 6]]}
    records = records_table(json.loads(b'[{"a":1,"b":2,"c":3},{"c":6,"b":5,"a":4}]'))
    assert tensors(records, MATRIX) == {"x": [[1, 2, 3], [4, 5, 6]]}


def test_columns_by_name() -> None:
    split = split_table(
        json.loads(b'{"columns":["name","age","paid"],"data":[["x",1,true],["y",2,false]]}')
    )
    expected = {"age": [[1], [2]], "name": [b"x", b"y"], "paid": [[True], [False]]}
    assert tensors(split, COLUMNS) == expected
    text = csv_table(b"name,age,paid\nx,1,True\ny,2.0,false\n")
    assert tensors(text, COLUMNS, text=True) == expected


def test_one_column_of_lists() -> None:
    records = records_table(json.loads(b'[{"x":[1,2,3]},{"x":[4,5,6]}]'))
    assert tensors(records, MATRIX) == {"x": [[1, 2, 3], [4, 5, 6]]}


@pytest.mark.parametrize(
    ("text", "header", "rows"),
    [
        (b"1,2,3\n4,5,6\n", None, 2),
        (b"a,b,c\n1,2,3\n", None, 1),
        (b"\xef\xbb\xbfa,b,c\r\n1,2,3\r\n", None, 1),
        (b"1,2,3\n4,5,6\n", True, 1),
        (b"1,2,3", False, 1),
        (b'a,b,c\n"1","2","3"\n\n', None, 1),
        (b",a,b,c\n0,1,2,3\n", None, 1),
    ],
)
def test_csv(text: bytes, header: bool | None, rows: int) -> None:
    found = tensors(csv_table(text, header), MATRIX, text=True)["x"]
    assert np.shape(found) == (rows, 3)
    assert found[-1] in ([1, 2, 3], [4, 5, 6])


def test_empty_cells_are_not_a_number() -> None:
    (row,) = tensors(csv_table(b"1,,3", False), MATRIX, text=True)["x"]
    assert np.isnan(row[1])


def test_large_whole_numbers_keep_their_digits() -> None:
    wide = (TensorSpec("x", dt.INT64, (-1, 2)),)
    text = b"9007199254740993,-9223372036854775808"
    assert tensors(csv_table(text), wide, text=True) == {
        "x": [[9007199254740993, -9223372036854775808]]
    }


BAD: dict[str, tuple[Any, bytes, str]] = {
    "no rows": (csv_table, b"", "no rows"),
    "names alone": (csv_table, b"a,b,c\n", "no rows"),
    "ragged": (csv_table, b"a,b,c\n1,2\n", "not all 3 columns"),
    "not UTF-8": (csv_table, b"\xff,1,2", "not a CSV"),
    "an endless cell": (csv_table, b"1,2," + b"3" * 200_000, "not a CSV"),
    "no table": (split_table, b"[]", "JSON Parse error"),
    "no data": (split_table, b'{"columns":["a"]}', "data"),
    "empty data": (split_table, b'{"columns":["a"],"data":[]}', "no rows"),
    "empty rows": (split_table, b'{"data":[[]]}', "no rows"),
    "ragged data": (split_table, b'{"data":[[1,2,3],[1]]}', "not all 3 columns"),
    "no records": (records_table, b"[]", "no rows"),
    "other keys": (records_table, b'[{"a":1},{"b":1}]', "record 1"),
    "twice": (split_table, b'{"columns":["a","a"],"data":[[1,2]]}', "same name"),
    "text": (split_table, b'{"data":[["a",2,3]]}', "unexpected str"),
}


@pytest.mark.parametrize(("read", "text", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_table(read: Any, text: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        columns_for(
            read(text if read is csv_table else json.loads(text)), MATRIX, text=read is csv_table
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"age,name\n1,x\n", "no column 'paid'"),
        (b"age,name,paid,more\n1,x,true,1\n", "no input for column 'more'"),
        (b"age,name,paid\nx,x,true\n", "cannot be read as INT64"),
        (b"age,name,paid\n1.5,x,true\n", "whole numbers"),
        (b"age,name,paid\n1,x,maybe\n", "cannot be read as BOOL"),
        (b"1,2,3\n", "no column 'age'"),
    ],
)
def test_tables_that_do_not_fit(text: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        columns_for(csv_table(text), COLUMNS, text=True)
