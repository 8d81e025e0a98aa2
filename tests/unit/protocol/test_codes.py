"""protocol/codes.json, SPEC.md and errors.Code are one table."""

import json
import pickle
from pathlib import Path

import pytest

from penstock.protocol.errors import (
    BY_NUMBER,
    Code,
    InferError,
    PenstockError,
    ProtocolError,
    code_of_number,
)

PROTOCOL = Path(__file__).parents[3] / "protocol"
ROWS = json.loads((PROTOCOL / "codes.json").read_text())


def test_published_rows_are_the_codes() -> None:
    for row in ROWS:
        assert row.pop("meaning").endswith(".")
    assert [
        {
            "name": code.name,
            "number": code.number,
            "http_status": code.http_status,
            "grpc_status": code.grpc_status,
            "retryable": code.retryable,
        }
        for code in Code
    ] == ROWS


@pytest.mark.parametrize("code", Code)
def test_spec_lists_the_code(code: Code) -> None:
    retry = "yes" if code.retryable else "no"
    row = f"| {code.number} | {code.name} | {code.http_status} | {code.grpc_status} | {retry} |"
    assert row in (PROTOCOL / "SPEC.md").read_text()


def test_numbers_are_unique_and_known() -> None:
    assert len(BY_NUMBER) == len(Code)
    assert all(code_of_number(code.number) is code for code in Code)
    assert code_of_number(-5) is code_of_number(99) is Code.UNKNOWN


def test_only_unexecuted_requests_are_retryable() -> None:
    assert {code for code in Code if code.retryable} == {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}


def test_protocol_error_says_where() -> None:
    error = ProtocolError("bad", field="a[0].b", offset=12)
    assert (str(error), error.field, error.offset) == ("bad (a[0].b, offset 12)", "a[0].b", 12)
    assert error.code is Code.INVALID_ARGUMENT
    assert str(ProtocolError("bad")) == "bad"
    assert InferError(Code.INTERNAL, "x").message == "x"


@pytest.mark.parametrize(
    "error",
    [
        InferError(Code.NOT_FOUND, "no such model"),
        ProtocolError("too short", field="a.b", offset=7, code=Code.OUT_OF_RANGE),
    ],
)
def test_errors_survive_pickling(error: PenstockError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.args, vars(again)) == (error.args, vars(error))
