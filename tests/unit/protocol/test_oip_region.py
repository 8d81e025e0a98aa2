"""Tensors in shared memory over JSON: read as views, written in place, remembered and looked up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError, PenstockError
from penstock.protocol.message import (
    InferReply,
    InferRequest,
    RegionRef,
    Signature,
    Target,
    TensorSpec,
)
from penstock.protocol.oip_form import ALL_BINARY
from penstock.protocol.oip_json import ReplyDecoder, ReplyEncoder, RequestDecoder
from penstock.protocol.oip_region import region_array, write_region


class FakeRegions:
    """Byte arrays by name. Counts what was asked for."""

    def __init__(self, **regions: bytes) -> None:
        self.regions = {name: bytearray(content) for name, content in regions.items()}
        self.resolved: list[RegionRef] = []

    def resolve(self, ref: RegionRef) -> memoryview:
        self.resolved.append(ref)
        return self._memory(ref)

    def target(self, ref: RegionRef) -> Target:
        return Target(ref, self._memory(ref))

    def _memory(self, ref: RegionRef) -> memoryview:
        if ref.region not in self.regions:
            raise InferError(Code.NOT_FOUND, f"no {ref.region}")
        return memoryview(self.regions[ref.region])[ref.offset :][: ref.byte_size]


def at(region: str, byte_size: Any, offset: Any = None) -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": byte_size}
    return found if offset is None else found | {"shared_memory_offset": offset}


def tensor(name: str, place: dict[str, Any], datatype: str = "FP32", n: int = 4) -> dict[str, Any]:
    return {"name": name, "shape": [1, n], "datatype": datatype, "parameters": place}


def encoded(
    *inputs: dict[str, Any], outputs: dict[str, dict[str, Any]] | None = None, **more: Any
) -> bytes:
    document: dict[str, Any] = {"inputs": list(inputs), **more}
    if outputs:
        document["outputs"] = [{"name": n, "parameters": p} for n, p in outputs.items()]
    return json.dumps(document).encode()


def reply_of(*arrays: Any, dtype: dt.DType = dt.FP32, names: str = "YZ") -> InferReply:
    specs = [TensorSpec(n, dtype, a.shape) for n, a in zip(names, arrays, strict=False)]
    return InferReply(Signature(specs), arrays, "M", "1")


def answered(request: InferRequest, reply: InferReply, encoder: ReplyEncoder) -> dict[str, Any]:
    buffers, length = encoder.encode(reply, request.signature.form, request.targets)
    found: dict[str, Any] = json.loads(b"".join(buffers)[:length])
    return found


VALUES = np.array([[1.5, -2, 3, 0.25]], "<f4")


@pytest.fixture
def regions() -> FakeRegions:
    return FakeRegions(r=bytes(8) + VALUES.tobytes() + bytes(40), out=bytes(64))


# --- reading --------------------------------------------------------------------------------------


def test_inputs_are_views_remembered_or_not(regions: FakeRegions) -> None:
    body = encoded(tensor("X", at("r", 16, 8)))
    decoder = RequestDecoder(regions=regions)
    whole = np.frombuffer(regions.regions["r"], "u1")
    requests = [decoder.decode(body, None) for _ in range(6)]
    for request in requests:
        (array,) = request.arrays
        np.testing.assert_array_equal(array, VALUES)
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable
        assert request.signature is requests[0].signature
    assert regions.resolved == [RegionRef("r", 8, 16)] * 6  # asked for anew, each time


def test_the_json_is_parsed_only_until_it_is_known(
    regions: FakeRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = encoded(tensor("X", at("r", 16, 8)), outputs={"Y": at("out", 16)}, id="7")
    decoder = RequestDecoder(regions=regions)
    for _ in range(3):
        decoder.decode(body, None)
    monkeypatch.setattr(decoder, "_decode_new", None)  # would be called
    request = decoder.decode(body, None)
    assert request.id == "7"
    np.testing.assert_array_equal(request.arrays[0], VALUES)
    regions.regions["r"][8:12] = bytes(4)
    assert decoder.decode(body, len(body)).arrays[0][0, 0] == 0
    assert request.targets["Y"].ref == RegionRef("out", 0, 16)


def test_a_region_that_changes_under_a_known_text(regions: FakeRegions) -> None:
    body = encoded(tensor("X", at("r", 16, 8)))
    decoder = RequestDecoder(regions=regions)
    for _ in range(3):
        decoder.decode(body, None)
    regions.regions["r"] = bytearray(8) + (VALUES * 2).tobytes()
    np.testing.assert_array_equal(decoder.decode(body, None).arrays[0], VALUES * 2)
    del regions.regions["r"]
    with pytest.raises(InferError, match="no r"):
        decoder.decode(body, None)


@pytest.mark.parametrize("times", [1, 4])
def test_mixed_with_binary_data_and_strings(regions: FakeRegions, times: int) -> None:
    regions.regions["s"] = bytearray(b"\2\0\0\0hi\0\0\0\0")
    body = encoded(
        tensor("A", {"binary_data_size": 8}, "INT32", 2),
        tensor("B", at("r", 16, 8)),
        tensor("C", at("s", 10), "BYTES", 2),
        tensor("D", {"binary_data_size": 5}, "BYTES", 1),
    )
    decoder = RequestDecoder(regions=regions)
    tail = np.array([7, 8], "<i4").tobytes() + b"\1\0\0\0!"
    for _ in range(times):
        request = decoder.decode(body + tail, len(body))
    found = [array.tolist() for array in request.arrays]
    assert found == [[[7, 8]], VALUES.tolist(), [[b"hi", b""]], [[b"!"]]]
    with pytest.raises(PenstockError, match="unexpected additional input data"):
        decoder.decode(body + tail + b"x", len(body))


def test_json_data_are_never_remembered(regions: FakeRegions) -> None:
    decoder = RequestDecoder(regions=regions)
    shared = encoded(tensor("X", at("r", 16, 8)))
    for _ in range(3):
        decoder.decode(shared, None)
    for value in (1, 2, 2, 2, 3):
        plain = {"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        assert decoder.decode(encoded(plain), None).arrays[0].tolist() == [[value]]


BAD = [
    (at("r", 12, 8), "input byte size mismatch for input 'X' for model 'M'. Expected 16, got 12"),
    (at("r", 16, -1), "Unable to parse 'shared_memory_offset'"),
    (at("r", 1 << 64), "Unable to parse 'shared_memory_byte_size'"),
    (at("r", "many"), "Unable to parse 'shared_memory_byte_size'"),
    (at(7, 16), "Unable to parse 'shared_memory_region'"),  # type: ignore[arg-type]
    (at(None, 16), "JSON non-string as string (input 'X')"),  # type: ignore[arg-type]
    (at("x" * 5000, 16), "shared memory region name is longer than the maximum"),
    ({"shared_memory_region": "r"}, "Invalid offset + byte size for shared memory region: 'r'"),
    (
        at("r", 16, 8) | {"binary_data_size": 16},
        "But set 'binary_data_size' 'shared_memory_region'",
    ),
    (at("absent", 16), "no absent"),
]


@pytest.mark.parametrize(("place", "text"), BAD)
def test_inputs_that_are_refused(regions: FakeRegions, place: Any, text: str) -> None:
    decoder = RequestDecoder(regions=regions)
    for _ in range(4):  # never remembered as something that works
        with pytest.raises(PenstockError) as caught:
            decoder.decode(encoded(tensor("X", place)), None, "M")
        assert text in caught.value.message


def test_strings_that_do_not_fill_the_bytes(regions: FakeRegions) -> None:
    regions.regions["s"] = bytearray(b"\2\0\0\0hi\0\0\0\0")
    decoder = RequestDecoder(regions=regions)
    for size, text in ((9, "incomplete string length"), (6, "expected 2 string elements")):
        with pytest.raises(PenstockError, match=text):
            decoder.decode(encoded(tensor("C", at("s", size), "BYTES", 2)), None)


def test_without_regions_it_says_how_to_get_them() -> None:
    plain = {"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [1]}
    for body in (
        encoded(tensor("X", at("r", 16))),
        encoded(plain, outputs={"Y": at("r", 16)}),
    ):
        with pytest.raises(InferError, match="Client shared memory is disabled") as caught:
            RequestDecoder().decode(body, None)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_no_elements(regions: FakeRegions) -> None:
    array = region_array(regions, RegionRef("r", 0, 0), TensorSpec("X", dt.FP32, (2, 0)), "M")
    assert array.shape == (2, 0)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 4])
def test_outputs_land_in_the_region(regions: FakeRegions, times: int) -> None:
    body = encoded(tensor("X", at("r", 16, 8)), outputs={"Y": at("out", 40, 4), "Z": {}})
    decoder, encoder = RequestDecoder(regions=regions), ReplyEncoder()
    reply = reply_of(VALUES, VALUES[:, :1])
    for _ in range(times):
        request = decoder.decode(body, None)
        said = answered(request, reply, encoder)
    assert bytes(regions.regions["out"]) == bytes(4) + VALUES.tobytes() + bytes(44)
    assert said["outputs"] == [
        {"name": "Y", "datatype": "FP32", "shape": [1, 4]},
        {"name": "Z", "datatype": "FP32", "shape": [1, 1], "data": [1.5]},
    ]


def test_beside_binary_outputs(regions: FakeRegions) -> None:
    wanted = {"Y": at("out", 16), "Z": {"binary_data": True}}
    request = RequestDecoder(regions=regions).decode(
        encoded(tensor("X", at("r", 16, 8)), outputs=wanted), None
    )
    buffers, length = ReplyEncoder().encode(
        reply_of(VALUES, VALUES + 1), request.signature.form, request.targets
    )
    body = b"".join(buffers)
    assert body[length:] == (VALUES + 1).tobytes()
    assert bytes(regions.regions["out"][:16]) == VALUES.tobytes()
    said = json.loads(body[:length])
    said["outputs"][0]["parameters"] = wanted["Y"]  # as the extension's text says
    told = json.dumps(said).encode()
    with pytest.raises(InferError, match="output 'Y' is in shared memory, not in the reply"):
        ReplyDecoder().decode(told + body[length:], len(told))


def test_strings_are_written_in_their_binary_form(regions: FakeRegions) -> None:
    array = np.array([[b"a", b"", b"bcd"]], object)
    spec = TensorSpec("Y", dt.BYTES, (1, 3))
    target = regions.target(RegionRef("out", 2, 20))
    assert write_region(target, array, spec) == 16
    assert bytes(regions.regions["out"][:20]) == b"\0\0\1\0\0\0a\0\0\0\0\3\0\0\0bcd\0\0"
    np.testing.assert_array_equal(region_array(regions, RegionRef("out", 2, 16), spec, "M"), array)


@pytest.mark.parametrize("array", [VALUES, np.array([[b"seven b", b"12"]], object)])
def test_an_output_that_does_not_fit(regions: FakeRegions, array: Any) -> None:
    dtype = dt.BYTES if array.dtype == object else dt.FP32
    needed = 16 if dtype is dt.FP32 else 17
    request = RequestDecoder(regions=regions).decode(
        encoded(tensor("X", at("r", 16, 8)), outputs={"Y": at("out", needed - 1)}), None
    )
    with pytest.raises(InferError) as caught:
        answered(request, reply_of(array, dtype=dtype), ReplyEncoder())
    assert caught.value.message == (
        f"shared memory size specified with the request for output 'Y' ({needed - 1} bytes) "
        f"should be at least {needed} bytes to hold the results"
    )
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert bytes(regions.regions["out"]) == bytes(64)


def test_what_does_not_go_there(regions: FakeRegions) -> None:
    for name, value in (("classification", 2), ("binary_data", True)):
        wanted = {"Y": at("out", 16) | {name: value}}
        text = f"Output can't set both 'shared_memory_region' and '{name}'"
        with pytest.raises(PenstockError, match=text):
            RequestDecoder(regions=regions).decode(
                encoded(tensor("X", at("r", 16, 8)), outputs=wanted), None
            )


def test_an_unknown_output_region_fails_before_the_model_runs(regions: FakeRegions) -> None:
    body = encoded(tensor("X", at("r", 16, 8)), outputs={"Y": at("absent", 16)})
    with pytest.raises(InferError, match="no absent"):
        RequestDecoder(regions=regions).decode(body, None)


@pytest.mark.parametrize("shift", [-8, -4, 0, 4, 8])
def test_an_output_over_its_own_input(regions: FakeRegions, shift: int) -> None:
    array = region_array(regions, RegionRef("r", 8, 16), TensorSpec("X", dt.FP32, (1, 4)), "M")
    target = regions.target(RegionRef("r", 8 + shift, 16))
    write_region(target, array, TensorSpec("Y", dt.FP32, (1, 4)))
    assert bytes(target.memory) == VALUES.tobytes()


def test_arrays_that_are_not_contiguous(regions: FakeRegions) -> None:
    array = np.arange(12, dtype="<f4").reshape(3, 4).T
    size = write_region(
        regions.target(RegionRef("out", 1, 48)), array, TensorSpec("Y", dt.FP32, (4, 3))
    )
    assert bytes(regions.regions["out"][1 : 1 + size]) == array.tobytes()


def test_what_is_written_is_told(regions: FakeRegions) -> None:
    told: list[int] = []
    target = Target(RegionRef("out", 0, 64), memoryview(bytearray(64)), told.append)
    write_region(target, VALUES, TensorSpec("Y", dt.FP32, (1, 4)))
    assert told == [16]


def test_forms_without_regions_stay_shared(regions: FakeRegions) -> None:
    """Those that ask for nothing special must not cost the memo of replies anything."""
    body = encoded(tensor("X", at("r", 16, 8)), outputs={"Y": {"binary_data": True}})
    assert RequestDecoder(regions=regions).decode(body, None).signature.form is ALL_BINARY
