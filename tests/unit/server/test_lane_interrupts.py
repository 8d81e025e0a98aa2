"""A run that nobody waits for any more is ended; no other run is."""

import asyncio
import threading

import pytest

from penstock.protocol.errors import Code
from penstock.server.stats import FailReason


@pytest.fixture
def able(rig):
    """An interruptible session; its runs wait for a gate that opens at the end of the test."""
    return rig.session(gate=rig.gate(), able="1")


async def interrupted(rig, session):
    """Until the run is over that was interrupted."""
    await rig.until(lambda: session.interrupts and not session._running)


async def test_a_run_is_ended_when_its_last_job_is_cancelled(rig, able):
    lane = rig.lane(able)
    jobs = [rig.submit(lane, rig.rows(2, i)) for i in range(3)]
    await rig.entered(able)
    assert able.batches == [6]
    jobs[1].cancel()
    jobs[0].cancel()
    assert able.interrupts == 0, "one still waits"
    jobs[2].cancel()
    await interrupted(rig, able)
    assert [job.context.calls for job in jobs] == [0, 0, 0]
    assert lane.stats.fail_count[FailReason.CANCELED] == 3
    assert sum(lane.stats.fail_count.values()) == 3
    assert able.batches == [6], "nothing is run again in halves"


async def test_the_next_run_is_whole(rig, able):
    lane = rig.lane(able)
    first = rig.submit(lane)
    await rig.entered(able)
    second = rig.submit(lane, rig.rows(1, 5))
    first.cancel()
    await rig.entered(able)
    for gate in rig.gates:
        gate.set()
    await rig.done(second)
    assert second.reply.arrays[0].tolist() == [[5, 5]]
    assert (able.interrupts, len(able.batches)) == (1, 2)


async def test_what_nobody_waits_for_leaves_a_neighbour_alone(rig, able):
    other = able.clone()
    lane = rig.lane(able, other)
    jobs = [rig.submit(lane), rig.submit(lane, rig.rows(1, 2, width=3))]
    await rig.entered(able)
    await rig.entered(other)
    busy = {id(able.runs[0][0]): able, id(other.runs[0][0]): other}
    assert len(busy) == 2
    mine = able if able.runs[0][0].shape == (1, 2) else other
    jobs[0].cancel()
    await interrupted(rig, mine)
    assert able.interrupts + other.interrupts == 1
    for gate in rig.gates:
        gate.set()
    await rig.done(jobs[1])
    assert jobs[1].reply.arrays[0].tolist() == [[2, 2, 2]]


async def test_a_session_of_several_workers_is_never_interrupted(rig, able):
    lane = rig.lane(able, able)
    jobs = [rig.submit(lane), rig.submit(lane, rig.rows(1, 2, width=3))]
    await rig.entered(able, 2)
    jobs[0].cancel()
    assert able.interrupts == 0
    for gate in rig.gates:
        gate.set()
    await rig.done(jobs[1])


async def test_a_run_that_cannot_be_ended_is_waited_for(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    job = rig.submit(lane)
    await rig.entered(session)
    job.cancel()
    gate.set()
    await rig.until(lambda: not session._running)
    assert lane.stats.fail_count[FailReason.CANCELED] == 1


async def test_a_run_is_ended_when_the_last_deadline_passes(rig, able):
    loop = asyncio.get_running_loop()
    lane = rig.lane(able)
    jobs = [rig.job(lane, rig.rows(1, i)) for i in range(2)]
    now = int(loop.time() * 1e9)
    jobs[0].deadline_ns, jobs[1].deadline_ns = now + 20_000_000, now + 60_000_000
    for job in jobs:
        lane.submit(job)
    await rig.entered(able)
    assert able.batches == [2]
    await rig.done(*jobs)
    assert able.interrupts == 1
    for job in jobs:
        assert job.reply is None
        assert (job.error.code, job.error.message) == (Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
    assert lane.stats.fail_count[FailReason.CANCELED] == 2


async def test_a_job_without_an_end_keeps_the_run(rig, able):
    """Neither a deadline of a neighbour nor the queue's patience ends what runs."""
    lane = rig.lane(able)
    patient, hasty, impatient = (rig.job(lane, rig.rows(1, i)) for i in range(3))
    now = int(asyncio.get_running_loop().time() * 1e9)
    hasty.deadline_ns = now + 5_000_000
    impatient.deadline_ns, impatient.impatient = now + 5_000_000, True
    for job in (patient, hasty, impatient):
        lane.submit(job)
    await rig.entered(able)
    assert able.batches == [3]
    await asyncio.sleep(0.03)
    assert able.interrupts == 0
    for gate in rig.gates:
        gate.set()
    await rig.done(patient, hasty, impatient)
    assert [job.reply.arrays[0].tolist() for job in (patient, hasty, impatient)] == [
        [[0, 0]], [[1, 1]], [[2, 2]],
    ]  # fmt: skip


async def test_close_does_not_wait_for_a_run_that_nobody_wants(rig, able):
    lane = rig.lane(able)
    job = rig.submit(lane)
    await rig.entered(able)
    job.cancel()
    await asyncio.wait_for(lane.close(), 10)
    assert able.closed == 1
    assert not rig.gates[0].is_set()


async def test_close_interrupts_again_what_forgot_an_interrupt(rig, able, monkeypatch):
    heard, calls = able.interrupt, []

    def deaf_once():
        calls.append(1)
        if len(calls) > 1:
            heard()

    monkeypatch.setattr(able, "interrupt", deaf_once)
    lane = rig.lane(able)
    job = rig.submit(lane)
    await rig.entered(able)
    job.cancel()
    await asyncio.wait_for(lane.close(), 10)
    assert able.closed == 1
    assert len(calls) > 1


async def test_an_interrupt_before_the_run_begins_is_not_lost(rig, monkeypatch):
    """The batch is taken, but its inputs are still being gathered."""
    session = rig.session(able="1")
    taken, go_on = threading.Event(), threading.Event()

    def slow_stack(stacker, jobs, rows):
        taken.set()
        assert go_on.wait(10)
        return jobs[0].arrays

    monkeypatch.setattr("penstock.server.stacking.Stacker.stack", slow_stack)
    lane = rig.lane(session)
    job = rig.submit(lane)
    assert await asyncio.to_thread(taken.wait, 10)
    job.cancel()
    go_on.set()
    await lane.close()
    assert session.batches == []


async def test_an_interrupt_that_was_forgotten_comes_again(rig, able, monkeypatch):
    """As by a session whose run begins in the very moment of the interrupt."""
    heard = able.interrupt
    monkeypatch.setattr(able, "interrupt", lambda: able.forgotten.append(1))
    able.forgotten = []
    lane = rig.lane(able)
    job = rig.submit(lane)
    await rig.entered(able)
    job.cancel()
    await rig.until(lambda: len(able.forgotten) >= 3)
    monkeypatch.setattr(able, "interrupt", heard)
    await interrupted(rig, able)
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    before = able.interrupts
    await asyncio.sleep(0.05)
    assert able.interrupts == before, "no more of them once the run has ended"
