"""Outputs as classes: top values, their indices and labels, instead of a tensor."""

import struct
from typing import Any

from ..case import Case, infer, tensor

_ROWS = [[0.1, 0.7, 0.05, 0.15], [4.0, 3.0, 2.0, 1.0]]
_VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True], "UINT8": [1, 255, 7], "UINT16": [1, 65535],
    "UINT32": [1, 2**32 - 1], "UINT64": [1, 2**64 - 1], "INT8": [-128, 127], "INT16": [-5, 9],
    "INT32": [-(2**31), 7],
    "INT64": [-(2**63), 2**63 - 1], "FP64": [0.1, 1e10, -3.0],
    "FP32": [0.1, 1e10, -3.0, 1e-9, 123456.789, 16777216.0],
}  # fmt: skip


def _asked(count: Any, **more: Any) -> list[Any]:
    return [{"name": "OUTPUT0", "parameters": {"classification": count, **more}}]


def _labelled(name: str, count: Any, data: Any = _ROWS[:1], **more: Any) -> Case:
    given = [tensor("INPUT0", "FP32", [len(data), 4], data)]
    return infer(name, "classes", given, _asked(count), **more)


def _plain(name: str, data: list[float], count: Any, **more: Any) -> Case:
    given = [tensor("INPUT0", "FP32", [1, len(data)], data)]
    return infer(name, "identity_fp32", given, _asked(count, **more))


CASES: list[Case] = [
    _labelled("the first", 1),
    _labelled("the first three", 3),
    _labelled("all, of which one has no label", 4),
    _labelled("more than there are", 99),
    _labelled("two rows", 2, _ROWS),
    _labelled("none", 0),
    _labelled("fewer than none", -1),
    _labelled("count as a string", "2"),
    _labelled("count as a fraction", 2.0),
    _labelled("count as a truth", True),
    _labelled("count beyond 32 bits", 2**32 + 1),
    infer("without batches, two dimensions", "classes_nobatch",
          [tensor("INPUT0", "FP32", [2, 2], [1, 4, 3, 2])], _asked(3)),
    _plain("without labels", [1, 2, 3], 2),
    _plain("ties", [2, 2, 1, 2, 2], 4),
    _plain("ties of everything", [0, 0, 0], 3),
    _plain("binary", [1, 3, 2], 3, binary_data=True),
    _plain("of nothing", [], 3),
    infer("binary for all outputs", "identity_fp32",
          [tensor("INPUT0", "FP32", [1, 2], [1, 2])], _asked(1),
          document={"parameters": {"binary_data_output": True}}),
    infer("one output of two", "simple",
          [tensor("INPUT0", "INT32", [1, 16], list(range(16))),
           tensor("INPUT1", "INT32", [1, 16], [1] * 16)],
          [{"name": "OUTPUT0", "parameters": {"classification": 2}}, {"name": "OUTPUT1"}]),
    *(
        infer(f"values of {datatype}", f"identity_{datatype.lower()}",
              [tensor("INPUT0", datatype, [1, len(values)], values)], _asked(9))
        for datatype, values in _VALUES.items()
    ),
    infer("of FP16", "identity_fp16", [tensor("INPUT0", "FP16", [1, 2], binary_data_size=4)],
          _asked(1), binary=b"\0\x3c\0\x40"),
    infer("of BF16", "identity_bf16", [tensor("INPUT0", "BF16", [1, 2], binary_data_size=4)],
          _asked(1), binary=b"\x80\x3f\0\x40"),
    infer("of strings", "identity_bytes", [tensor("INPUT0", "BYTES", [1, 1], ["a"])], _asked(1)),
    infer("of infinities", "identity_fp32",
          [tensor("INPUT0", "FP32", [1, 3], binary_data_size=12)], _asked(3),
          binary=struct.pack("<3f", float("-inf"), float("inf"), 0)),
]  # fmt: skip
