"""A large text read piece by piece says what it says as a whole: the same result or error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.protocol import dtype as dt
from penstock.protocol import oip_json_large as large
from penstock.protocol import oip_json_read as read
from penstock.protocol.errors import PenstockError
from penstock.protocol.oip_json import RequestDecoder
from penstock.protocol.oip_tensor import json_values


@pytest.fixture(autouse=True)
def _small_sizes() -> Iterator[None]:
    """Everything is large, and pieces are small."""
    with (
        patch.object(large, "SPAN_BYTES_MIN", 2),
        patch.object(large, "_SLICE_BYTES", 3),
        patch.object(large, "_WINDOW_BYTES", 512),
    ):
        yield


def outcome(body: bytes, large_bytes_min: int) -> Any:
    with patch.object(read, "LARGE_JSON_BYTES_MIN", large_bytes_min):
        try:
            request = RequestDecoder().decode(body, None, "m")
        except PenstockError as error:
            return error.code, error.message
    tensors = request.signature.tensors
    arrays = [
        (a.dtype.str, a.shape, a.tolist() if a.dtype == object else a.tobytes())
        for a in request.arrays
    ]
    return tensors, arrays, request.id, dict(request.parameters), request.signature.outputs


def check_alike(body: bytes) -> None:
    assert outcome(body, -1) == outcome(body, 1 << 30)


numbers = st.one_of(
    st.integers(-300, 300), st.floats(width=32), st.integers(-(2**70), 2**70), st.booleans()
)
shapes = st.lists(st.integers(0, 4), max_size=3)


def nested(values: list[Any], shape: list[int]) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape).tolist()


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=int))
    if draw(st.integers(0, 9)) == 0:
        count = draw(st.integers(0, 30))
    plain = draw(st.booleans())
    element = st.integers(0, 100) if plain else st.one_of(numbers, st.text(max_size=5), st.none())
    values = draw(st.lists(element, min_size=count, max_size=count))
    fits = count == int(np.prod(shape, dtype=int))
    data: Any = nested(values, shape) if fits and draw(st.booleans()) else values
    tensor = {
        "name": draw(st.sampled_from(["A", 'x"data":[1', "data", "é"])),
        "shape": shape,
        "datatype": draw(st.sampled_from([*dt.BY_NAME, "FP32", "INT32"])),
        "data": data,
    }
    if draw(st.integers(0, 5)) == 0:
        tensor["parameters"] = {"data": values, "note": '{"data":[1,2,3]}'}
    order = draw(st.permutations(list(tensor)))
    return {key: tensor[key] for key in order}


spaces = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])


@given(st.lists(tensors(), max_size=3), spaces, st.text(max_size=8))
def test_requests(inputs: list[dict[str, Any]], separators: tuple[str, str], id: str) -> None:
    document = {"id": id, "inputs": inputs, "outputs": [{"name": "Y", "data": [1, 2]}]}
    check_alike(json.dumps(document, separators=separators, ensure_ascii=False).encode())


BODY = b'{"inputs":[{"name":"A","shape":[2,2],"datatype":"INT32","data":[[1,2],[3,4]]}]}'


@given(st.integers(0, len(BODY)), st.binary(max_size=2), st.integers(0, 2))
@example(63, b"[", 0)
@settings(max_examples=500)
def test_broken_texts(at: int, inserted: bytes, dropped: int) -> None:
    check_alike(BODY[:at] + inserted + BODY[at + dropped :])


@pytest.mark.parametrize(
    "data",
    [
        "[[1,2],[3,4]]", "[[1,2,3],[4]]", "[[[1,2],[3,4]]]", "[1,2,3,4]", "[[1,2],[3,4]",
        "[[1]2,[3,4]]", "[1 2,3,4]", "[[1,2][3,4]]", "[[],[1,2,3,4]]", "[]", "[[]]", "[1,2,3,4,]",
        "[,1,2,3,4]", "[1,2,3,4]]", "[1.0,2,3,4]", "[true,2,3,4]", "[NaN,1,2,3]", "[1,2,,4]",
        "[1,2,3,99999999999]", "[01,2,3,4]", "[1,2,3,-]", "[ 1 , 2 , 3 , 4 ]",
        '[[1,2],[3,4]],"data":[5,6,7,8]',
    ],
)  # fmt: skip
@pytest.mark.parametrize("datatype", ["INT32", "FP32", "BOOL"])
def test_shapes_and_faults_of_data(data: str, datatype: str) -> None:
    text = BODY.decode().replace("[[1,2],[3,4]]", data).replace("INT32", datatype)
    check_alike(text.encode())


def test_numbers_are_really_read_in_pieces() -> None:
    """What is above would hold for a reader that never lifts anything, too."""
    lifting = large.Lifting(BODY)
    assert b"[1,2]" not in lifting.skeleton
    parsed = json.loads(lifting.skeleton)["inputs"][0]["data"]
    lifted = lifting.find(parsed)
    assert lifted is not None
    array = lifted.array(dt.INT32, (2, 2))
    assert array.tolist() == [[1, 2], [3, 4]]
    assert not array.flags.writeable
    assert lifting.find([1, 2]) is None
    assert lifting.find(["lifted-0"]) is None


def test_a_shape_cannot_make_it_allocate() -> None:
    lifting = large.Lifting(BODY)
    lifted = lifting.find(json.loads(lifting.skeleton)["inputs"][0]["data"])
    assert lifted is not None
    with pytest.raises(large.NotPlain):
        lifted.array(dt.INT32, (1 << 40,))


def test_no_shape_makes_it_write_more_than_there_is() -> None:
    """Of 30 dimensions of 1, each element would have 60 brackets."""
    text = BODY.replace(b"[[1,2],[3,4]]", b"[[1]" + b",2" * 2000 + b"]")
    lifting = large.Lifting(text)
    lifted = lifting.find(json.loads(lifting.skeleton)["inputs"][0]["data"])
    assert lifted is not None
    with pytest.raises(large.NotPlain):
        lifted.array(dt.INT32, (2001, *[1] * 30))


def test_texts_of_many_arrays_are_given_up() -> None:
    """Each look is bounded, and so is their number."""
    with pytest.raises(large.NotPlain):
        large.Lifting(b'{"inputs":[' + b',"data":[1' * 200_000)
    with patch.object(large, "SPAN_BYTES_MIN", 8), patch.object(large, "_SPANS_MAX", 10):
        long = b',"data":[1,2,3,4,5,6]'
        assert large.Lifting(b"{" + b',"data":[1]' * 9 + long).skeleton
        with pytest.raises(large.NotPlain):
            large.Lifting(b"{" + b',"data":[1]' * 10 + long)


@given(st.lists(st.floats() | st.integers(-5, 5), max_size=40))
def test_values_are_written_alike_in_parts(values: list[float]) -> None:
    array = np.array(values, "f8")
    whole = json_values(array, dt.FP64, "Y")
    with patch("penstock.protocol.oip_tensor._PART_ELEMENTS", 3):
        parts = json_values(array, dt.FP64, "Y")
    assert repr(json.loads(parts)) == repr(json.loads(whole))
