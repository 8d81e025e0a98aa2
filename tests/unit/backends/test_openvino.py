"""OpenVINO keeps the contract, for every element type, and says clearly what it refuses."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.zoo import digits
from tests.zoo import openvino as zoo
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import CompileTask, LoadError, ModelSource, RunError
from penstock.backends.batchable import supports_batching
from penstock.backends.conformance import Case, check_backend
from penstock.backends.openvino import OpenVinoBackend
from penstock.backends.openvino import runtime as openvino_engine
from penstock.loadtest.models import (
    write_add_sub,
    write_identity,
    write_image_mean,
    write_mlp,
)
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

NUMBERS = [d for d in dt.ALL if d is not dt.BYTES]


@pytest.fixture(autouse=True, scope="module")
def engine():
    return engine_or_skip("openvino")


@pytest.fixture
def load():
    sessions = []

    def make(path, device="cpu", threads=1, inputs=(), outputs=(), **options):
        source = ModelSource("m", path, device, threads, options, inputs, outputs)
        sessions.append(OpenVinoBackend().load(source))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture(scope="module")
def ir(tmp_path_factory):
    """A version directory with the digits network."""
    folder = tmp_path_factory.mktemp("ir")
    zoo.write(folder)
    return folder


@pytest.fixture
def damaged(ir, tmp_path):
    """A copy of the digits network to spoil."""
    return shutil.copytree(ir, tmp_path / "damaged") / "model.xml"


@pytest.fixture
def endless(build):
    """FP32 [N, 512] through so many layers that a run of 512 rows takes seconds."""
    weight = np.eye(512, dtype=np.float32) / 2
    names = ["x", *(f"h{i}" for i in range(299)), "y"]
    return build(
        [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)],
        {"x": (TensorProto.FLOAT, ["N", 512])},
        {"y": (TensorProto.FLOAT, ["N", 512])},
        [numpy_helper.from_array(weight, "w")],
    )


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_add_sub, id="add_sub"),
        pytest.param(lambda p: write_mlp(p, 16), id="mlp"),
        pytest.param(lambda p: write_image_mean(p, 8), id="image_mean"),
        pytest.param(lambda p: write_identity(p, dt.FP32, ()), id="scalar"),
        pytest.param(lambda p: write_identity(p, dt.FP32, (4, 2)), id="fixed batch"),
        pytest.param(lambda p: write_identity(p, dt.INT64, ("N", "A", "B")), id="free dims"),
        *[pytest.param(lambda p, d=d: write_identity(p, d), id=d.name) for d in NUMBERS],
    ],
)
def test_keeps_the_contract(tmp_path, write):
    path = tmp_path / "model.onnx"
    write(path)
    check_backend(OpenVinoBackend(), ModelSource("m", path))


@pytest.mark.parametrize("name", ["model.xml", ""], ids=["file", "folder of a version"])
def test_keeps_the_contract_with_ir(ir, name):
    pictures = digits.pictures()[:3]
    wanted = ort.InferenceSession(str(digits.MODEL)).run(None, {"image": pictures})
    report = check_backend(
        OpenVinoBackend(), ModelSource("m", ir / name), cases=[Case([pictures], wanted)]
    )
    assert report.skipped == ["threads: the session is not thread_safe"]


def test_gives_the_probabilities_of_onnx_runtime(ir, load):
    pictures = digits.pictures()
    (wanted,) = ort.InferenceSession(str(digits.MODEL)).run(None, {"image": pictures})
    (got,) = load(ir).run([pictures])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=zoo.TOLERANCE)


@pytest.mark.parametrize("dtype", [d for d in NUMBERS if d not in (dt.INT64, dt.UINT64)], ids=str)
def test_every_bit_of_numbers_passes(tmp_path, load, dtype):
    path = tmp_path / "model.onnx"
    write_identity(path, dtype)
    raw = np.random.default_rng(1).integers(0, 2 if dtype is dt.BOOL else 256, 64, np.uint8)
    array = raw.view(dtype.numpy).reshape(2, -1)
    (out,) = load(path).run([array])
    assert out.tobytes() == array.tobytes()
    assert out.dtype == dtype.numpy


@pytest.mark.parametrize(
    ("dtype", "kept", "cut"),
    [
        (dt.INT64, [2**31 - 1, -(2**31)], [2**31, -(2**31) - 1]),
        (dt.UINT64, [2**31 - 1, 0], [2**31, 2**63]),
    ],
    ids=str,
)
def test_integers_that_the_engine_would_cut_are_refused(tmp_path, load, dtype, kept, cut):
    write_identity(tmp_path / "model.onnx", dtype)
    session = load(tmp_path)
    given = np.array([kept], dtype.numpy)
    np.testing.assert_array_equal(session.run([given])[0], given)
    for value in cut:
        with pytest.raises(RunError, match="values beyond 32 bits") as caught:
            session.run([np.array([[0, value]], dtype.numpy)])
        assert caught.value.caller_fault


def test_says_that_wide_numbers_are_computed_narrow(tmp_path, load, caplog):
    for dtype in (dt.FP32, dt.INT64):
        write_identity(tmp_path / f"{dtype}.onnx", dtype)
        load(tmp_path / f"{dtype}.onnx")
    assert [record.getMessage() for record in caplog.records] == [
        "model m: OpenVINO's CPU device computes INT64 in INT32"
    ]


def test_strings_are_refused(tmp_path, load):
    write_identity(tmp_path / "model.onnx", dt.BYTES)
    with pytest.raises(LoadError, match=r"m: input 'INPUT0' has type string; convert it"):
        load(tmp_path / "model.onnx")


def test_no_rows_in_no_rows_out(tmp_path, load):
    write_identity(tmp_path / "model.onnx", dt.FP32)
    (out,) = load(tmp_path / "model.onnx").run([np.empty((0, 4), np.float32)])
    assert out.shape == (0, 4)


def test_rows_of_requests_share_a_run_where_the_engine_ties_them(add_sub, load):
    session = load(add_sub)
    assert session.symbols == ("rows", "rows", "rows", "rows")
    assert supports_batching(session)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        pytest.param(
            [("Relu", ["x"], ["y"]), ("Relu", ["z"], ["w"])], ["y", "w"], id="two rows of inputs"
        ),
        pytest.param(
            [("Transpose", ["x"], ["y"]), ("Relu", ["z"], ["w"])], ["y", "w"], id="other dimension"
        ),
        pytest.param([("Concat", ["x", "z"], ["y"])], ["y"], id="twice the rows"),
    ],
)
def test_rows_of_requests_share_no_run_otherwise(build, load, nodes, outputs):
    free = (TensorProto.FLOAT, ["N", 4])
    made = [helper.make_node(*n, **({"axis": 0} if n[0] == "Concat" else {})) for n in nodes]
    any_two = (TensorProto.FLOAT, [None, None])
    path = build(made, {"x": free, "z": free}, dict.fromkeys(outputs, any_two))
    assert not supports_batching(load(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (b"<?xml version='1.0'?><html/>", "is no OpenVINO model"),
        (b'<net name="x" version="6">', "is IR version 6; this engine reads 10 and 11"),
        (b'<net name="x" version="11"><layers><layer ', "cannot load .*Error parsing"),
    ],
)
def test_says_what_a_file_is_that_is_no_model(tmp_path, load, content, told):
    (tmp_path / "model.xml").write_bytes(content)
    with pytest.raises(LoadError, match=told):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('version="opset1"', 'version="opset99"', "unsupported opset: opset99"),
        ('type="Convolution"', 'type="Convolved"', "Convolved"),
        ('shape="16, 1, 3, 3"', 'shape="16, 2, 3, 3"', "cannot load"),
    ],
)
def test_says_what_is_wrong_with_an_ir(damaged, load, old, new, told):
    text = damaged.read_text()
    assert old in text
    damaged.write_text(text.replace(old, new))
    with pytest.raises(LoadError, match=told) as caught:
        load(damaged)
    assert "\n" not in str(caught.value)


def test_says_that_weights_are_missing_or_too_short(damaged, load):
    weights = damaged.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(LoadError, match="Incorrect weights in bin file"):
        load(damaged)
    weights.unlink()
    with pytest.raises(LoadError, match=r"model\.bin is missing: an IR model is model\.xml with"):
        load(damaged)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml"])
def test_what_is_cut_off_is_refused(tmp_path, ir, load, name):
    whole = digits.MODEL if name.endswith("onnx") else ir / "model.xml"
    content = whole.read_bytes()
    shutil.copy(ir / "model.bin", tmp_path)
    head = b"\x1c\0\0\0TFL3" if name.endswith("tflite") else b""
    (tmp_path / name).write_bytes(head + content[: len(content) // 2])
    with pytest.raises(LoadError, match="cannot load"):
        load(tmp_path / name)


def test_tensorflow_lite_files_are_served(tmp_path, load):
    tflite = pytest.importorskip("tests.zoo.litert", reason="needs LiteRT to write its files")
    tflite.write(tmp_path)
    session, pictures = load(tmp_path), digits.pictures()[:5]
    wanted = ort.InferenceSession(digits.MODEL).run(None, {"image": pictures})[0]
    np.testing.assert_allclose(session.run([pictures])[0], wanted, atol=zoo.TOLERANCE)


def test_a_tensorflow_lite_file_that_kills_the_engine_is_refused(tmp_path, load):
    tflite = pytest.importorskip("tests.zoo.litert", reason="needs LiteRT to write its files")
    graph = tflite.Graph()
    x, y = (graph.tensor(name, (1, 8, 8, 2)) for name in "xy")
    nothing = graph.constant("w", np.ones((2, 3, 3, 0), np.float32))
    bias = graph.constant("b", np.zeros(2, np.float32))
    graph.node("CONV_2D", [x, nothing, bias], y, "Conv2DOptions", strideH=1, strideW=1)
    (tmp_path / "model.tflite").write_bytes(graph.bytes([x], [y]))
    with pytest.raises(LoadError, match=r"damaged .*crashed on it \(SIGFPE\)"):
        load(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path, load):
    (tmp_path / "model.pb").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"reads \.xml, \.onnx and \.tflite"):
        load(tmp_path / "model.pb")
    with pytest.raises(LoadError, match=r"holds none of model\.xml, model\.onnx, model\.tflite"):
        load(tmp_path)


def test_of_several_names_the_declared_one_is_taken(tmp_path, load):
    import openvino as ov
    from openvino import opset14 as ops

    x = ops.parameter([-1, 2], np.float32, name="x")
    x.output(0).set_names({"serving_x", "x:0"})
    model = ov.Model([ops.relu(x, name="last"), ops.abs(x, name="named")], [x], "m")
    model.outputs[1].get_tensor().set_names({"b", "a"})
    ov.serialize(model, str(tmp_path / "model.xml"), str(tmp_path / "model.bin"))
    declared = (TensorSpec("x:0", dt.FP32, (-1, 2)),)
    session = load(tmp_path, inputs=declared)
    assert [spec.name for spec in session.inputs] == ["x:0"]
    assert [spec.name for spec in session.outputs] == ["last", "a"]
    assert [spec.name for spec in load(tmp_path).inputs] == ["serving_x"]


def test_models_compute_in_fp32_on_the_cores_they_have(ir, load):
    session = load(ir, threads=1)
    made = session._compiled._made
    assert made.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert made.get_property("ENABLE_CPU_PINNING") is False
    streams = made.get_property("NUM_STREAMS")
    assert made.get_property("INFERENCE_NUM_THREADS") == int(streams)
    other = load(ir, NUM_STREAMS="1", INFERENCE_NUM_THREADS="1", HINT_BF16="YES")
    assert int(other._compiled._made.get_property("NUM_STREAMS")) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"PERFORMANCE_HINT": "throughput"},
        {"PERFORMANCE_HINT": "LATENCY", "EXECUTION_MODE_HINT": "ACCURACY"},
        {"SCHEDULING_CORE_TYPE": "ANY_CORE", "ENABLE_HYPER_THREADING": "NO"},
        {"ENABLE_CPU_PINNING": "YES"},
        {"SKIP_OV_DYNAMIC_BATCHSIZE": "YES", "COMPILATION_NUM_THREADS": "2"},
        {"ENABLE_BATCH_PADDING": "NO", "RESHAPE_IO_LAYERS": "NO", "TARGET_DEVICE": "CPU"},
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "TARGET_DEVICE": "AUTO"},
    ],
    ids=str,
)
def test_the_engine_takes_the_options(ir, load, options):
    session = load(ir, **options)
    (first,) = session.clone().run([digits.pictures()[:1]])
    np.testing.assert_allclose(first.sum(), 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["ir", "onnx with weights beside it"])
def test_weights_may_be_written_over_while_they_serve(ir, tmp_path, load, kind):
    if kind == "ir":
        path = shutil.copytree(ir, tmp_path / "copy") / "model.xml"
        weights = path.with_suffix(".bin")
    else:
        path, weights = tmp_path / "model.onnx", tmp_path / "weights"
        model = onnx.load(digits.MODEL)
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    session = load(path)
    with open("/proc/self/maps") as maps:
        assert str(weights) not in maps.read()
    (wanted,) = session.run([digits.pictures()[:3]])
    os.truncate(weights, 0)
    others = [session, *(session.clone() for _ in range(3))]
    for other in others:
        np.testing.assert_allclose(other.run([digits.pictures()[:3]])[0], wanted, atol=1e-6)


def test_each_worker_has_results_of_its_own(ir, load):
    first = load(ir)
    sessions = [first, *(first.clone() for _ in range(4))]
    pictures = digits.pictures()
    (wanted,) = first.run([pictures])

    def repeat(i):
        for n in range(30):
            rows = slice((i * 31 + n) % 500, (i * 31 + n) % 500 + 1 + i)
            (got,) = sessions[i].run([pictures[rows]])
            np.testing.assert_allclose(got, wanted[rows], atol=1e-5)

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(repeat, range(len(sessions))))
    first.close()
    (after,) = sessions[1].run([pictures[:2]])
    np.testing.assert_allclose(after, wanted[:2], atol=1e-5)
    with pytest.raises(LoadError, match="closed"):
        first.clone()
    with pytest.raises(RunError, match="closed"):
        first.run([pictures])


def test_a_long_run_can_be_interrupted(endless, load):
    session = load(endless)
    rows = np.ones((512, 512), np.float32)
    began = threading.Event()
    start = session._request.start_async

    class Request:
        """The engine's request, which tells when a run has begun."""

        def __getattr__(self, name):
            return getattr(request, name)

        def start_async(self, *args):
            start(*args)
            began.set()

    request, session._request = session._request, Request()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(session.run, [rows])
        assert began.wait(30)
        session.interrupt()
        with pytest.raises(RunError, match="was interrupted") as caught:
            running.result(60)
    assert not caught.value.caller_fault
    session.interrupt()  # nothing runs now, and the next run is to go through
    (out,) = session.run([rows[:1]])
    assert out.shape == (1, 512)


def test_short_runs_take_the_quick_way(ir, load):
    session = load(ir)
    assert session._quick_bytes == -1
    picture = digits.pictures()[:1]
    for _ in range(50):
        session.run([picture])
    assert session._quick_bytes == picture.nbytes


def test_results_go_where_they_are_wanted(ir, load):
    session = load(ir)
    pictures, place = digits.pictures()[:4], np.zeros((4, 10), np.float32)
    (wanted,) = session.run([pictures])
    (made,) = session.run_into([pictures], [place])
    assert made is place
    np.testing.assert_array_equal(place, wanted)
    session.run([pictures[::-1].copy()])
    session.run_into([pictures[::-1].copy()], [None])
    np.testing.assert_array_equal(place, wanted)
    with pytest.raises(RunError, match=r"shape \[4, 10\], its place \[3, 10\]"):
        session.run_into([pictures], [np.zeros((3, 10), np.float32)])
    with pytest.raises(RunError, match="the model wants"):
        session.run_into([pictures[0]], [place])


def test_results_of_unknown_shape_go_there_too(reshape_to_4, load):
    session = load(reshape_to_4)
    given, place = np.arange(24, dtype=np.float32).reshape(2, 12), np.zeros((6, 4), np.float32)
    (made,) = session.run_into([given], [place])
    assert made is place
    np.testing.assert_array_equal(place.ravel(), given.ravel())


def test_inputs_that_do_not_go_together_are_the_callers_fault(add_sub, reshape_to_4, load):
    wrong = [np.zeros((2, 16), np.int32), np.zeros((3, 16), np.int32)]
    for session, given in [
        (load(add_sub), wrong),
        (load(reshape_to_4), [np.zeros((3, 3), np.float32)]),
    ]:
        with pytest.raises(RunError) as caught:
            session.run(given)
        assert caught.value.caller_fault
        assert "\n" not in str(caught.value)
        assert ".cpp" not in str(caught.value)


def test_compiles_onnx_to_ir(tmp_path, load):
    told = []
    half, full = tmp_path / "half", tmp_path / "full"
    for into, options in ((full, {}), (half, {"compress_to_fp16": "1"})):
        into.mkdir()
        task = CompileTask(
            digits.MODEL, into, options=options, progress=lambda _, share: told.append(share)
        )
        assert OpenVinoBackend().compile(task) == into / "model.xml"
    assert told[-1] == 1.0
    assert told[: len(told) // 2] == sorted(told[: len(told) // 2])
    sizes = [(into / "model.bin").stat().st_size for into in (half, full)]
    assert 0.45 < sizes[0] / sizes[1] < 0.55
    pictures = digits.pictures()[:20]
    (wanted,) = load(full).run([pictures])
    np.testing.assert_allclose(load(half).run([pictures])[0], wanted, atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"options": {"compress": "1"}}, "did you mean compress_to_fp16"),
        ({"target": "sm_90"}, "leave it out"),
    ],
)
def test_what_cannot_be_compiled(tmp_path, changes, told):
    with pytest.raises(LoadError, match=told):
        OpenVinoBackend().compile(CompileTask(digits.MODEL, tmp_path, **changes))


def test_what_is_no_onnx_cannot_be_compiled(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(LoadError, match=r"cannot turn .*x\.onnx into IR") as caught:
        OpenVinoBackend().compile(CompileTask(tmp_path / "x.onnx", tmp_path))
    assert "\n" not in str(caught.value)


def test_without_the_engine_it_says_what_to_install(monkeypatch, ir, load):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[openvino\]'"):
        load(ir)
    assert "penstock[openvino]" in OpenVinoBackend().engine().missing


def test_the_engine_reports_nothing_to_its_maker(tmp_path, ir):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from penstock.backends.base import ModelSource\n"
        "from penstock.backends.openvino import OpenVinoBackend\n"
        "assert 'openvino' not in sys.modules\n"
        "OpenVinoBackend().load(ModelSource('m', Path(sys.argv[1]))).close()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "import openvino_telemetry  # and others may still have it"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "HOME")}
    env["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", code, str(ir)], env=env, check=True, timeout=60)
    assert list(home.rglob("*")) == []


def test_messages_lose_their_source_files():
    said = "Exception from src/a/b.cpp:84:\nCheck 'x.size() == 1' failed at src/c.cpp:9:\nNo good\n"
    assert openvino_engine.clean(RuntimeError(said)) == "No good"
    assert len(openvino_engine.clean("x" * 5000)) < 700
