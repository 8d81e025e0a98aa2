"""Tensors in shared memory, over HTTP: system memory, and what is said about CUDA memory where
there is no GPU."""

import base64
import struct
from typing import Any

from ..case import Case, get, infer, post, tensor
from ..replay import MEMORY_BYTES, MEMORY_KEY

_SYSTEM = "/v2/systemsharedmemory"
_CUDA = "/v2/cudasharedmemory"
_IN = struct.pack("<4i", 1, 2, 3, 4)


def _register(name: str, region: str = "box", **changes: Any) -> Case:
    document = {"key": MEMORY_KEY, "offset": 0, "byte_size": MEMORY_BYTES, **changes}
    document = {k: v for k, v in document.items() if v is not None}
    return post(name, f"{_SYSTEM}/region/{region}/register", document)


def _given(region: Any = "box", size: Any = 16, offset: Any = 0, shape: Any = (1, 4)) -> list[Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size}
    if offset:
        parameters["shared_memory_offset"] = offset
    return [tensor("INPUT0", "INT32", list(shape), **parameters)]


def _wanted(region: Any = "box", size: Any = 16, offset: Any = 64, **more: Any) -> list[Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size, **more}
    if offset:
        parameters["shared_memory_offset"] = offset
    return [{"name": "OUTPUT0", "parameters": parameters}]


def _infer(name: str, inputs: Any, outputs: Any = None, **more: Any) -> Case:
    return infer(name, "identity_int32", inputs, outputs, memory=(_IN + bytes(4080)) * 2, **more)


CASES: list[Case] = [
    get("status of nothing", f"{_SYSTEM}/status"),
    get("status of an unknown region", f"{_SYSTEM}/region/box/status"),
    _infer("input in an unknown region", _given()),
    _infer("output in an unknown region", [tensor("INPUT0", "INT32", [1, 4], [1, 2, 3, 4])],
           _wanted()),
    _register("register"),
    get("status", f"{_SYSTEM}/status"),
    get("status of it", f"{_SYSTEM}/region/box/status"),
    _register("register again"),
    _register("register an unknown key", "other", key="/penstock-nobody"),
    _register("register beyond the file", "other", byte_size=MEMORY_BYTES * 4),
    _register("register an offset beyond the file", "other", offset=MEMORY_BYTES * 4, byte_size=16),
    _register("register nothing", "other", byte_size=0),
    _register("register below zero", "other", byte_size=-1),
    _register("register below zero from", "other", offset=-1),
    _register("register without a key", "other", key=None),
    _register("register without a size", "other", byte_size=None),
    _register("register with a size in quotes", "other", byte_size="16"),
    _register("register with a key of another type", "other", key=7),
    _register("register with a reserved key", "other", key="/triton_python_backend_shm_region_x"),
    _register("register a second name for a key", "second"),
    post("register with bad JSON", f"{_SYSTEM}/region/other/register", "{", check="status"),
    post("register without a body", f"{_SYSTEM}/region/other/register", "", check="error"),
    _infer("input", _given()),
    _infer("input and output", _given(), _wanted(), peek=80),
    _infer("output of a tensor in JSON", [tensor("INPUT0", "INT32", [1, 4], [9, 8, 7, 6])],
           _wanted(), peek=80),
    _infer("input from an offset", _given("box", 8, 8, (1, 2))),
    _infer("input beyond the region", _given("box", 16, MEMORY_BYTES - 8)),
    _infer("input from beyond the region", _given("box", 16, MEMORY_BYTES + 8)),
    _infer("input of a size less than its shape", _given("box", 12)),
    _infer("input of a size more than its shape", _given("box", 20)),
    _infer("input of no size", [tensor("INPUT0", "INT32", [1, 4], shared_memory_region="box")]),
    _infer("input with a size in quotes", _given("box", "16")),
    _infer("input in a region of another type", _given(7)),
    _infer("input with an offset below zero", _given("box", 16, -4)),
    _infer("input with data too", [{**_given()[0], "data": [5, 6, 7, 8]}]),
    _infer("output that does not fit", _given(), _wanted("box", 8)),
    _infer("output larger than needed", _given(), _wanted("box", 64), peek=96),
    _infer("output beyond the region", _given(), _wanted("box", 16, MEMORY_BYTES - 8)),
    _infer("output of no size", _given(),
           [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "box"}}]),
    _infer("output as binary too", _given(), _wanted(binary_data=True), peek=80),
    _infer("output as classes", _given(), _wanted(classification=2), check="status"),
    infer("strings", "identity_bytes",
          [tensor("INPUT0", "BYTES", [1, 1], shared_memory_region="box",
                  shared_memory_byte_size=6)],
          memory=b"\2\0\0\0ab"),
    infer("strings that are cut off", "identity_bytes",
          [tensor("INPUT0", "BYTES", [1, 1], shared_memory_region="box",
                  shared_memory_byte_size=5)],
          memory=b"\2\0\0\0ab"),
    post("unregister", f"{_SYSTEM}/region/box/unregister", ""),
    post("unregister again", f"{_SYSTEM}/region/box/unregister", ""),
    post("unregister all", f"{_SYSTEM}/unregister", ""),
    _register("register a part", "part", offset=4096, byte_size=64),
    get("status of a part", f"{_SYSTEM}/status"),
    _infer("input and output in a part", _given("part"), _wanted("part", offset=16), peek=4128),
    _infer("output beyond a part", _given("part"), _wanted("part", offset=60)),
    post("unregister a part", f"{_SYSTEM}/region/part/unregister", ""),
    _register("register from within a page", "odd", offset=64, byte_size=64),
    post("unregister all again", f"{_SYSTEM}/unregister", ""),
    get("status after it", f"{_SYSTEM}/status"),
    _infer("input after it", _given()),
    post("wrong method for status", f"{_SYSTEM}/status", ""),
    get("wrong method for register", f"{_SYSTEM}/region/box/register"),
    get("CUDA status of nothing", f"{_CUDA}/status", check="shape"),
    get("CUDA status of an unknown region", f"{_CUDA}/region/box/status"),
    post("CUDA register", f"{_CUDA}/region/box/register",
         {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0,
          "byte_size": 64}, check="error"),
    post("CUDA unregister", f"{_CUDA}/region/box/unregister", ""),
    post("CUDA unregister all", f"{_CUDA}/unregister", ""),
]  # fmt: skip
