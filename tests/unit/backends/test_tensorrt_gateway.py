"""The zoo's model through the gateway: workers with contexts of their own, batches, unloading."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests.unit.backends.fake_cuda import FakeDriver
from tests.unit.backends.fake_tensorrt import FakeTrt, of_onnx
from tests.unit.backends.tensorrt_real import real_library
from tests.zoo import digits
from tests.zoo import tensorrt as zoo

from penstock.backends import catalog
from penstock.backends.base import ModelSource
from penstock.backends.onnxruntime import OnnxRuntimeBackend
from penstock.backends.tensorrt import Machine, TensorRtBackend
from penstock.backends.tensorrt.facade import Library
from penstock.protocol import dtype as dt
from penstock.protocol.message import InferRequest, Signature, TensorSpec
from penstock.server.gateway import Gateway
from penstock.server.model_loading import LoadOptions
from penstock.server.models import ModelTable
from penstock.server.repository import Repository, RepositoryOptions


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    """Under the catalog's backend, whose plans are really built and computed by ONNX Runtime."""
    library, driver = real_library(), FakeDriver()
    trt = FakeTrt(driver, library.version, real=library.trt)
    trt.default = of_onnx(digits.MODEL.read_bytes(), digits.ROWS_MAX)
    made = Library("tensorrt_rtx", trt)
    machine = Machine(
        missing=lambda: "",
        devices=lambda: ("cuda:0 (Fake H200)",),
        driver=lambda: driver,
        installed=lambda: {"tensorrt_rtx": library.version},
        library=lambda _kind: made,
    )
    monkeypatch.setitem(catalog._made, "tensorrt", TensorRtBackend(machine))
    monkeypatch.setenv("PENSTOCK_TENSORRT_CACHE", str(tmp_path / "cache"))
    return driver


async def test_digits(driver: FakeDriver, tmp_path: Path) -> None:
    version = tmp_path / "models" / "digits" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(zoo.write(version))
    table = ModelTable()
    options = RepositoryOptions(
        (tmp_path / "models",), load=LoadOptions(code_backends=("tensorrt",))
    )
    repository = Repository(options, table)
    await repository.load_all()
    (entry,) = table
    assert entry.reason == ""
    assert len(driver.streams) == 2
    pictures = digits.pictures()[:300]
    wanted = OnnxRuntimeBackend().load(ModelSource("cpu", digits.MODEL)).run([pictures])[0]
    gateway = Gateway(table)

    async def ask(first: int, rows: int) -> None:
        given = pictures[first : first + rows]
        signature = Signature([TensorSpec("image", dt.FP32, given.shape)])
        reply = await gateway.predict(InferRequest(signature, [given], model="digits"))
        found = reply.named()["probabilities"]
        np.testing.assert_allclose(found, wanted[first : first + rows], atol=zoo.TOLERANCE)

    await asyncio.gather(*(ask(i, 1 + i % 5) for i in range(290)))
    await repository.close()
    assert driver.held() == 0
