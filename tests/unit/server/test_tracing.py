"""Which requests are traced, what a trace says, and the files that hold them."""

import asyncio
import json
import logging

import numpy as np
import pytest

from penstock.protocol.errors import InferError
from penstock.protocol.message import ModelMetadata
from penstock.server import tracing
from penstock.server.gateway import Gateway
from penstock.server.model_config import ModelConfig
from penstock.server.models import Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.trace_settings import TraceSettings
from penstock.server.tracing import Tracer

ALL = frozenset({"TIMESTAMPS", "TENSORS"})


def gateway_of(lane, settings):
    models = ModelTable()
    metadata = ModelMetadata("m", "3", (), "", (), ())
    loaded = Loaded(lane, ModelConfig("m", None), metadata)
    models.set(ModelVersion("m", "3", ModelState.READY, loaded=loaded))
    return Gateway(models, Tracer(settings))


def settings(tmp_path, level=ALL, **rest):
    return TraceSettings(level, **{"rate": 1, "file": str(tmp_path / "trace.json"), **rest})


async def traces(gateway, path):
    await gateway.tracer.close()
    return json.loads(path.read_text())


async def ask(rig, gateway, times=1, **fields):
    for i in range(times):
        await gateway.predict(rig.request(rig.rows(1, i), **fields))


@pytest.mark.parametrize("inline", [False, True])
async def test_a_trace_tells_times_and_tensors(rig, tmp_path, inline):
    gateway = gateway_of(rig.lane(inline=inline), settings(tmp_path))
    await gateway.predict(rig.request(rig.rows(2, 5), id="abc"))
    head, stamps, given, made = await traces(gateway, tmp_path / "trace.json")
    assert head == {"id": 1, "model_name": "m", "model_version": 3, "request_id": "abc"}
    times = [stamp["ns"] for stamp in stamps["timestamps"]]
    assert [stamp["name"] for stamp in stamps["timestamps"]] == [
        "REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END",
    ]  # fmt: skip
    assert times == sorted(times)
    assert times[0] > 0
    tensor = {"name": "INPUT0", "data": "5,5,5,5", "shape": "2,2", "dtype": "INT32"}
    assert given == {"id": 1, "activity": "TENSOR_QUEUE_INPUT", "tensor": tensor}
    tensor = {**tensor, "name": "OUTPUT0"}
    assert made == {"id": 1, "activity": "TENSOR_BACKEND_OUTPUT", "tensor": tensor}


async def test_rate_and_count(rig, tmp_path):
    gateway = gateway_of(rig.lane(), settings(tmp_path, frozenset({"TIMESTAMPS"}), rate=3, count=2))
    await ask(rig, gateway, 20)
    found = await traces(gateway, tmp_path / "trace.json")
    assert [part["id"] for part in found] == [1, 1, 2, 2]
    assert not any("tensor" in part for part in found)


async def test_settings_take_effect_while_serving(rig, tmp_path):
    gateway = gateway_of(rig.lane(), settings(tmp_path, frozenset()))
    assert not gateway.tracer.on
    await ask(rig, gateway)
    book = gateway.tracer.book
    book.update({"trace_level": ["TIMESTAMPS"]}, "m")
    assert gateway.tracer.on
    await ask(rig, gateway)
    book.update({"trace_level": []}, "m")
    assert not gateway.tracer.on
    await ask(rig, gateway)
    assert len(await traces(gateway, tmp_path / "trace.json")) == 2


async def test_other_models_settings_do_not_restart_a_count(rig, tmp_path):
    gateway = gateway_of(rig.lane(), settings(tmp_path, frozenset({"TIMESTAMPS"}), count=1))
    await ask(rig, gateway)
    gateway.tracer.book.update({"trace_rate": ["5"]}, "other")
    await ask(rig, gateway)
    assert len(await traces(gateway, tmp_path / "trace.json")) == 2
    gateway.tracer.book.update({"trace_count": ["2"]}, "m")
    await ask(rig, gateway, 5)
    assert len(await traces(gateway, tmp_path / "trace.json")) == 6


async def test_files_of_some_traces_each(rig, tmp_path):
    level = frozenset({"TIMESTAMPS"})
    gateway = gateway_of(rig.lane(), settings(tmp_path, level, log_frequency=2))
    await ask(rig, gateway, 3)
    await gateway.tracer.close()
    files = sorted(tmp_path.glob("trace.json.*"))
    assert [len(json.loads(path.read_text())) for path in files] == [4, 2]


async def test_failed_requests_are_traced_without_compute_phases(rig, tmp_path):
    session = rig.session(kind="fail")
    gateway = gateway_of(rig.lane(session), settings(tmp_path))
    with pytest.raises(InferError, match="always fails"):
        await gateway.predict(rig.request(rig.rows(1)))
    found = await traces(gateway, tmp_path / "trace.json")
    assert [stamp["name"] for stamp in found[1]["timestamps"]] == ["REQUEST_START", "QUEUE_START"]


async def test_without_a_file_traces_go_to_the_log(rig, caplog):
    caplog.set_level(logging.INFO)
    gateway = gateway_of(rig.lane(), TraceSettings(frozenset({"TIMESTAMPS"}), rate=1))
    await ask(rig, gateway)
    await gateway.tracer.close()
    lines = [r.getMessage() for r in caplog.records if r.name == tracing.__name__]
    assert [json.loads(line.removeprefix("trace "))["id"] for line in lines] == [1, 1]


async def test_a_file_of_something_else_is_left_alone(rig, tmp_path, caplog):
    path = tmp_path / "trace.json"
    path.write_text("precious")
    gateway = gateway_of(rig.lane(), settings(tmp_path))
    await ask(rig, gateway)
    await gateway.tracer.close()
    assert path.read_text() == "precious"
    assert "not a trace" in caplog.text


async def test_what_cannot_wait_is_dropped_and_counted(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "PENDING_MAX", 2)
    gateway = gateway_of(rig.lane(), settings(tmp_path, frozenset({"TIMESTAMPS"})))
    for _ in range(3):
        job = gateway.infer(rig.request(rig.rows(1)), lambda job: None, None)
        job.on_done(job)
    assert gateway.tracer.dropped >= 1


async def test_long_tensors_are_cut(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "ELEMENTS_MAX", 3)
    gateway = gateway_of(rig.lane(), settings(tmp_path))
    await gateway.predict(rig.request(rig.rows(2, 1)))
    found = await traces(gateway, tmp_path / "trace.json")
    assert found[2]["tensor"]["data"] == "1,1,1,..."


async def test_a_traced_request_that_expires_is_answered(rig, tmp_path):
    """Its tensors are gone by then."""
    gate = rig.gate()
    session = rig.session(gate=gate)
    gateway = gateway_of(rig.lane(session), settings(tmp_path))
    running = asyncio.ensure_future(gateway.predict(rig.request(rig.rows(1))))
    await rig.entered(session)
    with pytest.raises(InferError, match="timeout expired"):
        await gateway.predict(rig.request(rig.rows(1), timeout_us=1000, id="late"))
    gate.set()
    await running
    found = await traces(gateway, tmp_path / "trace.json")
    late = [part for part in found if part["id"] == 1]
    assert late[0]["request_id"] == "late"
    assert [part["activity"] for part in late if "tensor" in part] == []


async def test_a_cancelled_request_does_not_count(rig, tmp_path):
    gate = rig.gate()
    level = frozenset({"TIMESTAMPS"})
    gateway = gateway_of(rig.lane(rig.session(gate=gate)), settings(tmp_path, level, count=2))
    gateway.infer(rig.request(rig.rows(1)), lambda job: None, None).cancel()
    gate.set()
    await asyncio.gather(*[ask(rig, gateway) for _ in range(5)])
    found = await traces(gateway, tmp_path / "trace.json")
    assert [part["id"] for part in found] == [1, 1, 2, 2]


async def test_long_strings_are_cut(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "CHARS_MAX", 10)
    assert tracing._values(np.array([b"ab", b"c" * 100, b"d"], object)) == "ab,ccccccc,..."
    assert tracing._values(np.array([b"c" * 100], object)) == "cccccccccc,..."
    assert tracing._values(np.array([b"ab", b"cd"], object)) == "ab,cd"
    assert tracing._values(np.array([], np.int32)) == ""


async def test_what_waits_is_bounded_in_size(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "PENDING_CHARS_MAX", 20)
    gateway = gateway_of(rig.lane(), settings(tmp_path))
    await ask(rig, gateway, 20)
    assert 0 < gateway.tracer.dropped < 20
    before = gateway.tracer.dropped
    await traces(gateway, tmp_path / "trace.json")
    await ask(rig, gateway)
    assert gateway.tracer.dropped == before


async def test_models_that_come_and_go_do_not_add_up(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "MODELS_MAX", 3)
    tracer = Tracer(settings(tmp_path))
    lane = rig.lane()
    for i in range(10):
        tracer.sample(rig.job(lane, rig.rows(1)), f"m{i}")
    assert len(tracer._counters) <= 3


async def test_a_path_that_cannot_be_costs_no_shutdown(rig, tmp_path, caplog):
    gateway = gateway_of(rig.lane(), settings(tmp_path, file=str(tmp_path / "a\0b")))
    await ask(rig, gateway)
    await gateway.tracer.close()
    assert "cannot be written" in caplog.text
