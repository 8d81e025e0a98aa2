"""The codec against code that flatc generated from graphpipe.fbs, in both directions."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, ProtocolError
from penstock.protocol.graphpipe import (
    ReplyEncoder,
    decode_reply,
    decode_request,
    encode_error,
    encode_metadata,
    encode_metadata_request,
    encode_request,
)
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    ModelMetadata,
    OutputRequest,
    Signature,
    TensorSpec,
)

ROOT = Path(__file__).parents[3]
GENERATED = ROOT / "tests" / "data" / "graphpipe_fbs"


def load_oracle() -> Any:
    spec = importlib.util.spec_from_file_location("graphpipe_oracle", GENERATED / "oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_oracle()
FLATC = shutil.which("flatc")


@pytest.mark.skipif(FLATC is None, reason="flatc is not on PATH: generated code is not compared")
def test_generated_code_is_fresh(tmp_path: Path) -> None:
    schema = ROOT / "protocol" / "graphpipe.fbs"
    subprocess.run(
        [str(FLATC), "--python", "--gen-onefile", "-o", str(tmp_path), str(schema)], check=True
    )
    made = (tmp_path / "graphpipe_generated.py").read_text()
    kept = (GENERATED / "graphpipe_generated.py").read_text()
    if made != kept:  # other versions of flatc write other code for the same schema
        assert slots(made) == slots(kept)


def slots(code: str) -> list[str]:
    """The lines that state slots and enum values."""
    return [line.split("#")[0].strip() for line in code.splitlines() if "Slot(" in line]


def test_types_are_the_schema_s() -> None:
    words = {"UINT": "Uint", "INT": "Int", "FP": "Float"}
    for dtype in dt.ALL:
        name = {"BYTES": "String", "BOOL": "Bool", "BF16": "BFloat16"}.get(dtype.name)
        if name is None:
            letters = dtype.name.rstrip("0123456789")
            name = words[letters] + dtype.name[len(letters) :]
        assert getattr(oracle.fb.Type, name) == dtype.graphpipe


def plain(message: Any) -> list[Any]:
    return [
        (
            spec.dtype.graphpipe,
            spec.shape,
            array.reshape(-1).tolist() if spec.dtype is dt.BYTES else array.tobytes(),
        )
        for spec, array in zip(message.signature.tensors, message.arrays, strict=True)
    ]


TENSORS: list[Any] = [
    (5, (2,), b"abcdefgh"),
    (12, (1, 2), [b"\xff\0", b""]),
    (8, (), b"12345678"),
    (10, (0, 3), b""),
    (13, (3,), b"\0\1\1"),
]


def message_of(tensors: list[Any], names: list[str]) -> tuple[Signature, list[Any]]:
    specs, arrays = [], []
    for (number, shape, body), name in zip(tensors, names, strict=True):
        dtype = dt.BY_GRAPHPIPE[number]
        specs.append(TensorSpec(name, dtype, shape))
        if isinstance(body, list):
            array = np.empty(shape, object)
            array.reshape(-1)[:] = body
        else:
            array = np.frombuffer(body, dtype.numpy).reshape(shape)
        arrays.append(array)
    return Signature(specs, [OutputRequest("z")]), arrays


def test_generated_code_reads_our_requests() -> None:
    signature, arrays = message_of(TENSORS, list("abcde"))
    sent = InferRequest(signature, arrays, parameters={"config": "words"})
    frame = b"".join(encode_request(sent))
    config, names, tensors, outputs = oracle.read_request(frame)
    assert config == b'{"dtypes":"extended","errors":"frame","config":"words"}'
    assert (names, tensors, outputs) == ([b"a", b"b", b"c", b"d", b"e"], TENSORS, [b"z"])


def test_generated_code_reads_our_replies() -> None:
    signature, arrays = message_of(TENSORS[:4], [""] * 4)
    frame = b"".join(ReplyEncoder().encode(InferReply(signature, arrays)))
    assert oracle.read_reply(frame) == (TENSORS[:4], [])
    error = encode_error(InferError(Code.UNAVAILABLE, "later"))
    assert oracle.read_reply(error) == ([], [(14, b"later")])


def test_generated_code_reads_our_metadata() -> None:
    spec = TensorSpec("a", dt.INT64, (-1, 2))
    meta = ModelMetadata("m", "1", ("1",), "p", (spec,), (spec, spec), "s", "d")
    assert oracle.read_metadata(encode_metadata(meta, extended=False)) == {
        "name": b"m",
        "version": b"1",
        "server": b"s",
        "description": b"d",
        "inputs": [(b"a", b"", (-1, 2), 8)],
        "outputs": [(b"a", b"", (-1, 2), 8)] * 2,
    }
    asked = oracle.fb.Request.GetRootAs(encode_metadata_request(extended=False))
    assert asked.ReqType() == oracle.fb.Req.MetadataRequest


VARIANTS = [{"nul": nul, "aligned": aligned} for nul in (True, False) for aligned in (True, False)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_we_read_the_library_s_requests(options: dict[str, bool]) -> None:
    for pad in range(9):  # moves everything by single bytes
        config = b"x" * pad
        frame = oracle.write_request(config, [b"n"] * 5, TENSORS, [b"z", b""], **options)
        message = decode_request(frame)
        assert isinstance(message, InferRequest)
        assert plain(message) == TENSORS
        assert [output.name for output in message.signature.outputs] == ["z", ""]
        assert dict(message.parameters) == ({"config": config.decode()} if pad else {})


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_we_read_the_library_s_replies(options: dict[str, bool]) -> None:
    for errors in (None, []):
        assert plain(decode_reply(oracle.write_reply(TENSORS, errors, **options))) == TENSORS
    with pytest.raises(InferError, match="gone; twice") as caught:
        decode_reply(oracle.write_reply([], [(5, b"gone"), (6, b"twice")], **options))
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bogus_errors_of_newer_python_servers_are_ignored(count: int) -> None:
    frame = oracle.write_reply(TENSORS[:count], bogus_errors=True)
    assert plain(decode_reply(frame)) == TENSORS[:count]


@pytest.mark.parametrize("share", ["vector", "string"])
def test_strings_shared_many_times_do_not_multiply_work(share: str) -> None:
    """1000 tensors that all refer to one vector of 1000 strings would be a million strings."""
    w = oracle.Writer()
    shape = w.shape((1000,))
    text = w.text(b"word")
    vector = w.offsets([text] * 1000)
    tensors = []
    for _ in range(1000 if share == "vector" else 3):
        if share == "string":
            vector = w.offsets([text] * 1000)
        oracle.fb.TensorStart(w)
        oracle.fb.TensorAddType(w, 12)
        oracle.fb.TensorAddShape(w, shape)
        oracle.fb.TensorAddStringVal(w, vector)
        tensors.append(oracle.fb.TensorEnd(w))
    outputs = w.offsets(tensors)
    oracle.fb.InferResponseStart(w)
    oracle.fb.InferResponseAddOutputTensors(w, outputs)
    frame = w.done(oracle.fb.InferResponseEnd(w))
    if share == "vector":
        with pytest.raises(ProtocolError, match=r"output_tensors\[\d+\].string_val"):
            decode_reply(frame)
    else:  # a writer that shares equal strings is right
        assert [a.tolist() for a in decode_reply(frame).arrays] == [[b"word"] * 1000] * 3
