"""Plans built by TensorRT for RTX itself, which needs no GPU for that; and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.backends.fake_cuda import FakeDriver
from tests.unit.backends.fake_tensorrt import ADD_SUB, FakeTrt, Tensor, batched
from tests.unit.backends.tensorrt_real import quantized, real_library, write
from tests.zoo import digits

from penstock.backends.base import CompileTask, LoadError, ModelSource
from penstock.backends.tensorrt import Machine, TensorRtBackend
from penstock.backends.tensorrt.builder import _configure
from penstock.backends.tensorrt.facade import DTYPES, Library
from penstock.backends.tensorrt.options import Recipe
from penstock.backends.tensorrt.plan import read

FP32 = TensorProto.FLOAT


@pytest.fixture
def compiler() -> TensorRtBackend:
    library = real_library()
    return TensorRtBackend(
        Machine(
            missing=lambda: "there is no NVIDIA driver here",
            installed=lambda: {"tensorrt_rtx": library.version},
            library=lambda _kind: library,
        )
    )


def task(model: Path, into: Path, **more: Any) -> CompileTask:
    into.mkdir(exist_ok=True)
    return CompileTask(model, into, **{"budget_s": 60.0, **more})


def relu(path: Path, shape: Any = ("n", 4), kind: int = FP32) -> Path:
    node = helper.make_node("Relu", ["x"], ["y"])
    return write(path, [node], {"x": (kind, shape)}, {"y": (kind, shape)})


def test_digits(compiler: TensorRtBackend, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    wanted = task(
        digits.MODEL, tmp_path / "a", rows_max=64, progress=lambda *step: steps.append(step)
    )
    path = compiler.compile(wanted)
    assert path == tmp_path / "a" / "model.plan"
    found = json.loads((tmp_path / "a" / "model.json").read_text())
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["inputs"] == [{"name": "image", "dtype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert found["outputs"] == [{"name": "probabilities", "dtype": "FP32", "shape": [-1, 10]}]
    assert found["profiles"] == [
        {"image": {"min": [1, 1, 8, 8], "opt": [64, 1, 8, 8], "max": [64, 1, 8, 8]}}
    ]
    plan = read(path)
    assert (plan.kind, plan.version) == ("tensorrt_rtx", found["version"])
    shares = [share for _, share in steps]
    assert len(steps) > 10
    assert shares == sorted(shares)
    assert (shares[-1], steps[-1][0]) == (1.0, "written")


def test_int8_with_symmetric_zero_points(compiler: TensorRtBackend, tmp_path: Path) -> None:
    plain = compiler.compile(task(digits.MODEL, tmp_path / "fp32", rows_max=8))
    model = int8_digits(tmp_path / "s8.onnx", "tensorrt")
    path = compiler.compile(task(model, tmp_path / "s8", rows_max=8))
    assert read(path).kind == "tensorrt_rtx"
    assert path.read_bytes() != plain.read_bytes()


def test_int8_as_cpus_have_it(compiler: TensorRtBackend, tmp_path: Path) -> None:
    model = int8_digits(tmp_path / "u8.onnx", "cpu")
    with pytest.raises(LoadError, match=r"penstock quantize --target tensorrt"):
        compiler.compile(task(model, tmp_path / "out", rows_max=8))


def int8_digits(path: Path, target: str) -> Path:
    from penstock.backends.quantize.data import samples_of
    from penstock.backends.quantize.pipeline import Task, quantize
    from penstock.server import demo

    pictures, labels = demo.heldout()
    samples, evaluation = (
        samples_of({"image": pictures[part]}, labels[part])
        for part in (slice(0, 200), slice(200, 400))
    )
    result = quantize(
        Task(
            model=digits.MODEL, output=path, samples=samples, evaluation=evaluation,
            target=target, batches=(), comparisons=False,
        )
    )  # fmt: skip
    assert result.passed
    return path


@pytest.mark.parametrize(
    ("kind", "zero_point"),
    [(TensorProto.UINT8, 128), (TensorProto.INT8, 3), (TensorProto.UINT8, 0)],
)
def test_other_zero_points(
    compiler: TensorRtBackend, tmp_path: Path, kind: int, zero_point: int
) -> None:
    # The last of them the parser takes, with a warning, and computes as INT8.
    model = quantized(tmp_path / "m.onnx", kind, zero_point)
    with pytest.raises(LoadError, match=r"penstock quantize --target tensorrt") as refused:
        compiler.compile(task(model, tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_symmetric_int8(compiler: TensorRtBackend, tmp_path: Path) -> None:
    model = quantized(tmp_path / "m.onnx", TensorProto.INT8, 0)
    assert compiler.compile(task(model, tmp_path / "out")).is_file()


def test_bad_models(compiler: TensorRtBackend, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = digits.MODEL.read_bytes()
    for data, said in {
        whole[: len(whole) // 2]: "no ONNX model, or not all of one",
        b"\x93garbage" * 40: "no ONNX model, or not all of one",
        b"": "is empty",
        b"version https://git-lfs.github.com/spec/v1": "git lfs pull",
    }.items():
        path.write_bytes(data)
        with pytest.raises(LoadError, match=said):
            compiler.compile(task(path, tmp_path / "out"))
    with pytest.raises(LoadError, match="there is no file"):
        compiler.compile(task(tmp_path / "none.onnx", tmp_path / "out"))


@pytest.mark.parametrize(
    ("operator", "kind", "said"),
    [
        ("NoSuchThing", FP32, "it has no operator 'NoSuchThing'"),
        ("Identity", TensorProto.STRING, "data type"),
    ],
)
def test_what_it_has_not(
    compiler: TensorRtBackend, tmp_path: Path, operator: str, kind: int, said: str
) -> None:
    node = helper.make_node(operator, ["x"], ["y"])
    sides = {"x": (kind, ["n", 4])}, {"y": (kind, ["n", 4])}
    with pytest.raises(LoadError, match=said):
        compiler.compile(task(write(tmp_path / "m.onnx", [node], *sides), tmp_path / "out"))


def test_an_input_that_decides_about_shapes(compiler: TensorRtBackend, tmp_path: Path) -> None:
    model = write(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        {"x": (FP32, ["n", 4]), "to": (TensorProto.INT64, [2])},
        {"y": (FP32, ["a", "b"])},
    )
    with pytest.raises(LoadError, match="'to' decides about shapes"):
        compiler.compile(task(model, tmp_path / "out"))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_element_types(compiler: TensorRtBackend, tmp_path: Path, name: str) -> None:
    kind = {"HALF": "FLOAT16", "BF16": "BFLOAT16"}.get(name, name)
    node = helper.make_node("Identity", ["x"], ["y"])
    sides = [{side: (getattr(TensorProto, kind), ["n", 4])} for side in "xy"]
    path = compiler.compile(task(write(tmp_path / "m.onnx", [node], *sides), tmp_path / "out"))
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["inputs"][0]["dtype"] == DTYPES[name].name


def test_sizes_behind_the_first_have_to_be_stated(
    compiler: TensorRtBackend, tmp_path: Path
) -> None:
    model = relu(tmp_path / "m.onnx", ("n", "m"))
    with pytest.raises(LoadError, match="'x' has free dimensions behind the first"):
        compiler.compile(task(model, tmp_path / "out"))
    shapes = {"min_shapes": "x:1x2", "opt_shapes": "x:4x8", "max_shapes": "x:8x16"}
    path = compiler.compile(task(model, tmp_path / "out", options=shapes))
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["profiles"] == [{"x": {"min": [1, 2], "opt": [4, 8], "max": [8, 16]}}]


def test_options_of_the_builder(compiler: TensorRtBackend, tmp_path: Path) -> None:
    options = {
        "workspace_bytes_max": str(1 << 26),
        "builder_optimization_level": "1",
        "tf32": "0",
        "buckets": "1,4",
    }
    model = relu(tmp_path / "m.onnx")
    path = compiler.compile(task(model, tmp_path / "out", options=options, target="8.6, 8.9"))
    found = json.loads(path.with_suffix(".json").read_text())
    assert found["recipe"]["compute_capabilities"] == ["8.6", "8.9"]
    assert [p["x"]["max"] for p in found["profiles"]] == [[1, 4], [4, 4]]
    with pytest.raises(LoadError, match=r"6\.1 cannot be built for; known are .*8\.9"):
        compiler.compile(task(model, tmp_path / "out", target="6.1"))


def test_weights_in_a_file_beside_the_model(compiler: TensorRtBackend, tmp_path: Path) -> None:
    model = external(tmp_path / "src" / "m.onnx")
    first = compiler.compile(task(model, tmp_path / "a"))
    keys = [json.loads(first.with_suffix(".json").read_text())["onnx_sha256"]]
    (tmp_path / "src" / "weights.bin").write_bytes(np.ones((64, 64), "f4").tobytes())
    again = compiler.compile(task(model, tmp_path / "b"))
    keys.append(json.loads(again.with_suffix(".json").read_text())["onnx_sha256"])
    assert keys[0] != keys[1]


def external(path: Path) -> Path:
    weights = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    sides = [{side: (FP32, ["n", 64])} for side in "xy"]
    write(path, [node], *sides, [weights])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").is_file()
    return path


def test_a_search_that_takes_too_long_is_given_up(
    compiler: TensorRtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    steps: list[tuple[str, float]] = []
    path = compiler.compile(
        task(
            digits.MODEL, tmp_path / "out", budget_s=150,
            progress=lambda *step: steps.append(step),
        )
    )  # fmt: skip
    assert json.loads(path.with_suffix(".json").read_text())["searched"] is False
    assert any("took longer than 150 s: no more search" in step for step, _ in steps)
    shares = [share for _, share in steps]
    assert shares == sorted(shares)


def test_a_build_that_takes_too_long(
    compiler: TensorRtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    options = {"build_s_max": "100"}
    with pytest.raises(LoadError, match="took longer than 100 s"):
        compiler.compile(task(digits.MODEL, tmp_path / "out", budget_s=150, options=options))
    assert list((tmp_path / "out").iterdir()) == []


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes 10 s."""
    late = iter(range(0, 10_000_000, 10))
    monkeypatch.setattr("penstock.backends.tensorrt.builder.time.monotonic", lambda: next(late))


def test_a_build_that_is_interrupted(compiler: TensorRtBackend, tmp_path: Path) -> None:
    def interrupt(_step: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiler.compile(task(digits.MODEL, tmp_path / "out", progress=interrupt))
    assert compiler.compile(task(digits.MODEL, tmp_path / "out")).is_file()


def test_real_plans_are_not_handed_to_the_runtime_without_a_driver(
    compiler: TensorRtBackend, tmp_path: Path
) -> None:
    path = compiler.compile(task(relu(tmp_path / "m.onnx"), tmp_path / "out"))
    with pytest.raises(LoadError, match="NVIDIA GPUs only, and there is no NVIDIA driver"):
        compiler.load(ModelSource("m", path, "cuda:0"))


def test_damaged_plans(compiler: TensorRtBackend, tmp_path: Path) -> None:
    path = compiler.compile(task(relu(tmp_path / "m.onnx"), tmp_path / "out"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(LoadError, match=r"its header says \d+: copy it again"):
        compiler.load(ModelSource("m", path, "cuda:0"))
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LoadError, match=r"model\.plan is not the plan that model\.json describes"):
        compiler.load(ModelSource("m", path, "cuda:0"))
    path.with_suffix(".json").write_text('{"format": 99}')
    with pytest.raises(LoadError, match=r"no description of a plan in format 1"):
        compiler.load(ModelSource("m", path, "cuda:0"))


# Models that are built when they are loaded: a real builder, and the runtime's fake.


@pytest.fixture
def gpu() -> tuple[TensorRtBackend, FakeTrt, FakeDriver]:
    library = real_library()
    driver = FakeDriver()
    trt = FakeTrt(driver, library.version, real=library.trt)
    shape = ("FLOAT", (-1, 4))
    trt.default = batched(
        [Tensor("x", *shape)], [Tensor("y", *shape)], lambda x: [np.maximum(x, 0)], (8,)
    )
    made = Library("tensorrt_rtx", trt)
    backend = TensorRtBackend(
        Machine(
            missing=lambda: "",
            devices=lambda: ("cuda:0 (Fake H200)",),
            driver=lambda: driver,
            installed=lambda: {"tensorrt_rtx": library.version},
            library=lambda _kind: made,
        )
    )
    return backend, trt, driver


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from penstock.backends import tensorrt

    built: list[str] = []
    real_build = tensorrt.build

    def build(library: Any, order: Any) -> Any:
        built.append(order.path.name)
        return real_build(library, order)

    monkeypatch.setattr(tensorrt, "build", build)
    return built


def test_built_once_and_kept(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, driver = gpu
    built = count_builds(monkeypatch)
    options = {"cache_dir": str(tmp_path / "cache")}
    path = relu(tmp_path / "1" / "model.onnx")

    def load(**more: Any) -> None:
        session = backend.load(ModelSource("m", path, "cuda:0", **{"options": options, **more}))
        x = np.array([[-1, 2, -3, 4]], np.float32)
        np.testing.assert_array_equal(session.run([x])[0], np.maximum(x, 0))
        session.close()

    load()
    load()
    assert len(built) == 1
    load(rows_max=4)
    load(options={**options, "tf32": "0"})
    load(options={**options, "buckets": "8"})
    assert len(built) == 4
    shutil.copy(path, tmp_path / "1" / "copy.onnx")
    path = tmp_path / "1" / "copy.onnx"
    load()
    assert len(built) == 4
    assert driver.held() == 0


def test_a_damaged_plan_in_the_cache_is_built_again(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _, _ = gpu
    built = count_builds(monkeypatch)
    cache = tmp_path / "cache"
    source = ModelSource(
        "m", relu(tmp_path / "model.onnx"), "cuda:0", options={"cache_dir": str(cache)}
    )
    backend.load(source).close()
    for kept in cache.glob("*.kept"):
        kept.write_bytes(kept.read_bytes()[:-7] + b"garbage")
    backend.load(source).close()
    assert len(built) == 2


def test_two_that_load_at_once_build_once(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _, driver = gpu
    built = count_builds(monkeypatch)
    options = {"cache_dir": str(tmp_path / "cache")}
    source = ModelSource("m", relu(tmp_path / "model.onnx"), "cuda:0", options=options)
    threads = [threading.Thread(target=lambda: backend.load(source).close()) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert driver.held() == 0


def test_without_a_cache(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _, _ = gpu
    built = count_builds(monkeypatch)
    options = {"cache_dir": str(tmp_path / "cache"), "cache_bytes_max": "0"}
    source = ModelSource("m", relu(tmp_path / "model.onnx"), "cuda:0", options=options)
    for _ in range(2):
        backend.load(source).close()
    assert len(built) == 2
    assert not (tmp_path / "cache").exists()


def test_a_model_that_cannot_be_built_leaves_nothing(gpu: Any, tmp_path: Path) -> None:
    backend, _, driver = gpu
    source = ModelSource(
        "m",
        quantized(tmp_path / "model.onnx", TensorProto.INT8, 3),
        "cuda:0",
        options={"cache_dir": str(tmp_path / "cache")},
    )
    with pytest.raises(LoadError, match="penstock quantize"):
        backend.load(source)
    assert driver.held() == 0
    assert list((tmp_path / "cache").glob("*.kept")) == []


def test_the_fake_add_sub_is_what_the_real_builder_makes_of_it(
    compiler: TensorRtBackend, tmp_path: Path
) -> None:
    from penstock.loadtest.models import write_add_sub
    from penstock.protocol import dtype as dt

    write_add_sub(tmp_path / "m.onnx", dt.FP32)
    path = compiler.compile(task(tmp_path / "m.onnx", tmp_path / "out", rows_max=8))
    found = json.loads(path.with_suffix(".json").read_text())
    for side, tensors in (("inputs", ADD_SUB.inputs), ("outputs", ADD_SUB.outputs)):
        assert [(t["name"], tuple(t["shape"])) for t in found[side]] == [
            (t.name, t.shape) for t in tensors
        ]


# What only TensorRT itself does, tried on the builder of its sibling.


@pytest.fixture
def sibling(gpu: Any) -> TensorRtBackend:
    """The same builder under the name of TensorRT: two profiles, and timings that are kept."""
    backend, trt, _ = gpu
    made = Library("tensorrt", trt)
    backend._machine = dataclasses.replace(
        backend._machine,
        installed=lambda: {"tensorrt": made.version},
        library=lambda _kind: made,
    )
    return backend


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RTX calls timing caches no-ops
def test_measurements_are_kept(
    sibling: TensorRtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.backends import tensorrt

    before: list[bytes] = []
    after: list[bytes] = []
    real_build = tensorrt.build

    def build(library: Any, order: Any) -> Any:
        before.append(order.timing)
        built = real_build(library, order)
        after.append(built.timing)
        assert [p["x"].max for p in built.profiles] == [(1, 4), (8, 4)]
        return built

    monkeypatch.setattr(tensorrt, "build", build)
    path = relu(tmp_path / "model.onnx")
    for tf32 in ("0", "1"):
        options = {"cache_dir": str(tmp_path / "cache"), "tf32": tf32}
        sibling.load(ModelSource("m", path, "cuda:0", options=options, rows_max=8)).close()
    assert before == [b"", after[0]]
    assert after[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_measurements_of_a_build_that_was_given_up_are_kept(
    sibling: TensorRtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    cache = tmp_path / "cache"
    options = {"cache_dir": str(cache), "build_s_max": "100"}
    with pytest.raises(LoadError, match="longer than 100 s; what it measured is kept"):
        sibling.load(ModelSource("m", digits.MODEL, "cuda:0", options=options))
    assert len(list(cache.glob("*.kept"))) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plan_for_the_gpu_of_this_machine(sibling: TensorRtBackend, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "cache")}
    path = sibling.compile(task(relu(tmp_path / "m.onnx"), tmp_path / "out", options=options))
    assert json.loads(path.with_suffix(".json").read_text())["built_for"] == "Fake H200 (9.0)"
    with pytest.raises(LoadError, match="'compute_capabilities' is not for engine 'tensorrt'"):
        sibling.compile(task(tmp_path / "m.onnx", tmp_path / "out", target="8.9"))


def test_settings_that_only_tensorrt_has() -> None:
    trt, set_flags = real_library().trt, []
    config = SimpleNamespace(set_flag=set_flags.append)
    recipe = Recipe(hardware_compatibility="same_compute_capability", version_compatible=True)
    _configure(SimpleNamespace(trt=trt), config, recipe)
    level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    assert config.hardware_compatibility_level == level
    assert set_flags == [trt.BuilderFlag.VERSION_COMPATIBLE]
