"""Valid requests to load a server with, on both wires, and how their answers are recognised.

Knows the codecs of ``penstock.protocol`` and the paths of the two HTTP services. Must not know
servers, processes or clocks. Right answers are recognised by the bytes of the expected outputs, so
a check does not lean on the decoder of the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.loadtest.payload import Payload
from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe, oip_json
from penstock.protocol.message import InferRequest, OutputRequest, Signature, TensorSpec

Array = NDArray[Any]


def add_sub(rows: int = 1, *, model: str = "add_sub", seed: int = 7) -> list[Payload]:
    """The same sums and differences over GraphPipe and over v2; rows differ, none is trivial."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-(2**20), 2**20, (2, rows, 16), dtype=np.int32)
    contains = ((left + right).tobytes(), (left - right).tobytes())
    names = {"INPUT0": left, "INPUT1": right}
    return infer(model, names, ("OUTPUT0", "OUTPUT1"), contains)


def infer(
    model: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    contains: tuple[bytes, ...] = (),
) -> list[Payload]:
    """[GraphPipe, v2 with binary tensors] for any inputs."""
    specs = [TensorSpec(name, dt.of_numpy(a.dtype), a.shape) for name, a in inputs.items()]
    signature = Signature(specs, [OutputRequest(name) for name in outputs])
    request = InferRequest(signature, list(inputs.values()), model=model)
    frame = b"".join(graphpipe.encode_request(request))
    parts, json_bytes = oip_json.encode_request(request, binary=True, binary_outputs=True)
    return [
        Payload(
            wire="graphpipe",
            path=f"/graphpipe/{model}",
            body=frame,
            headers={"Content-Type": "application/octet-stream"},
            contains=contains,
        ),
        Payload(
            wire="v2",
            path=f"/v2/models/{model}/infer",
            body=b"".join(parts),
            headers={
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(json_bytes),
            },
            json_bytes=json_bytes or 0,
            contains=contains,
        ),
    ]
