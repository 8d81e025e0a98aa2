"""The lane of a decoupled model: parts in order, their end, backpressure, cancelling."""

import asyncio
import threading
import time

import numpy as np
import pytest

from penstock.backends.base import ModelSource, RunError
from penstock.backends.fake import FakeBackend
from penstock.protocol.errors import Code, InferError
from penstock.server.admission import Admission
from penstock.server.job import State, StreamJob
from penstock.server.policy import LanePolicy
from penstock.server.stats import FailReason
from penstock.server.stream_lane import DecoupledModelError, StreamLane
from penstock.server.stream_worker import PARTS_MAX, PartGate


class Streams:
    """Makes stream lanes on fakes and jobs for them; what came back is in ``parts``."""

    def __init__(self, rig, tmp_path):
        self.rig = rig
        self._path = tmp_path
        self.parts = {}

    def session(self, gate=None, **options):
        options = {"kind": "repeat", "shape": "-1", **options}
        return FakeBackend(gate=gate).load(ModelSource("m", self._path, options=options))

    def lane(self, *sessions, rows_max=8, **policy):
        first = sessions[0]
        admission = Admission("m", first.inputs, first.outputs, rows_max)
        lane = StreamLane("m", "3", sessions, admission, policy=LanePolicy(**policy))
        self.rig.lanes.append(lane)
        return lane

    def job(self, lane, array=None, **fields):
        plain = self.rig.job(lane, self.rig.rows(1) if array is None else array, **fields)
        job = StreamJob(
            plain.request, plain.arrays, plain.rows, plain.key, plain.wanted,
            plain.on_done, plain.context, self._on_part,
        )  # fmt: skip
        self.parts[job] = []
        return job

    def submit(self, lane, array=None, **fields):
        job = self.job(lane, array, **fields)
        lane.submit(job)
        return job

    def _on_part(self, job, reply):
        assert job.context.calls == 0, "a part after the end"
        self.parts[job].append(reply)


@pytest.fixture
def streams(rig, tmp_path):
    return Streams(rig, tmp_path)


def ended(job):
    assert (job.reply, job.error) == (None, None)
    assert job.state is State.DONE
    assert job.context.calls == 1


async def test_parts_come_in_order_and_then_the_end(rig, streams):
    session = streams.session(times="-1")
    lane = streams.lane(session)
    jobs = [streams.submit(lane, rig.rows(2, count), id=f"j{count}") for count in (3, 0, 5)]
    await rig.done(*jobs)
    for job, count in zip(jobs, (3, 0, 5), strict=True):
        ended(job)
        assert len(streams.parts[job]) == count
        for reply in streams.parts[job]:
            assert (reply.model, reply.version, reply.id) == ("m", "3", job.request.id)
            assert np.array_equal(reply.named()["OUTPUT0"], rig.rows(2, count))
            assert reply.signature.tensors[0].shape == (2, 2)
    assert session.batches == [2, 2, 2], "jobs of a decoupled model run alone"
    stats = lane.stats
    assert (stats.success_count, stats.response_count, stats.execution_count) == (3, 8, 3)
    assert (stats.inference_count, lane.in_flight) == (6, 0)


async def test_parts_reach_the_loop_while_the_model_still_runs(rig, streams):
    gate = rig.gate()
    session = streams.session(gate)
    lane = streams.lane(session)
    seen = []
    job = streams.job(lane)
    job.on_part = lambda job, reply: seen.append(threading.current_thread())
    lane.submit(job)
    await rig.entered(session)
    assert seen == []
    gate.set()
    await rig.done(job)
    assert seen == [threading.main_thread()] * 3


async def test_responses_of_any_number_of_rows(rig, streams):
    session = streams.session(times="2")
    session._compute = lambda inputs: [np.concatenate([inputs[0]] * 3)]
    lane = streams.lane(session)
    job = streams.submit(lane)
    await rig.done(job)
    assert [reply.arrays[0].shape for reply in streams.parts[job]] == [(3, 2)] * 2
    assert streams.parts[job][0].signature is streams.parts[job][1].signature
    assert streams.parts[job][0].signature.tensors[0].shape == (3, 2)


async def test_one_reply_is_not_to_be_had(rig, streams):
    lane = streams.lane(streams.session())
    with pytest.raises(DecoupledModelError) as caught:
        rig.submit(lane)
    assert caught.value.code is Code.UNIMPLEMENTED
    assert lane.in_flight == 0
    assert lane.stats.fail_count[FailReason.OTHER] == 1


async def test_a_model_of_single_replies_answers_a_stream_job_as_always(rig, streams):
    lane = rig.lane()
    job = streams.submit(lane, rig.rows(1, 4))
    job.pause()
    job.resume()
    await rig.done(job)
    assert streams.parts[job] == []
    assert np.array_equal(job.reply.arrays[0], rig.rows(1, 4))


# --- backpressure


async def test_a_paused_job_holds_the_model_back(rig, streams):
    session = streams.session(times="200")
    lane = streams.lane(session)
    job = streams.job(lane)
    job.on_part = lambda job, reply: (streams.parts[job].append(reply), job.pause())
    lane.submit(job)
    await rig.until(lambda: streams.parts[job])
    await asyncio.sleep(0.05)
    first = len(streams.parts[job])
    assert 1 <= first <= PARTS_MAX
    assert job.state is not State.DONE
    for _ in range(400):  # each resume lets some more through
        if job.state is State.DONE:
            break
        job.resume()
        await asyncio.sleep(0.002)
    await rig.done(job)
    ended(job)
    assert len(streams.parts[job]) == 200


async def test_no_more_than_a_few_wait_for_a_busy_loop(rig, streams):
    session = streams.session(times="100")
    lane = streams.lane(session)
    job = streams.submit(lane)
    await rig.entered(session)
    began = time.monotonic()
    while time.monotonic() - began < 0.1:
        pass  # the loop does something else
    made = 1
    while session.entered.acquire(blocking=False):
        made += 1
    assert made <= PARTS_MAX + 1 + len(streams.parts[job])
    await rig.done(job)
    assert len(streams.parts[job]) == 100


async def test_a_client_that_never_reads_loses_its_responses(rig, streams, monkeypatch):
    monkeypatch.setattr("penstock.server.stream_worker.STALL_S_MAX", 0.05)
    session = streams.session(times="200")
    lane = streams.lane(session)
    job = streams.job(lane)
    job.on_part = lambda job, reply: job.pause()
    lane.submit(job)
    await rig.done(job)
    assert job.error.code is Code.DEADLINE_EXCEEDED
    assert "did not read its responses" in job.error.message
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    await rig.until(lambda: session.streams)
    assert session.streams[0][1] is False


# --- cancelling


async def test_cancelling_closes_the_stream(rig, streams):
    session = streams.session(times="-1")
    lane = streams.lane(session)
    job = streams.submit(lane, rig.rows(1, 1 << 30))
    await rig.until(lambda: len(streams.parts[job]) >= 3)
    job.cancel()
    had = len(streams.parts[job])
    await rig.until(lambda: session.streams)
    assert session.streams[0][1] is False
    assert (len(streams.parts[job]), job.context.calls) == (had, 0)
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    follower = streams.submit(lane, rig.rows(1, 2))
    await rig.done(follower)
    assert len(streams.parts[follower]) == 2
    assert lane.in_flight == 0


async def test_cancelling_wakes_a_producer_that_waits(rig, streams):
    session = streams.session(times="-1")
    lane = streams.lane(session)
    job = streams.job(lane, rig.rows(1, 1 << 30))
    job.on_part = lambda job, reply: job.pause()
    lane.submit(job)
    await rig.until(lambda: lane.stats.response_count)
    job.cancel()
    await rig.until(lambda: session.streams)
    follower = streams.submit(lane, rig.rows(1, 1))
    await rig.done(follower)


async def test_a_part_may_cancel_its_own_job(rig, streams):
    session = streams.session(times="50")
    lane = streams.lane(session)
    job = streams.job(lane)
    seen = []
    job.on_part = lambda job, reply: (seen.append(reply), job.cancel())
    lane.submit(job)
    await rig.until(lambda: session.streams)
    await asyncio.sleep(0.01)
    assert len(seen) == 1
    assert job.context.calls == 0


async def test_cancelled_in_the_queue(rig, streams):
    gate = rig.gate()
    session = streams.session(gate)
    lane = streams.lane(session)
    running = streams.submit(lane)
    await rig.entered(session)
    waiting = streams.submit(lane)
    waiting.cancel()
    gate.set()
    await rig.done(running)
    assert session.batches == [1]


# --- failures


async def test_a_stream_that_fails_half_way(rig, streams):
    session = streams.session(times="3")
    calls = []

    def compute(inputs):
        calls.append(1)
        if len(calls) == 3:
            raise RunError("no more", caller_fault=True)
        return [inputs[0].copy()]

    session._compute = compute
    lane = streams.lane(session)
    job = streams.submit(lane)
    await rig.done(job)
    assert (job.error.code, job.error.message) == (Code.INVALID_ARGUMENT, "no more")
    assert len(streams.parts[job]) == 2
    assert lane.stats.fail_count[FailReason.BACKEND] == 1
    assert lane.stats.success_count == 0


@pytest.mark.parametrize("returned", [[], [np.ones(2), np.ones(2)], None])
async def test_responses_out_of_contract(rig, streams, returned, caplog):
    session = streams.session()
    session._compute = lambda inputs: returned
    lane = streams.lane(session)
    job = streams.submit(lane)
    await rig.done(job)
    assert job.error.code is Code.INTERNAL
    assert streams.parts[job] == []


async def test_a_callback_that_raises_ends_its_job_only(rig, streams, caplog):
    lane = streams.lane(streams.session(times="5"))
    job = streams.job(lane)

    def broken(job, reply):
        raise ZeroDivisionError("front door")

    job.on_part = broken
    lane.submit(job)
    await rig.done(job)
    assert (job.error.code, job.error.message) == (Code.INTERNAL, "internal error")
    good = streams.submit(lane)
    await rig.done(good)
    ended(good)
    assert lane.in_flight == 0


# --- deadlines and the end


async def test_a_deadline_of_the_call_holds_while_it_waits(rig, streams):
    gate = rig.gate()
    session = streams.session(gate)
    lane = streams.lane(session)
    running = streams.submit(lane)
    await rig.entered(session)
    late = streams.job(lane)
    late.deadline_ns = time.monotonic_ns() + 1_000_000
    lane.submit(late)
    await rig.done(late)
    assert (late.error.code, late.error.message) == (Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
    gate.set()
    await rig.done(running)
    assert session.batches == [1]


async def test_draining_waits_for_the_last_part(rig, streams):
    gate = rig.gate()
    session = streams.session(gate)
    lane = streams.lane(session)
    job = streams.submit(lane)
    await rig.entered(session)
    closing = asyncio.ensure_future(lane.close())
    await asyncio.sleep(0)
    with pytest.raises(InferError):
        streams.submit(lane)
    gate.set()
    await closing
    ended(job)
    assert len(streams.parts[job]) == 3
    assert session.closed == 1


# --- the gate alone


def test_a_gate_counts_what_is_under_way():
    gate = PartGate(parts_max=2)
    assert gate.admit()
    assert gate.admit()
    waited = []
    thread = threading.Thread(target=lambda: waited.append(gate.admit()))
    thread.start()
    gate.taken()
    thread.join(10)
    assert waited == [True]
    gate.pause()
    thread = threading.Thread(target=lambda: waited.append(gate.admit()))
    thread.start()
    gate.end()
    thread.join(10)
    assert waited == [True, False]
