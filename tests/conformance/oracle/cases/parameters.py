"""Parameters of requests over HTTP: priorities, timeouts, sequences, custom ones."""

from typing import Any

from ..case import Case, infer, tensor

_INPUT = [tensor("INPUT0", "INT32", [1, 1], [1])]


def _with(name: str, check: Any = "exact", **parameters: Any) -> Case:
    document = {"parameters": parameters}
    return infer(name, "identity_int32", _INPUT, document=document, check=check)


CASES: list[Case] = [
    _with("priority", priority=1),
    _with("priority zero", priority=0),
    _with("priority below zero", priority=-1),
    _with("priority as a string", priority="1"),
    _with("priority as a fraction", priority=1.5),
    _with("priority as a truth", priority=True),
    _with("timeout", timeout=10_000_000),
    _with("timeout zero", timeout=0),
    _with("timeout below zero", timeout=-1),
    _with("timeout as a string", timeout="5"),
    _with("timeout as a fraction", timeout=0.5),
    _with("sequence for a model without", sequence_id=7),
    _with("sequence by name for a model without", sequence_id="seven"),
    _with("start and end of a sequence", sequence_id=7, sequence_start=True, sequence_end=True),
    _with("sequence as a truth", sequence_id=True),
    _with("sequence below zero", sequence_id=-1),
    _with("start as a number", sequence_id=7, sequence_start=1),
    _with("end as a string", sequence_id=7, sequence_end="yes"),
    _with("custom string", colour="red"),
    _with("custom number", shade=7),
    _with("custom truth", bright=True),
    _with("custom fraction", share=0.5),
    _with("custom list", names=["a"]),
    _with("custom object", names={"a": 1}),
    _with("custom null", nothing=None),
    _with("reserved name", triton_mine=1),
    _with("final response asked for", triton_enable_empty_final_response=True),
    _with("headers as a parameter", headers="x"),
    infer("parameters of another type", "identity_int32", _INPUT, document={"parameters": [1]}),
    infer("parameters null", "identity_int32", _INPUT, document={"parameters": None}),
    infer("parameters of an input", "identity_int32",
          [tensor("INPUT0", "INT32", [1, 1], [1], colour="red")]),
    infer("parameters of an input of another type", "identity_int32",
          [{**_INPUT[0], "parameters": 1}]),
    infer("parameters of an output", "identity_int32", _INPUT,
          [{"name": "OUTPUT0", "parameters": {"colour": "red"}}]),
    infer("parameters of an output of another type", "identity_int32", _INPUT,
          [{"name": "OUTPUT0", "parameters": 1}]),
]  # fmt: skip
