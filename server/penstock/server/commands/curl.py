"""A curl line that works for a model: KServe v2, one row, pasted into any POSIX shell.

Pure. Small inputs are written as JSON; others are zero bytes from ``/dev/zero`` behind a JSON head
(the binary tensor extension), which fits every size and every element type: FP16 and BF16 have no
JSON form, and four zero bytes are an empty string. Outputs without a JSON form go into a file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final
from urllib.parse import quote

from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

JSON_ELEMENTS_MAX: Final = 64
_NO_JSON: Final = (dt.FP16, dt.BF16)
_STRING_LENGTH_BYTES: Final = 4


def infer_url(base: str, model: str) -> str:
    """Where v2 inference requests for ``model`` go."""
    return f"{base}/v2/models/{quote(model, safe='')}/infer"


def curl_line(
    base: str,
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec] = (),
    *,
    socket: str = "",
    example: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """The line. Free dimensions become 1; ``example`` has flat values by input, else zeros."""
    shapes = [[1 if dim < 0 else dim for dim in spec.shape] for spec in inputs]
    counts = [prod(shape) for shape in shapes]
    request: dict[str, Any] = {
        "inputs": [
            {"name": spec.name, "shape": shape, "datatype": spec.dtype.name}
            for spec, shape in zip(inputs, shapes, strict=True)
        ]
    }
    target = shlex.quote(infer_url(base, model))
    if socket:
        target = f"--unix-socket {shlex.quote(socket)} {target}"
    if any(spec.dtype in _NO_JSON for spec in outputs):
        request["parameters"] = {"binary_data_output": True}
        target += " -D - -o reply.bin"
    if sum(counts) <= JSON_ELEMENTS_MAX and not any(spec.dtype in _NO_JSON for spec in inputs):
        for tensor, spec, count in zip(request["inputs"], inputs, counts, strict=True):
            given = example.get(spec.name) if example else None
            tensor["data"] = [_zero(spec)] * count if given is None else list(given)
        return f"curl -s {target} -d {shlex.quote(_compact(request))}"
    nbytes = [
        count * (spec.dtype.itemsize or _STRING_LENGTH_BYTES)
        for spec, count in zip(inputs, counts, strict=True)
    ]
    for tensor, size in zip(request["inputs"], nbytes, strict=True):
        tensor["parameters"] = {"binary_data_size": size}
    head = _compact(request)
    return (
        f"{{ printf %s {shlex.quote(head)}; head -c {sum(nbytes)} /dev/zero; }} | curl -s {target} "
        f"-H 'Inference-Header-Content-Length: {len(head)}' --data-binary @-"
    )


def _zero(spec: TensorSpec) -> object:
    if spec.dtype is dt.BYTES:
        return ""
    return False if spec.dtype is dt.BOOL else 0


def _compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))
