"""The TensorRT backend over fakes of the runtime and of CUDA: what a GPU would have to do."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.backends.fake_cuda import FakeDriver
from tests.unit.backends.fake_tensorrt import ADD_SUB, LATE, FakeTrt, Model, Tensor, batched, plan

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.tensorrt import Machine, TensorRtBackend
from penstock.backends.tensorrt.facade import Library

VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


@dataclasses.dataclass
class Bench:
    """A backend over fakes, and what they saw."""

    driver: FakeDriver
    trt: FakeTrt
    backend: TensorRtBackend
    folder: Path
    kind: str

    def source(self, model: str = "add_sub", **more: Any) -> ModelSource:
        path = self.folder / "1" / "model.plan"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            numbers = tuple(int(part) for part in VERSIONS[self.kind].split("."))
            path.write_bytes(plan(model, numbers))
        options = {"cache_dir": str(self.folder / "cache"), **more.pop("options", {})}
        return ModelSource("m", path, more.pop("device", "cuda:0"), options=options, **more)


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def bench(kind: str = "tensorrt", memory_bytes: int = 1 << 30, devices: int = 1) -> Bench:
        driver = FakeDriver(memory_bytes, devices)
        trt = FakeTrt(driver, VERSIONS[kind])
        library = Library(kind, trt)
        machine = Machine(
            missing=lambda: "",
            devices=lambda: ("cuda:0 (Fake H200)",),
            driver=lambda: driver,
            installed=lambda: {kind: VERSIONS[kind]},
            library=lambda _kind: library,
        )
        return Bench(driver, trt, TensorRtBackend(machine), tmp_path, kind)

    return bench


def rows(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.random((count, 16), np.float32) for _ in range(2)]


def assert_add_sub(outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
    np.testing.assert_array_equal(outputs[0], inputs[0] + inputs[1])
    np.testing.assert_array_equal(outputs[1], inputs[0] - inputs[1])


@pytest.mark.parametrize("kind", list(VERSIONS))
def test_contract(make: Make, kind: str) -> None:
    bench = make(kind)
    inputs = rows(3)
    case = Case(inputs, [inputs[0] + inputs[1], inputs[0] - inputs[1]])
    report = check_backend(bench.backend, bench.source(rows_max=8), cases=[case])
    assert {"batches", "clones", "results in place", "engine", "load errors"} <= set(report.held)
    assert bench.driver.held() == 0


def test_sizes_that_only_a_run_tells(make: Make) -> None:
    bench = make()
    session = bench.backend.load(bench.source("late"))
    x = np.array([[0, 1, 0, 2], [3, 0, 0, 0]], np.float32)
    for array in (x, np.zeros_like(x), np.ones((8, 4), np.float32), x):
        found, twice = session.run([array])
        np.testing.assert_array_equal(found, np.argwhere(array))
        np.testing.assert_array_equal(twice, array * 2)
    place = np.zeros((3, 2), np.int64)
    assert session.run_into([x], [place, None])[0] is place
    np.testing.assert_array_equal(place, np.argwhere(x))
    with pytest.raises(RunError, match=r"FOUND.*\[3, 2\].*\[4, 2\]"):
        session.run_into([x], [np.zeros((4, 2), np.int64), None])
    session.close()
    assert bench.driver.held() == 0


def test_shapes_that_the_graph_refuses_leave_no_trace(make: Make) -> None:
    def compute(a: np.ndarray, b: np.ndarray) -> Sequence[np.ndarray]:
        if len(a) == 5:
            raise ValueError("Reshape: 5 rows do not fit")
        return a + b, a - b

    bench = make()
    bench.trt.models["add_sub"] = dataclasses.replace(ADD_SUB, compute=compute)
    session = bench.backend.load(bench.source())
    for _ in range(2):
        assert_add_sub(session.run(rows(8)), rows(8))
        with pytest.raises(RunError, match="refuses these shapes: Reshape: 5 rows") as refused:
            session.run(rows(5))
        assert refused.value.caller_fault
    session.close()


def test_results_that_are_largest_for_other_batches_than_the_largest(make: Make) -> None:
    bench = make()
    sizes = {2: 5000, 3: 90_000}
    bench.trt.models["grows"] = batched(
        [Tensor("X", "FLOAT", (-1, 4))],
        [Tensor("Y", "FLOAT", (-1, 4))],
        lambda x: [np.full((sizes.get(len(x), 3), 4), x.sum(), np.float32)],
    )
    session = bench.backend.load(bench.source("grows"))
    for count in (1, 2, 1, 8, 3, 1, 2):
        (found,) = session.run([np.ones((count, 4), np.float32)])
        assert found.shape == (sizes.get(count, 3), 4)
        assert (found == 4 * count).all()
    session.close()
    assert bench.driver.held() == 0


def test_memory_for_late_sizes_runs_out(make: Make) -> None:
    bench = make(memory_bytes=20_000)
    bench.trt.models["late"] = dataclasses.replace(
        LATE, compute=lambda x: (np.zeros((int(x[0, 0]), 2), np.int64), x)
    )
    session = bench.backend.load(bench.source("late"))
    for count in (3, 1 << 20, 5, 1 << 20):
        x = np.full((1, 4), count, np.float32)
        if count < 10:
            assert session.run([x])[0].shape == (count, 2)
            continue
        with pytest.raises(RunError, match="out of memory") as refused:
            session.run([x])
        assert not refused.value.caller_fault
    session.close()
    assert bench.driver.held() == 0


def test_what_a_plan_refuses_of_its_own_sizes(make: Make) -> None:
    bench = make()
    bench.trt.models["add_sub"] = dataclasses.replace(
        ADD_SUB, profiles=({"INPUT0": ((1, 16),) * 3, "INPUT1": ((2, 16), (1, 16), (1, 16))},)
    )
    with pytest.raises(LoadError, match="cannot run its own largest sizes: input 'INPUT1'"):
        bench.backend.load(bench.source())
    assert bench.driver.held() == 0


def test_each_size_runs_in_the_profile_that_was_built_for_it(make: Make) -> None:
    bench = make()
    session = bench.backend.load(bench.source())
    for count in (1, 2, 8, 1, 5):
        assert_add_sub(session.run(rows(count, count)), rows(count, count))
    assert bench.trt.executed == [(0, 1), (1, 2), (1, 8), (0, 1), (1, 5)]
    with pytest.raises(RunError, match=r"from \[1, 16\] to \[8, 16\]; not \[9, 16\]") as refused:
        session.run(rows(9))
    assert refused.value.caller_fault
    session.close()


@pytest.mark.parametrize("staging", [4096, 4160, 30_000, 1 << 20])
def test_tensors_larger_than_the_staging_memory(make: Make, staging: int) -> None:
    bench = make()
    wide = ("FLOAT", (-1, 3001))
    bench.trt.models["wide"] = batched(
        [Tensor("INPUT0", *wide), Tensor("INPUT1", *wide)],
        [Tensor("OUTPUT0", *wide), Tensor("OUTPUT1", *wide)],
        ADD_SUB.compute,
    )
    session = bench.backend.load(bench.source("wide", options={"staging_bytes": str(staging)}))
    random = np.random.default_rng(1)
    for count in (8, 1, 5):
        given = [random.random((count, 3001), np.float32) for _ in range(2)]
        assert_add_sub(session.run(given), given)
    assert max(len(block) for block in bench.driver.pinned.values()) == staging
    session.close()
    assert bench.driver.held() == 0


def test_every_element_type_and_no_dimensions(make: Make) -> None:
    bench = make()
    types = ("BOOL", "UINT8", "INT8", "INT32", "INT64", "HALF", "BF16", "FLOAT")
    given = [Tensor(f"I_{name}", name, ()) for name in types]
    made = [Tensor(f"O_{name}", name, ()) for name in types]
    bench.trt.models["all"] = Model(tuple(given), tuple(made), (), lambda *arrays: arrays)
    session = bench.backend.load(bench.source("all"))
    arrays = [np.array(1, spec.dtype.numpy) for spec in session.inputs]
    for spec, array in zip(session.outputs, session.run(arrays), strict=True):
        assert (array.shape, array.dtype, int(array)) == ((), spec.dtype.numpy, 1), spec
    session.close()


def test_empty_tensors(make: Make) -> None:
    bench = make()
    shape = ("FLOAT", (0, 4))
    bench.trt.models["none"] = Model(
        (Tensor("I", *shape),), (Tensor("O", *shape),), (), lambda array: [array]
    )
    session = bench.backend.load(bench.source("none"))
    assert session.run([np.empty((0, 4), np.float32)])[0].shape == (0, 4)
    session.close()


def test_shapes_met_before_ask_nothing(make: Make) -> None:
    bench = make()
    session = bench.backend.load(bench.source())
    session.run(rows(8))
    context = session._contexts[1]
    asked = []
    for name in ("set_input_shape", "set_tensor_address", "infer_shapes", "get_tensor_shape"):
        setattr(context, name, lambda *given, name=name: asked.append(name))
    waits = bench.driver.waits
    assert_add_sub(session.run(rows(8, 5)), rows(8, 5))
    assert asked == []
    assert bench.driver.waits == waits + 1
    session.close()


def test_shapes_remembered_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.backends.tensorrt.session._SHAPES_MAX", 3)
    bench = make()
    session = bench.backend.load(bench.source())
    for count in (1, 2, 3, 4, 5, 1, 2):
        assert_add_sub(session.run(rows(count)), rows(count))
        assert len(session._prepared) <= 3
    session.close()


def test_a_failed_execution_says_what_the_engine_said(make: Make) -> None:
    bench = make()
    session = bench.backend.load(bench.source())
    bench.trt.fails = "[executionContext.cpp::enqueueV3::99] Error Code 3: API Usage Error (no)"
    with pytest.raises(RunError, match=r"^API Usage Error \(no\)$") as refused:
        session.run(rows(2))
    assert not refused.value.caller_fault
    assert_add_sub(session.run(rows(2)), rows(2))
    session.close()


@pytest.mark.parametrize("kind", list(VERSIONS))
def test_a_lost_device_fails_runs_and_still_closes(
    make: Make, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    bench = make(kind)
    session = bench.backend.load(bench.source())
    other = session.clone()
    session.run(rows(2))
    bench.driver.lost = True
    said = "ILLEGAL_ADDRESS: illegal address; this process has lost the GPU: start it again"
    bench.trt.fails = "Error Code 1: Cuda Runtime (unspecified launch failure)"
    with pytest.raises(RunError, match=said):
        other.run(rows(1))
    for count in (2, 2, 7):
        with pytest.raises(RunError, match=said) as refused:
            session.run(rows(count))
        assert not refused.value.caller_fault
    with pytest.raises(LoadError, match=said):
        session.clone()
    with pytest.raises(LoadError, match=said):
        bench.backend.load(bench.source())
    for closed in (session, other):
        closed.close()
        assert closed._contexts == []
    assert bench.driver.retained == 0
    assert "the GPU is lost" in caplog.text


def test_other_gpus_and_threads_between_runs(make: Make) -> None:
    bench = make(devices=2)
    sessions = [bench.backend.load(bench.source(device=f"cuda:{i}")) for i in (0, 1)]
    for _ in range(2):
        for session in sessions:
            assert_add_sub(session.run(rows(2)), rows(2))
    done: list[str] = []

    def work() -> None:
        assert_add_sub(sessions[0].run(rows(3)), rows(3))
        done.append("")

    for _ in range(3):  # their numbers may be the same
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(done) == 3
    for session in sessions:
        session.close()
    assert bench.driver.held() == 0


def test_a_plan_that_is_too_large_for_the_gpu(make: Make) -> None:
    bench = make()
    bench.trt.refuses = "Error Code 2: OutOfMemory (Cuda failure 2: out of memory)"
    with pytest.raises(LoadError, match=r"^Fake H200 has not enough memory for the plan: "):
        bench.backend.load(bench.source())
    assert bench.driver.held() == 0


def test_a_runtime_that_cannot_be_made(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()

    def refuse(_logger: Any) -> None:
        bench.trt.ILogger()
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(bench.trt, "Runtime", refuse)
    with pytest.raises(LoadError, match="tensorrt cannot run here: factory function"):
        bench.backend.load(bench.source())
    assert bench.driver.held() == 0


def test_not_enough_memory_for_a_worker(make: Make) -> None:
    bench = make(memory_bytes=20_000)
    session = bench.backend.load(bench.source())
    session.run(rows(1))
    clones = [session.clone()]
    with pytest.raises(LoadError, match=r"refuses another worker: .*out of memory"):
        clones.extend(session.clone() for _ in range(9))
    for clone in clones:
        clone.close()
    assert_add_sub(session.run(rows(1)), rows(1))
    session.close()
    with pytest.raises(LoadError, match="closed"):
        session.clone()
    assert bench.driver.held() == 0


def test_the_largest_batch_must_fit(make: Make) -> None:
    bench = make()
    with pytest.raises(LoadError, match=r"max_batch_size is 9, but .* takes 8 rows at most"):
        bench.backend.load(bench.source(rows_max=9))
    session = bench.backend.load(bench.source(rows_max=8))
    assert session.rows_max == 8
    session.close()
    assert bench.driver.held() == 0


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (Tensor("I", "FP8", (1,)), "'I' has type FP8; cast it"),
        (Tensor("I", "INT64", (1,), location="HOST"), "'I' decides about shapes"),
        (Tensor("I", "INT8", (1,), format="CHW4"), "'I' has the memory layout CHW4"),
    ],
)
def test_what_cannot_be_served(make: Make, tensor: Tensor, said: str) -> None:
    bench = make()
    bench.trt.models["odd"] = Model((tensor,), (Tensor("O", "FLOAT", (1,)),), (), lambda x: [x])
    with pytest.raises(LoadError, match=said):
        bench.backend.load(bench.source("odd"))
    assert bench.driver.held() == 0


@pytest.mark.parametrize("kind", list(VERSIONS))
def test_a_plan_of_another_version(make: Make, kind: str) -> None:
    bench = make(kind)
    source = bench.source()
    old = (10, 3, 0, 26) if kind == "tensorrt" else (1, 2, 0, 5)
    source.path.write_bytes(plan("add_sub", old))
    made, here = ".".join(map(str, old)), VERSIONS[kind]
    wanted = f"built by {kind} {made} cannot be run by {kind} {here} on Fake H200: .+; build it"
    with pytest.raises(LoadError, match=wanted):
        bench.backend.load(source)
    assert bench.driver.held() == 0


def test_a_plan_of_the_other_engine(make: Make) -> None:
    bench = make("tensorrt")
    source = bench.source()
    source.path.write_bytes(plan("add_sub", (1, 7, 1, 116)))
    said = r"built by tensorrt_rtx 1\.7\.1\.116, and here is tensorrt 11.*penstock\[tensorrt-rtx\]"
    with pytest.raises(LoadError, match=said):
        bench.backend.load(source)
    asked = dataclasses.replace(source, options={"engine": "tensorrt"})
    with pytest.raises(LoadError, match=r"'engine' is 'tensorrt', but .* tensorrt_rtx 1\.7"):
        bench.backend.load(asked)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:x", "gpu:0"])
def test_devices_that_are_no_gpu(make: Make, device: str) -> None:
    bench = make()
    with pytest.raises(LoadError, match="KIND_GPU"):
        bench.backend.load(bench.source(device=device))


def test_a_gpu_that_is_not_there(make: Make) -> None:
    bench = make()
    with pytest.raises(LoadError, match="there is no cuda:1; this machine has 1 CUDA devices"):
        bench.backend.load(bench.source(device="cuda:1"))


def test_without_a_driver_nothing_of_the_runtime_is_touched(make: Make) -> None:
    bench = make()
    touched = []
    bench.trt.Runtime = lambda _logger: touched.append("Runtime")  # type: ignore[method-assign]
    bench.backend._machine = dataclasses.replace(
        bench.backend._machine, missing=lambda: "there is no NVIDIA driver", devices=lambda: ()
    )
    with pytest.raises(LoadError, match="NVIDIA GPUs only, and there is no NVIDIA driver"):
        bench.backend.load(bench.source())
    found = bench.backend.engine()
    assert touched == []
    assert "no NVIDIA driver" in found.missing
    assert found.version == "tensorrt 11.4.0.106"


def test_without_an_engine(make: Make) -> None:
    bench = make()
    bench.backend._machine = dataclasses.replace(bench.backend._machine, installed=dict)
    assert "pip install 'penstock[tensorrt]'" in bench.backend.engine().missing
    with pytest.raises(LoadError, match=r"neither engine: pip install 'penstock\[tensorrt\]'"):
        bench.backend.load(bench.source())


def test_options_reach_the_runtime(make: Make) -> None:
    bench = make("tensorrt_rtx")
    session = bench.backend.load(bench.source(options={"blocking_wait": "1"}))
    assert_add_sub(session.run(rows(2)), rows(2))
    assert any(event.sleeps for event in bench.driver.events if event.recorded)
    session.close()
    with pytest.raises(LoadError, match="'host_code' is not for engine 'tensorrt_rtx'"):
        bench.backend.load(bench.source(options={"host_code": "1"}))


def test_kernels_compiled_on_the_way_are_kept(make: Make) -> None:
    bench = make("tensorrt_rtx")
    for _ in range(2):
        session = bench.backend.load(bench.source())
        session.clone().close()
        session.close()
    assert bench.trt.compiled == [b"kernels"]


def test_a_cache_that_cannot_be_used_does_not_stop_a_plan(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make("tensorrt_rtx")
    (tmp_path / "file").write_text("")
    options = {"cache_dir": str(tmp_path / "file")}
    with caplog.at_level(logging.WARNING):
        bench.backend.load(bench.source(options=options)).close()
    assert "compiled at every start" in caplog.text


def test_plans_with_code_for_the_host_are_not_built_to_be_refused(
    make: Make, tmp_path: Path
) -> None:
    bench = make()
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    source = ModelSource(
        "m", tmp_path / "m.onnx", "cuda:0", options={"version_compatible": "1", "host_code": "0"}
    )
    with pytest.raises(LoadError, match="only with option 'host_code'"):
        bench.backend.load(source)
    bench.backend.load(bench.source()).close()
    assert not bench.trt.code_allowed
    bench.backend.load(bench.source(options={"host_code": "1"})).close()
    assert bench.trt.code_allowed
    assert bench.driver.held() == 0


def test_a_directory_and_the_other_name(make: Make) -> None:
    bench = make()
    source = bench.source()
    source.path.rename(source.path.with_name("model.engine"))
    session = bench.backend.load(dataclasses.replace(source, path=source.path.parent))
    session.close()
    (source.path.parent / "model.engine").unlink()
    with pytest.raises(LoadError, match=r"no model\.plan or model\.engine or model\.onnx"):
        bench.backend.load(dataclasses.replace(source, path=source.path.parent))
