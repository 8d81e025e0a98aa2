"""Every vector of protocol/vectors means what its JSON says, also when it is damaged."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError, ProtocolError
from penstock.protocol.graphpipe import (
    MetadataRequest,
    RequestDecoder,
    decode_metadata,
    decode_reply,
    decode_request,
)
from penstock.protocol.message import InferReply, InferRequest, ModelMetadata

VECTORS = Path(__file__).parents[3] / "protocol" / "vectors"
VALID = sorted(VECTORS.glob("valid/*.bin"))
INVALID = sorted(VECTORS.glob("invalid/*.bin"))
READERS: dict[str, Callable[[bytes], Any]] = {
    "request": decode_request,
    "reply": decode_reply,
    "metadata": decode_metadata,
}


def name_of(path: Path) -> str:
    return path.stem


def load(path: Path) -> tuple[bytes, dict[str, Any]]:
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def tensors_of(message: InferRequest | InferReply) -> list[dict[str, Any]]:
    found = []
    for spec, array in zip(message.signature.tensors, message.arrays, strict=True):
        assert array.shape == spec.shape
        assert array.dtype == spec.dtype.numpy
        item: dict[str, Any] = {
            "name": spec.name,
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
        }
        if spec.dtype is dt.BYTES:
            item["strings"] = [text.hex() for text in array.reshape(-1).tolist()]
        else:
            item["data"] = array.tobytes().hex()
        found.append(item)
    return found


def described(kind: str, read: Callable[[], Any]) -> dict[str, Any]:
    """What was read, in the words of the vectors' JSON."""
    try:
        value = read()
    except InferError as error:
        return {"message": kind, "kind": "error", "code": error.code.name, "text": error.message}
    if isinstance(value, ModelMetadata):
        return {
            "message": kind,
            "name": value.name,
            "version": value.version,
            "server": value.server,
            "description": value.description,
        } | {
            key: [{"name": s.name, "dtype": s.dtype.name, "shape": list(s.shape)} for s in specs]
            for key, specs in (("inputs", value.inputs), ("outputs", value.outputs))
        }
    if isinstance(value, MetadataRequest):
        return {"message": kind, "kind": "metadata", "extended": value.form.extended}
    if isinstance(value, InferReply):
        return {"message": kind, "kind": "infer", "tensors": tensors_of(value)}
    assert isinstance(value, InferRequest)
    return {
        "message": kind,
        "kind": "infer",
        "tensors": tensors_of(value),
        "outputs": [output.name for output in value.signature.outputs],
        "id": value.id,
        "timeout_us": value.timeout_us,
        "priority": value.priority,
        "parameters": dict(value.parameters),
        "extended": value.signature.form.extended,
        "error_frames": value.signature.form.error_frames,
    }


def test_vectors_are_fresh() -> None:
    script = VECTORS / "make_vectors.py"
    done = subprocess.run(
        [sys.executable, "-B", str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "fresh"), done.stderr


@pytest.mark.parametrize("path", VALID, ids=name_of)
def test_valid(path: Path) -> None:
    frame, wanted = load(path)
    kind = wanted["message"]
    read = READERS[kind]
    for form in (frame, bytearray(frame), memoryview(frame), np.frombuffer(frame, np.uint8)):
        assert described(kind, lambda form=form: read(form)) == wanted
    assert described(kind, lambda: read(frame + b"trailing")) == wanted
    if kind == "request":
        decoder = RequestDecoder()
        for _ in range(5):
            assert described(kind, lambda: decoder.decode(frame)) == wanted


@pytest.mark.parametrize("path", INVALID, ids=name_of)
def test_invalid(path: Path) -> None:
    frame, wanted = load(path)
    with pytest.raises(ProtocolError) as caught:
        READERS[wanted["message"]](frame)
    assert (caught.value.field, wanted["error"] in str(caught.value)) == (wanted["field"], True), (
        str(caught.value)
    )
    if wanted["message"] == "request":
        decoder = RequestDecoder()
        for _ in range(3):
            with pytest.raises(ProtocolError) as again:
                decoder.decode(frame)
            assert str(again.value) == str(caught.value)


def survive(read: Callable[[bytes], Any], frame: bytes) -> str:
    """How reading ends: nothing but a value, a refusal, or an error that the peer reported."""
    try:
        read(frame)
    except (ProtocolError, InferError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", VALID + INVALID, ids=name_of)
def test_every_truncation_is_survived(path: Path) -> None:
    frame, _ = load(path)
    for read in READERS.values():
        for end in range(len(frame)):
            survive(read, frame[:end])


@pytest.mark.parametrize("path", VALID, ids=name_of)
def test_damage_is_survived(path: Path) -> None:
    frame, wanted = load(path)
    rng = random.Random(path.stem)
    read = READERS[wanted["message"]]
    decoder = RequestDecoder()
    for _ in range(400):
        damaged = bytearray(frame)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 4, 127, 128, 255))
        survive(read, bytes(damaged))
        if wanted["message"] == "request":
            survive(decoder.decode, bytes(damaged))
