"""Loaded by schemathesis in its own environment: what a run against this server needs to know.

Knows: which models there are, how a GraphPipe body travels, and which server errors are answers.
"""

from __future__ import annotations

import schemathesis

MODELS = ("simple", "text", "floats")
ANSWERS = (501, 503, 504)
"""What a server may say of a request that is not its fault: never 500, but for the two below."""
AS_TRITON = ("Unable to parse 'shape': ", "Unable to set 'classification': ")


@schemathesis.serializer("application/x-graphpipe")
def graphpipe(ctx, value):
    return value if isinstance(value, bytes) else repr(value).encode()


@schemathesis.serializer("application/vnd.sagemaker-triton.binary+json;json-header-size=N")
def sagemaker(ctx, value):
    return value if isinstance(value, bytes) else repr(value).encode()


@schemathesis.hook
def map_path_parameters(ctx, path_parameters):
    """Most names are those of models, or little but 404 would be seen."""
    if path_parameters and "model" in path_parameters:
        name = str(path_parameters["model"])
        if len(name) % 4:
            path_parameters["model"] = MODELS[len(name) % 3]
    if path_parameters and len(str(path_parameters.get("version", ""))) % 2:
        path_parameters["version"] = "1"
    return path_parameters


@schemathesis.check
def no_fault_of_the_server(ctx, response, case):
    text = response.text
    assert "internal error" not in text, "a bug was answered"
    if response.status_code == 500:
        assert any(known in text for known in AS_TRITON), text
    elif response.status_code > 500:
        assert response.status_code in ANSWERS, text
