"""Loading and unloading by request: swaps, failures, overrides, refusals, concurrency."""

import asyncio
import gc
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from penstock.backends import catalog
from penstock.backends.fake import FakeBackend, artefact
from penstock.protocol.errors import Code, InferError
from penstock.server import model_control, model_upload, repository
from penstock.server.model_control import NOT_EXPLICIT, ControlMode, IndexEntry, ModelControl
from penstock.server.models import ModelState

LOADING, READY = ModelState.LOADING, ModelState.READY
UNLOADING, UNAVAILABLE = ModelState.UNLOADING, ModelState.UNAVAILABLE

FAKE = json.dumps({"backend": "fake", "max_batch_size": 4})
ALL = "version_policy { all { } }"


def ones(rows=1, value=1):
    return np.full((rows, 16), value, np.int32)


async def refused(awaitable):
    with pytest.raises(InferError) as caught:
        await asyncio.wait_for(awaitable, 10)
    return caught.value.code, caught.value.message


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.0005)


def served_rows_max(site, name="m"):
    return site.table.find(name).config.max_batch_size


# --- load and unload


async def test_nothing_is_loaded_at_the_start_but_what_is_named(site):
    for name in ("a", "b", "c"):
        site.fake(name)
    control = await site.control("b", "nobody")
    assert site.states() == {("b", "1"): READY, ("nobody", ""): UNAVAILABLE}
    assert site.reason("nobody", "") == "model not found in any model repository"
    assert await control.index() == [
        IndexEntry("a"),
        IndexEntry("b", "1", READY),
        IndexEntry("c"),
        IndexEntry("nobody", "", UNAVAILABLE, "model not found in any model repository"),
    ]
    assert await control.index(ready_only=True) == [IndexEntry("b", "1", READY)]


async def test_load_and_unload(site):
    site.fake("m")
    control = await site.control()
    await control.load("m")
    assert (await site.predict("m", ones()))["OUTPUT0"].tolist() == ones().tolist()
    await control.unload("m")
    assert await refused(site.predict("m", ones())) == (
        Code.NOT_FOUND,
        "Request for unknown model: 'm' has no available versions",
    )
    await until(lambda: site.states() == {("m", "1"): UNAVAILABLE})
    assert await control.index() == [IndexEntry("m", "1", UNAVAILABLE, "unloaded")]
    assert [session.closed for session in site.fakes.sessions] == [1]
    await control.load("m")
    await site.predict("m", ones())
    assert site.table.loads.succeeded == 2


async def test_unloading_what_is_not_loaded_changes_nothing(site):
    site.fake("m", load_error="broken")
    control = await site.control()
    await control.unload("nobody", dependents=True)
    await control.unload("m")
    assert site.states() == {}
    await refused(control.load("m"))
    await control.unload("m")
    assert await control.index() == [IndexEntry("m", "1", UNAVAILABLE, "unloaded")]


async def test_requests_in_flight_outlive_the_unloading(site):
    gate = threading.Event()
    gate.set()
    site.fakes._gate = gate
    site.fake("m", "instance_group { count: 1 }")
    control = await site.control("m")
    site.lane("m").learned(1 << 40)
    (session,) = site.fakes.sessions
    before = len(session.batches)
    gate.clear()
    try:
        asked = asyncio.ensure_future(site.predict("m", ones(value=7)))
        await until(lambda: len(session.batches) > before)
        await control.unload("m")
        assert site.states() == {("m", "1"): UNLOADING}
        assert (await refused(site.predict("m", ones())))[0] is Code.NOT_FOUND
        assert not session.closed
    finally:
        gate.set()
    assert (await asked)["OUTPUT0"].tolist() == ones(value=7).tolist()
    await until(lambda: session.closed)


async def test_what_did_not_change_is_left_as_it_is(site):
    site.fake("m")
    control = await site.control("m")
    lane = site.lane("m")
    await control.load("m")
    assert site.lane("m") is lane
    site.fake("m", fail_runs="0")
    await control.load("m")
    assert site.lane("m") is not lane
    assert len(site.fakes.sessions) == 2


async def test_a_reload_swaps_when_the_successor_is_warm(site, monkeypatch):
    """The old version serves until the new one is loaded, and answers what it accepted."""
    site.fake("m", "instance_group { count: 1 }")
    control = await site.control("m")
    old, gate, entered = site.lane("m"), threading.Event(), threading.Event()
    plain_load = FakeBackend.load

    def load(backend, source):
        entered.set()
        assert gate.wait(10)
        return plain_load(backend, source)

    monkeypatch.setattr(FakeBackend, "load", load)
    site.fake("m", "instance_group { count: 1 }", kind="echo_rows")
    reload = asyncio.ensure_future(control.load("m"))
    assert await asyncio.to_thread(entered.wait, 10)
    for _ in range(3):
        assert set(await site.predict("m", ones())) == {"OUTPUT0"}
    assert site.states() == {("m", "1"): READY}
    assert site.lane("m") is old
    gate.set()
    await reload
    assert set(await site.predict("m", ones())) == {"OUTPUT0", "ROWS"}
    await until(lambda: site.fakes.sessions[0].closed)
    assert [session.closed for session in site.fakes.sessions] == [1, 0]


async def test_a_load_that_fails_keeps_what_serves_and_says_why(site):
    site.fake("m")
    control = await site.control("m")
    lane = site.lane("m")
    site.fake("m", load_error="out of tape")
    assert await refused(control.load("m")) == (
        Code.INVALID_ARGUMENT,
        "load failed for model 'm': version 1 is at UNAVAILABLE state: out of tape;",
    )
    kept = "the version loaded before serves, because a reload failed: "
    assert await control.index() == [IndexEntry("m", "1", READY, kept + "out of tape")]
    assert site.lane("m") is lane
    site.config("m", "max_batch")
    code, text = await refused(control.load("m"))
    assert code is Code.INTERNAL
    assert text.startswith("failed to load 'm', failed to poll from model repository: ")
    assert "max_batch" in text
    assert "max_batch" in (await control.index())[0].reason
    await site.predict("m", ones())
    (site.root / "m" / "config.pbtxt").unlink()
    site.fake("m", delay_ms="0")
    await control.load("m")
    assert await control.index() == [IndexEntry("m", "1", READY)]
    assert (site.table.loads.succeeded, site.table.loads.failed) == (2, 1)


async def test_a_model_that_left_the_disk_goes_on_serving_until_it_is_unloaded(site):
    folder = site.fake("m")
    control = await site.control("m")
    folder.rename(site.root.parent / "away")
    code, text = await refused(control.load("m"))
    assert (code, text[:64]) == (
        Code.INTERNAL,
        "failed to load 'm', failed to poll from model repository: model n"[:64],
    )
    await site.predict("m", ones())
    await control.unload("m")
    await until(lambda: site.fakes.sessions[0].closed)


async def test_retries(site, monkeypatch):
    site.fake("m")
    failing = [OSError("busy"), MemoryError("busy")]
    plain_load = FakeBackend.load

    def load(backend, source):
        if failing:
            raise failing.pop()
        return plain_load(backend, source)

    monkeypatch.setattr(FakeBackend, "load", load)
    control = await site.control(load_retries=1)
    assert "OSError: busy" in (await refused(control.load("m")))[1]
    failing.append(OSError("busy"))
    await control.load("m")


# --- versions


async def test_versions_come_and_go(site):
    site.fake("m", ALL, version=1)
    site.fake("m", version=2)
    control = await site.control("m")
    one, two = site.lane("m", "1"), site.lane("m", "2")
    site.fake("m", version=3)
    await control.load("m")
    assert (site.lane("m", "1"), site.lane("m", "2")) == (one, two)  # not loaded again
    for version in ("", "1", "2", "3"):
        assert site.table.find("m", version).metadata.versions == ("1", "2", "3")
    site.config("m", "version_policy { specific { versions: [2] } }")
    await control.load("m")
    await until(lambda: site.states()["m", "3"] is UNAVAILABLE)
    await until(lambda: site.states()["m", "1"] is UNAVAILABLE)
    assert site.states()["m", "2"] is READY
    assert site.table.find("m").metadata.versions == ("2",)
    assert (site.reason("m", "1"), site.reason("m", "3")) == ("unloaded", "unloaded")
    assert site.lane("m", "2") is not two  # its configuration is another


async def test_one_bad_version_stops_a_reload_and_nothing_else(site):
    site.fake("m", ALL, version=1)
    control = await site.control("m")
    one = site.lane("m", "1")
    site.fake("m", version=2)
    site.fake("m", version=3, load_error="broken")
    code, text = await refused(control.load("m"))
    assert (code, text) == (
        Code.INVALID_ARGUMENT,
        "load failed for model 'm': version 3 is at UNAVAILABLE state: broken;",
    )
    assert site.states() == {("m", "1"): READY, ("m", "3"): UNAVAILABLE}
    assert site.lane("m") is one
    assert [session.closed for session in site.fakes.sessions] == [0, 1]
    site.fake("m", version=3)
    await control.load("m")
    assert set(site.states().values()) == {READY}
    assert site.lane("m", "1") is one


async def test_a_first_load_serves_the_versions_that_are_good(site):
    site.fake("m", ALL, version=1)
    site.fake("m", version=2, load_error="broken")
    control = await site.control()
    assert "version 2 is at UNAVAILABLE state: broken" in (await refused(control.load("m")))[1]
    assert site.states() == {("m", "1"): READY, ("m", "2"): UNAVAILABLE}


async def test_a_policy_that_selects_nothing(site):
    site.fake("m")
    control = await site.control()
    override = json.dumps({"backend": "fake", "version_policy": {"specific": {"versions": [7]}}})
    assert "selects no version that exists" in (await refused(control.load("m", override)))[1]


# --- overrides


async def test_a_configuration_of_the_request(site):
    site.fake("m", "max_batch_size: 2")
    control = await site.control("m")
    await control.load("m", json.dumps({"backend": "fake", "maxBatchSize": "16"}))
    assert served_rows_max(site) == 16
    await control.load("m", FAKE)
    assert served_rows_max(site) == 4
    lane = site.lane("m")
    await control.load("m", FAKE)
    assert site.lane("m") is lane
    await control.load("m")
    assert served_rows_max(site) == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("{", "Invalid config override"),
        ("", "Invalid config override"),
        ("[]", "Invalid config override"),
        ('{"max_batch_sizes": 3}', "Invalid config override"),
        ('{"max_batch_size": -3}', "max_batch_size"),
        ('{"name": "other"}', "name"),
        ('{"backend": "warp"}', "there is no backend 'warp'"),
        ('{"backend": "fake", "default_model_filename": "../../x"}', "inside"),
        (" " * (1 << 20) + "{}", "too many"),
    ],
)
async def test_a_configuration_that_cannot_be(site, override, words):
    site.fake("m")
    control = await site.control("m")
    code, text = await refused(control.load("m", override))
    assert words in text
    assert code in (Code.INTERNAL, Code.INVALID_ARGUMENT)
    assert "'m'" in text
    await site.predict("m", ones())


def uploads(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.iterdir() if path.name.startswith("penstock-model-")]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(model_upload.tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_files_of_the_request(site, temporary):
    site.fake("m", "max_batch_size: 2")
    control = await site.control("m")
    files = {"3/model.fake": artefact({"kind": "echo_rows"}), "labels.txt": b"a\nb"}
    await control.load("m", FAKE, files)
    (folder,) = uploads(temporary)
    assert folder.stat().st_mode & 0o077 == 0
    assert site.table.find("m").metadata.versions == ("3",)
    assert set(await site.predict("m", ones())) == {"OUTPUT0", "ROWS"}
    await until(lambda: site.states().get(("m", "1")) is not UNLOADING)
    await control.load("m")  # what is on disk is served again
    assert site.table.find("m").metadata.versions == ("1",)
    await until(lambda: not uploads(temporary))
    assert [session.closed for session in site.fakes.sessions] == [1, 1, 0]


async def test_a_model_that_is_nowhere_on_disk(site, temporary):
    control = await site.control()
    files = {"1/model.fake": memoryview(artefact({}))}
    await control.load("new", FAKE, files)
    await site.predict("new", ones())
    assert (await refused(control.load("new")))[0] is Code.INTERNAL
    await site.predict("new", ones())
    await control.unload("new")
    await until(lambda: site.states() == {})  # names that clients invent must not pile up
    assert uploads(temporary) == []
    await control.load("new", FAKE, files)
    for repo in site.repositories:
        await repo.close()
    assert uploads(temporary) == []


async def test_a_load_with_files_that_fails_leaves_nothing(site, temporary):
    control = await site.control()
    files = {"1/model.fake": artefact({"load_error": "no"})}
    assert "load failed for model 'x'" in (await refused(control.load("x", FAKE, files)))[1]
    assert (await refused(control.load("x", "{", files)))[0] is Code.INTERNAL
    assert (await refused(control.load("x", FAKE, {"nope": b""})))[0] is Code.INTERNAL
    assert uploads(temporary) == []
    assert await control.index() == []


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "1/../../x", "", ".", "..", "a\\b", "a\0b", "a\nb", "x" * 1025, "y" * 300],
)
async def test_files_that_lead_elsewhere(site, temporary, name):
    control = await site.control()
    code, text = await refused(control.load("m", FAKE, {name: b"x"}))
    assert code is Code.INTERNAL
    assert "failed to load 'm', failed to poll from model repository" in text
    assert uploads(temporary) == []
    assert not (temporary / "x").exists()


async def test_files_need_a_configuration_and_are_not_too_many(site, temporary):
    control = await site.control()
    _, text = await refused(control.load("m", None, {"1/model.fake": b""}))
    assert "Load parameter 'config' must be specified for model file override" in text
    many = {f"1/{i}": b"" for i in range(model_upload.FILES_MAX + 1)}
    assert "too many" in (await refused(control.load("m", FAKE, many)))[1]
    both = {"1/model.fake": b"", "1//model.fake": b""}
    assert "twice" in (await refused(control.load("m", FAKE, both)))[1]
    nested = {"1/a": b"", "1/a/b": b""}
    assert "cannot write" in (await refused(control.load("m", FAKE, nested)))[1]
    assert uploads(temporary) == []


@pytest.mark.parametrize("allowed", [False, True])
async def test_programs_are_taken_from_requests_only_where_that_is_allowed(
    site, temporary, monkeypatch, allowed
):
    monkeypatch.setattr(catalog, "_DATA_ONLY", frozenset({"onnxruntime"}))
    site.fake("disk")
    control = await site.control("disk", code_from_requests=allowed, code_backends={"fake"})
    assert site.states() == {("disk", "1"): READY}  # the operator put it there
    load = control.load("m", FAKE, {"1/model.fake": artefact({})})
    if allowed:
        await load
        await site.predict("m", ones())
    else:
        assert "--allow-code-upload" in (await refused(load))[1]
        assert site.fakes.sessions[1:] == []
        await control.load("disk", FAKE)  # a configuration alone brings no program


async def test_files_for_engines_that_hostile_ones_could_harm_are_not_taken_from_requests(
    site, monkeypatch
):
    monkeypatch.setattr(catalog, "_FROM_ANYBODY", frozenset({"onnxruntime"}))
    load = {"1/model.fake": artefact({})}
    control = await site.control()
    text = (await refused(control.load("m", FAKE, load)))[1]
    assert "'fake' can harm the server" in text
    assert "--allow-code-upload" in text
    assert site.fakes.sessions == []


async def test_the_operator_may_take_them_all_the_same(site, monkeypatch):
    monkeypatch.setattr(catalog, "_FROM_ANYBODY", frozenset({"onnxruntime"}))
    control = await site.control(code_from_requests=True)
    await control.load("m", FAKE, {"1/model.fake": artefact({})})
    await site.predict("m", ones())


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_request_does_not_choose_how_a_program_is_run(site, monkeypatch, allowed):
    monkeypatch.setattr(catalog, "_DATA_ONLY", frozenset({"onnxruntime"}))
    site.fake("disk")
    control = await site.control("disk", code_from_requests=allowed, code_backends={"fake"})
    config = json.loads(FAKE) | {"parameters": {"delay_ms": {"string_value": "0"}}}
    load = control.load("disk", json.dumps(config))
    if allowed:
        await load
    else:
        assert "parameters choose how they are run" in (await refused(load))[1]
        assert site.states() == {("disk", "1"): READY}


def reaching_out(location: str) -> bytes:
    """An ONNX model that adds weights which lie in the file ``location``."""
    onnx = pytest.importorskip("onnx", reason="NOT TESTED: needs the package onnx")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.INT32, dims=[1, 16])
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        weights.external_data.add(key=key, value=value)
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, ["N", 16])
        for name in ("INPUT0", "OUTPUT0")
    ]
    node = onnx.helper.make_node("Add", ["INPUT0", "w"], ["OUTPUT0"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    opsets = [onnx.helper.make_opsetid("", 17)]
    made: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return made.SerializeToString()


async def test_a_model_of_a_request_reads_its_own_files_alone(site, temporary):
    """Weights may lie in files of their own, but in none that the client did not send."""
    pytest.importorskip("onnxruntime")
    secret = temporary / "secret.bin"
    secret.write_bytes(np.arange(16, dtype=np.int32).tobytes())
    control = await site.control()
    config = json.dumps({"backend": "onnxruntime"})
    for location in (str(secret), "../../../secret.bin", "x/../../../../secret.bin"):
        files = {"1/model.onnx": reaching_out(location), "1/x/y": b""}
        assert "load failed" in (await refused(control.load("m", config, files)))[1]
    files = {"1/model.onnx": reaching_out("weights.bin"), "1/weights.bin": secret.read_bytes()}
    await control.load("m", config, files)
    out = await site.predict("m", np.zeros((1, 16), np.int32))
    assert out["OUTPUT0"].tolist() == [list(range(16))]


# --- refusals


@pytest.mark.parametrize("mode", [ControlMode.NONE, ControlMode.POLL])
async def test_without_explicit_control(site, mode):
    site.fake("m")
    repo = site.repository()
    await repo.load_all()
    site.fake("n")
    control = ModelControl(repo, site.table, mode)
    expected = (Code.UNAVAILABLE, NOT_EXPLICIT)
    assert await refused(control.load("n")) == expected
    assert await refused(control.unload("m")) == expected
    assert await control.index() == [IndexEntry("m", "1", READY)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("..", "model name must not contain path traversal characters"),
        ("../m", "model name must not contain path traversal characters"),
        ("a/b", "model name must not contain path traversal characters"),
        ("a\\b", "model name must not contain path traversal characters"),
        ("a\0b", "this is no usable model name"),
        ("x" * 1025, "this is no usable model name"),
    ],
)
async def test_names_that_are_none(site, name, words):
    control = await site.control()
    assert await refused(control.load(name)) == (Code.INVALID_ARGUMENT, words)
    assert await refused(control.unload(name)) == (Code.INVALID_ARGUMENT, words)


async def test_repositories_have_no_names(site):
    control = await site.control()
    expected = (Code.UNIMPLEMENTED, "'repository_name' specification is not supported")
    assert await refused(control.load("m", repository_name="r")) == expected
    assert await refused(control.unload("m", repository_name="r")) == expected


async def test_hidden_directories_are_nobodys(site):
    site.fake(".hidden")
    control = await site.control()
    assert (await refused(control.load(".hidden")))[0] is Code.INTERNAL
    assert await control.index() == []


async def test_the_index_of_a_disk_that_is_away(site):
    site.fake("m")
    control = await site.control("m")
    site.root.rename(site.root.parent / "away")
    assert await control.index() == [IndexEntry("m", "1", READY)]
    assert "does not exist" in (await refused(control.load("m")))[1]


# --- several at a time


class Brake:
    """Holds every load of the fake backend; ``running`` and ``most`` count those inside."""

    def __init__(self, monkeypatch):
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.begun = 0
        plain_load = FakeBackend.load

        def load(backend, source):
            with self.lock:
                self.running += 1
                self.begun += 1
                self.most = max(self.most, self.running)
            try:
                assert self.gate.wait(10)
                return plain_load(backend, source)
            finally:
                with self.lock:
                    self.running -= 1

        monkeypatch.setattr(FakeBackend, "load", load)


@pytest.fixture
def brake(site, monkeypatch):
    """Ready to be used; open at the end of the test, before the site is closed."""
    brake = Brake(monkeypatch)
    yield brake
    brake.gate.set()


@pytest.mark.parametrize("threads", [1, 3])
async def test_different_models_load_in_parallel(site, brake, threads):
    for name in "abcde":
        site.fake(name)
    control = await site.control(load_threads=threads)
    loads = [asyncio.ensure_future(control.load(name)) for name in "abcde"]
    await until(lambda: brake.running == threads and len(site.states()) == 5)
    assert set(site.states().values()) == {LOADING}
    brake.gate.set()
    await asyncio.gather(*loads)
    assert brake.most == threads
    assert set(site.states().values()) == {READY}


async def test_work_on_one_model_is_done_one_at_a_time(site, brake):
    site.fake("m")
    control = await site.control()
    work = [control.load("m", FAKE), control.unload("m"), control.load("m"), control.load("m")]
    tasks = [asyncio.ensure_future(one) for one in work]
    await until(lambda: brake.begun == 1)
    assert not any(task.done() for task in tasks)
    brake.gate.set()
    await asyncio.gather(*tasks)
    assert brake.most == 1
    assert brake.begun == 2  # the last load found everything as it should be
    assert site.states() == {("m", "1"): READY}
    await until(lambda: site.fakes.sessions[0].closed)
    assert [session.closed for session in site.fakes.sessions] == [1, 0]
    assert not site.repositories[0]._locks


async def test_a_client_that_leaves_leaves_no_half_state(site, brake, temporary):
    site.fake("m")
    control = await site.control()
    task = asyncio.ensure_future(control.load("m", FAKE, {"1/model.fake": artefact({})}))
    await until(lambda: brake.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.states() == {("m", "1"): LOADING}
    brake.gate.set()
    await until(lambda: site.states() == {("m", "1"): READY})
    await site.predict("m", ones())
    await control.unload("m")
    await until(lambda: not uploads(temporary))


async def test_a_failure_that_nobody_waits_for_is_no_failure_of_the_server(site, brake, caplog):
    site.fake("m", load_error="no")
    control = await site.control()
    task = asyncio.ensure_future(control.load("m"))
    await until(lambda: brake.running == 1)
    task.cancel()
    await asyncio.wait([task])
    brake.gate.set()
    await until(lambda: site.states() == {("m", "1"): UNAVAILABLE})
    gc.collect()
    assert not [record for record in caplog.records if "never retrieved" in record.message]


async def test_too_much_at_a_time(site, brake, monkeypatch):
    site.fake("m")
    control = await site.control()
    monkeypatch.setattr(model_control, "PENDING_MAX", 3)
    tasks = [asyncio.ensure_future(control.load("m")) for _ in range(3)]
    await until(lambda: brake.running == 1)
    assert (await refused(control.load("m")))[0] is Code.RESOURCE_EXHAUSTED
    brake.gate.set()
    await asyncio.gather(*tasks)
    monkeypatch.setattr(repository, "RETIRING_MAX", 0)
    assert (await refused(control.load("m")))[0] is Code.RESOURCE_EXHAUSTED


async def test_closing_waits_for_what_is_loading_and_loads_no_more(site, brake):
    site.fake("m")
    site.fake("n")
    control = await site.control(load_threads=1)
    tasks = [asyncio.ensure_future(control.load(name)) for name in "mn"]
    await until(lambda: brake.running == 1)
    closing = asyncio.ensure_future(site.repositories[0].close())
    await asyncio.sleep(0)
    brake.gate.set()
    await closing
    for task in tasks:
        assert (await refused(task))[0] is Code.UNAVAILABLE
    assert brake.begun == 1
    assert [session.closed for session in site.fakes.sessions] == [1]
    assert (await refused(control.load("m")))[0] is Code.UNAVAILABLE
    assert (await refused(control.unload("m")))[0] is Code.UNAVAILABLE
