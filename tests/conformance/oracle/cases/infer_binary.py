"""Inference over HTTP with tensors behind the JSON, or in its place."""

import struct
from typing import Any

from ..case import Case, Http, infer, post, tensor

_INTS = struct.pack("<16i", *range(16))
_ONES = struct.pack("<16i", *[1] * 16)
_BINARY = {"parameters": {"binary_data_output": True}}


def _strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def _pair(first: int = 64, second: int = 64) -> list[Any]:
    return [
        tensor("INPUT0", "INT32", [1, 16], binary_data_size=first),
        tensor("INPUT1", "INT32", [1, 16], binary_data_size=second),
    ]


def _bytes(name: str, shape: list[int], binary: bytes, size: int | None = None) -> Case:
    size = len(binary) if size is None else size
    given = [tensor("INPUT0", "BYTES", shape, binary_data_size=size)]
    return infer(name, "identity_bytes", given, binary=binary, document=_BINARY)


def _length(name: str, length: str, **more: Any) -> Case:
    path = "/v2/models/identity_fp32/infer"
    document = {"inputs": [tensor("INPUT0", "FP32", [1, 1], [1])]}
    headers = {"Inference-Header-Content-Length": length}
    return post(name, path, document, headers=headers, **more)


def _raw(name: str, model: str, body: bytes, **more: Any) -> Case:
    return post(name, f"/v2/models/{model}/infer", binary=body, **more)


_TENSORS: list[Case] = [
    infer("binary in, JSON out", "simple", _pair(), binary=_INTS + _ONES),
    infer("binary both ways", "simple", _pair(), binary=_INTS + _ONES, document=_BINARY),
    infer("one input binary", "simple",
          [tensor("INPUT0", "INT32", [1, 16], list(range(16))), _pair()[1]], binary=_ONES),
    infer("outputs one by one", "simple", _pair(),
          [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}],
          binary=_INTS + _ONES),
    infer("octets as content type", "simple", _pair(), binary=_INTS + _ONES,
          headers={"Content-Type": "application/octet-stream"}),
    infer("no elements", "identity_fp32",
          [tensor("INPUT0", "FP32", [1, 0], binary_data_size=0)], binary=b"", document=_BINARY),
    *(
        infer(f"{datatype} as binary", f"identity_{datatype.lower()}",
              [tensor("INPUT0", datatype, [2, 1], binary_data_size=len(data))],
              binary=data, document=_BINARY)
        for datatype, data in {
            "BOOL": b"\1\0", "UINT8": b"\1\xff", "UINT16": b"\1\2\3\4", "UINT32": b"12345678",
            "UINT64": b"0123456789abcdef", "INT8": b"\x80\x7f", "INT16": b"abcd",
            "INT32": b"abcdefgh", "INT64": b"0123456789abcdef", "FP16": b"\0\x3c\0\x40",
            "BF16": b"\x80\x3f\0\x40", "FP32": struct.pack("<2f", 1.5, -2),
            "FP64": struct.pack("<2d", 1.5, -2),
        }.items()
    ),
    infer("FP16 as JSON output", "identity_fp16",
          [tensor("INPUT0", "FP16", [1, 1], binary_data_size=2)], binary=b"\0\x3c"),
    infer("BF16 as JSON output", "identity_bf16",
          [tensor("INPUT0", "BF16", [1, 1], binary_data_size=2)], binary=b"\x80\x3f"),
    infer("infinity and nothing as JSON output", "identity_fp32",
          [tensor("INPUT0", "FP32", [1, 2], binary_data_size=8)],
          binary=struct.pack("<2f", float("inf"), float("nan")), check="status"),
    infer("data and binary data", "identity_fp32",
          [tensor("INPUT0", "FP32", [1, 1], [5.0], binary_data_size=4)],
          binary=struct.pack("<f", 1.5)),
]  # fmt: skip

_SIZES: list[Case] = [
    infer("one byte too few", "simple", _pair(), binary=(_INTS + _ONES)[:-1]),
    infer("bytes behind the tensors", "simple", _pair(), binary=_INTS + _ONES + b"more"),
    infer("size less than the shape needs", "simple", _pair(60), binary=_INTS[:60] + _ONES),
    infer("size more than the shape needs", "simple", _pair(68), binary=_INTS + b"1234" + _ONES),
    infer("no binary at all", "simple", _pair(), binary=b""),
    infer("binary for nobody", "identity_fp32", [tensor("INPUT0", "FP32", [1, 1], [1])],
          binary=b"1234"),
    infer("negative size", "simple", _pair(-1), binary=_INTS + _ONES),
    infer("huge size", "simple", _pair(2**62), binary=_INTS + _ONES),
    infer("size as a string", "simple", _pair("64"), binary=_INTS + _ONES),  # type: ignore[arg-type]
    infer("size that is a fraction", "simple", _pair(64.5), binary=_INTS + _ONES),  # type: ignore[arg-type]
    infer("binary_data of another type", "identity_int32",
          [tensor("INPUT0", "INT32", [1, 1], [1])],
          [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]),
    infer("binary_data_output of another type", "identity_int32",
          [tensor("INPUT0", "INT32", [1, 1], [1])],
          document={"parameters": {"binary_data_output": "yes"}}),
    infer("binary without the header", "simple", _pair()),
]  # fmt: skip

_STRINGS: list[Case] = [
    _bytes("strings", [1, 3], _strings(b"a", b"", b"\xff\0b")),
    _bytes("strings of two rows", [2, 1], _strings(b"abc", b"de")),
    _bytes("fewer strings than the shape says", [1, 3], _strings(b"a", b"b")),
    _bytes("more strings than the shape says", [1, 1], _strings(b"a", b"b")),
    _bytes("a string that is cut off", [1, 1], struct.pack("<I", 10) + b"abc"),
    _bytes("a length that is cut off", [1, 1], b"\1\0"),
    _bytes("a string of 4 GiB", [1, 1], b"\xff\xff\xff\xffabc"),
    _bytes("no strings", [1, 0], b""),
    infer("binary strings as JSON output", "identity_bytes",
          [tensor("INPUT0", "BYTES", [1, 2], binary_data_size=10)],
          binary=_strings(b"a", b'"'), check="exact"),
    infer("strings that are no UTF-8 as JSON output", "identity_bytes",
          [tensor("INPUT0", "BYTES", [1, 1], binary_data_size=6)], binary=_strings(b"\xff\xfe"),
          check="error"),
]  # fmt: skip

_HEADER: list[Case] = [
    _length("length as long as the body", "82"),
    _length("length 1", "1", check="status"),
    _length("length beyond the body", "9999"),
    _length("length below zero", "-1"),
    _length("length that is no number", "abc"),
    _length("length that is empty", "", check="error"),
    _length("length with a sign", "+82", check="error"),
    _length("length beyond 32 bits", "4294967378"),
    _length("length beyond 64 bits", "99999999999999999999999"),
    _length("length that is a fraction", "1.5", check="error"),
]

_RAW: list[Case] = [
    _raw("raw", "identity_fp32", struct.pack("<2f", 1.5, 2)),
    _raw("raw of a fixed shape", "classes", struct.pack("<4f", 1, 2, 3, 4)),
    _raw("raw of a fixed shape without batches", "classes_nobatch", struct.pack("<4f", 1, 2, 3, 4)),
    _raw("raw of one element less", "classes", struct.pack("<3f", 1, 2, 3)),
    _raw("raw of one element more", "classes", struct.pack("<5f", 1, 2, 3, 4, 5)),
    _raw("raw with half an element", "identity_fp32", b"12345"),
    _raw("raw that is empty", "identity_fp32", b""),
    _raw("raw for two inputs", "simple", _INTS),
    _raw("raw for three inputs", "three", b"12345678"),
    _raw("raw with two free dimensions", "identity_2d", b"1234"),
    _raw("raw string", "text1", b"hello"),
    _raw("raw string that is empty", "text1", b""),
    _raw("raw for many strings", "identity_bytes", b"hello"),
    _raw("raw for an unknown model", "nobody", b"hello"),
    _raw("raw INT8", "identity_int8", b"abc"),
    Http("chunks", "POST", "/v2/models/identity_fp32/infer",
         {"Transfer-Encoding": "chunked", "Inference-Header-Content-Length": "0"},
         b"4\r\n\0\0\x80\x3f\r\n4\r\n\0\0\0\x40\r\n0\r\n\r\n"),
]  # fmt: skip

CASES = [*_TENSORS, *_SIZES, *_STRINGS, *_HEADER, *_RAW]
