"""The wire format: a table of odd bytes, held against google.protobuf, and the limits."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import DEFAULT, WireLimits
from penstock.protocol.oip_proto_parse import parse_request
from penstock.protocol.oip_proto_wire import (
    FIELDS_MAX,
    field,
    fields,
    opening,
    parameter_fields,
    varint,
)
from penstock.server.grpc_schema import message

REQUEST = message("ModelInferRequest")
NINE = b"\x80" * 9


def tensor(content: bytes) -> bytes:
    return field(5, content)


TAKEN = {
    "nothing": b"",
    "tag of 2 bytes": b"\x8a\x00\x01a",
    "tag of 5 bytes": b"\x8a\x80\x80\x80\x00\x01a",
    "highest field": b"\xfa\xff\xff\xff\x0f\x01a",
    "length of 10 bytes": b"\x0a\x81" + b"\x80" * 8 + b"\x00a",
    "length whose 65th bit is set": b"\x0a\x81" + b"\x80" * 8 + b"\x02a",
    "-1 in 10 bytes": tensor(b"\x18" + b"\xff" * 9 + b"\x01"),
    "more than 64 bits": tensor(b"\x18" + b"\xff" * 9 + b"\x7f"),
    "65th bit alone": tensor(b"\x18" + NINE + b"\x02"),
    "packed and unpacked": tensor(b"\x18\x05\x1a\x02\x06\x07\x18\x08"),
    "text as a number": b"\x08\x05",
    "text twice": b"\x0a\x01a\x0a\x01b",
    "group": b"\xfb\x01\x08\x01\xfc\x01",
    "group of a known number": b"\x0b\x0c",
    "groups, 100 deep": b"\x0b" * 100 + b"\x0c" * 100,
    "groups in a tensor, 99 deep": tensor(b"\x0b" * 99 + b"\x0c" * 99),
    "parameter without a value": b"\x22\x03\x0a\x01k",
    "parameter of two kinds": b"\x22\x09\x0a\x01k\x12\x04\x08\x01\x10\x05",
    "parameter in pieces": b"\x22\x0b\x0a\x01k\x12\x02\x08\x01\x12\x02\x10\x05",
    "parameter twice": b"\x22\x07\x0a\x01k\x12\x02\x08\x01" * 2,
    "contents in pieces": tensor(b"\x2a\x05\x35aaaa" + b"\x2a\x06\x32\x04bbbb"),
}
REFUSED = {
    "tag of 6 bytes": b"\x8a\x80\x80\x80\x80\x00\x01a",
    "tag beyond 32 bits": b"\x8a\x80\x80\x80\x10\x01a",
    "field 0": b"\x02\x01a",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "tag cut off": b"\x8a",
    "length missing": b"\x0a",
    "length cut off": b"\x0a\x80",
    "length of 11 bytes": b"\x0a\x81" + NINE + b"\x00a",
    "length beyond the end": b"\x0a\x02a",
    "negative length": b"\x0a" + b"\xff" * 9 + b"\x01",
    "length of 2 GiB": b"\x0a\x80\x80\x80\x80\x08",
    "number of 11 bytes": tensor(b"\x18" + NINE + b"\x80\x00"),
    "number cut off": b"\xf8\x01\x80",
    "packed number cut off": tensor(b"\x1a\x01\x80"),
    "packed number beyond its chunk": tensor(b"\x1a\x01\x80\x01"),
    "tensor beyond its end": b"\x2a\x02\x0a\x01a",
    "fixed64 cut off": b"\xf9\x01aaaaaaa",
    "fixed32 cut off": b"\xfd\x01aaa",
    "packed floats of 5 bytes": tensor(b"\x2a\x07\x32\x05aaaaa"),
    "contents cut in two": tensor(b"\x2a\x01\x35\x2a\x04aaaa"),
    "end of no group": b"\x0c",
    "end of another group": b"\x0b\x14",
    "group without an end": b"\x0b",
    "group that ends outside": tensor(b"\x0b") + b"\x0c",
    "groups, 101 deep": b"\x0b" * 101 + b"\x0c" * 101,
    "groups in a tensor, 100 deep": tensor(b"\x0b" * 100 + b"\x0c" * 100),
    "not UTF-8": b"\x0a\x01\xff",
    "a surrogate": b"\x0a\x03\xed\xa0\x80",
    "parameter name that is not UTF-8": b"\x22\x03\x0a\x01\xff",
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_as_by_google_protobuf(name: str) -> None:
    theirs = REQUEST.FromString(TAKEN[name])
    ours = parse_request(TAKEN[name], DEFAULT)
    assert ours.model == theirs.model_name
    assert [t.shape for t in ours.tensors] == [list(t.shape) for t in theirs.inputs]
    assert set(ours.parameters) == set(theirs.parameters)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_by_google_protobuf(name: str) -> None:
    with pytest.raises(DecodeError):
        REQUEST.FromString(REFUSED[name])
    with pytest.raises(ProtocolError):
        parse_request(REFUSED[name], DEFAULT)
    with pytest.raises(ProtocolError):
        parse_request(memoryview(REFUSED[name]), DEFAULT)


@pytest.mark.parametrize("name", [*TAKEN, *REFUSED])
def test_no_byte_outside_is_read(name: str) -> None:
    """Bytes behind the end change nothing: each message is cut out of a larger one."""
    data = (TAKEN | REFUSED)[name]
    for around in (b"", b"\x00" * 20, b"\x80" * 20, b"\x0c" * 200):
        try:
            found = list(fields(around + data + around, len(around), len(around) + len(data)))
        except ProtocolError:
            text = "refused"
        else:
            text = str([(tag, b - a) for tag, a, b in found if tag & 7 == 2])
        if around == b"":
            alone = text
        assert text == alone


SMALL = WireLimits(tensors_max=2, rank_max=2, name_bytes_max=4, strings_max=1 << 17)
BEYOND = {
    "a name": (field(1, b"abcde"), "model name is longer than the maximum 4 bytes"),
    "an id": (field(3, b"abcde"), "id is longer than the maximum 4 bytes"),
    "a parameter's name": (field(4, field(1, b"abcde")), "parameter name is longer"),
    "a parameter's text": (
        field(4, field(2, field(3, b"abcde"))),
        "parameter value is longer than the maximum 4 bytes",
    ),
    "parameters": (
        b"".join(field(4, field(1, name)) for name in (b"a", b"b", b"c")),
        "more than the maximum 2 parameters",
    ),
    "inputs": (tensor(b"") * 3, "more than the maximum 2 inputs"),
    "outputs": (field(6, b"") * 3, "more than the maximum 2 outputs"),
    "raw inputs": (field(7, b"") * 3, "more than the maximum 2 raw inputs"),
    "packed dimensions": (tensor(b"\x1a\x03abc"), "more than the maximum 2 dimensions"),
    "dimensions": (tensor(b"\x18\x01" * 3), "more than the maximum 2 dimensions"),
    "fields of a message": (b"\x78\x00" * (FIELDS_MAX + 1), "too many fields"),
    "numbers that are not packed": (
        tensor(field(5, b"\x10\x00" * (FIELDS_MAX + 1))),
        "too many fields",
    ),
    "fields of all tensors together": (
        (tensor(b"\x78\x00" * (FIELDS_MAX // 2))) * 2,
        "too many fields",
    ),
    "fields of all parameters together": (
        field(4, field(1, b"a") + b"\x78\x00" * (FIELDS_MAX // 2)) * 2,
        "too many fields",
    ),
    "fields of all outputs' parameters together": (
        field(6, field(2, field(2, b"\x78\x00" * (FIELDS_MAX // 2)))) * 2,
        "too many fields",
    ),
    "strings": (tensor(field(5, b"\x42\x00" * ((1 << 17) + 1))), "too many fields"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_limits(name: str) -> None:
    data, reason = BEYOND[name]
    with pytest.raises(ProtocolError, match=reason):
        parse_request(data, SMALL)
    assert REQUEST.FromString(data) is not None  # it is the limit that it breaks


def test_errors_say_where() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(b"\x0a\x01a\x0e", DEFAULT)
    assert caught.value.offset == 3


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1])
def test_varints_are_the_shortest(value: int) -> None:
    theirs = message("StatisticDuration")(ns=value).SerializeToString()
    assert theirs == (b"\x10" + varint(value) if value else b"")


def test_openings() -> None:
    assert opening(5, 3) == b"\x2a\x03"
    assert opening(5, 300) == b"\x2a\xac\x02"
    assert opening(1000, 3) == b"\xc2\x3e\x03"


def test_parameters_are_written_as_google_protobuf_reads_them() -> None:
    values = {"b": True, "i": -5, "u": 2**63, "s": "\u20ac", "d": 0.5, "z": 0, "f": False}
    found = REQUEST.FromString(parameter_fields(4, values)).parameters
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in found.items()}
    assert kinds == {
        "b": "bool_param", "i": "int64_param", "u": "uint64_param", "s": "string_param",
        "d": "double_param", "z": "int64_param", "f": "bool_param",
    }  # fmt: skip
    assert {key: getattr(found[key], kind) for key, kind in kinds.items()} == values
    for value in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="does not fit 64 bits"):
            parameter_fields(4, {"k": value})
