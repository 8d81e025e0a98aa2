"""Loading a repository: good and bad models side by side, policies, workers, warm-up, limits."""

import asyncio
import threading

import numpy as np
import pytest

from penstock.backends import catalog
from penstock.backends.base import ModelSource
from penstock.backends.fake import FakeBackend, artefact
from penstock.loadtest.models import write_add_sub, write_identity, write_image_mean
from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import TensorSpec
from penstock.server import model_loading
from penstock.server.model_loading import close_all
from penstock.server.models import ModelState
from penstock.server.repository_layout import LayoutError

UNAVAILABLE, READY = ModelState.UNAVAILABLE, ModelState.READY


def ones(rows=1, width=16, dtype=np.int32):
    return np.ones((rows, width), dtype)


# --- good and bad side by side


async def test_bad_models_do_not_stop_good_ones(site):
    site.fake("a_good", kind="add_sub")
    write_add_sub(site.root / "b_onnx" / "1" / "model.onnx")
    bad = {
        "garbage_onnx": ("1", "garbage_onnx"),
        "bad_pbtxt": ("", "max_batch"),
        "unknown_backend": ("1", "there is no backend 'warp'; known are jax"),
        "wrong_input": ("1", "unexpected inference input 'IMAGE'"),
        "wrong_output": ("1", "unexpected inference output 'SCORES'"),
        "wrong_type": ("1", "TYPE_FP32"),
        "no_artefact": ("1", "no model.onnx in"),
        "no_version": ("", "no version directory"),
        "other_name": ("", "directory name must equal model name"),
        "load_error": ("1", "out of tape"),
        "device": ("1", "cuda:0"),
        "option": ("1", "option 'colour' is not known"),
        "ambiguous": ("1", "a.fake, b.fake"),
        "no_model_file": ("1", "notes.txt"),
        "no_policy": ("", "the version policy selects no version that exists"),
        "labels": ("1", "labels.txt"),
        "always_fails": ("1", "warm-up 'hello' failed: this model always fails"),
    }
    folder = site.root / "garbage_onnx" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x08\x07garbage")
    site.fake("bad_pbtxt", "max_batch: 4")
    site.fake("unknown_backend", 'backend: "warp"')
    site.fake("wrong_input", 'input { name: "IMAGE" data_type: TYPE_INT32 dims: 16 }')
    site.fake("wrong_output", 'output { name: "SCORES" data_type: TYPE_INT32 dims: 16 }')
    site.fake("wrong_type", 'input { name: "INPUT0" data_type: TYPE_FP32 dims: 16 }')
    site.fake("no_artefact", 'backend: "onnxruntime"')
    site.config("no_version", 'backend: "fake"')
    site.fake("other_name", 'name: "another"')
    site.fake("load_error", load_error="out of tape")
    site.fake("device", "instance_group { kind: KIND_GPU gpus: 0 }")
    site.fake("option", colour="red")
    for name in ("a.fake", "b.fake"):
        site.fake("ambiguous")
        (site.root / "ambiguous" / "1" / name).write_bytes(artefact({}))
    (site.root / "ambiguous" / "1" / "model.fake").unlink()
    folder = site.root / "no_model_file" / "1"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("to do")
    site.fake("no_policy", "version_policy { specific { versions: 7 } }")
    site.fake("labels", 'output { name: "OUTPUT0" label_filename: "labels.txt" }')
    site.fake("always_fails", f"max_batch_size: 4 {warmup()}", kind="fail")

    await site.load()
    assert site.states() == {
        ("a_good", "1"): READY,
        ("b_onnx", "1"): READY,
        **{(name, version): UNAVAILABLE for name, (version, _) in bad.items()},
    }
    for name, (version, cause) in bad.items():
        assert cause in site.reason(name, version), name
        with pytest.raises(InferError) as caught:
            site.table.find(name)
        assert caught.value.code is Code.UNAVAILABLE
        assert cause in caught.value.message
    assert site.gateway.ready
    for name in ("a_good", "b_onnx"):
        outputs = await site.predict(name, ones(2), 3 * ones(2))
        assert (outputs["OUTPUT0"] == 4).all()
        assert (outputs["OUTPUT1"] == -2).all()


class Rogue:
    """A backend that keeps no contract."""

    name = "rogue"
    runs_code = False
    default_filename = "model.fake"

    def __init__(self, error):
        self.error = error

    def load(self, source):
        raise self.error


async def test_programs_are_served_only_where_their_backend_is_allowed(site, monkeypatch):
    monkeypatch.setattr(catalog, "_DATA_ONLY", frozenset({"onnxruntime"}))
    site.fake("a")
    await site.load()
    assert site.reason("a") == (
        "models of backend 'fake' are programs; to serve them start the server with "
        "--allow-code fake"
    )
    assert site.fakes.sessions == []
    await site.load(code_backends={"fake"})
    assert site.states()["a", "1"] is READY


async def test_a_version_that_is_not_what_its_checksums_say_is_not_loaded(site):
    site.fake("a")
    site.fake("b")
    (site.root / "b" / "1" / "SHA256SUMS").write_text(f"{'0' * 64}  model.fake\n")
    await site.load(checksums_required=True)
    assert "there is no " in site.reason("a")
    assert "is not the file that SHA256SUMS lists" in site.reason("b")
    assert site.fakes.sessions == []


async def test_a_backend_that_raises_anything_stops_nobody_else(site, monkeypatch, caplog):
    monkeypatch.setitem(catalog._made, "rogue", Rogue(ZeroDivisionError("weights")))
    site.fake("a", 'backend: "rogue"')
    site.fake("b")
    await site.load(load_threads=1)
    assert site.reason("a") == "ZeroDivisionError: weights"
    assert site.states()["b", "1"] is READY
    assert any("loading model a failed" in record.message for record in caplog.records)


async def test_a_model_that_cannot_run_at_load_is_refused_and_closed(site):
    """Trial runs happen at load: what raises outside the contract then is no reason to hang."""

    def broken(inputs):
        raise KeyError("weights")

    spec = TensorSpec("X", dt.FP32, (-1, 2))
    site.fakes._own = ([spec], [spec], broken)
    site.fake("a")
    await site.load()
    assert site.reason("a") == "KeyError: 'weights'"
    assert [session.closed for session in site.fakes.sessions] == [1]


async def test_a_model_that_refuses_zeros_is_served(site):
    site.fake("picky", poison="0")
    await site.load()
    assert (await site.predict("picky", ones()))["OUTPUT0"].tolist() == ones().tolist()
    assert site.lane("picky").mode == "threads"


async def test_sessions_of_refused_models_are_closed(site):
    site.fake("two", f"max_batch_size: 4 instance_group {{ count: 2 }} {warmup()}",
              thread_safe="0", kind="fail")  # fmt: skip
    site.fake("labels", 'output { name: "OUTPUT0" label_filename: "none.txt" }')
    await site.load()
    assert set(site.states().values()) == {UNAVAILABLE}
    assert [session.closed for session in site.fakes.sessions] == [1, 1, 1]


async def test_when_the_second_session_cannot_be_loaded_the_first_is_closed(site, monkeypatch):
    loads = []
    plain_load = FakeBackend.load

    def load(backend, source):
        loads.append(source)
        if len(loads) == 2:
            raise MemoryError("no more")
        return plain_load(backend, source)

    monkeypatch.setattr(FakeBackend, "load", load)
    site.fake("m", "instance_group { count: 3 }", thread_safe="0")
    await site.load()
    assert site.reason("m") == "MemoryError: no more"
    assert [session.closed for session in site.fakes.sessions] == [1]


async def test_a_root_that_is_no_repository(site, tmp_path):
    with pytest.raises(LayoutError, match="does not exist"):
        await site.load(tmp_path / "nowhere")
    site.fake("m", "")
    with pytest.raises(LayoutError, match="directory of one model"):
        await site.load(site.root / "m")


async def test_an_empty_repository(site):
    await site.load()
    assert site.states() == {}
    assert not site.gateway.ready  # There is nothing to send traffic for.


async def test_ready_takes_one_model_that_can_be_served(site):
    site.fake("bad", load_error="no")
    await site.load()
    assert not site.gateway.ready
    site.fake("good")
    await site.load()
    assert site.gateway.ready


async def test_a_model_in_two_roots_is_ambiguous(site, tmp_path):
    site.fake("m")
    site.fake("n")
    twin = tmp_path / "twin" / "m" / "1"
    twin.mkdir(parents=True)
    (twin / "model.fake").write_bytes(artefact({}))
    await site.load(site.root, tmp_path / "twin")
    assert "more than one place" in site.reason("m", "")
    assert site.states()["n", "1"] is READY


# --- single files and real models


async def test_a_single_file_is_a_model(site, tmp_path):
    path = tmp_path / "my net.fake"
    path.write_bytes(artefact({}))
    await site.load(path)
    assert site.states() == {("my_net", "1"): READY}
    assert (await site.predict("", ones(3)))["OUTPUT0"].shape == (3, 16)


async def test_onnx_models(site):
    write_add_sub(site.root / "add_sub" / "1" / "model.onnx")
    write_image_mean(site.root / "mean" / "1" / "net.onnx", side=4)
    write_identity(site.root / "strings" / "1" / "model.onnx", dt.BYTES, ("N", "M"))
    write_identity(site.root / "fixed" / "1" / "model.onnx", dt.FP32, (3, 2))
    await site.load()
    assert set(site.states().values()) == {READY}
    found = site.table.find("add_sub")
    assert found.metadata.platform == "onnxruntime"
    assert found.metadata.inputs[0] == TensorSpec("INPUT0", dt.INT32, (-1, 16))
    assert found.load_s > 0
    image = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    assert (await site.predict("mean", image))["OUTPUT0"].tolist() == [[23.5]]
    texts = np.array([[b"a", "é".encode()]], dtype=object)
    assert (await site.predict("strings", texts))["OUTPUT0"].tolist() == texts.tolist()
    fixed = site.table.find("fixed")
    assert fixed.config.max_batch_size == 0
    assert (await site.predict("fixed", np.ones((3, 2), "f4")))["OUTPUT0"].shape == (3, 2)


RESHAPED = """
max_batch_size: 4
input {{ name: "INPUT0" data_type: TYPE_INT32 dims: {outside} reshape {{ shape: {inside} }} }}
output {{ name: "OUTPUT0" data_type: TYPE_INT32 dims: {outside} reshape {{ shape: {inside} }} }}
model_warmup {{ name: "w" batch_size: 2 inputs {{ key: "INPUT0"
  value {{ data_type: TYPE_INT32 dims: {warm} zero_data: true }} }} }}
"""


@pytest.mark.parametrize(
    ("model", "outside", "inside", "row"),
    [
        ("2,8", "[16]", "[2, 8]", (16,)),
        ("16", "[2, 8]", "[16]", (2, 8)),
        ("-1,4", "[-1]", "[-1, 4]", (12,)),
        ("-1", "[-1, 4]", "[-1]", (3, 4)),
    ],
)
async def test_tensors_are_reshaped_on_the_way(site, model, outside, inside, row):
    warm = outside.replace("-1", "8")
    site.fake("m", RESHAPED.format(outside=outside, inside=inside, warm=warm), shape=model)
    await site.load()
    assert site.states() == {("m", "1"): READY}
    array = np.arange(2 * np.prod(row), dtype=np.int32).reshape(2, *row)
    out = (await site.predict("m", array))["OUTPUT0"]
    assert out.shape == array.shape
    assert out.tolist() == array.tolist()


async def test_one_value_a_row_in_tritons_idiom(site):
    write_identity(site.root / "m" / "1" / "model.onnx", dt.FP32, ("N",))
    (site.root / "m" / "config.pbtxt").write_text(
        """max_batch_size: 8
        input { name: "INPUT0" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
        output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }"""
    )
    await site.load()
    assert site.table.find("m").metadata.inputs[0].shape == (-1, 1)
    out = (await site.predict("m", np.array([[1.5], [2.5]], np.float32)))["OUTPUT0"]
    assert out.tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize(
    ("outside", "inside", "complaint"),
    [
        ("[16]", "[3, 5]", "different numbers"),
        ("[-1]", "[16]", "one -1 each"),
        ("[-1, -1]", "[-1, -1]", "one -1 each"),
    ],
)
async def test_reshapes_that_cannot_be(site, outside, inside, complaint):
    site.fake("m", RESHAPED.format(outside=outside, inside=inside, warm="[16]"), shape="16")
    await site.load()
    assert complaint in site.reason("m", "")


async def test_an_input_that_does_not_divide(site):
    site.fake("m", RESHAPED.format(outside="[-1]", inside="[-1, 4]", warm="[8]"), shape="-1,4")
    await site.load()
    with pytest.raises(InferError, match="cannot be reshaped"):
        await site.predict("m", np.zeros((1, 7), np.int32))


async def test_metadata_and_configuration(site):
    site.fake("m", 'max_batch_size: 4 input { name: "INPUT0" }', shape="-1,3")
    await site.load()
    found = site.table.find("m")
    assert (found.metadata.name, found.metadata.version) == ("m", "1")
    assert found.metadata.inputs == (TensorSpec("INPUT0", dt.INT32, (-1, -1, 3)),)
    assert found.metadata.outputs == (TensorSpec("OUTPUT0", dt.INT32, (-1, -1, 3)),)
    assert (found.config.backend, found.config.max_batch_size) == ("fake", 4)
    assert found.config.default_model_filename == "model.fake"
    assert found.lane.admission.rows_max == 4


async def test_labels(site):
    folder = site.fake("m", 'output { name: "OUTPUT0" label_filename: "names.txt" }')
    (folder / "names.txt").write_text("cat\ndog\n")
    await site.load()
    assert site.table.find("m").labels == {"OUTPUT0": ("cat", "dog")}


async def test_the_artefact_may_have_any_name(site):
    folder = site.fake("m", 'backend: "fake" default_model_filename: "best.bin"')
    (folder / "1" / "model.fake").rename(folder / "1" / "best.bin")
    await site.load()
    assert site.states() == {("m", "1"): READY}


async def test_the_usual_name_may_have_another_of_the_backends_extensions(site, monkeypatch):
    monkeypatch.setattr(catalog, "_SUFFIXES", {".fake": "fake", ".other": "fake"})
    for name, file in (("usual", "model.other"), ("unusual", "best.other")):
        folder = site.fake(name, 'backend: "fake"')
        (folder / "1" / "model.fake").rename(folder / "1" / file)
    await site.load()
    states = site.states()
    assert states["usual", "1"] == READY
    assert states["unusual", "1"] != READY


async def test_of_several_files_the_model_is_the_one_that_is_called_so(site):
    """Modules of a program lie beside it, and what file systems leave behind does not count."""
    folder = site.fake("m") / "1"
    (folder / "other.fake").write_bytes(b"no model")
    (folder / ".model.fake").write_bytes(b"a rest")
    await site.load()
    assert site.states() == {("m", "1"): READY}


async def test_the_reason_is_what_went_wrong_first(site, monkeypatch):
    def stuck(sessions):
        raise RuntimeError("stuck")

    monkeypatch.setattr(model_loading, "close_all", stuck)
    site.fake("m", f"max_batch_size: 4 {warmup()}", kind="fail")
    await site.load()
    assert "this model always fails" in site.reason("m")


async def test_a_session_that_cannot_be_closed_does_not_keep_the_others_open():
    closed = []

    class Sticky:
        def __init__(self, name):
            self.name = name

        def close(self):
            closed.append(self.name)
            if self.name == "b":
                raise RuntimeError("stuck")

    with pytest.raises(RuntimeError, match="stuck"):
        close_all([Sticky(name) for name in "abc"])
    assert sorted(closed) == ["a", "b", "c"]


# --- versions


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (None, ["10"]),
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["3", "10"]),
        ("version_policy { all { } }", ["1", "3", "10"]),
        ("version_policy { specific { versions: [3, 1, 8] } }", ["1", "3"]),
    ],
)
async def test_version_policies(site, policy, served):
    for version in (1, 3, 10):
        site.fake("m", policy, version=version, kind="identity")
    await site.load()
    assert site.states() == {("m", version): READY for version in served}
    assert site.table.find("m").metadata.version == served[-1]
    for version in served:
        assert site.table.find("m", version).metadata.versions == tuple(served)
        assert site.lane("m", version).version == version


async def test_one_bad_version_leaves_the_others(site):
    site.fake("m", "version_policy { all { } }", version=1)
    site.fake("m", version=2, load_error="broken")
    await site.load()
    assert site.states() == {("m", "1"): READY, ("m", "2"): UNAVAILABLE}
    assert site.table.find("m").metadata.version == "1"
    with pytest.raises(InferError, match="version 2 is not at ready state: broken"):
        site.table.find("m", "2")


async def test_versions_are_loading_until_they_are_loaded(site, monkeypatch):
    seen = []
    plain_load = FakeBackend.load

    def load(backend, source):
        seen.append((site.gateway.ready, site.gateway.model_ready("m")))
        return plain_load(backend, source)

    monkeypatch.setattr(FakeBackend, "load", load)
    site.fake("m")
    await site.load()
    assert seen == [(False, False)]
    assert site.gateway.ready
    assert site.gateway.model_ready("m")


# --- workers


@pytest.mark.parametrize(
    ("groups", "thread_safe", "sessions", "workers"),
    [
        ("", "1", 1, 2),
        ("", "0", 2, 2),
        ("instance_group { count: 3 }", "1", 1, 3),
        ("instance_group { count: 3 }", "0", 3, 3),
        ("instance_group { count: 1 } instance_group { count: 2 kind: KIND_CPU }", "0", 3, 3),
        ("instance_group { kind: KIND_CPU }", "0", 1, 1),
    ],
)
async def test_instance_groups(site, groups, thread_safe, sessions, workers):
    site.fake("m", groups, thread_safe=thread_safe)
    await site.load()
    assert len(site.fakes.sessions) == sessions
    lane = site.lane("m")
    assert len(lane._sessions) == workers
    assert len({id(session) for session in lane._sessions}) == sessions
    lane.learned(1 << 40)  # threads, whatever was measured
    await site.predict("m", ones())
    names = {thread.name for thread in threading.enumerate()}
    assert {f"m:1#{i}" for i in range(workers)} <= names
    assert f"m:1#{workers}" not in names


@pytest.mark.parametrize(("cores", "count", "threads"), [(8, 2, 4), (8, 3, 2), (1, 4, 1)])
async def test_workers_share_the_cores(site, monkeypatch, cores, count, threads):
    sources: list[ModelSource] = []
    plain_load = FakeBackend.load
    monkeypatch.setattr(
        FakeBackend, "load", lambda backend, s: sources.append(s) or plain_load(backend, s)
    )
    options = {"kind": "slow", "delay_ms": "1"}
    parameters = [
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
        for key, value in options.items()
    ]
    site.fake("m", " ".join([f"instance_group {{ count: {count} }}", *parameters]))
    await site.load(cores=cores)
    (source,) = sources
    assert (source.name, source.device, source.threads) == ("m", "cpu", threads)
    assert source.options == options
    assert source.path == site.root / "m" / "1" / "model.fake"


async def test_quick_models_begin_inline_and_slow_ones_on_threads(site):
    site.fake("quick")
    site.fake("slow", delay_ms="2")
    await site.load()
    assert site.lane("slow").mode == "threads"
    assert site.lane("quick").mode == "inline"


# --- warm-up


def warmup(
    data="zero_data: true", name="hello", rows=2, count=0, dims=16, dtype="INT32", key="INPUT0"
):
    tensor = f'key: "{key}" value {{ data_type: TYPE_{dtype} dims: {dims} {data} }}'
    counted = f"count: {count}" if count else ""
    return f'model_warmup {{ name: "{name}" batch_size: {rows} {counted} inputs {{ {tensor} }} }}'


async def test_warm_up_runs_before_the_model_is_ready(site):
    site.fake("m", "max_batch_size: 8 " + warmup(rows=3, count=2) + warmup(rows=5, name="more"))
    await site.load()
    (session,) = site.fakes.sessions
    assert session.batches[:3] == [3, 3, 5]
    assert not session.runs[0][0].any()


async def test_warm_up_with_random_data_and_with_a_file(site):
    folder = site.fake(
        "m",
        "max_batch_size: 8 "
        + warmup("random_data: true", rows=4)
        + warmup('input_data_file: "raw"', rows=2),
    )
    (folder / "warmup").mkdir()
    (folder / "warmup" / "raw").write_bytes(np.arange(16, dtype="<i4").tobytes())
    await site.load()
    assert site.states() == {("m", "1"): READY}
    random, raw = (inputs[0] for inputs in site.fakes.sessions[0].runs[:2])
    assert set(np.unique(random)) == {0, 1}
    assert raw.tolist() == [list(range(16))] * 2


async def test_warm_up_of_strings(site):
    site.fake("m", "max_batch_size: 8 " + warmup(dtype="STRING"), dtype="BYTES")
    await site.load()
    assert site.fakes.sessions[0].runs[0][0].tolist() == [[b""] * 16] * 2


async def test_warm_up_where_nothing_batches(site):
    site.fake("m", "max_batch_size: 0 " + warmup(dims="[3, 16]", rows=1))
    await site.load()
    assert site.fakes.sessions[0].runs[0][0].shape == (3, 16)


@pytest.mark.parametrize(
    ("warm", "options", "cause"),
    [
        (warmup(), {"fail_runs": "1"}, "warm-up 'hello' failed: this model was told to fail"),
        (warmup(dims=7), {}, "warm-up 'hello' failed: input 'INPUT0' has shape [2, 7]"),
        (warmup(dtype="FP32"), {}, "warm-up 'hello' failed: input 'INPUT0' is float32"),
        (warmup(key="OTHER"), {}, "warm-up 'hello' has no input 'INPUT0'"),
        (warmup('input_data_file: "none"'), {}, "warm-up 'hello' failed"),
        (warmup('input_data_file: "short"'), {}, "warm-up 'hello' failed"),
    ],
)
async def test_a_model_that_fails_its_warm_up_is_not_served(site, warm, options, cause):
    folder = site.fake("m", "max_batch_size: 8 " + warm, **options)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "short").write_bytes(bytes(3))
    site.fake("other")
    await site.load()
    assert cause in site.reason("m")
    assert site.states()["other", "1"] is READY
    assert sorted(session.closed for session in site.fakes.sessions) == [0, 1]


# --- limits


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ("", 5),
        ("dynamic_batching { }", 5),
        ("dynamic_batching { default_queue_policy { max_queue_size: 2 } }", 2),
    ],
)
async def test_max_queue_size(site, config, limit):
    gate = threading.Event()
    gate.set()
    site.fakes._gate = gate
    site.fake("m", f"max_batch_size: 8 instance_group {{ count: 1 }} {config}", thread_safe="0")
    await site.load(queue_jobs_max=5)
    lane = site.lane("m")
    lane.learned(1 << 40)
    gate.clear()
    (session,) = site.fakes.sessions
    before = len(session.batches)
    try:
        waiting = [asyncio.ensure_future(site.predict("m", ones()))]
        while len(session.batches) == before:
            await asyncio.sleep(0.0005)
        waiting += [asyncio.ensure_future(site.predict("m", ones())) for _ in range(limit)]
        await asyncio.sleep(0)
        assert lane.waiting == limit
        with pytest.raises(InferError) as caught:
            await site.predict("m", ones())
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert caught.value.message == f"Exceeds maximum queue size of {limit} for model 'm'"
    finally:
        gate.set()
    await asyncio.gather(*waiting)


async def test_default_timeout(site):
    gate = threading.Event()
    gate.set()
    site.fakes._gate = gate
    policy = "default_queue_policy { default_timeout_microseconds: 1000 }"
    site.fake(
        "m",
        f"max_batch_size: 8 instance_group {{ count: 1 }} dynamic_batching {{ {policy} }}",
        thread_safe="0",
    )
    await site.load()
    site.lane("m").learned(1 << 40)
    gate.clear()
    (session,) = site.fakes.sessions
    before = len(session.batches)
    try:
        running = asyncio.ensure_future(site.predict("m", ones()))
        while len(session.batches) == before:
            if running.done():  # It expired itself, before the busy machine ran its thread.
                assert isinstance(running.exception(), InferError)
                running = asyncio.ensure_future(site.predict("m", ones()))
            await asyncio.sleep(0.0005)
        with pytest.raises(InferError) as caught:
            await asyncio.wait_for(site.predict("m", ones()), 10)
        assert caught.value.code is Code.UNAVAILABLE
    finally:
        gate.set()
    await running


async def test_max_batch_size_bounds_a_request(site):
    site.fake("m", "max_batch_size: 4")
    await site.load()
    with pytest.raises(InferError, match="batch-size must be <= 4 for 'm'"):
        await site.predict("m", ones(5))


async def test_close_closes_every_session_of_every_version(site):
    site.fake("a", "version_policy { all { } } instance_group { count: 2 }", thread_safe="0")
    site.fake("a", version=2, thread_safe="0")
    site.fake("b")
    await site.load()
    await site.predict("b", ones())
    await site.close()
    assert [session.closed for session in site.fakes.sessions] == [1] * 5
    site.repositories.clear()


# --- what is asked of configurations


COMPLETE = """
input { name: "INPUT0" data_type: TYPE_INT32 dims: [ -1, 16 ] }
output { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ -1, 16 ] }
"""


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (None, "must state all inputs and outputs"),
        ('backend: "fake"', "must state all inputs and outputs"),
        (COMPLETE.replace("data_type: TYPE_INT32 dims: [ -1, 16 ]", "", 1), "INPUT0 lack"),
        (COMPLETE, ""),
    ],
)
async def test_configurations_are_not_completed(site, config, cause):
    site.fake("m", config)
    await site.load(complete_configs=False)
    if cause:
        assert cause in site.reason("m")
    else:
        assert site.table.find("m").config.max_batch_size == 0  # as Triton has it
        await site.predict("m", ones())


async def test_a_named_configuration(site):
    folder = site.fake("m", "max_batch_size: 2")
    (folder / "configs").mkdir()
    (folder / "configs" / "h100.pbtxt").write_text("max_batch_size: 16")
    await site.load(config_name="h100")
    assert site.table.find("m").config.max_batch_size == 16


async def test_loose_files_are_models(site, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    write_add_sub(folder / "a.onnx")
    write_identity(folder / "b.onnx")
    await site.load(folder)
    assert site.states() == {("a", "1"): READY, ("b", "1"): READY}
    outputs = await site.predict("a", ones(), ones())
    assert (outputs["OUTPUT0"] == 2).all()
