"""Inference in JSON over HTTP: what is served and how each mistake is told."""

from typing import Any

from ..case import Case, infer, post, tensor

_ROW = list(range(16))
_PAIR = [tensor("INPUT0", "INT32", [1, 16], _ROW), tensor("INPUT1", "INT32", [1, 16], [1] * 16)]


def _one(datatype: str, shape: Any, data: Any, **more: Any) -> list[Any]:
    return [tensor("INPUT0", datatype, shape, data, **more)]


def _fp32(name: str, document: str, check: Any = "exact") -> Case:
    """The only input of identity_fp32 is what is given as JSON."""
    path = "/v2/models/identity_fp32/infer"
    return post(name, path, f'{{"inputs":[{document}]}}', check=check)


_SERVED: list[Case] = [
    infer("both outputs", "simple", _PAIR),
    infer("a version", "simple/versions/1", _PAIR),
    infer("an id", "simple", _PAIR, document={"id": "a b\u00fc"}),
    infer("one output", "simple", _PAIR, [{"name": "OUTPUT1"}]),
    infer("outputs in another order", "simple", _PAIR, [{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]),
    infer("inputs in another order", "simple", _PAIR[::-1]),
    infer("no outputs in the list", "simple", _PAIR, []),
    infer("nested data", "simple_nobatch", [
        tensor("INPUT0", "INT32", [1, 4], [[1, 2, 3, 4]]),
        tensor("INPUT1", "INT32", [1, 4], [[4, 3, 2, 1]]),
    ]),
    infer("two rows", "identity_int32", _one("INT32", [2, 3], [[1, 2, 3], [4, 5, 6]])),
    infer("the largest batch", "identity_int32", _one("INT32", [8, 1], list(range(8)))),
    infer("no elements", "identity_fp32", _one("FP32", [1, 0], [])),
    infer("no elements in two dimensions", "identity_2d", _one("FP32", [0, 0], [])),
    infer("strings", "identity_bytes", _one("BYTES", [1, 3], ["a", "", "\u00fc\u4e2d\"\\\n"])),
    infer("newest of several versions", "versions", _one("INT32", [1, 2], [1, 2])),
    infer("another of several versions", "versions/versions/1", _one("INT32", [1, 2], [1, 2])),
    infer("binary output", "identity_int32", _one("INT32", [1, 2], [1, 2]),
          [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]),
    infer("all outputs binary", "simple", _PAIR,
          document={"parameters": {"binary_data_output": True}}),
    infer("binary but for one", "simple", _PAIR,
          [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}],
          document={"parameters": {"binary_data_output": True}}),
    infer("no elements, binary", "identity_fp32", _one("FP32", [1, 0], []),
          document={"parameters": {"binary_data_output": True}}),
    *(
        infer(f"values of {datatype}", f"identity_{datatype.lower()}",
              _one(datatype, [1, len(values)], values))
        for datatype, values in {
            "BOOL": [True, False, True],
            "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1],
            "UINT64": [0, 2**64 - 1], "INT8": [-128, 127], "INT16": [-(2**15), 2**15 - 1],
            "INT32": [-(2**31), 2**31 - 1], "INT64": [-(2**63), 2**63 - 1],
            "FP32": [1.5, -0.25, 3.0, 0.1, 1e-30], "FP64": [0.1, 1e300, -2.0],
        }.items()
    ),
    _fp32("numbers in all their forms",
          '{"name":"INPUT0","datatype":"FP32","shape":[1,4],"data":[1,-1,1e2,1.25E-1]}'),
    _fp32("fields that mean nothing",
          '{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[1],"colour":"red"}'),
    post("fields of the request that mean nothing", "/v2/models/identity_fp32/infer",
         {"inputs": _one("FP32", [1, 1], [1]), "colour": {"a": [1]}}),
    post("any content type", "/v2/models/identity_fp32/infer",
         {"inputs": _one("FP32", [1, 1], [1])}, headers={"Content-Type": "text/plain"}),
]  # fmt: skip

_LIMITS: list[Case] = [
    infer("UINT8 too large", "identity_uint8", _one("UINT8", [1, 1], [256])),
    infer("UINT8 below zero", "identity_uint8", _one("UINT8", [1, 1], [-1])),
    infer("INT8 too large", "identity_int8", _one("INT8", [1, 1], [128])),
    infer("INT32 too large", "identity_int32", _one("INT32", [1, 1], [2**31])),
    infer("INT64 too large", "identity_int64", _one("INT64", [1, 1], [2**63])),
    infer("UINT64 too large", "identity_uint64", _one("UINT64", [1, 1], [2**64])),
    infer("a fraction for INT32", "identity_int32", _one("INT32", [1, 1], [1.5])),
    infer("a whole fraction for INT32", "identity_int32", _one("INT32", [1, 1], [1.0])),
    infer("a number for BOOL", "identity_bool", _one("BOOL", [1, 1], [1])),
    infer("another number for BOOL", "identity_bool", _one("BOOL", [1, 1], [2])),
    infer("a truth for INT32", "identity_int32", _one("INT32", [1, 1], [True])),
    infer("a string for FP32", "identity_fp32", _one("FP32", [1, 1], ["1"])),
    infer("null for FP32", "identity_fp32", _one("FP32", [1, 1], [None])),
    infer("a number for BYTES", "identity_bytes", _one("BYTES", [1, 1], [1])),
    infer("FP16 in JSON", "identity_fp16", _one("FP16", [1, 1], [1.0])),
    infer("BF16 in JSON", "identity_bf16", _one("BF16", [1, 1], [1.0])),
    infer("FP32 beyond its range", "identity_fp32", _one("FP32", [1, 1], [1e39])),
]

_MISTAKES: list[Case] = [
    infer("unknown model", "nobody", _PAIR),
    infer("unknown version", "simple/versions/99", _PAIR),
    infer("model not loaded", "spare", _one("FP32", [1, 1], [1])),
    infer("unknown input", "simple", [*_PAIR, tensor("INPUT2", "INT32", [1, 16], _ROW)]),
    infer("misspelt input", "simple", [_PAIR[0], tensor("INPUTX", "INT32", [1, 16], _ROW)]),
    infer("missing input", "simple", _PAIR[:1]),
    infer("two missing inputs", "three", [tensor("B", "FP32", [1, 2], [1, 2])]),
    infer("same input twice", "simple", [_PAIR[0], _PAIR[0]]),
    infer("no inputs in the list", "simple", []),
    post("no inputs", "/v2/models/simple/infer", {"id": "1"}),
    infer("inputs of another type", "simple", {"INPUT0": 1}),
    infer("an input that is no object", "simple", [1, 2]),
    infer("unknown output", "simple", _PAIR, [{"name": "OUTPUTX"}]),
    infer("same output twice", "simple", _PAIR, [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]),
    infer("output without a name", "simple", _PAIR, [{"parameters": {}}]),
    infer("outputs of another type", "simple", _PAIR, {"name": "OUTPUT0"}),
    infer("wrong datatype", "simple",
          [tensor("INPUT0", "FP32", [1, 16], _ROW), tensor("INPUT1", "INT32", [1, 16], _ROW)]),
    infer("unknown datatype", "identity_fp32", _one("FLOAT", [1, 1], [1])),
    infer("datatype in small letters", "identity_fp32", _one("fp32", [1, 1], [1])),
    infer("datatype of another type", "identity_fp32", _one(1, [1, 1], [1])),  # type: ignore[arg-type]
    infer("wrong size", "simple",
          [tensor("INPUT0", "INT32", [1, 15], _ROW[:15]), _PAIR[1]]),
    infer("too few dimensions", "simple", [tensor("INPUT0", "INT32", [16], _ROW), _PAIR[1]]),
    infer("too many dimensions", "simple",
          [tensor("INPUT0", "INT32", [1, 1, 16], _ROW), _PAIR[1]]),
    infer("no dimensions", "identity_fp32", _one("FP32", [], [1])),
    infer("batch too large", "identity_int32", _one("INT32", [9, 1], list(range(9)))),
    infer("batch of zero", "identity_int32", _one("INT32", [0, 1], [])),
    infer("batches of two sizes", "simple",
          [tensor("INPUT0", "INT32", [2, 16], _ROW * 2), _PAIR[1]]),
    infer("wrong shape without batches", "simple_nobatch",
          [tensor("INPUT0", "INT32", [2, 4], list(range(8))),
           tensor("INPUT1", "INT32", [2, 4], list(range(8)))]),
    infer("negative shape", "identity_fp32", _one("FP32", [1, -1], [1])),
    infer("shape of a fraction", "identity_fp32", _one("FP32", [1, 1.5], [1])),
    infer("shape of strings", "identity_fp32", _one("FP32", ["1", "1"], [1])),
    infer("shape of another type", "identity_fp32", _one("FP32", 1, [1])),
    infer("huge shape", "identity_fp32", _one("FP32", [2**31, 2**31], [1])),
    infer("shape beyond 64 bits", "identity_fp32", _one("FP32", [1, 2**64], [1])),
    infer("too few data", "identity_fp32", _one("FP32", [1, 3], [1, 2])),
    infer("too many data", "identity_fp32", _one("FP32", [1, 3], [1, 2, 3, 4])),
    infer("data nested the wrong way", "identity_2d",
          _one("FP32", [2, 3], [[1, 2], [3, 4], [5, 6]])),
    infer("data nested unevenly", "identity_2d", _one("FP32", [2, 2], [[1, 2, 3], [4]])),
    infer("data that is no list", "identity_fp32", _one("FP32", [1, 1], 1)),
    infer("data that is an object", "identity_fp32", _one("FP32", [1, 1], {"a": 1})),
    infer("no data", "identity_fp32", _one("FP32", [1, 1], None)),
    infer("no data for no elements", "identity_fp32", _one("FP32", [1, 0], None)),
    _fp32("input without a name", '{"datatype":"FP32","shape":[1,1],"data":[1]}'),
    _fp32("input without a datatype", '{"name":"INPUT0","shape":[1,1],"data":[1]}'),
    _fp32("input without a shape", '{"name":"INPUT0","datatype":"FP32","data":[1]}'),
    infer("a failing run", "gather", _one("INT64", [1], [7]), check="status"),
    infer("a run that works after it", "gather", _one("INT64", [1], [2])),
    infer("id of another type", "simple", _PAIR, document={"id": 7}),
    infer("id as an object", "simple", _PAIR, document={"id": {}}),
]  # fmt: skip

_BROKEN: list[Case] = [
    post("empty body", "/v2/models/simple/infer", ""),
    post("empty object", "/v2/models/simple/infer", "{}"),
    post("a list", "/v2/models/simple/infer", "[]"),
    post("a number", "/v2/models/simple/infer", "1"),
    post("no JSON", "/v2/models/simple/infer", "what?", check="status"),
    post("half of a JSON", "/v2/models/simple/infer", '{"inputs":[{"name":', check="status"),
    post("text behind the JSON", "/v2/models/simple/infer", '{"inputs":[]} x', check="status"),
    post("a comma too many", "/v2/models/simple/infer", '{"inputs":[],}', check="status"),
    post("single quotes", "/v2/models/simple/infer", "{'inputs':[]}", check="status"),
    post("no UTF-8", "/v2/models/simple/infer", binary=b'{"id":"\xff\xfe"}',
         headers={"Inference-Header-Content-Length": "13"}, check="error"),
    post("nested beyond reason", "/v2/models/simple/infer",
         '{"inputs":' + "[" * 5000 + "]" * 5000 + "}", check="error"),
    _fp32("NaN", '{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[NaN]}', "status"),
    _fp32("a number with zeros before it",
          '{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":[01]}', "status"),
    _fp32("data nested beyond reason", '{"name":"INPUT0","datatype":"FP32","shape":[1,1],"data":'
          + "[" * 300 + "1" + "]" * 300 + "}", "error"),
    _fp32("the same field twice", '{"name":"INPUT0","name":"INPUTX","datatype":"FP32",'
          '"shape":[1,1],"data":[1]}'),
]  # fmt: skip

CASES = [*_SERVED, *_LIMITS, *_MISTAKES, *_BROKEN]
