from __future__ import annotations

import json

import numpy as np

from penstock.loadtest import samples


def test_both_wires_ask_for_the_same_sums() -> None:
    graphpipe, v2 = samples.add_sub(rows=2)
    assert (graphpipe.path, v2.path) == ("/graphpipe/add_sub", "/v2/models/add_sub/infer")
    asked = json.loads(v2.body[: v2.json_bytes])
    left, right = np.frombuffer(v2.body[v2.json_bytes :], "<i4").reshape(2, 2, 16)
    assert [tensor["shape"] for tensor in asked["inputs"]] == [[2, 16], [2, 16]]
    assert v2.contains == ((left + right).tobytes(), (left - right).tobytes())
    assert left.tobytes() in graphpipe.body
    assert right.tobytes() in graphpipe.body
    assert graphpipe.contains == v2.contains
    assert v2.headers["Inference-Header-Content-Length"] == str(v2.json_bytes)
