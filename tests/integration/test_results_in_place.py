"""Large results in shared memory are right, whoever writes them: the engine in place, or a copy."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from onnx import TensorProto, helper

from penstock.loadtest.models import write_identity

pytest.importorskip("onnxruntime")

SIZE = 1 << 20
COUNT = SIZE // 4


def write_slice(path: Path, inputs: list[str], **constants: int) -> None:
    """``y`` = ONNX's Slice of ``x``; its other inputs are constants, or else the model's."""
    value = helper.make_tensor_value_info
    given = [name for name in inputs if name not in constants]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", *inputs], ["y"])],
        "slice",
        [
            value("x", TensorProto.FLOAT, ["A"]),
            *[value(name, TensorProto.INT64, [1]) for name in given],
        ],
        [value("y", TensorProto.FLOAT, ["B"])],
        [helper.make_tensor(key, TensorProto.INT64, [1], [n]) for key, n in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.parent.mkdir(parents=True)
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )


class Client:
    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: object) -> dict:
        with urlopen(Request(self.url + path, json.dumps(body).encode()), timeout=30) as reply:
            return json.loads(reply.read() or b"{}")

    def register(self, name: str, key: str, size: int) -> None:
        body = {"key": key, "offset": 0, "byte_size": size}
        self.post(f"/v2/systemsharedmemory/region/{name}/register", body)

    def infer(self, model: str, inputs: list[dict], output: dict) -> dict:
        made = self.post(f"/v2/models/{model}/infer", {"inputs": inputs, "outputs": [output]})
        return made["outputs"][0]


def at(region: str, offset: int = 0, size: int = SIZE) -> dict:
    return {
        "parameters": {
            "shared_memory_region": region,
            "shared_memory_byte_size": size,
            "shared_memory_offset": offset,
        }
    }


def tensor(name: str, shape: list[int], place: dict) -> dict:
    return {"name": name, "datatype": "FP32", "shape": shape, **place}


@pytest.fixture(scope="module")
def client(tmp_path_factory, model_server) -> Client:
    root = tmp_path_factory.mktemp("models")
    write_identity(root / "identity" / "1" / "model.onnx")
    # The first n of x: a shape that depends on data. And x backwards.
    write_slice(root / "head" / "1" / "model.onnx", ["from", "n"], **{"from": 0})
    write_slice(
        root / "reverse" / "1" / "model.onnx",
        ["last", "first", "axis", "step"],
        last=-1,
        first=-(1 << 60),
        axis=0,
        step=-1,
    )
    return Client(model_server(root, "--allow-client-shm").url)


@pytest.fixture
def memory() -> Iterator[tuple[str, np.ndarray]]:
    """A shared object of two places for a megabyte each, and its key."""
    key = f"penstock-{os.getpid()}-{uuid.uuid4().hex}"
    shared = shared_memory.SharedMemory(key, create=True, size=2 * SIZE)
    view = np.ndarray((2 * COUNT,), np.float32, shared.buf)
    yield key, view
    del view
    shared.close()
    shared.unlink()


def test_each_request_gets_its_own_result(client, memory):
    key, view = memory
    client.register(key, key, 2 * SIZE)
    for value in range(5):  # the first teaches the shape
        view[:COUNT] = np.arange(COUNT) + value
        view[COUNT:] = -1
        given = tensor("INPUT0", [1, COUNT], at(key))
        made = client.infer("identity", [given], {"name": "OUTPUT0", **at(key, SIZE)})
        assert made["shape"] == [1, COUNT]
        assert np.array_equal(view[COUNT:], view[:COUNT])
        assert view[0] == value


@pytest.mark.parametrize("names", [1, 2])
def test_results_over_their_own_inputs(client, memory, names):
    """In the same place, under one name for the memory or under two: who wrote there before all is
    read would read what it wrote."""
    key, view = memory
    regions = [f"{key}-{i}" for i in range(names)]
    for region in regions:
        client.register(region, key, 2 * SIZE)
    for value in range(3):
        view[:COUNT] = np.arange(COUNT) + value
        wanted = view[:COUNT][::-1].copy()
        given = tensor("x", [COUNT], at(regions[0]))
        client.infer("reverse", [given], {"name": "y", **at(regions[-1])})
        assert np.array_equal(view[:COUNT], wanted)


def test_shapes_that_depend_on_data(client, memory):
    key, view = memory
    client.register(key, key, 2 * SIZE)
    for count in (COUNT, COUNT, COUNT // 2, 3, COUNT, COUNT - 1):
        view[:COUNT] = np.arange(COUNT)
        view[COUNT:] = -1
        n = {"name": "n", "datatype": "INT64", "shape": [1], "data": [count]}
        made = client.infer(
            "head", [tensor("x", [COUNT], at(key)), n], {"name": "y", **at(key, SIZE)}
        )
        assert made["shape"] == [count]
        assert np.array_equal(view[COUNT : COUNT + count], view[:count])
