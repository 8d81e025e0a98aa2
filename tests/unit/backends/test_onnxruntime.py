"""ONNX Runtime keeps the contract, for every element type, and says clearly what it refuses."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from penstock.backends import onnxruntime as ours
from penstock.backends.base import (
    BoundSession,
    CloneableSession,
    InterruptibleSession,
    LoadError,
    ModelSource,
    RunError,
)
from penstock.backends.conformance import Case, check_backend
from penstock.backends.onnxruntime import DTYPES, OnnxRuntimeBackend, clean
from penstock.loadtest.models import (
    write_add_sub,
    write_identity,
    write_image_mean,
    write_mlp,
)
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_add_sub, id="add_sub"),
        pytest.param(lambda p: write_mlp(p, 16), id="mlp"),
        pytest.param(lambda p: write_image_mean(p, 8), id="image_mean"),
        pytest.param(lambda p: write_identity(p, dt.FP32, ()), id="scalar"),
        pytest.param(lambda p: write_identity(p, dt.FP32, (4, 2)), id="fixed batch"),
        pytest.param(lambda p: write_identity(p, dt.INT64, ("N", "A", "B")), id="free dims"),
        *[pytest.param(lambda p, d=d: write_identity(p, d), id=d.name) for d in dt.ALL],
    ],
)
def test_keeps_the_contract(tmp_path, write):
    path = tmp_path / "model.onnx"
    write(path)
    check_backend(OnnxRuntimeBackend(), ModelSource("m", path))


def test_keeps_the_contract_with_the_folder_of_a_version(add_sub):
    check_backend(OnnxRuntimeBackend(), ModelSource("m", add_sub.parent))


def test_add_sub(add_sub):
    first = np.arange(48, dtype=np.int32).reshape(3, 16)
    second = np.full((3, 16), 7, np.int32)
    case = Case([first, second], [first + second, first - second])
    report = check_backend(OnnxRuntimeBackend(), ModelSource("m", add_sub), cases=[case])
    assert report.skipped == []


def test_declares_specs_and_symbols(add_sub, load):
    session = load(add_sub)
    assert session.inputs == (
        TensorSpec("INPUT0", dt.INT32, (-1, 16)),
        TensorSpec("INPUT1", dt.INT32, (-1, 16)),
    )
    assert [spec.name for spec in session.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert session.symbols == ("N", "N", "N", "N")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (b"\x08\x07garbage", "cannot load"),
    ],
)
def test_says_what_a_file_is_that_is_no_model(tmp_path, load, content, told):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=told):
        load(tmp_path / "model.onnx")


def test_the_engine_reports_nothing_to_its_maker(tmp_path, add_sub):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from penstock.backends.base import ModelSource\n"
        "from penstock.backends.onnxruntime import OnnxRuntimeBackend\n"
        "OnnxRuntimeBackend().load(ModelSource('m', Path(sys.argv[1]))).close()"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    env["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", code, str(add_sub)], env=env, check=True, timeout=60)
    assert list(home.rglob("*")) == []


def test_every_wire_type_has_an_engine_type():
    assert set(DTYPES.values()) == set(dt.ALL)


@pytest.mark.parametrize("dtype", [d for d in dt.ALL if d is not dt.BYTES], ids=str)
def test_every_bit_of_numbers_passes(tmp_path, load, dtype):
    path = tmp_path / "model.onnx"
    write_identity(path, dtype)
    raw = np.random.default_rng(1).integers(0, 2 if dtype is dt.BOOL else 256, 64, np.uint8)
    array = raw.view(dtype.numpy).reshape(2, -1)
    (out,) = load(path).run([array])
    assert out.tobytes() == array.tobytes()
    assert out.dtype == dtype.numpy


def test_strings_are_bytes_on_both_sides(tmp_path, load):
    path = tmp_path / "model.onnx"
    write_identity(path, dt.BYTES)
    given = np.array([[b"", b"a\0b\0"], ["ü€😀".encode(), b"'"]], object)
    (out,) = load(path).run([given])
    assert out.tolist() == given.tolist()


def test_bytes_that_are_no_text_are_the_callers_fault(tmp_path, load):
    path = tmp_path / "model.onnx"
    write_identity(path, dt.BYTES)
    with pytest.raises(RunError, match=r"'INPUT0': element 1 is not UTF-8") as caught:
        load(path).run([np.array([[b"ok", b"\xff"]], object)])
    assert caught.value.caller_fault


@pytest.mark.parametrize("dtype", [dt.FP32, dt.BF16, dt.BYTES], ids=str)
def test_no_rows_in_no_rows_out(tmp_path, load, dtype):
    path = tmp_path / "model.onnx"
    write_identity(path, dtype)
    (out,) = load(path).run([np.empty((0, 4), dtype.numpy)])
    assert out.shape == (0, 4)
    assert out.dtype == dtype.numpy


def test_results_stay_when_everything_else_is_gone(tmp_path, load):
    path = tmp_path / "model.onnx"
    write_identity(path, dt.BF16)
    session = load(path)
    kept = [session.run([np.full((1, 1000), i, np.uint16)])[0] for i in range(20)]
    session.close()
    assert [int(array[0, -1]) for array in kept] == list(range(20))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.BFLOAT16])
def test_an_output_that_is_an_input_is_a_copy(build, load, kind):
    nodes = [helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT)]
    x = (kind, ["N", 2])
    half = (TensorProto.BFLOAT16, ["N", 2])
    path = build(nodes, {"x": x, "half": half}, {"x": x, "y": (TensorProto.FLOAT, ["N", 2])})
    session = load(path)
    given = [np.ones((3, 2), spec.dtype.numpy) for spec in session.inputs]
    out = session.run(given)[0]
    for array in given:
        array[:] = 0
    assert out.tolist() == [[1, 1]] * 3


def test_constant_outputs_are_not_shared_between_runs(build, load):
    constant = helper.make_tensor("c", TensorProto.FLOAT, [2], [1, 2])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    x = (TensorProto.FLOAT, ["N", 2])
    session = load(build(nodes, {"x": x}, {"y": x, "c": (TensorProto.FLOAT, [2])}, [constant]))
    given = [np.ones((1, 2), np.float32)]
    session.run(given)[1][:] = 0
    assert session.run(given)[1].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([np.zeros((1, 16), "f4"), np.zeros((1, 16), "i4")], "'INPUT0' is float32.*INT32"),
        ([np.zeros((1, 16), "i4"), np.zeros((1, 8), "i4")], r"'INPUT1' has shape \[1, 8\]"),
        ([np.zeros(16, "i4"), np.zeros(16, "i4")], r"'INPUT0' has shape \[16\]"),
        ([np.zeros((1, 16), "i4")], "1 inputs given where the model has 2"),
        ([np.zeros((1, 16), "i4")] * 3, "3 inputs given where the model has 2"),
    ],
)
def test_says_which_input_is_wrong(add_sub, load, arrays, said):
    with pytest.raises(RunError, match=said) as caught:
        load(add_sub).run(arrays)
    assert caught.value.caller_fault


def test_a_failing_node_is_named_and_logged_nowhere(reshape_to_4, load, capfd):
    session = load(reshape_to_4)
    with pytest.raises(RunError, match=r"^node Reshape 'fold': .*cannot be reshaped") as caught:
        session.run([np.zeros((3, 5), np.float32)])
    assert not caught.value.caller_fault
    assert "onnxruntime" not in str(caught.value)
    assert session.run([np.zeros((2, 4), np.float32)])[0].shape == (2, 4)
    assert capfd.readouterr() == ("", "")


def test_a_closed_session_refuses(add_sub, load):
    session = load(add_sub)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([np.zeros((1, 16), np.int32)] * 2)


def test_loads_weights_kept_in_a_second_file(build, load):
    weights = onnx.numpy_helper.from_array(np.full((2, 600), 2, np.float32), "w")
    x, y = (TensorProto.FLOAT, ["N", 2]), (TensorProto.FLOAT, ["N", 600])
    path = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, {"y": y}, [weights])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")
    assert (path.parent / "weights.bin").stat().st_size >= 4800
    assert load(path).run([np.ones((1, 2), np.float32)])[0][0, 0] == 4


def test_loading_from_many_threads(add_sub):
    backend = OnnxRuntimeBackend()
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: backend.load(ModelSource("m", add_sub)), range(8)))
    assert len({id(session) for session in sessions}) == 8


def test_a_run_lets_other_threads_work(tmp_path, load):
    path = tmp_path / "model.onnx"
    write_mlp(path, 1024)
    session = load(path)
    rows, stop, ticks = np.zeros((256, 784), np.float32), threading.Event(), [0]

    def tick() -> None:
        while not stop.is_set():
            ticks[0] += 1
            stop.wait(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks[0]
    for _ in range(5):
        session.run([rows])
    during = ticks[0] - before
    stop.set()
    thread.join()
    assert during >= 3


# Clones, interrupts, results in place


def test_what_a_session_can_do(add_sub, load, tmp_path):
    numbers = load(add_sub)
    write_identity(tmp_path / "text.onnx", dt.BYTES)
    text = load(tmp_path / "text.onnx")
    for session in (numbers, text):
        assert isinstance(session, CloneableSession)
        assert isinstance(session, InterruptibleSession)
    assert isinstance(numbers, BoundSession)
    assert not isinstance(text, BoundSession), "strings have no memory of their own"


def test_clones_share_the_weights(tmp_path, load):
    write_mlp(tmp_path / "model.onnx", 64)
    session = load(tmp_path / "model.onnx")
    clone = session.clone()
    assert clone._made is session._made
    assert clone._run_options is not session._run_options
    session.close()
    with pytest.raises(LoadError, match="closed"):
        session.clone()
    assert clone.run([np.zeros((1, 784), np.float32)])[0].shape == (1, 10)


@pytest.fixture
def long_loop(build):
    """A graph that counts to INPUT0 in a loop of some nodes: as long as one likes."""

    def made(load):
        body = helper.make_graph(
            [
                helper.make_node("Add", ["x_in", "one"], ["x_out"]),
                helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x_in", TensorProto.FLOAT, []),
            ],
            [
                helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x_out", TensorProto.FLOAT, []),
            ],
        )
        constants = [
            helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
            helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        ]
        nodes = [helper.make_node("Loop", ["n", "go", "zero"], ["y"], body=body)]
        given, made = {"n": (TensorProto.INT64, [])}, {"y": (TensorProto.FLOAT, [])}
        return load(build(nodes, given, made, constants))

    return made


FOR_EVER = [np.array(1 << 40)]


def test_an_interrupt_ends_a_run_and_no_other(long_loop, load):
    session = long_loop(load)
    other = session.clone()
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(session.run, FOR_EVER)
        neighbour = pool.submit(other.run, [np.array(1 << 17)])
        while not endless.done():
            session.interrupt()  # again: it does nothing until the run has begun
        with pytest.raises(RunError, match="the run was interrupted") as caught:
            endless.result()
        assert neighbour.result()[0] == 1 << 17, "a clone is no business of the interrupt"
    assert not caught.value.caller_fault
    session.interrupt()
    assert session.run([np.array(3)])[0] == 3
    assert session.run_into([np.array(4)], [None])[0] == 4


def test_an_interrupt_ends_a_run_into(long_loop, load):
    session = long_loop(load)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(session.run_into, FOR_EVER, [np.zeros((), np.float32)])
        while not endless.done():
            session.interrupt()
        with pytest.raises(RunError, match="the run was interrupted"):
            endless.result()


def test_results_in_place_need_no_memory_of_the_engine(tmp_path, load):
    path = tmp_path / "model.onnx"
    write_identity(path, dt.FP32)
    session = load(path)
    given, out = np.random.rand(8, 1000).astype(np.float32), np.zeros((8, 1000), np.float32)
    (made,) = session.run_into([given], [out])
    assert made is out
    assert np.array_equal(out, given)
    given.flags.writeable = False  # as the views of a request are
    out[:] = 0
    session.run_into([given], [out])
    assert np.array_equal(out, given)


def test_constants_and_inputs_among_outputs_are_written_in_place_too(build, load):
    constant = helper.make_tensor("c", TensorProto.FLOAT, [2], [1, 2])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    x = (TensorProto.FLOAT, ["N", 2])
    session = load(
        build(nodes, {"x": x}, {"y": x, "c": (TensorProto.FLOAT, [2]), "x": x}, [constant])
    )
    given = np.full((3, 2), 7, np.float32)
    outs = [np.zeros((3, 2), np.float32), np.zeros(2, np.float32), np.zeros((3, 2), np.float32)]
    for wanted in (outs, [None, outs[1], None], [None, None, outs[2]], [None] * 3):
        made = session.run_into([given], wanted)
        assert [array.tolist() for array in made] == [[[7, 7]] * 3, [1, 2], [[7, 7]] * 3]
        assert not any(np.may_share_memory(array, given) for array in made)
        for array in made:
            array[...] = 0
    with pytest.raises(RunError):
        session.run_into([given], [None, np.zeros(3, np.float32), None])
    assert session.run([given])[1].tolist() == [1, 2]


def test_a_shape_that_depends_on_data_is_refused_in_place(build, load):
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    session = load(
        build(nodes, {"x": (TensorProto.FLOAT, ["N"])}, {"y": (TensorProto.INT64, [1, "M"])})
    )
    given, out = np.array([1, 0, 1], np.float32), np.full((1, 3), -1)
    with pytest.raises(RunError):
        session.run_into([given], [out])
    assert session.run_into([given], [np.zeros((1, 2), np.int64)])[0].tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros((1, 16), "i4")] * 3, [np.zeros((1, 4), "i4")] * 2]
)
def test_results_in_place_say_which_input_is_wrong(add_sub, load, arrays):
    with pytest.raises(RunError, match=r"inputs given|'INPUT0' has shape") as caught:
        load(add_sub).run_into(arrays, [None, None])
    assert caught.value.caller_fault


def test_a_closed_session_writes_nowhere(add_sub, load):
    session = load(add_sub)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run_into([np.zeros((1, 16), np.int32)] * 2, [None, None])


# What it runs on


def test_the_engine_tells_its_version_and_devices(monkeypatch):
    found = OnnxRuntimeBackend().engine()
    assert (found.version, found.devices[0], found.missing) == (ort.__version__, "cpu", "")


def test_gpus_are_told_only_where_the_build_and_the_driver_have_them(monkeypatch):
    monkeypatch.setattr(ours, "device_names", lambda: ("cuda:0 (H200)",))
    built = SimpleNamespace(__version__="9", get_available_providers=lambda: ["CPU"])
    monkeypatch.setattr(ours, "_engine", lambda: built)
    assert OnnxRuntimeBackend().engine().devices == ("cpu",)
    built.get_available_providers = lambda: ["CUDAExecutionProvider"]
    assert OnnxRuntimeBackend().engine().devices == ("cpu", "cuda:0 (H200)")


def test_a_missing_engine_is_told_and_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'penstock[onnx]'" in OnnxRuntimeBackend().engine().missing


# What cannot be loaded


def test_sequences_are_refused_by_name(build, load):
    sequence = helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["pieces"])]
    path = build(nodes, {"x": (TensorProto.FLOAT, ["N", 2])}, {"pieces": sequence})
    with pytest.raises(LoadError, match=r"output 'pieces' has type seq.*zipmap=False"):
        load(path)


def test_strings_beside_bf16_are_refused(build, load):
    text, half = (TensorProto.STRING, ["N"]), (TensorProto.BFLOAT16, ["N"])
    nodes = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["c"], ["d"])]
    with pytest.raises(LoadError, match="both strings and BF16"):
        load(build(nodes, {"a": text, "c": half}, {"b": text, "d": half}))


def test_an_unknown_operator_is_named(build, load):
    x = (TensorProto.FLOAT, ["N"])
    with pytest.raises(LoadError, match="No Op registered for Frobnicate"):
        load(build([helper.make_node("Frobnicate", ["x"], ["y"])], {"x": x}, {"y": x}))


def test_says_what_to_install(add_sub, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[onnx\]'"):
        OnnxRuntimeBackend().load(ModelSource("m", add_sub))


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:x", "gpu:0", "CPU", ""])
def test_unknown_devices_are_refused(add_sub, load, device):
    with pytest.raises(LoadError, match=f"device '{device}' is not known"):
        load(add_sub, device)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_cuda_without_the_package_is_refused(add_sub, load):
    with pytest.raises(LoadError, match="pip install onnxruntime-gpu"):
        load(add_sub, "cuda:0")


def test_a_silent_fallback_to_the_cpu_is_refused(add_sub, load, monkeypatch):
    asked = []

    def make(path, options, providers, **kwargs):
        asked.append((providers, kwargs, options))
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    engine = SimpleNamespace(**{name: getattr(ort, name) for name in dir(ort)})
    engine.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    engine.InferenceSession = make
    monkeypatch.setattr(ours, "_engine", lambda: engine)
    with pytest.raises(LoadError, match="onnxruntime chose CPUExecutionProvider"):
        load(add_sub, "cuda:3", gpu_mem_limit="1000", cudnn_conv_algo_search="1")
    providers, kwargs, options = asked[0]
    wanted = {"device_id": "3", "gpu_mem_limit": "1000", "cudnn_conv_algo_search": "HEURISTIC"}
    assert providers == [("CUDAExecutionProvider", wanted)]
    assert kwargs == {"enable_fallback": 0}
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_nodes_left_to_the_cpu_are_refused_with_the_way_out(add_sub, load, monkeypatch):
    engine = SimpleNamespace(**{name: getattr(ort, name) for name in dir(ort)})
    engine.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def make(path, options, providers, **kwargs):
        raise RuntimeError(
            "This session contains graph nodes that are assigned to the default CPU EP, but "
            "fallback to CPU EP has been explicitly disabled by the user."
        )

    engine.InferenceSession = make
    monkeypatch.setattr(ours, "_engine", lambda: engine)
    with pytest.raises(LoadError, match=r"session\.disable_cpu_ep_fallback=0 allows"):
        load(add_sub, "cuda:0")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: X for "
            "the following indices\n index: 1 Got: 8 Expected: 16\n Please fix either the "
            "inputs/outputs or the model.",
            "Got invalid dimensions for input: X for the following indices index: 1 Got: 8 "
            "Expected: 16",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /a b/x.onnx failed:"
            "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model("
            "onnx::ModelProto&&, const onnxruntime::PathString&, const "
            "onnxruntime::ModelOptions&) Unsupported model IR version: 99, max (yet) 13\n",
            "Unsupported model IR version: 99, max (yet) 13",
        ),
        (
            "Non-zero status code returned while running Sub node. Name:'s' Status Message: "
            "/src/op_kernel_context.h:45 const T* onnxruntime::OpKernelContext::Input(int) const "
            "[with T = onnxruntime::Tensor] Missing Input: INPUT1\n",
            "node Sub 's': Missing Input: INPUT1",
        ),
        (
            "matmul_helper.h:59 Compute MatMul dimension mismatch",
            "Compute MatMul dimension mismatch",
        ),
        ("\x1b[1;31mred\x1b[m text", "red text"),
        ("Ratio 3:4 of a.b (c::d) stays", "Ratio 3:4 of a.b (c::d) stays"),
    ],
)
def test_messages_lose_their_noise(raw, cleaned):
    assert clean(raw) == cleaned


def test_a_path_is_all_it_needs(tmp_path, load):
    path = Path(tmp_path) / "with space" / "модель.onnx"
    write_add_sub(path)
    assert load(path).inputs[0].name == "INPUT0"
