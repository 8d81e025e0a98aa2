"""GraphPipe metadata: frames, JSON, the request for it."""

import struct
from typing import Any

import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe import (
    GraphpipeForm,
    MetadataRequest,
    RequestDecoder,
    decode_metadata,
    decode_request,
    encode_metadata,
    encode_metadata_request,
    metadata_json,
)
from penstock.protocol.message import ModelMetadata, TensorSpec

META = ModelMetadata(
    name="model",
    version="2",
    versions=("1", "2"),
    platform="onnxruntime",
    inputs=(TensorSpec("a", dt.BOOL, (-1, 3)), TensorSpec("s", dt.BYTES, ())),
    outputs=(TensorSpec("o", dt.BF16, (-1,)),),
    server="penstock",
    description="tells\0 grün",
)


def test_metadata_roundtrip() -> None:
    back = decode_metadata(encode_metadata(META, extended=True))
    assert (back.inputs, back.outputs) == (META.inputs, META.outputs)
    assert (back.name, back.version, back.server) == ("model", "2", "penstock")
    assert (back.description, back.versions, back.platform) == (META.description, ("2",), "")


def test_metadata_for_legacy_peers_declares_what_is_sent() -> None:
    frame = encode_metadata(META, extended=False)
    back = decode_metadata(frame)
    assert [s.dtype for s in back.inputs + back.outputs] == [dt.UINT8, dt.BYTES, dt.FP32]
    assert b"BOOL, sent as UINT8\0" in frame
    assert b"BF16, sent as FP32\0" in frame


def test_metadata_json_has_the_names_of_the_go_server() -> None:
    assert metadata_json(META) == {
        "Name": "model",
        "Version": "2",
        "Server": "penstock",
        "Description": META.description,
        "Inputs": [
            {"Name": "a", "Description": "BOOL, sent as UINT8", "Shape": [-1, 3], "Type": 1},
            {"Name": "s", "Description": "", "Shape": [], "Type": 12},
        ],
        "Outputs": [{"Name": "o", "Description": "BF16, sent as FP32", "Shape": [-1], "Type": 10}],
    }
    extended: Any = metadata_json(META, extended=True)["Inputs"]
    assert extended[0]["Type"] == 13


@pytest.mark.parametrize("extended", [True, False])
def test_metadata_request(extended: bool) -> None:
    frame = encode_metadata_request(extended=extended)
    for asked in (decode_request(frame), RequestDecoder().decode(frame)):
        assert isinstance(asked, MetadataRequest)
        assert asked.form == GraphpipeForm(extended, error_frames=False)


def test_texts_shared_many_times_do_not_multiply_work() -> None:
    """1000 inputs, all with the same name of 4000 bytes: 4 MB out of a frame of 30 kB."""
    name = b"n" * 4000
    count = 1000
    frame = bytearray(struct.pack("<I", 24) + struct.pack("<8H", 16, 8, 0, 0, 0, 0, 4, 0))
    frame += bytes(4)
    frame += struct.pack("<iI", 20, 4) + struct.pack("<I", count)  # root table, vector
    table = len(frame) + 4 * count + 8
    frame += b"".join(struct.pack("<I", table - (len(frame) + 4 * i)) for i in range(count))
    frame += struct.pack("<3H", 6, 8, 4) + bytes(2) + struct.pack("<iI", 8, 4)
    frame += struct.pack("<I", len(name)) + name
    with pytest.raises(ProtocolError, match=r"inputs\[\d+\].name"):
        decode_metadata(frame)
