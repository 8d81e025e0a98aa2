"""The messages of the HTTP routes as JSON Schema, for ``/openapi.json``.

Knows the documents of KServe v2 with Triton's extensions and those of GraphPipe. What a reader
would learn nothing from (a model's whole configuration) is an object and no more.
"""

from __future__ import annotations

from typing import Any, Final

from penstock.protocol.dtype import BY_NAME
from penstock.server.front.operation import Schema, ref


def _object(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        made["required"] = list(required)
    return made


def _list(items: Schema, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


_TEXT: Final[Schema] = {"type": "string"}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TRUTH: Final[Schema] = {"type": "boolean"}
_SHAPE: Final = _list(_COUNT)
_PARAMETERS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_DATATYPE: Final[Schema] = {"type": "string", "enum": list(BY_NAME)}

_TENSOR: Final = _object(
    ("name", "shape", "datatype"),
    name=_NAME,
    shape=_SHAPE,
    datatype=_DATATYPE,
    parameters={
        "type": "object",
        "description": "binary_data_size, or shared_memory_region, shared_memory_byte_size and "
        "shared_memory_offset, where the values are not in data",
    },
    data={"description": "the values in row-major order, flat or nested like the shape"},
)
_WANTED: Final = _object(
    ("name",),
    name=_NAME,
    parameters={
        "type": "object",
        "description": "binary_data, classification, shared_memory_region...",
    },
)
_SPEC: Final = _object(
    ("name", "datatype", "shape"),
    name=_TEXT,
    datatype=_DATATYPE,
    shape=_list({"type": "integer", "minimum": -1}),
)
_DURATION: Final = _object(("count", "ns"), count=_COUNT, ns=_COUNT)

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(("error",), error={"type": ["string", "object"]}),
    "Parameters": _PARAMETERS,
    "InferRequest": _object(
        ("inputs",),
        id=_TEXT,
        parameters=ref("Parameters"),
        inputs=_list(_TENSOR),
        outputs=_list(_WANTED),
    ),
    "InferReply": _object(
        ("model_name", "model_version", "outputs"),
        id=_TEXT,
        model_name=_TEXT,
        model_version=_TEXT,
        parameters=ref("Parameters"),
        outputs=_list(_TENSOR),
    ),
    "GenerateRequest": {
        "type": "object",
        "description": "A key that names an input of the model is that input, a value or a flat "
        "list; any other is a parameter, also within the object parameters.",
        "properties": {"id": _TEXT, "parameters": {"type": "object"}},
        "additionalProperties": True,
    },
    "GenerateReply": _object(
        ("model_name", "model_version"), id=_TEXT, model_name=_TEXT, model_version=_TEXT
    ),
    "Live": _object(("live",), live=_TRUTH),
    "Ready": _object(("ready",), ready=_TRUTH),
    "ModelReady": _object(("name", "ready"), name=_TEXT, ready=_TRUTH),
    "ServerMetadata": _object(
        ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "ModelMetadata": _object(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(_SPEC),
        outputs=_list(_SPEC),
    ),
    "ModelConfig": {
        "type": "object",
        "description": "Triton's ModelConfig as JSON, completed from the model file",
        "required": ["name"],
    },
    "Statistics": _object(
        ("model_stats",),
        model_stats=_list(
            _object(
                ("name", "version", "inference_count", "execution_count", "inference_stats"),
                name=_TEXT,
                version=_TEXT,
                last_inference=_COUNT,
                inference_count=_COUNT,
                execution_count=_COUNT,
                inference_stats={"type": "object", "additionalProperties": _DURATION},
            )
        ),
    ),
    "GraphpipeMetadata": {"type": "object", "description": "The model, its inputs and outputs"},
}
