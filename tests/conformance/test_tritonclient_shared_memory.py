"""The stock Triton clients and their ``utils.shared_memory``, unmodified, on a server elsewhere.

Every test runs on each wire that the server speaks; what differs between the clients of two wires
is in ``Wire``.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.loadtest.models import write_add_sub, write_identity
from penstock.protocol import dtype as dt

pytest.importorskip("tritonclient.http")
pytest.importorskip("onnxruntime")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's imports are not ours to warn about
    import tritonclient.grpc as grpc
    import tritonclient.grpc.aio as grpc_aio
    import tritonclient.http as http
    import tritonclient.http.aio as http_aio
    from tritonclient.utils import (
        InferenceServerException,
        np_to_triton_dtype,
        serialize_byte_tensor,
    )
    from tritonclient.utils import shared_memory as shm

ROWS = np.arange(32, dtype=np.int32).reshape(2, 16)
DTYPES = ["BOOL", "UINT8", "INT16", "UINT64", "FP16", "FP32", "FP64"]


@dataclass(frozen=True)
class Wire:
    """The modules of one wire's clients, and where the server is. As it is, for HTTP."""

    sync: Any
    aio: Any
    authority: str

    def ask(self, model: str, inputs: list[Any], outputs: list[Any]) -> Any:
        with self.sync.InferenceServerClient(self.authority) as client:
            return client.infer(model, inputs, outputs=outputs)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """The regions, as HTTP describes them."""
        with self.sync.InferenceServerClient(self.authority) as client:
            found: list[dict[str, Any]] = client.get_system_shared_memory_status(name)
        return found

    def shapes(self, result: Any) -> dict[str, list[int]]:
        """The outputs that a reply lists."""
        return {o["name"]: o["shape"] for o in result.get_response()["outputs"]}

    def input(self, name: str, array: Any, region: str, offset: int = 0, size: int = -1) -> Any:
        made = self.sync.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.set_shared_memory(region, array.nbytes if size < 0 else size, offset)
        return made

    def output(self, name: str, region: str, size: int, offset: int = 0) -> Any:
        made = self.sync.InferRequestedOutput(name)
        made.set_shared_memory(region, size, offset)
        return made


class GrpcWire(Wire):
    def status(self, name: str = "") -> list[dict[str, Any]]:
        with self.sync.InferenceServerClient(self.authority) as client:
            found = client.get_system_shared_memory_status(name).regions
        return [
            {"name": key, "key": r.key, "offset": r.offset, "byte_size": r.byte_size}
            for key, r in sorted(found.items())
        ]

    def shapes(self, result: Any) -> dict[str, list[int]]:
        return {output.name: list(output.shape) for output in result.get_response().outputs}


class Regions:
    """Regions of this process; all are destroyed at the end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._handles: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._handles[name]

    def create(self, name: str, size: int, *arrays: Any) -> str:
        """Creates the region, lays ``arrays`` into it, and registers it."""
        key = f"/penstock-{os.getpid()}-{name}"
        self._handles[name] = shm.create_shared_memory_region(name, key, size)
        if arrays:
            shm.set_shared_memory_region(self[name], list(arrays))
        with self._wire.sync.InferenceServerClient(self._wire.authority) as client:
            client.register_system_shared_memory(name, key, size)
        return key

    def found(self, name: str, like: Any, offset: int = 0) -> Any:
        # A copy: the region could not be destroyed while there is an array over it.
        return shm.get_contents_as_numpy(self[name], like.dtype, like.shape, offset).copy()

    def destroy(self) -> None:
        with self._wire.sync.InferenceServerClient(self._wire.authority) as client:
            client.unregister_system_shared_memory()
        for handle in self._handles.values():
            shm.destroy_shared_memory_region(handle)


@pytest.fixture(scope="module")
def served(model_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root: Path = tmp_path_factory.mktemp("shared-models")
    write_add_sub(root / "simple" / "1" / "model.onnx")
    for name in (*DTYPES, "BYTES"):
        write_identity(root / f"identity-{name}" / "1" / "model.onnx", dt.BY_NAME[name])
    return model_server(root, "--allow-client-shm=true")


def wires_of(served: Any) -> dict[str, Wire]:
    return {
        "http": Wire(http, http_aio, served.authority),
        "grpc": GrpcWire(grpc, grpc_aio, f"127.0.0.1:{served.grpc}"),
    }


@pytest.fixture(params=["http", "grpc"])
def wire(request: pytest.FixtureRequest, served: Any) -> Wire:
    return wires_of(served)[request.param]


@pytest.fixture
def regions(wire: Wire) -> Iterator[Regions]:
    regions = Regions(wire)
    yield regions
    regions.destroy()


def test_the_life_of_a_region(wire: Wire, regions: Regions) -> None:
    key = regions.create("one", 128)
    regions.create("two", 64)
    assert wire.status("one") == [{"name": "one", "key": key, "offset": 0, "byte_size": 128}]
    assert [region["name"] for region in wire.status()] == ["one", "two"]
    with wire.sync.InferenceServerClient(wire.authority) as client:
        with pytest.raises(InferenceServerException, match="'one' already in manager"):
            client.register_system_shared_memory("one", key, 128)
        client.unregister_system_shared_memory("one")
        client.register_system_shared_memory("one", key, 100, offset=28)
        assert wire.status("one")[0]["offset"] == 28
        client.unregister_system_shared_memory()
        assert wire.status() == []
        client.unregister_system_shared_memory("one")  # not there: no error, as with Triton
        with pytest.raises(InferenceServerException, match="Unable to find system shared memory"):
            client.get_system_shared_memory_status("one")
        with pytest.raises(InferenceServerException, match="Unable to open shared memory region"):
            client.register_system_shared_memory("one", "/penstock-absent", 8)
        with pytest.raises(InferenceServerException, match="'one': invalid args"):
            client.register_system_shared_memory("one", key, 129)


def test_in_and_out(wire: Wire, regions: Regions) -> None:
    regions.create("in", 2 * ROWS.nbytes, ROWS, ROWS * 10)
    regions.create("out", 2 * ROWS.nbytes)
    inputs = [
        wire.input("INPUT0", ROWS, "in"),
        wire.input("INPUT1", ROWS, "in", offset=ROWS.nbytes),
    ]
    outputs = [
        wire.output("OUTPUT0", "out", ROWS.nbytes),
        wire.output("OUTPUT1", "out", ROWS.nbytes, offset=ROWS.nbytes),
    ]
    for step in (1, 2, 3):
        shm.set_shared_memory_region(regions["in"], [ROWS * step])
        result = wire.ask("simple", inputs, outputs)
        np.testing.assert_array_equal(regions.found("out", ROWS), ROWS * (step + 10))
        np.testing.assert_array_equal(regions.found("out", ROWS, ROWS.nbytes), ROWS * (step - 10))
    assert wire.shapes(result) == {"OUTPUT0": [2, 16], "OUTPUT1": [2, 16]}


def test_only_in_and_only_out(wire: Wire, regions: Regions) -> None:
    regions.create("in", 2 * ROWS.nbytes, ROWS, ROWS)
    regions.create("out", ROWS.nbytes)
    shared = [wire.input(name, ROWS, "in") for name in ("INPUT0", "INPUT1")]
    plain = [wire.sync.InferInput(n, [2, 16], "INT32") for n in ("INPUT0", "INPUT1")]
    for tensor in plain:
        tensor.set_data_from_numpy(ROWS)
    wanted = wire.sync.InferRequestedOutput("OUTPUT0")
    result = wire.ask("simple", shared, [wanted])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROWS * 2)
    result = wire.ask("simple", [shared[0], plain[1]], [wanted])  # one of each
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROWS * 2)
    other = wire.sync.InferRequestedOutput("OUTPUT1")
    result = wire.ask("simple", plain, [wire.output("OUTPUT0", "out", ROWS.nbytes), other])
    np.testing.assert_array_equal(regions.found("out", ROWS), ROWS * 2)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), ROWS * 0)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_type(wire: Wire, regions: Regions, datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dt.BY_NAME[datatype].numpy)
    regions.create("in", 64, array)
    regions.create("out", 64)
    size = array.nbytes
    wire.ask(
        f"identity-{datatype}",
        [wire.input("INPUT0", array, "in")],
        [wire.output("OUTPUT0", "out", size, offset=8)],
    )
    np.testing.assert_array_equal(regions.found("out", array, 8), array)


def test_strings(wire: Wire, regions: Regions) -> None:
    array = np.array([[b"a", b"", "\u00e9\U0001f600".encode()]], object)
    raw = serialize_byte_tensor(array)
    size = len(raw.item())
    regions.create("in", size, raw)
    regions.create("out", 100)
    result = wire.ask(
        "identity-BYTES",
        [wire.input("INPUT0", array, "in", size=size)],
        [wire.output("OUTPUT0", "out", 100)],
    )
    np.testing.assert_array_equal(regions.found("out", array), array)
    assert wire.shapes(result) == {"OUTPUT0": [1, 3]}


def test_errors_of_requests(wire: Wire, regions: Regions) -> None:
    regions.create("in", 4 * ROWS.nbytes, ROWS, ROWS)
    regions.create("out", ROWS.nbytes)
    good = [wire.input(name, ROWS, "in") for name in ("INPUT0", "INPUT1")]
    out = wire.output("OUTPUT0", "out", ROWS.nbytes)
    size = ROWS.nbytes
    cases: list[tuple[str, list[Any], list[Any]]] = [
        (
            f"input byte size mismatch for input 'INPUT1' for model 'simple'. Expected {size}, "
            f"got {2 * size}",
            [good[0], wire.input("INPUT1", ROWS, "in", size=2 * size)], [out],
        ),
        (
            "Invalid offset for shared memory region: 'in'",
            [good[0], wire.input("INPUT1", ROWS, "in", offset=4 * size)], [out],
        ),
        (
            "Invalid offset + byte size for shared memory region: 'out'",
            good, [wire.output("OUTPUT0", "out", size + 1)],
        ),
        (
            f"'OUTPUT0' ({size - 1} bytes) should be at least {size} bytes to hold the results",
            good, [wire.output("OUTPUT0", "out", size - 1)],
        ),
        ("Unable to find shared memory region: 'absent'",
         [good[0], wire.input("INPUT1", ROWS, "absent")], [out]),
    ]  # fmt: skip
    for text, inputs, outputs in cases:
        with pytest.raises(InferenceServerException) as caught:
            wire.ask("simple", inputs, outputs)
        assert text in str(caught.value)
    wire.ask("simple", good, [out])
    np.testing.assert_array_equal(regions.found("out", ROWS), ROWS * 2)


async def test_many_clients_at_once(wire: Wire, regions: Regions) -> None:
    """Async clients, each with regions of its own, while others come and go."""
    numbers = range(4)
    for number in numbers:
        regions.create(f"in-{number}", 2 * ROWS.nbytes)
        regions.create(f"out-{number}", ROWS.nbytes)

    async def ask(client: Any, number: int) -> None:
        name = f"in-{number}"
        inputs = [
            wire.input("INPUT0", ROWS, name),
            wire.input("INPUT1", ROWS, name, offset=ROWS.nbytes),
        ]
        outputs = [wire.output("OUTPUT0", f"out-{number}", ROWS.nbytes)]
        for step in range(25):
            shm.set_shared_memory_region(regions[name], [ROWS * number, ROWS * step])
            await client.infer("simple", inputs, outputs=outputs)
            found = regions.found(f"out-{number}", ROWS)
            np.testing.assert_array_equal(found, ROWS * (number + step))

    async def come_and_go(client: Any) -> None:
        for step in range(25):
            await client.register_system_shared_memory(
                f"guest-{step}", f"/penstock-{os.getpid()}-in-0", 64
            )
            await client.unregister_system_shared_memory(f"guest-{step}")

    async with wire.aio.InferenceServerClient(wire.authority) as client:
        await asyncio.gather(come_and_go(client), *[ask(client, n) for n in numbers])


def test_a_client_that_starts_over(wire: Wire, regions: Regions) -> None:
    """The object is deleted and made anew, larger: the old mapping stays until it is replaced."""
    key = regions.create("in", ROWS.nbytes, ROWS)
    inputs = [wire.input(name, ROWS, "in") for name in ("INPUT0", "INPUT1")]
    wanted = [wire.sync.InferRequestedOutput("OUTPUT0")]
    shm.destroy_shared_memory_region(regions["in"])
    result = wire.ask("simple", inputs, wanted)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROWS * 2)
    with wire.sync.InferenceServerClient(wire.authority) as client:
        client.unregister_system_shared_memory("in")
        with pytest.raises(InferenceServerException, match="Unable to open shared memory region"):
            client.register_system_shared_memory("in", key, ROWS.nbytes)
    regions.create("in", 4 * ROWS.nbytes, ROWS * 3)
    result = wire.ask("simple", inputs, wanted)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), ROWS * 6)


def test_cuda_regions_are_refused_without_cuda(wire: Wire) -> None:
    with wire.sync.InferenceServerClient(wire.authority) as client:
        with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory"):
            client.get_cuda_shared_memory_status("gpu")
        with pytest.raises(InferenceServerException, match="failed to register"):
            client.register_cuda_shared_memory("gpu", b64encode(bytes(64)).decode(), 0, 64)
        client.unregister_cuda_shared_memory()


@pytest.mark.parametrize("name", ["http", "grpc"])
def test_a_server_that_does_not_allow_it(
    name: str, model_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("private-models")
    write_add_sub(root / "simple" / "1" / "model.onnx")
    wire = wires_of(model_server(root))[name]
    disabled = "Client shared memory is disabled. Start the server with '--allow-client-shm=true'"
    inputs = [wire.input(name, ROWS, "in") for name in ("INPUT0", "INPUT1")]
    with pytest.raises(InferenceServerException) as caught:
        wire.ask("simple", inputs, [])
    assert disabled in str(caught.value)
    with wire.sync.InferenceServerClient(wire.authority) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.register_system_shared_memory("in", "/penstock", 8)
        assert disabled in str(caught.value)
        assert "system_shared_memory" not in str(client.get_server_metadata())
    assert wire.status() == []


def test_large_tensors(wire: Wire, regions: Regions) -> None:
    array = np.arange(64 << 16, dtype=np.float32).reshape(64, 1 << 16)  # 16 MiB
    regions.create("in", array.nbytes)
    regions.create("out", array.nbytes)
    for step in range(3):
        shm.set_shared_memory_region(regions["in"], [array + step])
        wire.ask(
            "identity-FP32",
            [wire.input("INPUT0", array, "in")],
            [wire.output("OUTPUT0", "out", array.nbytes)],
        )
        np.testing.assert_array_equal(regions.found("out", array), array + step)
