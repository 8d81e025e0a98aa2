"""The valid vectors: frames and what they mean."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from assembler import (
    FLOATS,
    I64,
    ONE,
    Frame,
    Num,
    Table,
    io,
    metadata,
    reply,
    request,
    shape,
    tensor,
)

DEPLOYED = Path(__file__).parent.parent.parent / "tests" / "data" / "graphpipe"
TYPES = (
    "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "FP16", "FP32",
    "FP64", "BYTES", "BOOL", "BF16",
)  # fmt: skip


def said(name: str, number: int, sizes: tuple[int, ...], body: Any) -> dict[str, Any]:
    """A tensor as it stands in the JSON."""
    out: dict[str, Any] = {"name": name, "dtype": TYPES[number - 1], "shape": list(sizes)}
    if isinstance(body, list):
        return out | {"strings": [item.hex() for item in body]}
    return out | {"data": body.hex()}


def asks(tensors: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "message": "request",
        "kind": "infer",
        "tensors": tensors,
        "outputs": [],
        "id": "",
        "timeout_us": 0,
        "priority": 0,
        "parameters": {},
        "extended": False,
        "error_frames": False,
    } | more


def answers(tensors: list[dict[str, Any]]) -> dict[str, Any]:
    return {"message": "reply", "kind": "infer", "tensors": tensors}


SAID_ONE = said("", 10, (2, 2), FLOATS)


def deployed() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """The frames that the reference encoder in Python made, and what was put into them."""
    layouts = "BbHhIiQqefd"
    values = {
        f"req_infer_{name}_1x3": asks(
            [said("", number, (1, 3), struct.pack(f"<3{layouts[number - 1]}", 0, 1, 2))]
        )
        for number, name in enumerate(
            (
                "uint8",
                "int8",
                "uint16",
                "int16",
                "uint32",
                "int32",
                "uint64",
                "int64",
                "float16",
                "float32",
                "float64",
            ),
            1,
        )
    }
    values |= {
        "req_infer_empty_0x3": asks([said("", 10, (0, 3), b"")]),
        "req_infer_f32_2x2": asks([SAID_ONE]),
        "req_infer_named_cfg_i64_f64": asks(
            [
                said("x", 8, (1,), struct.pack("<q", 7)),
                said("y", 11, (1,), struct.pack("<d", 1.5)),
            ],
            outputs=["z"],
            parameters={"a": 1},
        ),
        "req_infer_scalar_f64": asks([said("", 11, (), struct.pack("<d", 0.42))]),
        "req_infer_strings": asks([said("", 12, (2,), [b"foo", b"b"])]),
        "req_metadata": {"message": "request", "kind": "metadata", "extended": False},
        "resp_infer_f32_2x2": answers([SAID_ONE]),
        "resp_metadata": {
            "message": "metadata",
            "name": "m",
            "version": "1",
            "server": "s",
            "description": "",
            "inputs": [{"name": "a", "dtype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "o", "dtype": "FP32", "shape": [-1]}],
        },
    }
    return {
        f"deployed_{name}": ((DEPLOYED / f"{name}.bin").read_bytes(), value)
        for name, value in values.items()
    }


def valid() -> dict[str, tuple[bytes, dict[str, Any]]]:
    raw = [b"", b"\xff\xfe", b"nul\0inside", b"trailing\0", "grün".encode(), b"x" * 300]
    sizes = {"BYTES": 0, "BOOL": 1, "BF16": 2}
    widths = [1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8]
    every: list[Table] = []
    every_said = []
    for number, name in enumerate(TYPES, 1):
        width = sizes.get(name) if name in sizes else widths[number - 1]
        body: Any = (
            [b"a", b"bc"] if name == "BYTES" else b"\1\0" if name == "BOOL"
            else bytes(range(1, 1 + 2 * (width or 0)))
        )  # fmt: skip
        every.append(tensor(number, shape(2), body))
        every_said.append(said(name.lower(), number, (2,), body))
    names = [name.lower().encode() for name in TYPES]
    config = (
        b'{"id":"r-1","timeout_us":2500,"priority":2,"dtypes":"extended","errors":"frame",'
        b'"sequence_id":7,"sequence_start":true,"temperature":0.5,"tag":"x","nothing":null}'
    )
    parameters = {"sequence_id": 7, "sequence_start": True, "temperature": 0.5, "tag": "x"}
    # What a Python server with flatbuffers >= 2.0.7 writes: a count, but no offsets after it.
    garbage = Frame(Table("InferResponse", [ONE, ONE], [b"no", b"no"]))
    struct.pack_into("<2I", garbage.out, garbage.marks["errors"] + 4, 2, 0xFFFFFFF0)
    frames: dict[str, tuple[Frame, dict[str, Any]]] = {
        "request_minimal": (request(None, None, [ONE], None), asks([SAID_ONE])),
        "request_no_tensors": (request(b"", [], [], []), asks([])),
        "request_all_absent": (request(None, None, None, None), asks([])),
        "request_every_type": (request(b"", names, every, []), asks(every_said, extended=True)),
        "request_names": (
            request(b"", [b"a", b""], [ONE, ONE], [b"z", b""]),
            asks([SAID_ONE | {"name": "a"}, SAID_ONE], outputs=["z", ""]),
        ),
        "request_strings_raw": (
            request(b"", [], [tensor(12, shape(2, 3), raw)], []),
            asks([said("", 12, (2, 3), raw)]),
        ),
        "request_strings_without_nul": (
            request(b"[1]", [b"in"], [tensor(12, shape(6), raw)], [b"out"], nul=False),
            asks([said("in", 12, (6,), raw)], outputs=["out"], parameters={"config": "[1]"}),
        ),
        "request_strings_scalar": (
            request(b"", [], [tensor(12, shape(), [b"one"])], []),
            asks([said("", 12, (), [b"one"])]),
        ),
        "request_strings_none": (
            request(b"", [], [tensor(12, shape(0), None)], []),
            asks([said("", 12, (0,), [])]),
        ),
        "request_misaligned": (
            request(b"", [b"i"], [tensor(8, shape(2), bytes(range(16)))], [], aligned=False),
            asks([said("i", 8, (2,), bytes(range(16)))]),
        ),
        "request_vtable_after_table": (
            request(b"", [], [ONE], [], vtable_last=True),
            asks([SAID_ONE]),
        ),
        "request_scalar_without_shape": (
            request(b"", [], [tensor(10, None, FLOATS[:4])], []),
            asks([said("", 10, (), FLOATS[:4])]),
        ),
        "request_empty_without_data": (
            request(b"", [], [tensor(10, shape(3, 0), None)], []),
            asks([said("", 10, (3, 0), b"")]),
        ),
        "request_empty_beside_huge": (
            request(b"", [], [tensor(10, shape(0, 1 << 39), b"")], []),
            asks([said("", 10, (0, 1 << 39), b"")]),
        ),
        "request_config": (
            request(config, [], [ONE], []),
            asks(
                [SAID_ONE],
                id="r-1",
                timeout_us=2500,
                priority=2,
                parameters=parameters,
                extended=True,
                error_frames=True,
            ),
        ),
        "request_config_opaque": (
            request("grün {".encode(), [], [ONE], []),
            asks([SAID_ONE], parameters={"config": "grün {"}),
        ),
        "request_metadata_extended": (
            request(b'{"dtypes":"extended"}', kind=2, label="MetadataRequest"),
            {"message": "request", "kind": "metadata", "extended": True},
        ),
        "reply_two": (
            reply([ONE, tensor(12, shape(1), [b"\xff"])]),
            answers([SAID_ONE, said("", 12, (1,), [b"\xff"])]),
        ),
        "reply_nothing": (reply(None, None), answers([])),
        "reply_empty_errors": (reply([ONE], []), answers([SAID_ONE])),
        "reply_garbage_errors": (garbage, answers([SAID_ONE, SAID_ONE])),
        "reply_errors": (
            reply([], [Table("Error", Num(I64, 5), b"no model"), Table("Error", None, b"more")]),
            {"message": "reply", "kind": "error", "code": "NOT_FOUND", "text": "no model; more"},
        ),
        "reply_error_of_unknown_code": (
            reply(None, [Table("Error", Num(I64, -7), b"old")]),
            {"message": "reply", "kind": "error", "code": "UNKNOWN", "text": "old"},
        ),
        "metadata_free_sizes": (
            metadata(
                [io(b"a", 13, shape(-1, 3)), io(b"gone", 0, shape(1)), io(b"s", 12, None)],
                [io(b"", 14, shape(-1))],
            ),
            {
                "message": "metadata",
                "name": "model",
                "version": "3",
                "server": "server",
                "description": "words",
                "inputs": [
                    {"name": "a", "dtype": "BOOL", "shape": [-1, 3]},
                    {"name": "s", "dtype": "BYTES", "shape": []},
                ],
                "outputs": [{"name": "", "dtype": "BF16", "shape": [-1]}],
            },
        ),
    }
    return deployed() | {name: (bytes(frame.out), value) for name, (frame, value) in frames.items()}
