"""LiteRT keeps the contract, for every element type, and no file can take the process with it."""

import importlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.batchable import supports_batching
from penstock.backends.conformance import Case, check_backend
from penstock.backends.litert import LiteRtBackend
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

TYPES = [d for d in dt.ALL if d is not dt.BF16]


@pytest.fixture(autouse=True)
def zoo():
    engine_or_skip("litert")
    return importlib.import_module("tests.zoo.litert")


@pytest.fixture
def load():
    sessions = []

    def make(path, device="cpu", threads=1, **options):
        sessions.append(LiteRtBackend().load(ModelSource("m", path, device, threads, options)))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def network(zoo, tmp_path):
    """The digits network."""
    zoo.write(tmp_path)
    return tmp_path / "model.tflite"


@pytest.fixture
def identity(zoo, tmp_path):
    """Writes a model that gives back ``x``; a declared output may say less than is true."""

    def write(dtype, shape=(-1, 4), declared=None, quantization=None):
        graph = zoo.Graph()
        kind = object if dtype is dt.BYTES else dtype.numpy
        x = graph.tensor("x", shape, kind, quantization)
        y = graph.tensor("y", shape if declared is None else declared, kind, quantization)
        to = graph.constant(
            "to", np.array([*shape[:0], *([-1] if shape else []), *shape[1:]], "i4")
        )
        graph.node("RESHAPE", [x, to], y, "ReshapeOptions")
        path = tmp_path / "model.tflite"
        path.write_bytes(graph.bytes([x], [y]))
        return path

    return write


def two_functions(zoo):
    """One graph with two signatures, whose names differ from those of the tensors."""
    graph = zoo.Graph()
    x, y = graph.tensor("t:0", (-1, 4)), graph.tensor("t:1", (-1, 4))
    graph.node("RELU", [x], y)
    graph.signature("score", {"features": x}, {"scores": y})
    graph.signature("other", {"in": x}, {"out": y})
    return graph.bytes([x], [y])


def test_keeps_the_contract(network):
    pictures = digits.pictures()[:3]
    wanted = ort.InferenceSession(str(digits.MODEL)).run(None, {"image": pictures})
    report = check_backend(
        LiteRtBackend(), ModelSource("m", network), cases=[Case([pictures], wanted)]
    )
    assert report.skipped == ["threads: the session is not thread_safe"]


@pytest.mark.parametrize("shape", [(), (4, 2), (-1, 4)], ids=str)
def test_keeps_the_contract_whatever_the_rank(identity, shape):
    path = identity(dt.FP32, shape)
    report = check_backend(LiteRtBackend(), ModelSource("m", path.parent))
    assert ("batches" in report.held) == (shape[:1] == (-1,))


def test_gives_the_probabilities_of_onnx_runtime(zoo, network, load):
    pictures = digits.pictures()
    (wanted,) = ort.InferenceSession(str(digits.MODEL)).run(None, {"image": pictures})
    for options in ({}, {"use_xnnpack": "0"}):
        (got,) = load(network, **options).run([pictures])
        np.testing.assert_allclose(got, wanted, rtol=0, atol=zoo.TOLERANCE)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_passes(identity, load, dtype):
    session = load(identity(dtype))
    assert session.inputs == (TensorSpec("x", dtype, (-1, 4)),)
    if dtype is dt.BYTES:
        given = np.array([[b"", b"a\0b\0", b"\xff", b"text"]] * 2, object)
    else:
        raw = np.random.default_rng(1).integers(0, 2 if dtype is dt.BOOL else 256, 64, np.uint8)
        given = raw.view(dtype.numpy).reshape(-1, 4)
    (out,) = session.run([given])
    assert out.dtype == dtype.numpy
    assert out.tolist() == given.tolist() or out.tobytes() == given.tobytes()


def test_quantised_tensors_are_their_integers(identity, load):
    session = load(identity(dt.INT8, quantization=(0.5, -3)))
    given = np.array([[-128, -3, 0, 127]], np.int8)
    np.testing.assert_array_equal(session.run([given])[0], given)


def test_outputs_that_follow_the_rows_are_declared_so(identity, load):
    session = load(identity(dt.FP32, (-1, 4), declared=(1, 4)))
    assert session.outputs[0].shape == (-1, 4)
    assert session.symbols == ("rows", "rows")
    assert supports_batching(session)


def test_outputs_that_do_not_follow_them_keep_requests_apart(zoo, tmp_path, load):
    graph = zoo.Graph()
    x, y = graph.tensor("x", (-1, 4)), graph.tensor("y", (-1, 2))
    to = graph.constant("to", np.array([-1, 2], np.int32))
    graph.node("RESHAPE", [x, to], y, "ReshapeOptions")
    (tmp_path / "model.tflite").write_bytes(graph.bytes([x], [y]))
    session = load(tmp_path)
    assert not supports_batching(session)
    assert session.run([np.zeros((3, 4), np.float32)])[0].shape == (6, 2)


def test_a_fixed_batch_is_not_batchable(identity, load):
    session = load(identity(dt.FP32, (1, 4)))
    assert not supports_batching(session)
    with pytest.raises(RunError, match=r"shape \[2, 4\]; the model wants \[1, 4\]"):
        session.run([np.zeros((2, 4), np.float32)])


def test_sizes_may_change_with_each_run(network, load):
    session, pictures = load(network), digits.pictures()
    (wanted,) = session.run([pictures])
    for rows in (1, 7, 1, 64, 3, 3, 64):
        np.testing.assert_allclose(session.run([pictures[:rows]])[0], wanted[:rows], atol=1e-6)


def test_nothing_cannot_be_run(network, load):
    session = load(network)
    with pytest.raises(RunError, match=r"shape \[0, 1, 8, 8\]; LiteRT cannot") as caught:
        session.run([np.zeros((0, 1, 8, 8), np.float32)])
    assert caught.value.caller_fault
    assert session.run([digits.pictures()[:2]])[0].shape == (2, 10)


def test_names_are_those_of_the_signature(zoo, tmp_path, load):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_functions(zoo))
    session = load(path, signature="score")
    assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["features", "scores"]
    check_backend(LiteRtBackend(), ModelSource("m", path, options={"signature": "other"}))
    with pytest.raises(LoadError, match=r"signatures other, score; name one with option"):
        load(path)
    with pytest.raises(LoadError, match=r"'signature' is 'x'; the model has other, score"):
        load(path, signature="x")


def test_tensors_of_one_name_are_told_apart(zoo, tmp_path, load):
    graph = zoo.Graph()
    tensors = [graph.tensor(name, (-1, 2)) for name in ("x", "x", "", "")]
    graph.node("RELU", tensors[:1], tensors[2])
    graph.node("ABS", tensors[1:2], tensors[3])
    (tmp_path / "model.tflite").write_bytes(graph.bytes(tensors[:2], tensors[2:]))
    session = load(tmp_path)
    names = [spec.name for spec in (*session.inputs, *session.outputs)]
    assert names == ["x", "x_1", "tensor_0", "tensor_1"]
    first, second = np.array([[-1, 1]], np.float32), np.array([[-2, 2]], np.float32)
    assert [out.tolist() for out in session.run([first, second])] == [[[0, 1]], [[2, 2]]]


def test_inputs_that_do_not_go_together_leave_the_session_usable(zoo, tmp_path, load):
    graph = zoo.Graph()
    a, b, y = (graph.tensor(name, (-1, -1)) for name in "aby")
    graph.node("ADD", [a, b], y, "AddOptions")
    (tmp_path / "model.tflite").write_bytes(graph.bytes([a, b], [y]))
    session = load(tmp_path)
    fitting = [np.ones((2, 3), np.float32)] * 2
    for _ in range(2):
        with pytest.raises(RunError) as caught:
            session.run([np.ones((2, 3), np.float32), np.ones((2, 5), np.float32)])
        assert caught.value.caller_fault
        assert "\n" not in str(caught.value)
        assert ".cc" not in str(caught.value)
        np.testing.assert_array_equal(session.run(fitting)[0], np.full((2, 3), 2))


def test_each_worker_has_results_of_its_own(network, load):
    first = load(network)
    sessions = [first, *(first.clone() for _ in range(3))]
    pictures = digits.pictures()
    (wanted,) = first.run([pictures])

    def repeat(i):
        for n in range(30):
            rows = slice(i * 31 + n, i * 31 + n + 1 + i)
            np.testing.assert_allclose(
                sessions[i].run([pictures[rows]])[0], wanted[rows], atol=1e-6
            )

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(repeat, range(len(sessions))))
    first.close()
    assert sessions[1].run([pictures[:2]])[0].shape == (2, 10)
    with pytest.raises(LoadError, match="closed"):
        first.clone()
    with pytest.raises(RunError, match="closed"):
        first.run([pictures])
    for session in sessions[1:]:
        session.close()


def test_a_run_lets_other_threads_go_on(network, load):
    session, pictures = load(network), digits.pictures()
    stop, counted = threading.Event(), [0]

    def count():
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)

    counting = threading.Thread(target=count)
    session.run([pictures])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # only who lets go of the interpreter lock lets another thread on
    try:
        counting.start()
        before = counted[0]
        for _ in range(20):
            session.run([pictures])
        assert counted[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        counting.join()


def test_threads_are_bounded(network, load):
    pictures = digits.pictures()
    sessions = [load(network, threads=1) for _ in range(2)]
    before = len(os.listdir("/proc/self/task"))
    for session in sessions:
        session.run([pictures])
    assert len(os.listdir("/proc/self/task")) <= before
    load(network, threads=3).run([pictures])
    assert len(os.listdir("/proc/self/task")) <= before + 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (b"\x08\x07garbage", "is no TensorFlow Lite model"),
        (b"\x1c\0\0\0TFL3" + b"\xff" * 100, "cannot load"),
    ],
)
def test_says_what_a_file_is_that_is_no_model(tmp_path, load, content, told):
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(LoadError, match=told) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_operation_that_the_engine_lacks_is_refused_at_load(zoo, tmp_path, load):
    graph = zoo.Graph()
    x, y = graph.tensor("x", (-1, -1)), graph.tensor("y", (-1, -1))
    graph.node("CUSTOM", [x], y)
    (tmp_path / "model.tflite").write_bytes(graph.bytes([x], [y]))
    with pytest.raises(LoadError, match=r"(?i)custom"):
        load(tmp_path)


def test_a_file_that_kills_the_interpreter_is_refused(zoo, tmp_path, load):
    # An input number of -1 means that it is left out, which RESHAPE takes on trust.
    graph = zoo.Graph()
    x, y = graph.tensor("x", (-1, 4)), graph.tensor("y", (-1, 4))
    graph.node("FULLY_CONNECTED", [x, -1, -1], y, "FullyConnectedOptions")
    (tmp_path / "model.tflite").write_bytes(graph.bytes([x], [y]))
    with pytest.raises(LoadError, match=r"damaged .*crashed on it \(SIG"):
        load(tmp_path)


def test_damage_is_refused_or_harmless(network, tmp_path, load):
    """Bytes changed at random, half of them in the part that says how the model is built."""
    whole, rng = network.read_bytes(), np.random.default_rng(7)
    spoilt, loaded, told = tmp_path / "spoilt.tflite", 0, []
    for i in range(12):
        content = bytearray(whole)
        for place in rng.integers(8 if i % 2 else len(whole) - 5000, len(whole), 1 + 4 * (i % 3)):
            content[place] = rng.integers(256)
        spoilt.write_bytes(content)
        try:
            session = load(spoilt)
            loaded += 1
            session.run([np.zeros([max(d, 1) for d in s.shape], s.dtype.numpy)
                         for s in session.inputs])  # fmt: skip
        except (LoadError, RunError) as error:
            told.append(str(error))
    assert loaded < 12
    assert told
    assert not any("\n" in text for text in told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"signatur": "x"}, "did you mean signature"),
        ({"use_xnnpack": "maybe"}, "must be 1, true, 0 or false"),
        ({"device": "cuda:0"}, "runs on the CPU: state kind: KIND_CPU"),
    ],
)
def test_refusals(network, load, changes, told):
    with pytest.raises(LoadError, match=told):
        load(network, **changes)


def test_without_the_engine_it_says_what_to_install(monkeypatch, network, load):
    for module in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[litert\]'"):
        load(network)
    assert "penstock[litert]" in LiteRtBackend().engine().missing
