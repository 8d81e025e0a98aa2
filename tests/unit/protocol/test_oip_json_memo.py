"""What the codec remembers between messages: it saves time and changes nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import PenstockError, ProtocolError
from penstock.protocol.message import (
    InferReply,
    Signature,
    TensorSpec,
)
from penstock.protocol.oip_json import (
    ALL_BINARY,
    ReplyDecoder,
    ReplyEncoder,
    RequestDecoder,
)


def one(data: object = None, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5], **changes}
    if data is not None:
        tensor["data"] = data
    elif "binary_data_size" in changes.get("parameters", ()):
        del tensor["data"]
    return {"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}


def raw_string(*values: bytes) -> bytes:
    return b"".join(len(v).to_bytes(4, "little") + v for v in values)


def binary_body(count: int = 2, **more: Any) -> tuple[bytes, int]:
    head = json.dumps(
        more | one(shape=[count], parameters={"binary_data_size": 4 * count}, data=...)
    ).encode()
    return head + np.arange(count, dtype="f4").tobytes(), len(head)


def test_alike_requests_share_the_signature() -> None:
    decoder = RequestDecoder()
    first = decoder.decode(*binary_body())
    for i in range(5):
        got = decoder.decode(*binary_body(id=f"request {i}"))
        assert got.signature is first.signature
        assert got.id == f"request {i}"
        assert got.arrays[0].tolist() == [0, 1]
    assert decoder.decode(*binary_body()).id == ""
    as_json = decoder.decode(json.dumps(one()).encode(), None)
    assert as_json.signature is first.signature
    assert decoder.decode(*binary_body(3)).signature is not first.signature
    true, number = (
        decoder.decode(*binary_body(outputs=[{"name": "A", "parameters": {"top": v}}]))
        for v in (True, 1)
    )
    assert true.signature is not number.signature


@pytest.mark.parametrize(
    "id", ["a\\b", 'a"b', "a\nb", "\u00e9", "", "x" * 200, "a\u2028b", "\\", '"', "\x7f"]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_ids_survive_the_memory(id: str, ascii: bool) -> None:
    decoder = RequestDecoder()
    for separators in ((",", ":"), (", ", ": ")):
        body = {"id": id} | one(shape=[1], parameters={"binary_data_size": 4}, data=...)
        head = json.dumps(body, ensure_ascii=ascii, separators=separators).encode()
        for _ in range(4):
            assert decoder.decode(head + bytes(4), len(head)).id == id


@pytest.mark.parametrize(
    "text",
    [
        b'{"id":"a","inputs":[],"id":"b"}',
        b'{"id":"a","inputs":[],"id" \n :"b"}',
        b'{"id":"a","inputs":[],"\\u0069d":"b"}',
    ],
)
def test_a_second_id_is_not_forgotten(text: bytes) -> None:
    decoder = RequestDecoder()
    for _ in range(4):
        assert decoder.decode(text, len(text)).id == "b"
        other = text.replace(b'"a"', b'"c"')
        assert decoder.decode(other, len(other)).id == "b"


def test_an_id_with_a_control_character_is_refused_from_memory_too() -> None:
    body, length = binary_body(id="abcd")
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(body, length)
    for bad in (b"ab\ncd"[:4], b"a\xff\xffd"):
        with pytest.raises(ProtocolError):
            decoder.decode(body.replace(b"abcd", bad), length)


def test_a_text_that_begins_behind_an_id_is_refused_from_memory_too() -> None:
    body, length = binary_body(id="abcd")
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(body, length)
    behind = body.index(b'abcd"') + 4
    with pytest.raises(ProtocolError):
        decoder.decode(body[behind:], length - behind)


def test_signatures_of_very_many_inputs_are_not_kept() -> None:
    decoder = RequestDecoder()
    empty = {"datatype": "FP32", "shape": [0], "data": []}
    for count in (100, 1000):
        text = json.dumps({"inputs": [{"name": str(i), **empty} for i in range(count)]}).encode()
        assert len(decoder.decode(text, None).arrays) == count
    assert [len(s.tensors) for s in vars(decoder)["_signatures"].values()] == [100]


def test_json_length_beyond_a_remembered_body() -> None:
    text = b'{"inputs":[]}'
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(text, len(text))
    with pytest.raises(ProtocolError, match="inference header size should be in range"):
        decoder.decode(text, len(text) + 1)


def test_texts_that_come_once_are_not_kept() -> None:
    decoder = RequestDecoder()
    for i in range(100):
        decoder.decode(*binary_body(time=i))
    assert not vars(decoder)["_plans"].table


def test_everything_remembered_is_bounded() -> None:
    decoder = RequestDecoder()
    for i in range(1, 6000):
        for _ in range(2):
            decoder.decode(*binary_body(i % 1500 + 1, x=i))
    assert len(vars(decoder)["_plans"].table) == 1024
    assert len(vars(decoder)["_plans"]._sightings._seen) <= 4096
    assert len(vars(decoder)["_signatures"]) == 1024
    decoder = RequestDecoder()
    for _ in range(3):
        decoder.decode(*binary_body(x="n" * 9000))
        decoder.decode(*binary_body(outputs=[{"name": str(i)} for i in range(300)]))
    assert len(vars(decoder)["_signatures"]) == 1
    assert len(vars(decoder)["_plans"].table) == 1


def test_parameters_are_frozen() -> None:
    decoder = RequestDecoder()
    for _ in range(3):
        got = decoder.decode(*binary_body(parameters={"a": 1}))
        with pytest.raises(TypeError):
            got.parameters["a"] = 2  # type: ignore[index]


def test_bytes_are_checked_each_time() -> None:
    good, bad = raw_string(b"ab", b"c"), raw_string(b"a", b"bc") + b""
    worse = b"\x09" + good[1:]
    head = json.dumps(one(shape=[2], datatype="BYTES", parameters={"binary_data_size": 11}))
    decoder = RequestDecoder()
    for _ in range(3):
        assert decoder.decode(head.encode() + good, len(head)).arrays[0].tolist() == [b"ab", b"c"]
        assert decoder.decode(head.encode() + bad, len(head)).arrays[0].tolist() == [b"a", b"bc"]
        with pytest.raises(ProtocolError):
            decoder.decode(head.encode() + worse, len(head))


@pytest.mark.parametrize("dtype", [dt.INT8, dt.BYTES])
def test_remembered_replies_are_checked(dtype: dt.DType) -> None:
    array = np.array([b"a"], dtype=object) if dtype is dt.BYTES else np.zeros(5, "i1")
    reply = InferReply(Signature([TensorSpec("Y", dtype, array.shape)]), [array])
    buffers, length = ReplyEncoder().encode(reply, ALL_BINARY)
    body = b"".join(buffers)
    assert length is not None
    decoder = ReplyDecoder()
    replies = [decoder.decode(body, length) for _ in range(4)]
    assert replies[3].signature is replies[2].signature
    for bad, end in [
        (body[:-1], length),
        (body + b"x", length),
        (body, length - 1),
        (body, -5),
        (body, len(body) + 1),
    ]:
        with pytest.raises(PenstockError):
            decoder.decode(bad, end)
    if dtype is dt.BYTES:
        with pytest.raises(ProtocolError, match="incomplete string data for inference output"):
            decoder.decode(body[:length] + b"\x02\x00\x00\x00a", length)


def test_layouts_are_bounded() -> None:
    encoder = ReplyEncoder()
    for i in range(1500):
        encoder.encode(InferReply(Signature([]), [], model=str(i)), ALL_BINARY)
    assert len(vars(encoder)["_layouts"]) == 1024
