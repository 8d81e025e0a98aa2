"""From a request to its reply or error, by callback and by await."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferRequest, ModelMetadata, Signature, TensorSpec
from penstock.server.gateway import DRAINING, Gateway
from penstock.server.job import State
from penstock.server.model_config import ModelConfig
from penstock.server.models import UNLOADED, Loaded, ModelState, ModelTable, ModelVersion
from penstock.server.stats import FailReason


def gateway_of(**lanes):
    models = ModelTable()
    for name, lane in lanes.items():
        metadata = ModelMetadata(name, lane.version, (), "", (), ())
        loaded = Loaded(lane, ModelConfig(name, None), metadata)
        models.set(ModelVersion(name, lane.version, ModelState.READY, loaded=loaded))
    return Gateway(models)


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
def inline(request):
    return request.param


async def test_predict(rig, inline):
    gateway = gateway_of(m=rig.lane(inline=inline))
    reply = await gateway.predict(rig.request(rig.rows(2, 5), id="x"))
    assert (reply.model, reply.version, reply.id) == ("m", "3", "x")
    assert reply.named()["OUTPUT0"].tolist() == [[5, 5], [5, 5]]


async def test_predicts_at_once_share_batches(rig, inline):
    lane = rig.lane(inline=inline)
    gateway = gateway_of(m=lane)
    replies = await asyncio.gather(
        *[gateway.predict(rig.request(rig.rows(1, i))) for i in range(8)]
    )
    assert [reply.arrays[0][0, 0] for reply in replies] == list(range(8))
    assert lane.stats.execution_count < 8


async def test_inputs_are_put_into_the_models_order(rig):
    lane = rig.lane(rig.session(kind="add_sub", shape="2"))
    tensors = [TensorSpec(name, dt.INT32, (1, 2)) for name in ("INPUT1", "INPUT0")]
    arrays = [rig.rows(1, 3), rig.rows(1, 10)]
    request = InferRequest(Signature(tensors), arrays, model="m")
    reply = await gateway_of(m=lane).predict(request)
    assert reply.named()["OUTPUT1"].tolist() == [[7, 7]]
    assert request.arrays is arrays


async def test_infer_calls_back_once_with_the_context(rig, inline):
    gateway, answered, mine = gateway_of(m=rig.lane(inline=inline)), [], object()
    done = asyncio.Event()

    def on_done(job):
        answered.append(job)
        done.set()

    request = rig.request(rig.rows(1, 4))
    job = gateway.infer(request, on_done, mine)
    assert answered == []
    await asyncio.wait_for(done.wait(), 10)
    assert answered == [job]
    assert (job.context, job.request, job.error) == (mine, request, None)


async def test_what_is_refused_is_never_called_back(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    gateway = gateway_of(m=rig.lane(session, jobs_max=1))
    calls = []
    gateway.infer(rig.request(rig.rows(1)), calls.append, None)
    await rig.entered(session)
    gateway.infer(rig.request(rig.rows(1)), calls.append, None)
    for request, code in (
        (rig.request(rig.rows(1)), Code.RESOURCE_EXHAUSTED),
        (rig.request(rig.rows(9)), Code.INVALID_ARGUMENT),
        (rig.request(rig.rows(1), rig.rows(1)), Code.INVALID_ARGUMENT),
        (rig.request(rig.rows(1), model="n"), Code.NOT_FOUND),
        (rig.request(rig.rows(1), version="4"), Code.NOT_FOUND),
    ):
        with pytest.raises(InferError) as caught:
            gateway.infer(request, lambda job: pytest.fail("called back"), None)
        assert caught.value.code is code
    gate.set()
    await rig.until(lambda: len(calls) == 2)


async def test_predict_raises_the_jobs_error(rig, inline):
    gateway = gateway_of(m=rig.lane(rig.session(poison="-1"), inline=inline))
    with pytest.raises(InferError) as caught:
        await gateway.predict(rig.request(rig.rows(1, -1)))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == "input 'INPUT0' contains the poison -1"


async def test_predict_times_out_in_the_queue(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    gateway = gateway_of(m=rig.lane(session))
    running = asyncio.ensure_future(gateway.predict(rig.request(rig.rows(1))))
    await rig.entered(session)
    with pytest.raises(InferError, match="Request timeout expired"):
        await gateway.predict(rig.request(rig.rows(1), timeout_us=1000))
    gate.set()
    await running


@pytest.mark.parametrize("where", ["queue", "run"])
async def test_cancelling_the_await_cancels_the_job(rig, where):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    gateway = gateway_of(m=lane)
    running = asyncio.ensure_future(gateway.predict(rig.request(rig.rows(1, 1))))
    await rig.entered(session)
    waiting = asyncio.ensure_future(gateway.predict(rig.request(rig.rows(1, 2))))
    await asyncio.sleep(0)
    gone, stays = (waiting, running) if where == "queue" else (running, waiting)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert lane.in_flight == 1
    gate.set()
    assert (await stays).arrays[0][0, 0] == (1 if where == "queue" else 2)
    assert session.batches == ([1] if where == "queue" else [1, 1])
    assert lane.stats.fail_count[FailReason.CANCELED] == 1


async def test_a_cancellation_that_comes_after_the_answer(rig, puppet):
    gateway = gateway_of(m=rig.lane(inline=True, loop=puppet))
    task = asyncio.ensure_future(gateway.predict(rig.request(rig.rows(1))))
    await asyncio.sleep(0)
    puppet.run()  # answered, but the task has not seen it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.models.find("m").lane.stats.success_count == 1
    assert gateway.models.find("m").lane.in_flight == 0


async def test_predict_keeps_nothing(rig, inline):
    """Without a garbage collection."""
    gateway, kept = gateway_of(m=rig.lane(inline=inline)), []

    async def scene():
        array = rig.rows(1)
        reply = await gateway.predict(rig.request(array))
        kept.extend([weakref.ref(array), weakref.ref(reply.arrays[0])])

    gc.disable()
    try:
        await scene()
        await rig.until(lambda: all(ref() is None for ref in kept))
    finally:
        gc.enable()


async def test_a_plan_is_made_once_for_a_signature(rig):
    gateway = gateway_of(m=rig.lane())
    signature = rig.request(rig.rows(1)).signature
    for value in (1, 2):
        array = np.full((1, 2), value, np.int32)
        reply = await gateway.predict(InferRequest(signature, [array], model="m"))
        assert reply.arrays[0].tolist() == [[value, value]]
    assert signature.memo[0] is gateway.models.find("m").lane.admission


@pytest.mark.parametrize(
    ("levels", "asked", "given"),
    [(0, 0, 0), (0, 1, 0), (0, 7, 0), (3, 0, 2), (3, 1, 1), (3, 3, 3), (3, 4, 2), (3, 1 << 40, 2)],
)
async def test_priorities_are_the_operators_to_give(rig, levels, asked, given):
    gateway = gateway_of(m=rig.lane(priority_levels=levels, priority_default=2 if levels else 0))
    job = gateway.infer(rig.request(rig.rows(1), priority=asked), lambda job: None, None)
    assert job.priority == given
    await rig.until(lambda: job.state is State.DONE)


async def test_draining_refuses(rig):
    gateway = gateway_of(m=rig.lane())
    gateway.draining = True
    with pytest.raises(InferError) as caught:
        await gateway.predict(rig.request(rig.rows(1)))
    assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, DRAINING)


async def test_readiness(rig):
    gateway = gateway_of(m=rig.lane())
    assert (gateway.ready, gateway.model_ready("m"), gateway.model_ready("m", "3")) == (True,) * 3
    assert not gateway.model_ready("m", "4")
    assert not gateway.model_ready("n")
    gateway.models.set(ModelVersion("n", "1"))
    assert gateway.ready  # one more model is loading: no reason to send nothing to the others
    assert gateway.model_ready("m")
    gateway.models.set(ModelVersion("n", "1", ModelState.UNAVAILABLE, "no"))
    assert gateway.ready
    assert not gateway.model_ready("n")
    gateway.leaving = True
    assert (gateway.ready, gateway.model_ready("m")) == (False, True)
    await gateway.predict(rig.request(rig.rows(1)))
    gateway.draining = True
    assert (gateway.ready, gateway.model_ready("m")) == (False, False)


@pytest.mark.parametrize(
    ("entry", "ready"),
    [
        (ModelVersion("n", "1"), False),
        (ModelVersion("n", "1", ModelState.UNAVAILABLE, "no"), False),
        (ModelVersion("n", "1", ModelState.UNAVAILABLE, UNLOADED), True),
        (ModelVersion("n", "1", ModelState.UNLOADING), True),
    ],
)
async def test_strict_readiness_wants_every_model(rig, entry, ready):
    gateway = gateway_of(m=rig.lane())
    gateway.ready_strict = True
    assert gateway.ready
    gateway.models.set(entry)
    assert gateway.ready is ready


def test_readiness_without_models():
    gateway = Gateway(ModelTable())
    assert not gateway.ready
    gateway.ready_empty = True
    assert gateway.ready
    gateway.models.set(ModelVersion("n", "1", ModelState.UNAVAILABLE, "no"))
    assert gateway.ready
    gateway.ready_strict = True
    assert not gateway.ready


async def test_what_does_not_fit_the_model_is_counted(rig):
    gateway = gateway_of(m=rig.lane())
    stats = gateway.models.find("m").lane.stats
    for count in (1, 2):
        with pytest.raises(InferError):
            gateway.infer(rig.request(np.zeros((1, 2), np.float64)), lambda job: None, None)
        assert stats.fail_count[FailReason.OTHER] == count
    assert sum(stats.fail_count.values()) == 2
