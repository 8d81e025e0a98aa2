"""The fakes cannot drift: what they have, the real libraries have under the same names."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.backends import fake_tensorrt
from tests.unit.backends.fake_cuda import CUresult, FakeDriver
from tests.unit.backends.tensorrt_real import real

from penstock.backends.tensorrt.cuda import Device, driver_missing

CALLS = sorted(name for name in vars(FakeDriver) if name.startswith("cu"))
CLASSES = ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache")
ENUMS = (
    "DataType", "TensorIOMode", "TensorLocation", "TensorFormat",
    "ExecutionContextAllocationStrategy",
)  # fmt: skip


@pytest.fixture
def driver() -> Any:
    pytest.importorskip("cuda.bindings")
    return importlib.import_module("cuda.bindings.driver")


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_driver(driver: Any, name: str) -> None:
    real_call = getattr(driver, name)
    theirs = list(inspect.signature(real_call).parameters)
    ours = [p for p in inspect.signature(getattr(FakeDriver, name)).parameters if p != "self"]
    assert ours == theirs


def test_results_and_attributes_of_the_driver(driver: Any) -> None:
    for status in CUresult:
        assert getattr(driver.CUresult, status.name) == status.value
    for name, value in vars(FakeDriver.CUdevice_attribute).items():
        assert getattr(driver.CUdevice_attribute, name) == value


def test_the_driver_takes_what_we_pass(driver: Any) -> None:
    if not driver_missing():
        pytest.skip("there is a driver here, which would act on these addresses")
    device = Device.__new__(Device)
    device._driver = driver
    stream, event = driver.CUstream(), driver.CUevent()
    absent = type(_raised(lambda: driver.cuInit(0)))
    for call in (
        lambda: device.stream(),
        lambda: device.event(sleeps=True),
        lambda: device.record(event, stream),
        lambda: device.wait(event),
        lambda: device.drain(stream),
        lambda: device.allocate(256),
        lambda: device.free(driver.CUdeviceptr(4096)),
        lambda: device.pin(4096),
        lambda: device.unpin(4096),
        lambda: device.copy_in(4096, 8192, 16, stream),
        lambda: device.copy_out(8192, 4096, 16, stream),
    ):
        # Arguments are converted first: what fails is that there is nobody to hand them to.
        assert type(_raised(call)) is absent
    assert type(_raised(lambda: device.copy_in("here", 8192, 16, stream))) is not absent


def _raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as raised:
        call()
    return raised.value


@pytest.mark.parametrize("name", CLASSES)
def test_methods(name: str) -> None:
    fake = getattr(fake_tensorrt, name)
    theirs = getattr(real(), name)
    for method in (m for m in vars(fake) if not m.startswith("_")):
        assert hasattr(theirs, method), f"{name} has no {method}"
        stated = re.match(rf"{method}\((.*?)\) ->", getattr(theirs, method).__doc__ or "")
        if stated:
            names = [n for n in re.findall(r"(\w+): [^\d]", stated[1]) if n != "self"]
            ours = list(inspect.signature(getattr(fake, method)).parameters)[1:]
            assert ours == names, f"{name}.{method}"


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations(name: str) -> None:
    fake, theirs = getattr(fake_tensorrt, name), getattr(real(), name)
    for member in fake:
        assert int(theirs.__members__[member.name]) == member.value, member


def test_what_only_instances_have() -> None:
    trt = real()
    for kind, names in {
        "Runtime": ("engine_host_code_allowed",),
        "ICudaEngine": ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"),
    }.items():
        for name in names:
            assert hasattr(getattr(trt, kind), name), (kind, name)
    document = trt.IOutputAllocator.__doc__
    for callback in ("reallocate_output", "reallocate_output_async", "notify_shape"):
        assert f"def {callback}(self" in document
