"""Libraries made by TVM are served with the runtime alone, and bad ones are refused unopened."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import onnxruntime as ort
import pytest
from tests.zoo import digits
from tests.zoo import tvm as zoo
from tests.zoo.engines import engine_or_skip

from penstock.backends import tvm as tvm_backend
from penstock.backends.base import CloneableSession, CompileTask, LoadError, ModelSource, RunError
from penstock.backends.conformance import check_backend
from penstock.backends.tvm import TvmBackend
from penstock.protocol import dtype as dt
from penstock.protocol.aligned import aligned_bytes
from penstock.protocol.message import TensorSpec

IMAGE = TensorSpec("image", dt.FP32, (-1, 1, 8, 8))
PROBABILITIES = TensorSpec("probabilities", dt.FP32, (-1, 10))


@pytest.fixture(autouse=True)
def engine():
    return engine_or_skip("tvm")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The digits network as ``model.so``, with its sidecar."""
    engine_or_skip("tvm")
    folder = tmp_path_factory.mktemp("digits")
    zoo.write(folder)
    return folder / "model.so"


@pytest.fixture
def load():
    sessions = []

    def make(path, device="cpu", threads=1, inputs=(), outputs=(), **options):
        source = ModelSource("m", path, device, threads, options, inputs, outputs)
        sessions.append(TvmBackend().load(source))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def spoilt(library, tmp_path):
    """A copy whose sidecar is changed by the test."""

    def make(**changes):
        path = zoo.copied(library, tmp_path)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        for key, value in changes.items():
            sidecar[key] = sidecar[key] | value if isinstance(value, dict) else value
        path.with_suffix(".json").write_text(json.dumps(sidecar))
        return path

    return make


def expected(pictures):
    return ort.InferenceSession(digits.MODEL).run(None, {"image": pictures})[0]


def refused(load, path, **more):
    with pytest.raises(LoadError) as caught:
        load(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the contract


def test_keeps_the_contract(library):
    report = check_backend(TvmBackend(), ModelSource("digits", library))
    assert {"engine", "batches", "clones", "refusals", "load errors"} <= set(report.held)


def test_a_directory_stands_for_the_library_in_it(library, load):
    session = load(library.parent)
    assert (session.inputs, session.outputs) == ((IMAGE,), (PROBABILITIES,))


def test_all_held_out_pictures_get_onnx_runtimes_answers(library, load):
    pictures = digits.pictures()
    (found,) = load(library).run([pictures])
    np.testing.assert_allclose(found, expected(pictures), atol=zoo.TOLERANCE)
    assert (found.argmax(1) == expected(pictures).argmax(1)).all()


SERVE = """
import sys
from pathlib import Path
import numpy as np
from penstock.backends import catalog
from penstock.backends.base import ModelSource
session = catalog.get("tvm").load(ModelSource("m", Path(sys.argv[1])))
(probabilities,) = session.run([np.ones((2, 1, 8, 8), np.float32)])
assert probabilities.shape == (2, 10)
import os
mapped = Path("/proc/self/maps").read_text()
assert "libtvm_runtime.so" in mapped
print("libtvm_compiler" in mapped, "TVM_USE_RUNTIME_LIB" in os.environ, "onnx" in sys.modules)
"""


def test_serving_needs_no_compiler(library):
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(library)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["False"] * 3, done.stderr


def test_the_engine_is_told_without_importing_it():
    code = (
        "import sys; from penstock.backends import catalog; engine = catalog.get('tvm').engine(); "
        "print(engine.version, 'tvm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert done[0].startswith("0.")
    assert done[1] == "False"


def test_without_the_package_it_is_told_what_to_install(monkeypatch, library, load):
    def missing(name):
        raise tvm_backend.PackageNotFoundError(name)

    monkeypatch.setattr(tvm_backend, "version", missing)
    assert "penstock[tvm]" in TvmBackend().engine().missing
    monkeypatch.setitem(sys.modules, "tvm", None)
    monkeypatch.delitem(sys.modules, "tvm")
    monkeypatch.setattr(tvm_backend.importlib, "import_module", _no_module)
    assert "penstock[tvm]" in refused(load, library)


def _no_module(name):
    raise ImportError(f"No module named {name!r}")


def test_where_tvm_only_serves_it_does_not_compile(library, load, tmp_path):
    load(library)
    with pytest.raises(LoadError, match="penstock compile"):
        TvmBackend().compile(CompileTask(digits.MODEL, tmp_path))


# --- memory


def test_aligned_inputs_are_not_copied_and_others_are(library, load):
    session = load(library)
    room = aligned_bytes(4 + 256)
    aligned = room[:256].view(np.float32).reshape(1, 1, 8, 8)
    aligned[:] = 0.5
    shared = session._given(aligned)
    assert np.from_dlpack(shared).__array_interface__["data"] == aligned.__array_interface__["data"]
    skewed = room[4:].view(np.float32).reshape(1, 1, 8, 8)
    skewed[:] = 0.5
    (one,), (other,) = session.run([aligned]), session.run([skewed])
    np.testing.assert_array_equal(one, other)
    assert np.from_dlpack(session._given(skewed)).__array_interface__["data"][0] % 64 == 0


def test_read_only_inputs_are_shared_too(library, load):
    session = load(library)
    picture = aligned_bytes(256).view(np.float32).reshape(1, 1, 8, 8)
    picture[:] = digits.pictures()[:1]
    picture.flags.writeable = False
    address = picture.__array_interface__["data"][0]
    assert np.from_dlpack(session._given(picture)).__array_interface__["data"][0] == address
    np.testing.assert_allclose(
        session.run([picture])[0], expected(np.array(picture)), atol=zoo.TOLERANCE
    )


def test_outputs_can_be_written_and_outlive_everything(library, load):
    session = load(library)
    (found,) = session.run([digits.pictures()[:2]])
    copy = found.copy()
    session.close()
    del session
    load(library).run([digits.pictures()[2:9]])
    np.testing.assert_array_equal(found, copy)
    found[:] = 7


def test_a_file_overwritten_in_place_does_not_touch_what_is_served(library, load, tmp_path):
    path = zoo.copied(library, tmp_path)
    session = load(path)
    with path.open("r+b") as file:
        file.truncate(4096)
        file.write(b"\xcc" * 4096)
    (found,) = session.run([digits.pictures()[:3]])
    np.testing.assert_allclose(found, expected(digits.pictures()[:3]), atol=zoo.TOLERANCE)


def test_a_closed_session_lets_its_library_go(library):
    def mapped():
        with open("/proc/self/maps") as file:
            return sum("penstock-tvm-model" in line for line in file)

    before, descriptors = mapped(), len(os.listdir("/proc/self/fd"))
    session = TvmBackend().load(ModelSource("m", library))
    other = session.clone()
    session.run([digits.pictures()[:1]])
    session.close()
    del session
    assert mapped() > before
    other.run([digits.pictures()[:1]])
    other.close()
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


# --- threads


def test_each_thread_has_a_clone_over_the_same_library(library, load):
    session = load(library)
    assert isinstance(session, CloneableSession)
    assert not session.thread_safe
    clones = [session.clone() for _ in range(3)]
    assert len({id(clone._library) for clone in [session, *clones]}) == 1
    wrong = []

    def work(clone, start):
        for i in range(30):
            pictures = digits.pictures()[start + i : start + i + 1 + i % 5]
            (found,) = clone.run([pictures])
            if not np.allclose(found, answers[start + i : start + i + len(pictures)], atol=1e-5):
                wrong.append(i)

    answers = expected(digits.pictures())
    threads = [
        threading.Thread(target=work, args=(clone, 100 * i)) for i, clone in enumerate(clones)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for clone in clones:
        clone.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_pool_has_the_threads_that_a_run_may_use(library, load, threads):
    session = load(library, threads=threads)
    started, pools, found = [], [], []

    def work():
        before = set(os.listdir("/proc/self/task"))  # Some of other tests may yet be ending.
        found.extend(session.run([digits.pictures()[:64]]))
        started.append(len(set(os.listdir("/proc/self/task")) - before))
        pools.append(sys.modules["tvm"].get_global_func("runtime.NumThreads")())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert pools == [threads]
    assert started == [threads - 1]
    np.testing.assert_allclose(found[0], expected(digits.pictures()[:64]), atol=zoo.TOLERANCE)


def test_others_go_on_while_a_model_runs(library, load):
    session, pictures = load(library), np.tile(digits.pictures(), (8, 1, 1, 1))
    running, steps = threading.Event(), 0

    def work():
        running.set()
        session.run([pictures])
        running.clear()

    thread = threading.Thread(target=work)
    thread.start()
    running.wait(10)
    while running.is_set():
        steps += 1
    thread.join()
    assert steps > 1000  # a few, if the engine held the GIL


# --- what it refuses to run


def test_sizes_that_do_not_agree_are_the_callers_fault(library, load):
    with pytest.raises(RunError, match=r"shape \[2, 1, 8, 9\]") as caught:
        load(library).run([np.ones((2, 1, 8, 9), np.float32)])
    assert caught.value.caller_fault


def test_a_closed_session_says_so(library, load):
    session = load(library)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([digits.pictures()[:1]])
    with pytest.raises(LoadError, match="closed"):
        session.clone()


# --- what it refuses to load


def test_a_library_without_a_sidecar_needs_declared_tensors(library, load, tmp_path):
    shutil.copy(library, tmp_path)
    assert "config.pbtxt must declare" in refused(load, tmp_path / "model.so")
    session = load(tmp_path / "model.so", inputs=(IMAGE,), outputs=(PROBABILITIES,))
    (found,) = session.run([digits.pictures()[:5]])
    np.testing.assert_allclose(found, expected(digits.pictures()[:5]), atol=zoo.TOLERANCE)
    said = refused(load, tmp_path / "model.so", inputs=(IMAGE, IMAGE), outputs=(PROBABILITIES,))
    assert "takes 1 tensors, but 2 inputs" in said


def test_outputs_that_are_not_those_declared(library, load, tmp_path):
    shutil.copy(library, tmp_path)
    for outputs in ((IMAGE,), (PROBABILITIES, PROBABILITIES)):
        session = load(tmp_path / "model.so", inputs=(IMAGE,), outputs=outputs)
        with pytest.raises(RunError, match=r"gives float32 \[2, 10\], but") as caught:
            session.run([digits.pictures()[:2]])
        assert not caught.value.caller_fault


def test_a_library_of_somebody_else_is_not_opened(load, tmp_path):
    source, path = tmp_path / "bomb.c", tmp_path / "model.so"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void bomb(void) { abort(); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    assert "no model compiled by TVM" in refused(load, path)


@pytest.mark.parametrize(
    ("at", "data", "said"),
    [
        (0, b"#!/bin/sh\n", "no shared library"),
        (4, b"\x01", "no 64-bit"),
        (16, struct.pack("<H", 2), "no 64-bit little-endian shared library"),
        (18, struct.pack("<H", 243), "ELF machine 243"),
        (40, struct.pack("<Q", 1 << 40), "truncated or damaged"),
    ],
)
def test_libraries_that_cannot_be_for_this_machine(library, load, tmp_path, at, data, said):
    content = bytearray(library.read_bytes())
    content[at : at + len(data)] = data
    (tmp_path / "model.so").write_bytes(content)
    assert said in refused(load, tmp_path / "model.so")


def test_a_library_is_refused_wherever_it_is_cut(library, load, tmp_path):
    content = library.read_bytes()
    for size in [1, 4, 20, 63, 64, 65, *range(1000, len(content), len(content) // 37)]:
        (tmp_path / "model.so").write_bytes(content[:size])
        refused(load, tmp_path / "model.so")


def test_the_sidecar_must_be_that_of_the_library(spoilt, load):
    path = spoilt()
    with path.open("ab") as file:
        file.write(b"\0")
    assert "checksum" in refused(load, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "format 99"),
        ({"tvm": "0.21.0"}, "compiled by TVM 0.21.0"),
        ({"target": {"features": ["avx", "no-such-feature"]}}, "with no-such-feature, which"),
        ({"target": {"device": "cuda"}}, "compiled for cuda"),
        ({"inputs": [{"name": "x", "dtype": "float7", "shape": [1]}]}, "is not what penstock"),
        ({"inputs": 3}, "is not what penstock"),
    ],
)
def test_sidecars_that_say_it_cannot_be_served(spoilt, load, changes, said):
    assert said in refused(load, spoilt(**changes))


def test_a_sidecar_of_somebody_else(library, load, tmp_path):
    path = zoo.copied(library, tmp_path)
    for text in ("", "[]", "{}", "null", "\x00", '{"format": 1}'):
        path.with_suffix(".json").write_text(text)
        assert "compile it again" in refused(load, path)


def test_options(library, load):
    assert "pooled or naive" in refused(load, library, allocator="fast")
    assert "'trails'" in refused(load, library, trails="1")
    assert "function 'sub'" in refused(load, library, function="sub")
    (found,) = load(library, allocator="naive", function="main").run([digits.pictures()[:1]])
    np.testing.assert_allclose(found, expected(digits.pictures()[:1]), atol=zoo.TOLERANCE)


@pytest.mark.parametrize("device", ["cuda:0", "vulkan:0", "cuda:x"])
def test_other_devices_are_never_the_cpu(library, load, tmp_path, device):
    shutil.copy(library, tmp_path)
    said = refused(
        load, tmp_path / "model.so", device=device, inputs=(IMAGE,), outputs=(PROBABILITIES,)
    )
    assert device in said
