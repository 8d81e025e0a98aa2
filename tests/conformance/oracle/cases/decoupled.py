"""A model that answers a request any number of times, over HTTP and gRPC."""

import base64
import dataclasses
import struct
from typing import Any

from ..case import Case, Grpc, get, infer, post, tensor


def _ask(values: list[int], **more: Any) -> dict[str, Any]:
    return {
        "model_name": "repeat",
        "inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [str(len(values))]}],
        "raw_input_contents": [base64.b64encode(struct.pack(f"<{len(values)}i", *values)).decode()],
        **more,
    }


_FINAL = {"triton_enable_empty_final_response": {"bool_param": True}}

_CASES: list[Case] = [
    get("metadata", "/v2/models/repeat", ignore=("platform",)),
    get("config", "/v2/models/repeat/config", check="shape"),
    infer("over HTTP", "repeat", [tensor("INPUT0", "INT32", [2], [1, 2])]),
    Grpc("unary", "ModelInfer", [_ask([1, 2])]),
    Grpc("stream", "ModelStreamInfer", [_ask([3, 7], id="a")]),
    Grpc("stream of nothing", "ModelStreamInfer", [_ask([0], id="a")]),
    Grpc("stream of nothing with its end told", "ModelStreamInfer",
         [_ask([0], id="a", parameters=_FINAL)]),
    Grpc("stream with its end told", "ModelStreamInfer", [_ask([2], id="a", parameters=_FINAL)]),
    Grpc("stream with an error", "ModelStreamInfer", [_ask([99], id="a")], check="status"),
    Grpc("two requests in a stream", "ModelStreamInfer", [_ask([1], id="a"), _ask([1], id="a")]),
    Grpc("stream with an output", "ModelStreamInfer", [_ask([2], outputs=[{"name": "OUTPUT0"}])]),
    post("generate with two replies", "/v2/models/repeat/generate", {"INPUT0": [2]}),
    post("generate with one reply", "/v2/models/repeat/generate", {"INPUT0": [1]}),
    post("generate with no reply", "/v2/models/repeat/generate", {"INPUT0": [0]}),
    post("generate with an error", "/v2/models/repeat/generate", {"INPUT0": [99]}, check="status"),
    post("generate a stream", "/v2/models/repeat/generate_stream", {"INPUT0": [3, 7]}),
    post("generate a stream of nothing", "/v2/models/repeat/generate_stream", {"INPUT0": [0]}),
    post("generate a stream with an error", "/v2/models/repeat/generate_stream",
         {"INPUT0": [99]}),
]  # fmt: skip

CASES = [dataclasses.replace(case, server="decoupled") for case in _CASES]
