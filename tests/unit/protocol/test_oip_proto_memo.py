"""What is remembered of messages: that it is used, what it may not mix up, and its bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol import oip_proto_memo as memo
from penstock.protocol import oip_proto_read as read
from penstock.protocol.errors import PenstockError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import InferReply, RegionRef, Signature, Target, TensorSpec
from penstock.protocol.oip_proto import ReplyDecoder, ReplyEncoder, RequestDecoder
from penstock.protocol.oip_proto_wire import field, parameter_fields, varint
from penstock.protocol.oip_region import BYTE_SIZE, OFFSET, REGION
from penstock.server.grpc_schema import message

REQUEST = message("ModelInferRequest")
DATA = np.arange(4, dtype="<i4").tobytes()


class Counted(RequestDecoder):
    """Counts the messages that had to be taken apart."""

    def __init__(self, *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self.parsed = 0

    def _decode_new(self, message: Any) -> Any:
        self.parsed += 1
        return super()._decode_new(message)


def stock(
    id: str = "",
    model: str = "m",
    names: Sequence[str] = "ab",
    data: bytes = DATA,
    **parameters: Any,
) -> bytes:
    """A message as stock clients send it."""
    made = REQUEST(model_name=model, model_version="1", id=id)
    for name in names:
        made.inputs.add(name=name, datatype="INT32", shape=[1, len(data) // 4])
        made.raw_input_contents.append(data)
    made.outputs.add(name="y")
    head, tail = made.SerializeToString().split(b"\x2a", 1)
    return bytes(head + parameter_fields(4, parameters) + b"\x2a" + tail)


def test_the_third_message_alike_is_not_taken_apart() -> None:
    decoder = Counted()
    first = decoder.decode(stock())
    for i in range(5):
        data = np.arange(i, i + 4, dtype="<i4")
        found = decoder.decode(stock(data=data.tobytes()))
        assert found.signature is first.signature
        assert (found.model, found.version, found.id) == ("m", "1", "")
        assert [a.tolist() for a in found.arrays] == [[data.tolist()]] * 2
    assert decoder.parsed == 2


def test_ids_and_parameters_vary_freely() -> None:
    decoder = Counted()
    for _ in range(2):
        decoder.decode(stock())
    for i in range(20):
        found = decoder.decode(stock(id="7" * i, sequence_id=i, timeout=100 + i, priority=i % 3))
        assert found.id == "7" * i
        assert dict(found.parameters) == {"sequence_id": i}
        assert (found.timeout_us, found.priority) == (100 + i, i % 3)
    assert decoder.parsed == 2


def test_views_and_bytes_share_what_is_remembered() -> None:
    decoder = Counted()
    decoder.decode(stock())
    decoder.decode(memoryview(stock()))
    assert decoder.decode(memoryview(stock(id="x"))).id == "x"
    assert decoder.decode(bytes(stock(id="y"))).id == "y"
    assert decoder.parsed == 2


def test_models_do_not_share_signatures() -> None:
    decoder = Counted()
    for _ in range(3):
        found = [decoder.decode(stock(model=name)) for name in ("m", "n")]
        assert [r.model for r in found] == ["m", "n"]
        assert found[0].signature is not found[1].signature
    assert decoder.parsed == 4


def test_messages_of_one_length_are_told_apart() -> None:
    decoder = Counted()
    for _ in range(3):
        for names in ("ab", "ba", "cd"):
            found = decoder.decode(stock(names=names))
            assert [t.name for t in found.signature.tensors] == list(names)
    assert decoder.parsed == 6


LATER = {
    "model": field(1, b"n"),
    "version": field(2, b"9"),
    "id": field(3, b"9"),
    "parameter": parameter_fields(4, {"k": 9}),
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_said_again_behind_the_tensors_counts(name: str) -> None:
    """Such messages are taken apart each time."""
    data = stock(id="1", k=1) + LATER[name]
    decoder = Counted()
    for _ in range(4):
        found = decoder.decode(data)
        assert (found.model, found.version, found.id, found.parameters["k"]) == (
            "n" if name == "model" else "m",
            "9" if name == "version" else "1",
            "9" if name == "id" else "1",
            9 if name == "parameter" else 1,
        )
    assert decoder.parsed == 4


def test_long_names_and_heads_are_taken_apart_each_time() -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))  # some 13 KB of inputs
    for data in (
        stock(model="m" * 128),
        stock(id="1" * 128),
        stock(k="v" * 128),
        stock(names=many),
    ):
        decoder = Counted()
        expected = len(RequestDecoder().decode(data).arrays)
        for _ in range(3):
            assert len(decoder.decode(data).arrays) == expected
        assert decoder.parsed == 3


def test_faults_are_told_alike() -> None:
    """What follows the comparison finds the same faults, and says the same of them."""
    decoder = RequestDecoder(WireLimits(tensors_max=3))
    for _ in range(3):
        decoder.decode(stock(id="ab"))
    damaged = [
        stock(id="ab").replace(b"\x1a\x02ab", b"\x1a\x02a\xff"),
        stock(id="ab", k="vw").replace(b"vw", b"v\xff"),
        stock(priority=-1),
        stock(a=1, b=2, c=3, d=4),
        stock()[:-1],
        stock() + b"\x0c",
    ]
    for data in damaged:
        with pytest.raises(PenstockError) as knowing:
            decoder.decode(data)
        with pytest.raises(PenstockError) as new:
            RequestDecoder(WireLimits(tensors_max=3)).decode(data)
        assert knowing.value.message == new.value.message


def test_a_parameter_may_override_itself() -> None:
    decoder = Counted()
    for _ in range(3):
        decoder.decode(stock())
    data = stock(k=1, l=5).replace(b"\x0a\x01l", b"\x0a\x01k")
    assert decoder.decode(data).parameters == {"k": 5}
    assert decoder.parsed == 2


def entries(number: int, parameters: dict[str, Any], chance: random.Random) -> bytes:
    """A map as C++ writes it: in any order."""
    keys = list(parameters)
    chance.shuffle(keys)
    return b"".join(parameter_fields(number, {key: parameters[key]}) for key in keys)


def shared(chance: random.Random, id: str = "", inputs: str = "ab", **outputs: int) -> bytes:
    """A message whose tensors are all in shared memory. ``outputs`` are offsets by name."""
    made = REQUEST(model_name="m", model_version="1", id=id).SerializeToString()
    for name in inputs:
        spec = field(1, name.encode()) + field(2, b"INT32") + field(3, bytes((1, 4)))
        place = {REGION: "r", BYTE_SIZE: 16, OFFSET: 16 * ord(name)}
        made += field(5, spec + entries(4, place, chance))
    for name, offset in outputs.items():
        place = {REGION: "r", BYTE_SIZE: 16, OFFSET: offset}
        made += field(6, field(1, name.encode()) + entries(2, place, chance))
    return bytes(made)


class OneRegion:
    """Regions of which every one is the same memory."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(range(256)) * 16)

    def resolve(self, ref: RegionRef) -> memoryview:
        return self.memory[ref.offset :][: ref.byte_size]

    def target(self, ref: RegionRef) -> Target:
        return Target(ref, self.resolve(ref))


def test_maps_in_any_order_are_one_signature_and_soon_known() -> None:
    chance = random.Random(1)
    decoder = Counted(regions=OneRegion())
    first = decoder.decode(shared(chance, y=256, z=512))
    for i in range(400):
        found = decoder.decode(shared(chance, str(i), inputs="a", y=256))
        assert (found.id, found.targets["y"].ref) == (str(i), RegionRef("r", 256, 16))
        expected = np.frombuffer(bytes(range(0x10, 0x20)), "<i4").tolist()
        assert found.arrays[0].tolist() == [expected]
    assert decoder.parsed <= 1 + 2 * 6 * 6
    assert len(decoder._templates._table) == 6 * 6
    for _ in range(50):
        assert decoder.decode(shared(chance, y=256, z=512)).signature is first.signature


def test_places_of_one_length_are_told_apart() -> None:
    chance = random.Random(2)
    decoder = RequestDecoder(regions=OneRegion())
    for _ in range(300):
        inputs, offset = chance.choice(("ab", "ba", "cd")), chance.choice((256, 272, 1024))
        found = decoder.decode(shared(chance, inputs=inputs, y=offset))
        assert [spec.name for spec in found.signature.tensors] == list(inputs)
        assert found.targets["y"].ref.offset == offset
        for name, array in zip(inputs, found.arrays, strict=True):
            assert array.reshape(-1).view("u1")[0] == 16 * ord(name) % 256


def test_a_known_order_is_not_taken_for_another_place() -> None:
    """A value and a name that swap roles, in as many bytes, are another message."""
    decoder = RequestDecoder(regions=OneRegion())
    place = {REGION: "r", BYTE_SIZE: 16}
    spec = field(1, b"a") + field(2, b"INT32") + field(3, bytes((1, 4)))
    known = field(1, b"m") + field(5, spec + parameter_fields(4, place))
    for _ in range(3):
        decoder.decode(known)
    twice = known.replace(b"shared_memory_byte_size", b"shared_memory_byte_sizf")
    with pytest.raises(PenstockError, match="byte_size"):
        decoder.decode(twice)
    assert decoder.decode(known).arrays[0].shape == (1, 4)


def test_one_head_may_be_followed_by_different_pieces() -> None:
    """Three BYTES tensors: the second length is behind the first contents."""
    decoder = Counted()

    def strings(*sizes: int) -> bytes:
        made = REQUEST(model_name="m")
        for name, size in zip("abc", sizes, strict=True):
            made.inputs.add(name=name, datatype="BYTES", shape=[1])
            made.raw_input_contents.append(size.to_bytes(4, "little") + bytes(size))
        return bytes(made.SerializeToString())

    for _ in range(4):
        for sizes in ((3, 1, 2), (3, 2, 1), (3, 0, 3)):
            found = decoder.decode(strings(*sizes))
            assert [len(array[0]) for array in found.arrays] == list(sizes)
    assert decoder.parsed == 6
    assert len(decoder._templates._table) == 1


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "LENGTHS_MAX", 8)
    monkeypatch.setattr(memo, "TEMPLATES_MAX", 20)
    monkeypatch.setattr(read, "SIGNATURES_MAX", 8)
    monkeypatch.setattr(read, "PARAMETERS_MAX", 8)
    decoder = Counted()
    for i in range(50):
        for _ in range(3):
            decoder.decode(stock(model=f"m{i}", sequence_id=i))
    for first in "abcdefghijklmnopqrstuvwxy":
        for _ in range(3):
            decoder.decode(stock(names=first + "z"))
    templates = decoder._templates
    assert len(templates._sizes) == 8
    assert len(templates._table) == 20
    assert len(decoder._signatures) == len(decoder._extras) == len(decoder._entries) == 8
    decoder.parsed = 0
    decoder.decode(stock(names="yz"))
    assert decoder.parsed == 0


def test_tables_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "TEMPLATES_BYTES_MAX", 30_000)
    decoder = RequestDecoder()
    templates = decoder._templates
    for i in range(20):
        for _ in range(3):
            decoder.decode(stock(names=[f"{i}{'x' * 200}", "b"]))
            kept = sum(memo._weight(key, found) for key, found in templates._table.items())
            assert templates._bytes == kept <= 30_000
    assert 1 < len(templates._table) < 20


def test_heads_and_pieces_of_one_length_are_bounded() -> None:
    decoder = RequestDecoder()
    templates = decoder._templates
    for longer in range(8):  # names that grow as the contents shrink
        names = "a" * (1 + 4 * longer)
        for _ in range(3):
            decoder.decode(stock(names=[names], data=bytes(80 - 4 * longer)))
    assert {len(sizes) for sizes in templates._sizes.values()} == {memo.PER_LENGTH_MAX}
    made = REQUEST(model_name="m")
    for name in "abc":
        made.inputs.add(name=name, datatype="BYTES", shape=[1])
    for size in range(8):
        del made.raw_input_contents[:]
        for nbytes in (3, size, 7 - size):
            made.raw_input_contents.append(nbytes.to_bytes(4, "little") + bytes(nbytes))
        for _ in range(3):
            decoder.decode(made.SerializeToString())
    assert max(map(len, templates._table.values())) == memo.PER_HEAD_MAX


def test_what_comes_once_is_not_kept() -> None:
    decoder = RequestDecoder()
    for i in range(50):
        decoder.decode(stock(names="ab", model=f"m{i}"))
    assert not decoder._templates._table


def test_typed_values_are_never_remembered() -> None:
    made = REQUEST(model_name="m")
    made.inputs.add(name="a", datatype="INT32", shape=[1], contents={"int_contents": [1]})
    decoder = Counted()
    for i in range(4):
        made.inputs[0].contents.int_contents[0] = i
        assert decoder.decode(made.SerializeToString()).arrays[0].tolist() == [i]
    assert decoder.parsed == 4


def test_replies_are_remembered_too() -> None:
    from penstock.protocol import dtype as dt

    signature = Signature([TensorSpec("y", dt.INT32, (2,)), TensorSpec("s", dt.BYTES, (1,))])
    encoder, decoder = ReplyEncoder(), ReplyDecoder()
    found = []
    for i in range(4):
        strings = np.array([b"x" * i], dtype=object)
        arrays = [np.array([i, i], "<i4"), strings]
        reply = InferReply(signature, arrays, "m", "1", str(i), {"k": i})
        found.append(decoder.decode(b"".join(encoder.encode(reply))))
        assert (found[-1].id, dict(found[-1].parameters)) == (str(i), {"k": i})
        assert found[-1].arrays[0].tolist() == [i, i]
        assert found[-1].arrays[1].tolist() == [b"x" * i]
    again = [decoder.decode(b"".join(encoder.encode(reply))) for _ in range(3)]
    assert again[1].signature is again[2].signature


def test_split_needs_every_length_in_one_byte() -> None:
    assert memo._split(b"\x0a\x01m\x1a\x01i\x22\x00\x2a", 127) == (b"\x0a\x01m", b"i", b"\x22\0", 8)
    for tag in b"\x0a\x12\x1a\x22":
        long = bytes([tag]) + varint(128) + bytes(128) + b"\x2a"
        assert memo._split(long, 127) is None
    assert memo._split(b"", 127) is None
    assert memo._split(b"\x0a\x05m", 127) is None


def test_what_is_remembered_weighs_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are few bytes to compare, but each is some objects."""
    specs = [TensorSpec(f"t{i}", dt.INT8, (0,)) for i in range(100)]
    places = tuple((0, 0) for _ in specs)
    one = memo.Template((), None, places, Signature(specs), "m", "", None)
    weight = memo._weight((b"m", 1, b""), [one])
    assert weight > 100 * 500
    monkeypatch.setattr(memo, "TEMPLATES_BYTES_MAX", 3 * weight + 100)
    templates: memo.Templates[None] = memo.Templates(WireLimits())
    for i in range(50):
        templates._keep(b"m", i % 7, b"%d" % (i % 2), one)
        assert templates._bytes == sum(memo._weight(*kept) for kept in templates._table.items())
    assert sum(map(len, templates._table.values())) == 3


class _Looked(bytes):
    """Bytes that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        _Looked.looks += 1
        return super().__getitem__(at)


def test_a_long_run_of_parameters_is_not_read_to_its_end() -> None:
    """Not before something says that it may be that long."""
    assert memo._split(_Looked(field(1, b"m") + b"\x22\x00" * 100_000), 100) is None
    assert _Looked.looks < 2 * memo.HEAD_BYTES_MAX
