"""``penstock infer`` and ``models`` without a server: inputs, outputs, drawings, tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.client import ModelMetadata, ModelStatus, Result, TensorSpec
from penstock.protocol import dtype as dt
from penstock.protocol.message import InferReply, Signature
from penstock.server.commands import digits, infer_outputs, models
from penstock.server.commands.failure import CommandError
from penstock.server.commands.infer_inputs import Inputs, converted, read_inputs
from penstock.server.commands.terminal import Terminal

X = TensorSpec("x", dt.FP32, (-1, 2))
Y = TensorSpec("y", dt.INT8, (-1,))


def read(*texts: str, specs: tuple[TensorSpec, ...] = (X,), stdin: str = "") -> Inputs:
    return read_inputs(texts, specs, io.StringIO(stdin))


# --- inputs


@pytest.mark.parametrize("text", ["x=[[1,2.5]]", "[[1,2.5]]", "x=@{tmp}/v.json", "@{tmp}/v.json",
                                  "x={tmp}/v.npy", "{tmp}/v.npy", "x=@{tmp}/v.npy"])  # fmt: skip
def test_forms_of_an_input(text: str, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text("[[1, 2.5]]")
    np.save(tmp_path / "v.npy", np.array([[1, 2.5]]))
    array = read(text.format(tmp=tmp_path)).arrays["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 2.5]]


def test_inputs_from_stdin() -> None:
    inputs = read("-", specs=(X, Y), stdin='{"x": [[1, 2]], "y": [3]}')
    assert {name: array.tolist() for name, array in inputs.arrays.items()} == {
        "x": [[1, 2]],
        "y": [3],
    }
    assert read("-", stdin="[[1, 2]]").arrays["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("dtype", "value", "wanted"),
    [
        ("FP32", [1, 2], np.array([1, 2], np.float32)),
        ("FP16", [1.5], np.array([1.5], np.float16)),
        ("FP64", 3, np.array(3.0)),
        ("UINT8", [0, 255], np.array([0, 255], np.uint8)),
        ("INT64", [-(2**63)], np.array([-(2**63)])),
        ("UINT64", [2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ("BOOL", [True, False], np.array([True, False])),
        ("BOOL", [1, 0], np.array([True, False])),
        ("BYTES", ["a", "ü"], np.array(["a", "ü"])),
        ("BF16", [1, 2.5], np.array([1, 2.5], np.float32)),
        ("INT32", [], np.array([], np.int32)),
        ("BOOL", [[]], np.zeros((1, 0), bool)),
    ],
)
def test_values_become_the_declared_type(dtype: str, value: Any, wanted: Any) -> None:
    array = converted(TensorSpec("x", dt.BY_NAME[dtype], (-1,)), value)
    assert array.dtype == wanted.dtype
    assert np.array_equal(array, wanted)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("INT32", [1.5]),
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("FP32", ["1"]),
        ("FP32", [None]),
        ("FP32", {"a": 1}),
        ("FP32", [[1], [1, 2]]),
        ("BOOL", [2]),
        ("BOOL", [0.0]),
        ("BYTES", [1]),
        ("BF16", ["x"]),
    ],
)
def test_values_that_would_change_their_meaning(dtype: str, value: Any) -> None:
    with pytest.raises(CommandError, match="input 'x'") as caught:
        converted(TensorSpec("x", dt.BY_NAME[dtype], (-1,)), value)
    assert caught.value.status == 2


def test_bf16_is_named_for_the_client() -> None:
    inputs = read("x=[1]", specs=(TensorSpec("x", dt.BF16, (-1,)),))
    assert inputs.dtypes == {"x": "BF16"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["z=[1]"], "no input 'z'; it takes x FP32[-1,2], y INT8[-1]"),
        (["[1]"], "name the input, as in --input NAME=VALUE"),
        (["x=[1]", "x=[2]"], "input 'x' is given twice"),
        (["x=[1"], "--input x=[1 is not JSON: "),
        (["x=hello"], "a value is JSON such as [[1,2]], a file.npy, or @file.json"),
        (["x=@/nowhere.json"], "cannot read /nowhere.json: No such file"),
        (["x=/nowhere.npy"], "cannot read /nowhere.npy: No such file"),
        (["x=" + "[" * 100_000], "is not JSON"),
        (["-"], "stdin is not JSON"),
    ],
)
def test_inputs_that_cannot_be_read(texts: list[str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        read(*texts, specs=(X, Y))
    assert message in caught.value.message
    assert caught.value.status == 2


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_arrays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(CommandError, match="cannot read "):
        read(f"x={tmp_path / 'x.npy'}")


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CommandError, match=r"allow_pickle(?s:.*)astype\(str\)"):
        read(f"x={tmp_path / 'x.npy'}")


@pytest.mark.parametrize("value", ["[[1,70000]]", "[[1,-1e300]]"])
def test_numbers_beyond_the_type_do_not_become_infinite(value: str) -> None:
    half = TensorSpec("h", dt.FP16, (-1, 2))
    with pytest.raises(CommandError, match="'h' takes FP16; some values are too large"):
        read_inputs([value], [half], io.StringIO())
    with_inf = read_inputs(["[[Infinity,1]]"], [half], io.StringIO())
    assert np.isinf(with_inf.arrays["h"]).tolist() == [[True, False]]


# --- outputs


def result() -> Result:
    specs = [
        TensorSpec("p", dt.FP32, (1, 2)),
        TensorSpec("file", dt.BYTES, (2,)),
        TensorSpec("b", dt.BF16, (1,)),
    ]
    arrays = [
        np.array([[0.5, 1]], np.float32),
        np.array([b"a", b"\xff"], dtype=object),
        np.array([0x3FC0], np.uint16),
    ]
    reply = InferReply(Signature(specs), arrays, model="m", version="2")
    return Result(reply, [spec.name for spec in specs])


def test_outputs_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    infer_outputs.write_result(result(), "text")
    assert capsys.readouterr().out == (
        "p FP32[1,2]\n  [[0.5 1. ]]\nfile BYTES[2]\n  [b'a' b'\\xff']\nb BF16[1]\n  [1.5]\n"
    )


def test_outputs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    infer_outputs.write_result(result(), "json")
    assert json.loads(capsys.readouterr().out) == {
        "model": "m",
        "version": "2",
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [[0.5, 1.0]]},
            {"name": "file", "datatype": "BYTES", "shape": [2], "data": ["a", "\\xff"]},
            {"name": "b", "datatype": "BF16", "shape": [1], "data": [1.5]},
        ],
    }


def test_json_names_what_was_asked_where_the_reply_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = result()
    silent.reply.model = silent.reply.version = ""
    infer_outputs.write_result(silent, "json", model="asked", version="1")
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["version"]) == ("asked", "1")


def test_outputs_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infer_outputs.write_result(result(), str(tmp_path / "out.npz"))
    assert capsys.readouterr().out == ""
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].tolist() for name in arrays} == {
            "p": [[0.5, 1.0]],
            "file": [b"a", b"\xff"],
            "b": [1.5],
        }


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot write .*: No such file"):
        infer_outputs.write_result(result(), str(tmp_path / "none" / "out.npz"))


# --- the demonstration


def shown(label: int) -> digits.Answer:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, :, 3] = 1
    image[0, 1, 2] = 0.5
    shares = np.full(10, 0.015, np.float32)
    shares[1] = 0.865
    return digits.Answer(7, image, label, shares)


def test_a_right_answer() -> None:
    text = "\n".join(digits.lines([shown(1)], Terminal(), "one request over v2, 1.0 ms"))
    assert (
        text
        == """\
picture 7: the model says 1 (86.5%), it is a 1: ✓ right
┌────────────────┐  0 ▎                      1.5%
│      ██        │  1 █████████████████▎    86.5%
│    ▒▒██        │  2 ▎                      1.5%
│      ██        │  3 ▎                      1.5%
│      ██        │  4 ▎                      1.5%
│      ██        │  5 ▎                      1.5%
│      ██        │  6 ▎                      1.5%
│      ██        │  7 ▎                      1.5%
│      ██        │  8 ▎                      1.5%
└────────────────┘  9 ▎                      1.5%

1 of 1 right; one request over v2, 1.0 ms"""
    )


def test_a_wrong_answer_in_ascii() -> None:
    lines = digits.lines([shown(1), shown(4)], Terminal(unicode=False), "x")
    assert "\n".join(lines).isascii()
    assert lines[12:15] == [
        "picture 7: the model says 1 (86.5%), it is a 4: WRONG",
        "+----------------+  0                        1.5%",
        "|      @@        |  1 #################     86.5%",
    ]
    assert lines[-1] == "1 of 2 right; x"


def test_a_drawing_in_colours() -> None:
    lines = digits.lines([shown(4)], Terminal(color=True), "x")
    assert "\x1b[31m✗ WRONG\x1b[0m" in lines[0]
    assert "\x1b[48;5;255m" in lines[2]
    assert "\x1b[31m1 ████" in lines[2]
    assert "\x1b[1m4 ▎" in lines[5]


@pytest.mark.parametrize(
    ("share", "unicode", "ascii_only"),
    [
        (0.0, "", ""),
        (0.003, "", ""),
        (0.01, "▎", ""),
        (0.5, "█" * 10, "#" * 10),
        (1.0, "█" * 20, "#" * 20),
        (7.0, "█" * 20, "#" * 20),
        (-1.0, "", ""),
        (float("nan"), "", ""),
    ],
)
def test_bars(share: float, unicode: str, ascii_only: str) -> None:
    assert digits.bar(share, unicode=True) == unicode
    assert digits.bar(share, unicode=False) == ascii_only


def test_pictures_by_chance() -> None:
    assert digits.choose(599, None, None, 3) == digits.choose(599, None, None, 3)
    chosen = digits.choose(599, None, 599, None)
    assert chosen == list(range(599))
    assert len(digits.choose(599, None, None, None)) == 3
    assert digits.choose(599, [5, 5, 0], None, None) == [5, 5, 0]


@pytest.mark.parametrize(
    ("indexes", "count", "seed"),
    [([599], None, None), ([1], 2, None), ([1], None, 0), (None, 600, None)],
)
def test_pictures_that_are_not_there(
    indexes: list[int] | None, count: int | None, seed: int | None
) -> None:
    with pytest.raises(CommandError) as caught:
        digits.choose(599, indexes, count, seed)
    assert caught.value.status == 2


# --- models


def test_models_as_a_table_and_as_json() -> None:
    metadata = ModelMetadata("a", "1", ("1",), "onnx", (X,), (Y,))
    entries = [
        models.Entry(ModelStatus("a", "1", "READY"), metadata),
        models.Entry(ModelStatus("b", "", "UNAVAILABLE", "it is broken")),
    ]
    assert models.lines(entries, Terminal()) == [
        "MODEL  VERSION  STATE        PLATFORM  INPUTS → OUTPUTS",
        "a      1        READY        onnx      x FP32[-1,2] → y INT8[-1]",
        "b               UNAVAILABLE",
        "",
        "b: it is broken",
    ]
    assert [models.document(entry) for entry in entries] == [
        {
            "name": "a",
            "version": "1",
            "state": "READY",
            "reason": "",
            "platform": "onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "INT8", "shape": [-1]}],
        },
        {"name": "b", "version": "", "state": "UNAVAILABLE", "reason": "it is broken"},
    ]
    assert models.lines([], Terminal()) == ["The server has no models."]
