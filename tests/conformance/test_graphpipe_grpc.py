"""GraphPipe over gRPC: grpcio's own channel and FlatBuffers' own library, over both transports."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.server import demo

SERVICE = "/graphpipe.GraphpipeService/"


def load_oracle() -> Any:
    path = Path(__file__).parents[1] / "data" / "graphpipe_fbs" / "oracle.py"
    spec = importlib.util.spec_from_file_location("graphpipe_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()


@pytest.fixture(scope="module", params=["own", "grpcio"])
def call(request: Any, model_server: Any) -> Any:
    """``call(method, frame, metadata)`` gives the frame that is answered."""
    server = model_server(demo.model_repository(), "--grpc-transport", request.param)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:

        def made(method: str, frame: bytes, *metadata: tuple[str, str]) -> bytes:
            stub = channel.unary_unary(SERVICE + method)
            reply: bytes = stub(frame, metadata=metadata, timeout=30)
            return reply

        yield made


def infer_frame(images: Any) -> bytes:
    tensor = (dt.FP32.graphpipe, images.shape, images.tobytes())
    frame: bytes = oracle.write_request(b"", [b"image"], [tensor], [b"probabilities"], bare=True)
    return frame


@pytest.mark.parametrize("metadata", [(), (("model", "digits"),)])
def test_answers(call: Any, batches: Any, check_accuracy: Any, metadata: Any) -> None:
    parts = []
    for images in batches(50):
        (((_, shape, body),), errors) = oracle.read_reply(
            call("Infer", infer_frame(images), *metadata)
        )
        assert errors == []
        parts.append(np.frombuffer(body, "<f4").reshape(shape))
    check_accuracy(np.concatenate(parts))


def test_metadata(call: Any) -> None:
    told = oracle.read_metadata(call("Metadata", oracle.write_bare_metadata_request()))
    assert (told["name"], told["version"]) == (b"digits", b"1")
    assert told["inputs"] == [(b"image", b"", (-1, 1, 8, 8), dt.FP32.graphpipe)]


@pytest.mark.parametrize(
    ("frame", "metadata", "code", "text"),
    [
        (b"not a frame", (), grpc.StatusCode.INVALID_ARGUMENT, ""),
        (infer_frame(np.zeros((1, 64), "<f4")), (), grpc.StatusCode.INVALID_ARGUMENT, "image"),
        (b"", (), grpc.StatusCode.INVALID_ARGUMENT, ""),
        (
            infer_frame(np.zeros((1, 1, 8, 8), "<f4")), (("model", "letters"),),
            grpc.StatusCode.NOT_FOUND, "'letters' is not found",
        ),
    ],
)  # fmt: skip
def test_errors(call: Any, frame: bytes, metadata: Any, code: Any, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call("Infer", frame, *metadata)
    assert caught.value.code() is code
    assert text in caught.value.details()
