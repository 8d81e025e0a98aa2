"""RequestDecoder's memory: it may only ever save work, whatever is sent to it."""

import struct
from typing import Any

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol import graphpipe_template as template
from penstock.protocol.errors import ProtocolError
from penstock.protocol.graphpipe import RequestDecoder, decode_request, encode_request
from penstock.protocol.message import InferRequest, OutputRequest, Signature, TensorSpec, wire_array


def frame_of(*arrays: Any, name: str = "t", extended: bool = False, **more: Any) -> bytes:
    specs = [TensorSpec(f"{name}{i}", dt.of_numpy(a.dtype), a.shape) for i, a in enumerate(arrays)]
    signature = Signature(specs, [OutputRequest("out")])
    return b"".join(encode_request(InferRequest(signature, arrays, **more), extended=extended))


def ask(decoder: RequestDecoder, frame: Any) -> InferRequest:
    message = decoder.decode(frame)
    assert isinstance(message, InferRequest)
    return message


def known(decoder: RequestDecoder, frame: bytes) -> bool:
    return decoder._templates.find(frame) is not None


def numbers(start: int) -> Any:
    return np.arange(start, start + 16, dtype=np.int32).reshape(1, 16)


def test_equal_skeletons_share_the_signature_and_not_the_data() -> None:
    decoder = RequestDecoder()
    frames = [frame_of(numbers(n), numbers(-n), id="same", priority=2) for n in range(5)]
    asked = [ask(decoder, frame) for frame in frames]
    assert known(decoder, frames[0])
    for n, message in enumerate(asked):
        assert message.signature is asked[0].signature
        assert message.arrays[0].tolist() == numbers(n).tolist()
        assert message.arrays[1].tolist() == numbers(-n).tolist()
        assert (message.id, message.priority) == ("same", 2)
        assert not message.arrays[0].flags.writeable


def test_first_sight_of_a_length_makes_no_template() -> None:
    decoder = RequestDecoder()
    frame = frame_of(numbers(1))
    ask(decoder, frame)
    assert not known(decoder, frame)
    ask(decoder, frame)
    assert known(decoder, frame)


def test_hit_parses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = RequestDecoder()
    frame = frame_of(numbers(1))
    for _ in range(2):
        ask(decoder, frame)
    monkeypatch.setattr(RequestDecoder, "_decode_new", None)
    for form in (frame, bytearray(frame), memoryview(frame), np.frombuffer(frame, np.uint8)):
        assert ask(decoder, form).arrays[0].tolist() == numbers(1).tolist()


def test_ids_of_equal_length_share_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = RequestDecoder()
    first = [ask(decoder, frame_of(numbers(n), id=f"id-{n}")) for n in range(3)]
    monkeypatch.setattr(RequestDecoder, "_decode_new", None)
    for n in range(3, 9):
        message = ask(decoder, frame_of(numbers(n), id=f"id-{n}"))
        assert message.id == f"id-{n}"
        assert message.signature is first[0].signature


def test_another_announcement_of_equal_length_is_another_signature() -> None:
    decoder = RequestDecoder()
    plain = frame_of(numbers(1), extended=True)
    other = plain.replace(b'"errors":"frame"', b'"errors":"words"')
    for _ in range(4):
        assert ask(decoder, plain).signature.form.error_frames
        assert not ask(decoder, other).signature.form.error_frames
        with pytest.raises(ProtocolError, match=r"config\.id"):
            decoder.decode(plain.replace(b'"errors":"frame"', b'"id":77,"a":7777'))


def test_ids_of_changing_length_share_the_signature() -> None:
    decoder = RequestDecoder()
    asked = [ask(decoder, frame_of(numbers(1), id="x" * n)) for n in range(1, 40)]
    assert len({id(message.signature) for message in asked}) == 1


def test_another_skeleton_of_equal_length_is_told_apart() -> None:
    decoder = RequestDecoder()
    frames = [frame_of(numbers(n), name=name) for n, name in enumerate("abcabcabc")]
    for frame, name in zip(frames, "abcabcabc", strict=True):
        assert ask(decoder, frame).signature.tensors[0].name == f"{name}0"


def test_strings_make_no_template() -> None:
    decoder = RequestDecoder()
    frame = frame_of(wire_array([b"a", b"b"])[1], numbers(1))
    for _ in range(4):
        assert ask(decoder, frame).arrays[0].tolist() == [b"a", b"b"]
    assert not known(decoder, frame)


def link_to(frame: bytes, target: int) -> int:
    """The position of the offset word that leads to ``target``."""
    return next(
        at for at in range(4, target, 4) if at + struct.unpack_from("<I", frame, at)[0] == target
    )


NAME = struct.pack("<I2sx", 2, b"t0")
SHAPE = struct.pack("<Iq", 1, 64)


@pytest.mark.parametrize(
    ("structure", "hostile", "victim"),
    [
        (NAME, NAME, struct.pack("<I2sx", 2, b"zz")),
        (NAME, NAME, struct.pack("<I2sx", 1, b"zz")),
        (SHAPE, SHAPE, struct.pack("<I2q", 2, 8, 8)),
        (SHAPE, struct.pack("<I2q", 2, 8, 8), SHAPE),
    ],
    ids=["name", "name size", "shape", "rank"],
)
def test_poisoning(structure: bytes, hostile: bytes, victim: bytes) -> None:
    """The attack: frames whose structure (a name, a shape) lies within tensor data. A template of
    one would ignore that place, so another client's frame that differs there would get the
    attacker's name or shape."""
    decoder = RequestDecoder()

    def frame_with(content: bytes) -> bytes:
        data = np.frombuffer(content.ljust(64, b"\0"), np.uint8)
        frame = bytearray(frame_of(data))
        inside = bytes(frame).index(data.tobytes())
        link = link_to(frame, frame.index(structure))
        struct.pack_into("<I", frame, link, inside - link)
        return bytes(frame)

    attack, other = frame_with(hostile), frame_with(victim)
    assert len(attack) == len(other)
    for _ in range(9):
        assert outcome(lambda: decoder.decode(attack)) == outcome(lambda: decode_request(attack))
    assert not known(decoder, attack)
    assert outcome(lambda: decoder.decode(other)) == outcome(lambda: decode_request(other))
    assert outcome(lambda: decoder.decode(other)) != outcome(lambda: decoder.decode(attack))
    # Without the check of what was read, the attack works: the test tests something.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.protocol.graphpipe.all_inside", lambda seen, outside: True)
        careless = RequestDecoder()
        for _ in range(2):
            careless.decode(attack)
        fooled, truth = ask(careless, other), decode_request(other)
        assert isinstance(truth, InferRequest)
        assert fooled.signature.tensors != truth.signature.tensors


def test_tensors_that_share_data_make_no_template() -> None:
    decoder = RequestDecoder()
    frame = bytearray(frame_of(numbers(1), numbers(2)))
    first, second = (frame.index(numbers(n).tobytes()) - 4 for n in (1, 2))
    link = link_to(frame, second)
    struct.pack_into("<I", frame, link, first - link)
    for _ in range(4):
        message = ask(decoder, bytes(frame))
        assert message.arrays[0].tolist() == message.arrays[1].tolist() == numbers(1).tolist()
    assert not known(decoder, bytes(frame))


def test_config_shared_with_a_name_makes_no_template() -> None:
    """Config counts as data, so nothing else may be read from its bytes."""
    decoder = RequestDecoder()
    frame = bytearray(frame_of(numbers(1), parameters={"config": "t0"}))
    config, name = (at for at in range(0, len(frame), 4) if frame[at : at + 7] == NAME)
    link = link_to(frame, config)
    struct.pack_into("<I", frame, link, name - link)
    for _ in range(4):
        assert dict(ask(decoder, bytes(frame)).parameters) == {"config": "t0"}
    assert not known(decoder, bytes(frame))
    changed = bytes(frame[:name]) + bytes(frame[name:]).replace(b"t0\0", b"u9\0", 1)
    message = ask(decoder, changed)
    assert message.signature.tensors[0].name == "u9"
    assert dict(message.parameters) == {"config": "u9"}


def test_large_skeletons_are_not_remembered_and_large_data_is() -> None:
    decoder = RequestDecoder()
    wordy = frame_of(numbers(1), parameters={"config": "x"}, name="n" * 4000)
    heavy = frame_of(np.zeros(4 << 20, np.float32))
    many = frame_of(*[np.ones(1, np.int8)] * 200)
    for frame in (wordy, heavy, many):
        for _ in range(3):
            ask(decoder, frame)
    assert known(decoder, heavy)
    assert known(decoder, wordy)
    assert not known(decoder, many)


def test_memory_is_bounded() -> None:
    decoder = RequestDecoder()
    table = decoder._templates
    for n in range(3000):
        frame = frame_of(np.zeros(n % 1500, np.uint8), name=f"{n:04}")
        for _ in range(2):
            ask(decoder, frame)
    assert len(table._by_length) <= template.LENGTHS_MAX
    assert len(table._misses) <= template.LENGTHS_MAX
    kept = [t.nbytes for templates in table._by_length.values() for t in templates]
    assert sum(kept) == table._nbytes <= template.TOTAL_BYTES_MAX
    assert len(decoder._signatures._known) <= 1024


def test_templates_are_made_ever_more_rarely() -> None:
    """Frames that never repeat must not each cost a recorded parse."""
    decoder = RequestDecoder()
    made = 0
    add = decoder._templates.add

    def counted(*args: Any) -> None:
        nonlocal made
        made += 1
        add(*args)

    class Counting:
        find, wanted = decoder._templates.find, decoder._templates.wanted
        add = staticmethod(counted)

    decoder._templates = Counting()  # type: ignore[assignment]
    for n in range(1000):
        ask(decoder, frame_of(numbers(n), name=f"{n:04}"))
    assert made <= 10


@pytest.mark.parametrize(
    ("data", "outside"),
    [
        ([], [(0, 100)]),
        ([(10, 20)], [(0, 10), (20, 100)]),
        ([(50, 60), (10, 20)], [(0, 10), (20, 50), (60, 100)]),
        ([(0, 50), (50, 100)], []),
        ([(10, 20), (19, 30)], None),
        ([(10, 20), (15, 15)], [(0, 10), (20, 100)]),
    ],
)
def test_skeleton_ranges(data: Any, outside: Any) -> None:
    assert template.skeleton_ranges(100, data) == outside


@pytest.mark.parametrize(
    ("seen", "inside"),
    [
        ([(0, 10), (20, 24)], True),
        ([(9, 11)], False),
        ([(10, 12)], False),
        ([(18, 22)], False),
        ([(5, 25)], False),
        ([(15, 15)], True),
        ([(96, 100)], True),
    ],
)
def test_all_inside(seen: Any, inside: bool) -> None:
    assert template.all_inside(seen, [(0, 10), (20, 100)]) is inside
    assert template.all_inside([], []) is True
    assert template.all_inside([(0, 1)], []) is False


def test_memoised_and_plain_decoding_agree_on_single_byte_changes() -> None:
    base = frame_of(numbers(1), numbers(2), id="abc", extended=True)
    decoder = RequestDecoder()
    for _ in range(3):
        ask(decoder, base)
    assert known(decoder, base)
    for at in range(len(base)):
        for bit in (1, 4, 128):
            frame = bytearray(base)
            frame[at] ^= bit
            assert outcome(lambda f=frame: decoder.decode(f)) == outcome(
                lambda f=frame: decode_request(f)
            ), at


def outcome(read: Any) -> Any:
    try:
        message = read()
    except ProtocolError as error:
        return str(error)
    if not isinstance(message, InferRequest):
        return message.form
    return (
        message.signature.tensors,
        message.signature.outputs,
        message.signature.form,
        [array.tobytes() for array in message.arrays],
        message.id,
        message.timeout_us,
        message.priority,
        dict(message.parameters),
    )
