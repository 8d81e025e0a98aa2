"""Inference over gRPC: one request a call, and streams of them."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

from ..case import Case, Grpc
from ..replay import MEMORY_BYTES, MEMORY_KEY

_INTS = struct.pack("<16i", *range(16))
_ONES = struct.pack("<16i", *[1] * 16)
_ROW = {"int_contents": list(range(16))}


def _input(name: str, datatype: str, shape: Sequence[int], contents: Any = None, **parameters: Any
           ) -> dict[str, Any]:  # fmt: skip
    made: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(map(str, shape))}
    if contents is not None:
        made["contents"] = contents
    if parameters:
        made["parameters"] = parameters
    return made


def _ask(model: str, inputs: Any, raw: Sequence[bytes] = (), **more: Any) -> dict[str, Any]:
    made = {"model_name": model, "inputs": inputs, **more}
    if raw:
        made["raw_input_contents"] = [base64.b64encode(part).decode() for part in raw]
    return made


def _infer(name: str, model: str, inputs: Any, raw: Sequence[bytes] = (), check: Any = "exact",
           memory: bytes = b"", peek: int = 0, **more: Any) -> Case:  # fmt: skip
    message = _ask(model, inputs, raw, **more)
    return Grpc(name, "ModelInfer", [message], check=check, memory=memory, peek=peek)


def _pair(**contents: Any) -> list[Any]:
    return [
        _input("INPUT0", "INT32", [1, 16], **contents),
        _input("INPUT1", "INT32", [1, 16], **contents),
    ]


def _one(datatype: str, shape: Sequence[int], contents: Any = None, **parameters: Any) -> list[Any]:
    return [_input("INPUT0", datatype, shape, contents, **parameters)]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def _int64(value: int) -> dict[str, str]:
    return {"int64_param": str(value)}


_SERVED: list[Case] = [
    _infer("raw", "simple", _pair(), [_INTS, _ONES]),
    _infer("an id", "simple", _pair(), [_INTS, _ONES], id="7\u00fc"),
    _infer("a version", "simple", _pair(), [_INTS, _ONES], model_version="1"),
    _infer("typed", "simple", _pair(contents=_ROW)),
    _infer("one output", "simple", _pair(), [_INTS, _ONES], outputs=[{"name": "OUTPUT1"}]),
    _infer("outputs in another order", "simple", _pair(), [_INTS, _ONES],
           outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]),
    _infer("inputs in another order", "simple", _pair()[::-1], [_ONES, _INTS]),
    _infer("no elements", "identity_fp32", _one("FP32", [1, 0]), [b""], check="exact"),
    _infer("no elements, typed", "identity_fp32", _one("FP32", [1, 0], {"fp32_contents": []})),
    _infer("strings", "identity_bytes", _one("BYTES", [1, 2]), [_strings(b"a", b"\xff")]),
    _infer("strings, typed", "identity_bytes",
           _one("BYTES", [1, 2], {"bytes_contents": [_b64(b"a"), _b64(b"\xff")]})),
    _infer("two rows", "identity_int32", _one("INT32", [2, 1]), [b"abcdefgh"]),
    *(
        _infer(f"typed {datatype}", f"identity_{datatype.lower()}",
               _one(datatype, [1, len(values)], {field: values}))
        for datatype, field, values in [
            ("BOOL", "bool_contents", [True, False]), ("INT8", "int_contents", [-128, 127]),
            ("INT16", "int_contents", [-5, 7]), ("INT32", "int_contents", [-(2**31), 1]),
            ("INT64", "int64_contents", ["-9223372036854775808"]),
            ("UINT8", "uint_contents", [255]), ("UINT16", "uint_contents", [65535]),
            ("UINT32", "uint_contents", [2**32 - 1]),
            ("UINT64", "uint64_contents", ["18446744073709551615"]),
            ("FP32", "fp32_contents", [1.5, -2]), ("FP64", "fp64_contents", [0.1]),
        ]
    ),
    *(
        _infer(f"raw {datatype}", f"identity_{datatype.lower()}", _one(datatype, [1, 1]), [data])
        for datatype, data in [
            ("BOOL", b"\1"), ("FP16", b"\0\x3c"), ("BF16", b"\x80\x3f"), ("INT8", b"a"),
            ("UINT64", b"01234567"), ("FP64", b"01234567"),
        ]
    ),
]  # fmt: skip

_MISTAKES: list[Case] = [
    _infer("nothing", "", []),
    _infer("unknown model", "nobody", _pair(), [_INTS, _ONES]),
    _infer("unknown version", "simple", _pair(), [_INTS, _ONES], model_version="9"),
    _infer("version that is no number", "simple", _pair(), [_INTS, _ONES], model_version="one"),
    _infer("model not loaded", "spare", _one("FP32", [1, 1]), [b"1234"]),
    _infer("no inputs", "simple", []),
    _infer("missing input", "simple", _pair()[:1], [_INTS]),
    _infer("unknown input", "simple", [*_pair(), _input("INPUTX", "INT32", [1, 16])],
           [_INTS, _ONES, _ONES]),
    _infer("misspelt input", "simple", [_pair()[0], _input("INPUTX", "INT32", [1, 16])],
           [_INTS, _ONES]),
    _infer("same input twice", "simple", [_pair()[0], _pair()[0]], [_INTS, _ONES]),
    _infer("input without a name", "identity_fp32", [_input("", "FP32", [1, 1])], [b"1234"]),
    _infer("unknown output", "simple", _pair(), [_INTS, _ONES], outputs=[{"name": "OUTPUTX"}]),
    _infer("same output twice", "simple", _pair(), [_INTS, _ONES],
           outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]),
    _infer("output without a name", "simple", _pair(), [_INTS, _ONES], outputs=[{}]),
    _infer("wrong datatype", "identity_fp32", _one("INT32", [1, 1]), [b"1234"]),
    _infer("unknown datatype", "identity_fp32", _one("FLOAT", [1, 1]), [b"1234"]),
    _infer("no datatype", "identity_fp32", _one("", [1, 1]), [b"1234"]),
    _infer("no shape", "identity_fp32", _one("FP32", []), [b"1234"]),
    _infer("wrong shape", "simple", [_input("INPUT0", "INT32", [1, 15]), _pair()[1]],
           [_INTS[:60], _ONES]),
    _infer("too many dimensions", "simple",
           [_input("INPUT0", "INT32", [1, 1, 16]), _pair()[1]], [_INTS, _ONES]),
    _infer("negative shape", "identity_fp32", _one("FP32", [1, -1]), [b"1234"]),
    _infer("huge shape", "identity_fp32", _one("FP32", [2**40, 2**40]), [b"1234"]),
    _infer("batch too large", "identity_int32", _one("INT32", [9, 1]), [bytes(36)]),
    _infer("batch of zero", "identity_int32", _one("INT32", [0, 1]), [b""]),
    _infer("batches of two sizes", "simple",
           [_input("INPUT0", "INT32", [2, 16]), _pair()[1]], [_INTS * 2, _ONES]),
    _infer("raw too short", "simple", _pair(), [_INTS[:60], _ONES]),
    _infer("raw too long", "simple", _pair(), [_INTS + _ONES, _ONES]),
    _infer("raw for one of two", "simple", _pair(), [_INTS]),
    _infer("raw for three of two", "simple", _pair(), [_INTS, _ONES, _ONES]),
    _infer("no data", "simple", _pair()),
    _infer("raw and typed", "simple",
           [_input("INPUT0", "INT32", [1, 16], _ROW), _pair()[1]], [_ONES]),
    _infer("raw and typed for all", "simple", _pair(contents=_ROW), [_INTS, _ONES]),
    _infer("typed too few", "simple", _pair(contents={"int_contents": [1, 2]})),
    _infer("typed too many", "simple", _pair(contents={"int_contents": list(range(17))})),
    _infer("typed in another field", "identity_fp32", _one("FP32", [1, 1], {"int_contents": [1]})),
    _infer("typed in two fields", "identity_fp32",
           _one("FP32", [1, 1], {"fp32_contents": [1.5], "int_contents": [1]})),
    _infer("typed beyond its range", "identity_int8",
           _one("INT8", [1, 1], {"int_contents": [300]})),
    _infer("typed FP16", "identity_fp16", _one("FP16", [1, 1], {"fp32_contents": [1.5]})),
    _infer("typed BF16", "identity_bf16", _one("BF16", [1, 1], {"fp32_contents": [1.5]})),
    _infer("strings that are cut off", "identity_bytes", _one("BYTES", [1, 1]), [b"\5\0\0\0ab"]),
    _infer("a length that is cut off", "identity_bytes", _one("BYTES", [1, 1]), [b"\5\0"]),
    _infer("more strings than the shape says", "identity_bytes", _one("BYTES", [1, 1]),
           [_strings(b"a", b"b")]),
    _infer("fewer strings than the shape says", "identity_bytes", _one("BYTES", [1, 2]),
           [_strings(b"a")]),
    _infer("a failing run", "gather", _one("INT64", [1]), [struct.pack("<q", 9)], check="status"),
    Grpc("no protobuf", "ModelInfer", [b"\xff\xff"], check="error"),
]  # fmt: skip

_IN = _one("INT32", [1, 1])


def _with(name: str, check: Any = "exact", **parameters: Any) -> Case:
    return _infer(name, "identity_int32", _IN, [b"1234"], check, parameters=parameters)


def _classes(name: str, parameter: Any, model: str = "classes", **more: Any) -> Case:
    data = struct.pack("<4f", 0.1, 0.7, 0.05, 0.15)
    outputs = [{"name": "OUTPUT0", "parameters": {"classification": parameter, **more}}]
    return _infer(name, model, _one("FP32", [1, 4]), [data], outputs=outputs)


_PARAMETERS: list[Case] = [
    _with("priority", priority={"uint64_param": "1"}),
    _with("priority as a signed number", priority=_int64(1)),
    _with("priority below zero", priority=_int64(-1)),
    _with("priority as a string", priority={"string_param": "1"}),
    _with("timeout", timeout=_int64(10_000_000)),
    _with("timeout as an unsigned number", timeout={"uint64_param": "10000000"}),
    _with("timeout as a string", timeout={"string_param": "1"}),
    _with("timeout below zero", timeout=_int64(-1)),
    _with("sequence", sequence_id=_int64(7)),
    _with("sequence by name", sequence_id={"string_param": "seven"}),
    _with("sequence as an unsigned number", sequence_id={"uint64_param": "7"}),
    _with("sequence as a truth", sequence_id={"bool_param": True}),
    _with("start", sequence_id=_int64(7), sequence_start={"bool_param": True}),
    _with("start as a number", sequence_id=_int64(7), sequence_start=_int64(1)),
    _with("end as a string", sequence_id=_int64(7), sequence_end={"string_param": "x"}),
    _with("custom string", colour={"string_param": "red"}),
    _with("custom number", shade=_int64(1)),
    _with("custom truth", bright={"bool_param": True}),
    _with("custom fraction", share={"double_param": 0.5}),
    _with("custom unsigned number", share={"uint64_param": "5"}),
    _with("parameter without a value", share={}),
    _with("reserved name", triton_mine=_int64(1)),
    _with("headers as a parameter", headers={"string_param": "x"}),
    _with("final response asked for", triton_enable_empty_final_response={"bool_param": True}),
    _with("binary_data_output", binary_data_output={"bool_param": True}),
    _classes("classes", _int64(2)),
    _classes("classes, more than there are", _int64(99)),
    _classes("classes, none", _int64(0)),
    _classes("classes, fewer than none", _int64(-1)),
    _classes("classes as an unsigned number", {"uint64_param": "2"}),
    _classes("classes as a string", {"string_param": "2"}),
    _classes("classes without labels", _int64(2), "identity_fp32"),
    _infer("classes of BF16", "identity_bf16", _one("BF16", [1, 1]), [b"\x80\x3f"],
           outputs=[{"name": "OUTPUT0", "parameters": {"classification": _int64(1)}}]),
]  # fmt: skip


def _shared(size: int = 16, offset: int = 0, region: Any = None) -> dict[str, Any]:
    parameters = {
        "shared_memory_region": region or {"string_param": "box"},
        "shared_memory_byte_size": _int64(size),
    }
    if offset:
        parameters["shared_memory_offset"] = _int64(offset)
    return parameters


def _memory(name: str, given: Any, wanted: Any = None, **more: Any) -> Case:
    outputs = [{"name": "OUTPUT0", "parameters": wanted}] if wanted else []
    inputs = [_input("INPUT0", "INT32", [1, 4], **given)]
    memory = struct.pack("<4i", 1, 2, 3, 4) + bytes(240)
    return _infer(name, "identity_int32", inputs, outputs=outputs, memory=memory, **more)


_MEMORY: list[Case] = [
    _memory("memory of an unknown region", _shared()),
    Grpc("register", "SystemSharedMemoryRegister",
         [{"name": "box", "key": MEMORY_KEY, "byte_size": str(MEMORY_BYTES)}]),
    _memory("memory in", _shared()),
    _memory("memory in and out", _shared(), _shared(16, 64), peek=80),
    _memory("memory out that does not fit", _shared(), _shared(8, 64)),
    _memory("memory out beyond the region", _shared(), _shared(16, MEMORY_BYTES)),
    _memory("memory in beyond the region", _shared(16, MEMORY_BYTES - 8)),
    _memory("memory in of a wrong size", _shared(12)),
    _memory("memory in a region of another type", _shared(region=_int64(1))),
    _memory("memory in and raw", _shared(), raw=[b"0123456789abcdef"]),
    _infer("memory for one input of two", "simple_nobatch",
           [_input("INPUT0", "INT32", [1, 4], **_shared()), _input("INPUT1", "INT32", [1, 4])],
           [struct.pack("<4i", 1, 1, 1, 1)], memory=struct.pack("<4i", 1, 2, 3, 4)),
    _infer("memory for one output of two", "simple_nobatch",
           [_input("INPUT0", "INT32", [1, 4]), _input("INPUT1", "INT32", [1, 4])],
           [_INTS[:16], _ONES[:16]], memory=bytes(80), peek=80,
           outputs=[{"name": "OUTPUT0", "parameters": _shared(16, 64)}, {"name": "OUTPUT1"}]),
    Grpc("unregister", "SystemSharedMemoryUnregister", [{"name": "box"}]),
]  # fmt: skip


def _stream(name: str, *messages: Any, **more: Any) -> Case:
    return Grpc(name, "ModelStreamInfer", messages, **more)


_GOOD = _ask("simple", _pair(), [_INTS, _ONES], id="good")
_BAD = _ask("nobody", _pair(), [_INTS, _ONES], id="bad")
_REAL_STATUS = (("triton_grpc_error", "true"),)

_STREAMS: list[Case] = [
    _stream("stream of nothing"),
    _stream("stream of one", _GOOD),
    _stream("stream of two", _GOOD, _GOOD),
    _stream("stream with its end told", {**_GOOD, "parameters": {
        "triton_enable_empty_final_response": {"bool_param": True}}}),
    _stream("stream of a mistake", _BAD),
    _stream("stream that goes on after a mistake", _BAD, _GOOD),
    _stream("stream of a wrong shape",
            _ask("simple", [_input("INPUT0", "INT32", [1, 3]), _pair()[1]],
                 [b"123456789012", _ONES], id="odd")),
    _stream("stream of a failing run", _ask("gather", _one("INT64", [1]), [struct.pack("<q", 9)],
            id="x"), check="status"),
    _stream("stream with real statuses, good", _GOOD, metadata=_REAL_STATUS),
    _stream("stream with real statuses, bad", _BAD, metadata=_REAL_STATUS),
    _stream("stream with real statuses that are not wanted", _BAD,
            metadata=(("triton_grpc_error", "false"),)),
    _stream("stream of no protobuf", b"\xff\xff", check="error"),
]  # fmt: skip

CASES = [*_SERVED, *_MISTAKES, *_PARAMETERS, *_MEMORY, *_STREAMS]
