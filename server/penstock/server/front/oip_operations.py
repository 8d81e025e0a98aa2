"""What the routes of the Open Inference Protocol do, for ``/openapi.json``."""

from __future__ import annotations

from typing import Final

from penstock.server.front.operation import BINARY, Operation, Schema, json_operation, ref
from penstock.server.front.target import TIMEOUT_FIELD

_OBJECT: Final[Schema] = {"type": "object"}
_NAMED: Final = (400, 404, 503)
"""The errors of whatever names a model."""
_TIMEOUT: Final = {
    TIMEOUT_FIELD: "How long the client waits, in milliseconds; a request that has not begun to "
    "run by then is answered 504."
}

INFER: Final = Operation(
    "inference",
    "Runs a model",
    {"application/json": ref("InferReply"), "application/octet-stream": BINARY},
    {"application/json": ref("InferRequest"), "application/octet-stream": BINARY},
    (400, 404, 413, 500, 501, 503, 504),
    {
        "Inference-Header-Content-Length": "Where binary tensors follow the JSON: its length in "
        "bytes. 0: the whole body is the model's only input.",
        "Content-Encoding": "gzip, deflate or identity",
        **_TIMEOUT,
    },
    "KServe v2 with Triton's binary tensors. The reply has binary tensors behind its JSON, and the "
    "header Inference-Header-Content-Length, if the request asked for any.",
)
GENERATE: Final = Operation(
    "inference",
    "Runs a model on a flat JSON object, for the one reply that it makes",
    {"application/json": ref("GenerateReply")},
    {"application/json": ref("GenerateRequest")},
    (400, 404, 500, 501, 503, 504),
    _TIMEOUT,
)
GENERATE_STREAM: Final = Operation(
    "inference",
    "As generate, with an event for each reply that the model makes",
    {"text/event-stream": {"type": "string"}},
    {"application/json": ref("GenerateRequest")},
    (400, 404, 500, 501, 503, 504),
    _TIMEOUT,
    "Server-sent events. Each holds a reply as generate has it, or an object with an error.",
)
SERVER: Final = json_operation(
    "metadata", "The server's name, version and extensions", ref("ServerMetadata")
)
LIVE: Final = json_operation("health", "Whether the server runs", ref("Live"))
READY: Final = Operation(
    "health",
    "Whether the server should get requests",
    {"application/json": ref("Ready")},
    errors=(400,),
)
MODEL_READY: Final = json_operation(
    "health", "Whether a model can be served", ref("ModelReady"), errors=(400,)
)
METADATA: Final = json_operation(
    "metadata", "A model's inputs, outputs and versions", ref("ModelMetadata"), errors=_NAMED
)
CONFIG: Final = json_operation(
    "model-config", "A model's configuration", ref("ModelConfig"), errors=_NAMED
)
ALL_STATISTICS: Final = json_operation(
    "statistics", "Counts and durations of every model", ref("Statistics")
)
STATISTICS: Final = json_operation(
    "statistics", "Counts and durations of a model", ref("Statistics"), errors=_NAMED
)
TRACE: Final = json_operation("trace", "What is traced", _OBJECT, errors=(400, 404))
UPDATE_TRACE: Final = json_operation(
    "trace", "Changes what is traced; answers what then is", _OBJECT, _OBJECT, (400, 404, 501)
)
LOGGING: Final = json_operation("logging", "What is logged", _OBJECT)
UPDATE_LOGGING: Final = json_operation(
    "logging", "Changes what is logged; answers what then is", _OBJECT, _OBJECT, (400, 501)
)
REGIONS: Final = json_operation(
    "shared-memory",
    "The registered regions of shared memory",
    {"type": "array", "items": _OBJECT},
    errors=(400, 404),
)
REGISTER: Final = json_operation(
    "shared-memory",
    "Registers a region of shared memory",
    {},
    _OBJECT,
    (400, 404, 500, 501, 503),
    request_needed=True,
)
UNREGISTER: Final = json_operation(
    "shared-memory", "Forgets a region, or all of its kind", {}, errors=(400, 404)
)
