"""The invalid vectors: frames, and how they must be refused."""

from __future__ import annotations

import struct

from assembler import (
    FLOATS,
    ONE,
    U8,
    Num,
    Table,
    data,
    io,
    metadata,
    reply,
    request,
    shape,
    tensor,
)


def invalid() -> dict[str, tuple[bytes, str, str, str]]:
    """name → (frame, message, field, part of the error)."""
    good = request(b"", [b"a"], [ONE], [b"z"])
    texts = request(b"", [], [tensor(12, shape(2), [b"abcdefgh" * 8, b"ij"])], [])
    answer = reply([ONE], [])

    def with_config(text: bytes) -> bytes:
        return bytes(request(text, [], [ONE], []).out)

    def with_tensor(item: Table) -> bytes:
        return bytes(request(b"", [], [item], []).out)

    overlap = bytearray(texts.out)
    words = texts.marks["input_tensors[0].string_val"] + 4
    first = texts.marks["input_tensors[0].string_val[0]"]
    for i in range(4):  # a string of 60 bytes within the first one
        overlap[first + 4 + i] = (60, 0, 0, 0)[i]
    struct.pack_into("<I", overlap, words + 4, first + 4 - words - 4)
    both = Table("Tensor", Num(U8, 10), shape(1), data(FLOATS[:4]), [b"x"])
    text_and_data = Table("Tensor", Num(U8, 12), shape(1), data(b"x"), [b"x"])
    tensor0 = "input_tensors[0]"
    requests = {
        "empty": (b"", "root table", "past the end"),
        "two_bytes": (b"\1\0", "root table", "past the end"),
        "root_outside": (b"\xff\xff\xff\x7f" + bytes(28), "root table", "past the end"),
        "root_vtable_before_start": (
            good.patched("Request", "<i", 0x7FFFFFF),
            "root table",
            "before the start",
        ),
        "root_vtable_past_end": (
            good.patched("Request", "<i", -0x7FFFFFF),
            "root table",
            "past the end",
        ),
        "vtable_too_small": (
            good.patched("req vtable", "<H", 3),
            "req",
            "vtable cannot have 3 bytes",
        ),
        "vtable_odd": (good.patched("req vtable", "<H", 9), "req", "vtable cannot have 9 bytes"),
        "kind_absent": (bytes(request(b"", kind=None).out), "req_type", "type 0"),
        "kind_unknown": (bytes(request(b"", kind=7).out), "req_type", "type 7"),
        "body_absent": (bytes(request().out), "req", "absent"),
        "config_past_end": (good.patched("config", "<I", 0x7FFF), "config", "past the frame"),
        "config_too_long": (good.patched("config", "<I", 0xFFFFFFFF), "config", "at most"),
        "config_id_number": (with_config(b'{"id": 1}'), "config.id", "must be a string"),
        "config_timeout_negative": (
            with_config(b'{"timeout_us": -1}'),
            "config.timeout_us",
            "whole number",
        ),
        "config_timeout_bool": (
            with_config(b'{"timeout_us": true}'),
            "config.timeout_us",
            "whole number",
        ),
        "config_priority_too_high": (
            with_config(b'{"priority": 4294967296}'),
            "config.priority",
            "whole number",
        ),
        "config_nested": (with_config(b'{"a": {"b": 1}}'), "config.a", "nested"),
        "config_list": (with_config(b'{"a": [1]}'), "config.a", "nested"),
        "names_fewer": (
            bytes(request(b"", [b"a"], [ONE, ONE], []).out),
            "input_names",
            "1 names for 2",
        ),
        "names_more": (
            bytes(request(b"", [b"a", b"b"], [ONE], []).out),
            "input_names",
            "2 names for 1",
        ),
        "names_bomb": (good.patched("input_names", "<I", 1 << 30), "input_names", "at most"),
        "name_past_end": (
            good.patched("input_names[0]", "<I", 4000),
            "input_names[0]",
            "in the frame",
        ),
        "name_not_utf8": (bytes(request(b"", [b"\xff"], [ONE], []).out), "input_names[0]", "UTF-8"),
        "output_name_not_utf8": (
            bytes(request(b"", [], [ONE], [b"ok", b"\xff"]).out),
            "output_names[1]",
            "UTF-8",
        ),
        "tensors_bomb": (
            good.patched("input_tensors", "<I", 0xFFFFFFFF),
            "input_tensors",
            "at most",
        ),
        "tensors_past_end": (
            good.patched("input_tensors", "<I", 1000),
            "input_tensors[1]",
            "vtable",
        ),
        "tensor_type_absent": (
            with_tensor(tensor(None, shape(2, 2), FLOATS)),
            f"{tensor0}.type",
            "Null or absent",
        ),
        "tensor_type_null": (
            with_tensor(tensor(0, shape(2, 2), FLOATS)),
            f"{tensor0}.type",
            "Null or absent",
        ),
        "tensor_type_unknown": (
            with_tensor(tensor(15, shape(2, 2), FLOATS)),
            f"{tensor0}.type",
            "unknown type",
        ),
        "shape_negative": (
            with_tensor(tensor(10, shape(-1), b"")),
            f"{tensor0}.shape",
            "negative size",
        ),
        "shape_overflow": (
            with_tensor(tensor(10, shape(1 << 32, 1 << 32), b"")),
            f"{tensor0}.shape",
            "too many elements",
        ),
        "shape_huge_beside_zero": (
            with_tensor(tensor(10, shape(0, 1 << 62), b"")),
            f"{tensor0}.shape",
            "too many elements",
        ),
        "rank_bomb": (
            good.patched(f"{tensor0}.shape", "<I", 0xFFFFFFFF),
            f"{tensor0}.shape",
            "dimensions",
        ),
        "rank_past_end": (
            bytes(request(b"", [], [tensor(10, shape(), None)], None).out[:-4])
            + struct.pack("<I", 9),
            f"{tensor0}.shape",
            "past the end",
        ),
        "data_short": (
            with_tensor(tensor(10, shape(2, 2), FLOATS[:12])),
            f"{tensor0}.data",
            "needs 16 bytes",
        ),
        "data_long": (with_tensor(tensor(10, shape(), FLOATS)), f"{tensor0}.data", "needs 4 bytes"),
        "data_absent": (
            with_tensor(tensor(10, shape(1), None)),
            f"{tensor0}.data",
            "needs 4 bytes",
        ),
        "data_bomb": (
            good.patched(f"{tensor0}.data", "<I", 0xFFFFFFFF),
            f"{tensor0}.data",
            "past the frame",
        ),
        "data_and_strings": (with_tensor(both), f"{tensor0}.string_val", "with data"),
        "strings_and_data": (with_tensor(text_and_data), f"{tensor0}.string_val", "with data"),
        "strings_fewer": (
            with_tensor(tensor(12, shape(2), [b"x"])),
            f"{tensor0}.string_val",
            "needs 2 strings",
        ),
        "strings_bomb": (
            texts.patched(f"{tensor0}.string_val", "<I", 0xFFFFFFFF),
            f"{tensor0}.string_val",
            "left of the limit",
        ),
        "strings_past_end": (
            texts.patched(f"{tensor0}.string_val", "<I", 40),
            f"{tensor0}.string_val",
            "past the frame",
        ),
        "string_bomb": (
            texts.patched(f"{tensor0}.string_val[1]", "<I", 0xFFFFFFFF),
            f"{tensor0}.string_val",
            "overlaps others or the end",
        ),
    }
    out = {name: (frame, "request", field, why) for name, (frame, field, why) in requests.items()}
    out |= {
        "reply_empty": (b"", "reply", "root table", "past the end"),
        "reply_type_null": (
            bytes(reply([tensor(0, shape(1), FLOATS[:4])]).out),
            "reply",
            "output_tensors[0].type",
            "Null or absent",
        ),
        "reply_data_bomb": (
            answer.patched("output_tensors[0].data", "<I", 1 << 20),
            "reply",
            "output_tensors[0].data",
            "past the frame",
        ),
        "reply_errors_bomb": (
            reply([], []).patched("errors", "<I", 0xFFFFFFFF),
            "reply",
            "errors",
            "at most",
        ),
        "reply_error_message_bomb": (
            reply([], [Table("Error", None, b"x")]).patched("errors[0].message", "<I", 1 << 19),
            "reply",
            "errors[0].message",
            "at most",
        ),
        "metadata_size_below_minus_one": (
            bytes(metadata([io(b"a", 1, shape(-2))], []).out),
            "metadata",
            "inputs[0].shape",
            "below -1",
        ),
        "metadata_type_unknown": (
            bytes(metadata([], [io(b"a", 99, shape(1))]).out),
            "metadata",
            "outputs[0].type",
            "unknown type",
        ),
        "metadata_inputs_bomb": (
            metadata([], []).patched("inputs", "<I", 1 << 31),
            "metadata",
            "inputs",
            "at most",
        ),
    }
    return out
