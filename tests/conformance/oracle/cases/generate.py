"""The generate extension: plain JSON in and out, or a stream of events."""

from typing import Any

from ..case import Case, post

_MODEL = "/v2/models/generate"


def _generate(name: str, body: Any, path: str = f"{_MODEL}/generate", **more: Any) -> Case:
    return post(name, path, body, **more)


CASES: list[Case] = [
    _generate("one text", {"text_input": "hello"}),
    _generate("of a version", {"text_input": "hello"}, f"{_MODEL}/versions/1/generate"),
    _generate("with an id", {"text_input": "hello", "id": "7"}),
    _generate("with an id that is a number", {"text_input": "hello", "id": 7}),
    _generate("a list of one", {"text_input": ["hello"]}),
    _generate("a list of two", {"text_input": ["hello", "you"]}),
    _generate("with parameters", {"text_input": "hello", "parameters": {"stream": False, "n": 1}}),
    _generate("with parameters of another type", {"text_input": "hello", "parameters": 1}),
    _generate("with more keys", {"text_input": "hello", "max_tokens": 7, "stop": "x"}),
    _generate("with a key that is a list", {"text_input": "hello", "colours": ["a"]}),
    _generate("with a key that is an object", {"text_input": "hello", "colours": {"a": 1}}),
    _generate("without the text", {"id": "7"}),
    _generate("with a number for the text", {"text_input": 7}),
    _generate("with null for the text", {"text_input": None}),
    _generate("with an object for the text", {"text_input": {}}),
    _generate("empty", "{}"),
    _generate("nothing", ""),
    _generate("a list", "[]"),
    _generate("bad JSON", "{", check="status"),
    _generate("unknown model", {"text_input": "hello"}, "/v2/models/nobody/generate"),
    _generate("of an unknown version", {"text_input": "hello"}, f"{_MODEL}/versions/9/generate"),
    _generate("of tensors", {"INPUT0": [1.5]}, "/v2/models/identity_fp32/generate"),
    _generate("of a number", {"INPUT0": 1.5}, "/v2/models/identity_fp32/generate"),
    _generate("of integers", {"INPUT0": [1, 2]}, "/v2/models/identity_int32/generate"),
    _generate("of truths", {"INPUT0": True}, "/v2/models/identity_bool/generate"),
    _generate("of no elements", {"INPUT0": []}, "/v2/models/identity_fp32/generate"),
    _generate("of nested lists", {"INPUT0": [[1.5]]}, "/v2/models/identity_fp32/generate"),
    _generate("a string for a number", {"INPUT0": ["x"]}, "/v2/models/identity_fp32/generate"),
    _generate("too large a number", {"INPUT0": [2**40]}, "/v2/models/identity_int32/generate"),
    _generate("of two inputs", {"INPUT0": list(range(16)), "INPUT1": [1] * 16},
              "/v2/models/simple/generate"),
    _generate("with one of two inputs", {"INPUT0": list(range(16))}, "/v2/models/simple/generate"),
    _generate("of a wrong shape", {"INPUT0": [1], "INPUT1": [1]}, "/v2/models/simple/generate"),
    _generate("stream", {"text_input": "hello"}, f"{_MODEL}/generate_stream"),
    _generate("stream with an id", {"text_input": "hello", "id": "7"}, f"{_MODEL}/generate_stream"),
    _generate("stream without the text", {"id": "7"}, f"{_MODEL}/generate_stream"),
    _generate("stream of bad JSON", "{", f"{_MODEL}/generate_stream", check="status"),
    _generate("stream of an unknown model", {"text_input": "x"},
              "/v2/models/nobody/generate_stream"),
    _generate("compressed", {"text_input": "hello"}, headers={"Content-Encoding": "gzip"},
              check="error"),
]  # fmt: skip
