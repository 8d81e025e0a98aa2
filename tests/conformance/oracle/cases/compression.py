"""Compressed bodies, both ways."""

import gzip
import json
import zlib
from typing import Any

from ..case import Case, Http, tensor

_PATH = "/v2/models/identity_fp32/infer"
_DOCUMENT = {"inputs": [tensor("INPUT0", "FP32", [1, 1000], [1.5] * 1000)]}
_JSON = json.dumps(_DOCUMENT).encode()
_HEAD = json.dumps(
    {"inputs": [tensor("INPUT0", "FP32", [1, 2], binary_data_size=8)],
     "parameters": {"binary_data_output": True}}
).encode()  # fmt: skip
_LENGTH = {"Inference-Header-Content-Length": str(len(_HEAD))}


def _sent(name: str, headers: dict[str, str], body: bytes = _JSON, check: Any = "exact") -> Case:
    return Http(name, "POST", _PATH, headers, body, check=check)


CASES: list[Case] = [
    _sent("gzip in", {"Content-Encoding": "gzip"}, gzip.compress(_JSON, mtime=0)),
    _sent("deflate in", {"Content-Encoding": "deflate"}, zlib.compress(_JSON)),
    _sent("identity in", {"Content-Encoding": "identity"}),
    _sent("GZIP in capitals in", {"Content-Encoding": "GZIP"}, gzip.compress(_JSON, mtime=0),
          "error"),
    _sent("binary tensors in gzip", {"Content-Encoding": "gzip", **_LENGTH},
          gzip.compress(_HEAD + b"12345678", mtime=0)),
    _sent("binary tensors in gzip both ways",
          {"Content-Encoding": "gzip", "Accept-Encoding": "gzip", **_LENGTH},
          gzip.compress(_HEAD + b"12345678", mtime=0)),
    _sent("gzip out", {"Accept-Encoding": "gzip"}),
    _sent("deflate out", {"Accept-Encoding": "deflate"}),
    _sent("either out", {"Accept-Encoding": "gzip, deflate"}),
    _sent("either out, deflate first", {"Accept-Encoding": "deflate, gzip"}),
    _sent("anything out", {"Accept-Encoding": "*"}),
    _sent("br out", {"Accept-Encoding": "br"}),
    _sent("gzip by weight out", {"Accept-Encoding": "deflate;q=0.5, gzip;q=1.0"}),
    _sent("gzip out without weight", {"Accept-Encoding": "gzip;q=0"}),
    _sent("identity out", {"Accept-Encoding": "identity"}),
    _sent("unknown encoding in", {"Content-Encoding": "br"}),
    _sent("two encodings in", {"Content-Encoding": "gzip, gzip"},
          gzip.compress(gzip.compress(_JSON, mtime=0), mtime=0), "error"),
    _sent("gzip in that is none", {"Content-Encoding": "gzip"}, check="error"),
    _sent("deflate in that is none", {"Content-Encoding": "deflate"}, check="error"),
    _sent("raw deflate in", {"Content-Encoding": "deflate"}, zlib.compress(_JSON)[2:-4], "error"),
    _sent("half of a gzip in", {"Content-Encoding": "gzip"},
          gzip.compress(_JSON, mtime=0)[:-20], "error"),
    _sent("empty gzip in", {"Content-Encoding": "gzip"}, b"", "error"),
    _sent("an error is told plainly", {"Accept-Encoding": "gzip"}, b"{}"),
]  # fmt: skip
