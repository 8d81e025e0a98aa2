"""GraphPipe over gRPC: bare frames as FlatBuffers' own library writes them, errors as statuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.graphpipe_config import FORMS, write_config
from penstock.server.front.graphpipe_grpc import GraphpipeGrpcFront

INFER, METADATA = "/graphpipe.GraphpipeService/Infer", "/graphpipe.GraphpipeService/Metadata"
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
NAMES = [b"INPUT0", b"INPUT1"]


def load_oracle() -> Any:
    path = Path(__file__).parents[3] / "data" / "graphpipe_fbs" / "oracle.py"
    spec = importlib.util.spec_from_file_location("graphpipe_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()


def bare(*arrays: Any, config: bytes = b"", outputs: tuple[bytes, ...] = ()) -> bytes:
    tensors = [(dt.of_numpy(a.dtype).graphpipe, a.shape, a.tobytes()) for a in arrays]
    names = NAMES[: len(arrays)]
    return bytes(oracle.write_request(config, names, tensors, list(outputs), bare=True))


def announcing(extended: bool, error_frames: bool) -> bytes:
    """The ``config`` of a client that understands so much."""
    form = FORMS[extended, error_frames]
    return write_config(form=form, id="", timeout_us=0, priority=0, parameters={})


@pytest.fixture
def call(served: Any, fake_call: Any, fake_head: Any, rpc: Any) -> Any:
    """``await call(path, message, model=...)`` gives the reply, or raises what the call ended
    with."""
    methods = {m.path: m for m in GraphpipeGrpcFront(served.gateway, "penstock/1.2.3").methods()}

    async def made(path: str, message: bytes, **metadata: str) -> bytes:
        answered = fake_call()
        methods[path].unary(answered, fake_head(path, metadata), message)
        await rpc.until(lambda: answered.ended)
        if answered.error is not None:
            raise answered.error
        (reply,) = answered.messages
        return bytes(reply)

    return made


@pytest.mark.parametrize("version", ["", "1"])
async def test_infer(call: Any, version: str) -> None:
    for _ in range(4):  # parsed afresh, then by template
        reply = await call(INFER, bare(ROW, ROW), model="add", version=version)
        tensors, errors = oracle.read_reply(reply)
        assert errors == []
        found = [np.frombuffer(body, "<i4").reshape(shape) for _, shape, body in tensors]
        np.testing.assert_array_equal(found, [ROW + ROW, ROW - ROW])


async def test_chosen_outputs(call: Any) -> None:
    reply = await call(INFER, bare(ROW, ROW, outputs=(b"OUTPUT1",)), model="add")
    ((_, _, body),) = oracle.read_reply(reply)[0]
    assert body == (ROW - ROW).tobytes()


async def test_the_default_model(call: Any, served: Any) -> None:
    served.models.default_model = "add"
    assert oracle.read_reply(await call(INFER, bare(ROW, ROW)))[0]


async def test_metadata(call: Any) -> None:
    reply = await call(METADATA, oracle.write_bare_metadata_request(), model="add")
    told = oracle.read_metadata(reply)
    assert (told["name"], told["version"], told["server"]) == (b"add", b"3", b"penstock/1.2.3")
    assert [io[0] for io in told["inputs"]] == NAMES
    with pytest.raises(InferError) as caught:
        await call(METADATA, oracle.write_bare_metadata_request(), model="nope")
    assert caught.value.code is Code.NOT_FOUND


async def test_types_that_old_peers_do_not_know(call: Any) -> None:
    for config, number in ((b"", dt.UINT8), (announcing(True, False), dt.BOOL)):
        reply = await call(METADATA, oracle.write_bare_metadata_request(config), model="bool")
        assert oracle.read_metadata(reply)["inputs"][0][3] == number.graphpipe


WRAPPED = b"".join(graphpipe.encode_request(graphpipe.decode_request(
    oracle.write_request(b"", NAMES, [(6, (1, 16), ROW.tobytes())] * 2, [])
)))  # fmt: skip
REFUSED: dict[str, tuple[bytes, dict[str, str], Code]] = {
    "empty": (b"", {"model": "add"}, Code.INVALID_ARGUMENT),
    "garbage": (b"garbage, not a frame", {"model": "add"}, Code.INVALID_ARGUMENT),
    "truncated": (bare(ROW, ROW)[:-40], {"model": "add"}, Code.INVALID_ARGUMENT),
    "wrapped as over HTTP": (WRAPPED, {"model": "add"}, Code.INVALID_ARGUMENT),
    "unknown model": (bare(ROW, ROW), {"model": "nope"}, Code.NOT_FOUND),
    "unknown version": (bare(ROW, ROW), {"model": "add", "version": "2"}, Code.NOT_FOUND),
    "no default": (bare(ROW, ROW), {}, Code.NOT_FOUND),
    "not loaded": (bare(ROW, ROW), {"model": "gone"}, Code.UNAVAILABLE),
    "too few inputs": (bare(ROW), {"model": "add"}, Code.INVALID_ARGUMENT),
    "wrong dtype": (bare(ROW * 1.0, ROW * 1.0), {"model": "add"}, Code.INVALID_ARGUMENT),
    "the model fails": (bare(ROW), {"model": "fail"}, Code.INTERNAL),
}


@pytest.mark.parametrize(("data", "metadata", "code"), REFUSED.values(), ids=REFUSED)
async def test_errors(call: Any, data: bytes, metadata: dict[str, str], code: Code) -> None:
    with pytest.raises(PenstockError) as caught:
        await call(INFER, data, **metadata)
    assert caught.value.code is code
    assert await call(INFER, bare(ROW, ROW), model="add"), "the next one is answered"


async def test_errors_in_a_frame_when_the_client_reads_them_there(call: Any) -> None:
    reply = await call(INFER, bare(ROW, config=announcing(True, True)), model="add")
    tensors, ((code, text),) = oracle.read_reply(reply)
    assert (tensors, code) == ([], Code.INVALID_ARGUMENT.number)
    assert b"INPUT1" in text


@pytest.mark.parametrize("data", [b"", b"\0" * 3, b"\xff" * 40])
async def test_bad_metadata_requests(call: Any, data: bytes) -> None:
    with pytest.raises(PenstockError) as caught:
        await call(METADATA, data, model="add")
    assert caught.value.code is Code.INVALID_ARGUMENT
