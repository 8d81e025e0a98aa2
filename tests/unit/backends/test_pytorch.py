"""PyTorch's three kinds of artefact keep the contract; what cannot be served is told from them.

What reads archives without PyTorch is tested everywhere, the rest where PyTorch is installed.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends import catalog
from penstock.backends import pytorch as ours
from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.conformance import Case, check_backend
from penstock.backends.pytorch import PyTorchBackend
from penstock.backends.pytorch.archive import EXPORTED, PACKAGE, SCRIPT, opened, refusal_of
from penstock.backends.pytorch.programs import Program, in_order, leaves
from penstock.backends.pytorch.transfer import CudaTransfer
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec

IMAGE = (TensorSpec("image", dt.FP32, (-1, 1, 8, 8)),)
PROBABILITIES = (TensorSpec("probabilities", dt.FP32, (-1, 10)),)


@pytest.fixture
def torch():
    engine_or_skip("pytorch")
    import torch

    return torch


@pytest.fixture
def written(torch, tmp_path):
    """Exports a function of tensors with a free first dimension."""

    def write(function, *examples, dynamic=True):
        class Model(torch.nn.Module):
            def forward(self, *tensors):
                return function(*tensors)

        free = tuple({0: torch.export.Dim("n")} for _ in examples) if dynamic else None
        exported = torch.export.export(
            Model(), examples, dynamic_shapes=(free,) if dynamic else None
        )
        torch.export.save(exported, tmp_path / "model.pt2")
        return ModelSource("m", tmp_path / "model.pt2")

    return write


@pytest.fixture
def script(torch, tmp_path):
    """TorchScript of the digits network, as a Triton user has it."""
    from tests.zoo import pytorch as zoo

    network = zoo.network()
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.trace(network, torch.zeros(2, 1, 8, 8)).save(tmp_path / "model.pt")
    return ModelSource("m", tmp_path / "model.pt", inputs=IMAGE, outputs=PROBABILITIES)


def load(source, **changes):
    return PyTorchBackend().load(dataclasses.replace(source, **changes))


def expected(picture):
    import onnxruntime

    return onnxruntime.InferenceSession(str(digits.MODEL)).run(None, {"image": picture})


# Archives, without PyTorch


def archive(path, *names, **contents):
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(f"m/{name}", contents.get("content", "x"))
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["models/model.json", "data/weights/weight_0"], EXPORTED),
        (["data/aotinductor/model/a.wrapper.so"], PACKAGE),
        (["constants.pkl", "data.pkl", "code/m.py"], SCRIPT),
    ],
)
def test_the_content_tells_what_an_archive_is(tmp_path, names, kind):
    assert opened(archive(tmp_path / "any.name", *names)).kind == kind


@pytest.mark.parametrize(
    ("names", "told"),
    [(["data.pkl"], "weights or a pickled object"), (["word/document.xml"], "none of PyTorch's")],
)
def test_other_archives_are_refused(tmp_path, names, told):
    with pytest.raises(LoadError, match=told):
        opened(archive(tmp_path / "model.pt", *names))


def test_an_archive_cut_short_is_refused(tmp_path):
    path = archive(tmp_path / "model.pt2", "models/model.json")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LoadError, match="cut short"):
        opened(path)


def test_damaged_machine_code_is_refused(tmp_path):
    name = "data/aotinductor/model/a.wrapper.so"
    path = archive(tmp_path / "model.pt2", name, content="machine code")
    path.write_bytes(path.read_bytes().replace(b"machine", b"marhine"))
    with pytest.raises(LoadError, match=r"wrapper\.so in it is damaged"):
        opened(path)


def test_a_package_tells_what_it_was_compiled_for(tmp_path):
    name = "data/aotinductor/model/a.wrapper_metadata.json"
    stated = {"AOTI_DEVICE_KEY": "cpu", "AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}
    found = opened(archive(tmp_path / "model.pt2", name, content=json.dumps(stated)))
    assert found.metadata == stated
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2 avx512f avx512_vnni")
    assert refusal_of(found.metadata, "cpu", cpuinfo) is None
    assert "compiled for cpu, not for cuda:0" in (
        refusal_of(found.metadata, "cuda:0", cpuinfo) or ""
    )
    cpuinfo.write_text("flags : fpu avx2")
    assert "AVX512, AVX512_VNNI, which this CPU lacks" in (
        refusal_of(found.metadata, "cpu", cpuinfo) or ""
    )
    other = refusal_of({"AOTI_MACHINE": "s390x"}, "cpu", cpuinfo)
    assert other is not None
    assert other.startswith("it was compiled for s390x, not for")


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_both_usual_names_are_pytorchs(name):
    assert catalog.for_file(Path(name)) == "pytorch"
    assert catalog.runs_code("pytorch")


# The configuration's order


def specs(*names):
    return tuple(TensorSpec(name, dt.FP32, (-1,)) for name in names)


@pytest.mark.parametrize(
    ("stated", "arguments", "order"),
    [
        (["b", "a"], ["a", "b"], ["a", "b"]),
        (["b", "a"], ["a", "b", "optional"], ["a", "b"]),
        (["IN__1", "IN__0"], ["x", "y"], ["IN__0", "IN__1"]),
        (["second", "first"], ["x", "y"], ["second", "first"]),
        (["IN__1", "IN__3"], ["x", "y"], ["IN__1", "IN__3"]),
    ],
)
def test_order_of_what_torchscript_takes(stated, arguments, order):
    assert [spec.name for spec in in_order(specs(*stated), arguments)] == order


@pytest.mark.parametrize("made", [(1, 2), [1, 2], {"b": 2, "a": 1}])
def test_what_torchscript_gives(made):
    assert leaves(made, ["a", "b"], str) == [1, 2]
    assert leaves("one", ["a"], str) == ["one"]


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LoadError, match=r"pip install 'penstock\[pytorch\]'"):
        PyTorchBackend().load(ModelSource("m", tmp_path))
    assert "pip install" in PyTorchBackend().engine().missing


# With PyTorch


def test_keeps_the_contract_with_an_export(torch, tmp_path):
    from tests.zoo import pytorch as zoo

    zoo.write(tmp_path)
    picture = digits.pictures()[:3]
    case = Case([picture], expected(picture))
    source = ModelSource("m", tmp_path, outputs=PROBABILITIES)
    assert check_backend(PyTorchBackend(), source, cases=[case]).skipped == []
    assert load(source).outputs == PROBABILITIES


def test_keeps_the_contract_with_torchscript(script):
    picture = digits.pictures()[:3]
    case = Case([picture], expected(picture))
    assert check_backend(PyTorchBackend(), script, cases=[case]).skipped == []


@pytest.mark.slow
def test_keeps_the_contract_with_a_package(torch, tmp_path):
    from tests.zoo import pytorch as zoo

    if shutil.which("g++") is None:
        pytest.skip("AOTInductor compiles with g++")
    path = tmp_path / "model.pt2"
    torch._inductor.aoti_compile_and_package(zoo.exported(), package_path=str(path))
    picture = digits.pictures()[:3]
    case = Case([picture], expected(picture))
    source = ModelSource("m", path, inputs=IMAGE, outputs=PROBABILITIES)
    assert check_backend(PyTorchBackend(), source, cases=[case]).skipped == []
    with pytest.raises(LoadError, match="has 1 outputs, but the configuration states 2"):
        load(source, outputs=(*PROBABILITIES, *IMAGE))
    with pytest.raises(LoadError, match="'runners' is '0'"):
        load(source, options={"runners": "0"})


@pytest.mark.parametrize("dtype", [d for d in dt.ALL if d is not dt.BYTES], ids=str)
def test_every_bit_passes(torch, written, dtype):
    name = {"FP": "float", "BF": "bfloat", "BO": "bool"}.get(dtype.name[:2])
    bits = dtype.name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    kind = getattr(torch, dtype.name.lower() if name is None else f"{name}{bits}")
    session = load(written(lambda x: x.reshape(-1, 4), torch.zeros(2, 2, 2, dtype=kind)))
    raw = np.random.default_rng(1).integers(0, 2 if dtype is dt.BOOL else 256, 64, np.uint8)
    given = raw.view(dtype.numpy).reshape(-1, 2, 2)
    given.flags.writeable = False
    (made,) = session.run([given])
    assert made.tobytes() == given.tobytes()
    assert made.dtype == dtype.numpy
    assert not np.shares_memory(made, given)


def test_names_of_arguments_and_of_a_dictionary(torch, tmp_path):
    class Model(torch.nn.Module):
        def forward(self, features, scale):
            return {"scaled": features * scale, "rest": [features + 1]}

    exported = torch.export.export(Model(), (torch.zeros(2, 3), torch.zeros(1)))
    torch.export.save(exported, tmp_path / "model.pt2")
    session = load(ModelSource("m", tmp_path))
    assert [spec.name for spec in session.inputs] == ["features", "scale"]
    assert [spec.name for spec in session.outputs] == ["scaled", "rest.0"]
    made = session.run([np.ones((2, 3), np.float32), np.full(1, 5, np.float32)])
    assert [array[0, 0] for array in made] == [5, 2]


def test_a_model_that_writes_to_its_input_gets_a_copy(torch, written):
    session = load(written(lambda x: x.add_(1), torch.zeros(2, 3)))
    given = np.zeros((2, 3), np.float32)
    assert session.run([given])[0].tolist() == [[1] * 3] * 2
    assert not given.any()


def test_a_model_that_keeps_state_is_refused(torch, tmp_path):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen.add_(1)
            return x + self.seen

    torch.export.save(torch.export.export(Counter(), (torch.zeros(2),)), tmp_path / "model.pt2")
    with pytest.raises(LoadError, match=r"changes its own state when it runs \(seen\)"):
        load(ModelSource("m", tmp_path))


def test_weights_that_are_given_out_cannot_be_changed(torch, tmp_path):
    class Bias(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x + self.bias, self.bias

    torch.export.save(torch.export.export(Bias(), (torch.zeros(3),)), tmp_path / "model.pt2")
    session = load(ModelSource("m", tmp_path))
    given = [np.zeros(3, np.float32)]
    session.run(given)[1][:] = 7
    assert session.run(given)[0].tolist() == [1, 1, 1]


def test_what_its_guards_refuse_is_the_callers_fault(torch, written):
    session = load(written(lambda x, y: x + y, torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(RunError, match="Guard failed") as caught:
        session.run([np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)])
    assert caught.value.caller_fault


def test_torchscript_needs_a_configuration_that_is_true(script):
    with pytest.raises(LoadError, match="state all inputs and outputs"):
        load(script, inputs=(), outputs=())
    with pytest.raises(LoadError, match="states 2 inputs"):
        load(script, inputs=(*IMAGE, TensorSpec("more", dt.FP32, (-1,))))
    half = load(script, outputs=(TensorSpec("p", dt.FP16, (-1, 10)),))
    with pytest.raises(RunError, match=r"gave output 'p' as torch\.float32 .* declared FP16"):
        half.run([digits.pictures()[:1]])


def test_damaged_content_is_refused(torch, script):
    whole = script.path.read_bytes()
    for place in range(100, len(whole), len(whole) // 8):
        script.path.write_bytes(whole[:place] + whole[place + 7 :])
        with pytest.raises(LoadError) as caught:
            load(script)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "gpu:0", "cuda:99"])
def test_devices_that_are_not_there_are_refused(script, device):
    with pytest.raises(LoadError, match=f"device '{device}'"):
        load(script, device=device)


def test_each_thread_uses_the_cores_of_the_model_that_it_runs(torch, script):
    sessions = {count: load(script, threads=count) for count in (1, 2, 3)}
    used, meet = {}, threading.Barrier(3)

    def run(count):
        for _ in range(2):
            sessions[count].run([digits.pictures()[:1]])
            meet.wait(60)
        used[count] = torch.get_num_threads()

    workers = [threading.Thread(target=run, args=(count,)) for count in sessions]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert used == {1: 1, 2: 2, 3: 3}
    sessions[3].run([digits.pictures()[:1]])
    sessions[2].run([digits.pictures()[:1]])
    assert torch.get_num_threads() == 2


def test_a_closed_session_refuses(script):
    session = load(script)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session.run([digits.pictures()[:1]])


def test_messages_lose_their_frames():
    error = RuntimeError("mat1 and mat2\n cannot\nException raised from check_mm_shapes at /x.h:4")
    assert ours._reason(error) == "mat1 and mat2 cannot"


def test_on_cuda_results_are_waited_for_before_they_are_given_out(torch):
    """The order of calls only, on the CPU: this says nothing of a real device."""
    calls = []

    class Stream:
        def __init__(self, device):
            calls.append(f"stream on {device}")

        def synchronize(self):
            calls.append("synchronize")

    def empty(shape, dtype, pin_memory):
        assert pin_memory
        return torch.empty(shape, dtype=dtype)

    fake = SimpleNamespace(
        **{name: getattr(torch, name) for name in (*DTYPE_NAMES, "from_numpy")},
        empty=empty,
        device=lambda name: "cpu",
        cuda=SimpleNamespace(Stream=Stream, stream=lambda s: contextlib.nullcontext(s)),
    )
    spec = (TensorSpec("x", dt.BF16, (-1, 2)),)
    transfer = CudaTransfer(fake, Program(spec, spec, list), "cuda:0")
    given = np.arange(4, dtype=np.uint16).reshape(2, 2)
    given.flags.writeable = False
    with transfer.lane():
        tensors = transfer.give([given])
        (made,) = transfer.take(tensors, tensors)
    assert made.tolist() == given.tolist()
    assert calls == ["stream on cpu", "synchronize"]


DTYPE_NAMES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
