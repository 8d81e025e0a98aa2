"""One lane: batching while busy, deadlines, cancelling, counters, the end."""

import asyncio
import gc
import logging
import threading
import time
import weakref

import numpy as np
import pytest

from penstock.protocol.errors import Code, InferError
from penstock.server.job import State
from penstock.server.lane import STOPPING
from penstock.server.stacking import Stacker
from penstock.server.stats import FailReason

MODES = pytest.mark.parametrize("inline", [False, True], ids=["threads", "inline"])


def same(job, array):
    assert job.error is None
    assert job.context.calls == 1
    (got,) = job.reply.arrays
    assert np.array_equal(got, array)
    assert got.dtype == array.dtype


def failed(job, code, message):
    assert job.reply is None
    assert (job.error.code, job.error.message) == (code, message)
    assert job.context.calls == 1


# --- batching


async def test_a_lone_job_starts_at_once(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    job = rig.submit(lane, rig.rows(1, 7))
    await rig.entered(session)
    assert session.batches == [1]
    gate.set()
    await rig.done(job)
    same(job, rig.rows(1, 7))


@pytest.mark.parametrize(("late", "batches"), [(5, [1, 5]), (8, [1, 8]), (19, [1, 8, 8, 3])])
async def test_a_batch_grows_while_the_worker_is_busy(rig, late, batches):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, rows_max=8)
    jobs = [rig.submit(lane, rig.rows(1, -1))]
    await rig.entered(session)
    for i in range(late):
        jobs.append(rig.submit(lane, rig.rows(1, i)))
        await asyncio.sleep(0)
    assert (lane.waiting, lane.in_flight) == (late, late + 1)
    gate.set()
    await rig.done(*jobs)
    assert session.batches == batches
    for i, job in enumerate(jobs):
        same(job, rig.rows(1, i - 1))
    assert (lane.waiting, lane.in_flight) == (0, 0)


@MODES
def test_nothing_runs_before_the_end_of_the_turn(rig, puppet, inline):
    session = rig.session()
    lane = rig.lane(session, inline=inline, loop=puppet)
    jobs = [rig.submit(lane, rig.rows(1, i)) for i in range(3)]
    assert session.batches == []
    assert not any(thread.name.startswith("m:3#") for thread in threading.enumerate())
    puppet.turn()
    assert session.entered.acquire(timeout=10)
    while not all(job.context.calls for job in jobs):
        puppet.run()
        time.sleep(0.0005)
    assert session.batches == [3]
    for i, job in enumerate(jobs):
        same(job, rig.rows(1, i))


def test_inline_runs_one_batch_a_turn(rig, puppet):
    session = rig.session()
    lane = rig.lane(session, rows_max=4, inline=True, loop=puppet)
    for _ in range(10):
        rig.submit(lane)
    for batches in ([4], [4, 4], [4, 4, 2]):
        puppet.turn()
        assert session.batches == batches
    puppet.turn()
    assert len(rig.answered) == 10


@MODES
async def test_row_shapes_do_not_mix(rig, inline):
    lane = rig.lane(inline=inline)
    jobs = [rig.submit(lane, rig.rows(2, i, width=1 + i % 3)) for i in range(9)]
    await rig.done(*jobs)
    for i, job in enumerate(jobs):
        same(job, rig.rows(2, i, width=1 + i % 3))
    assert sorted(lane._sessions[0].batches) == [6, 6, 6]


async def test_every_idle_worker_gets_a_batch(rig):
    """Shapes that cannot share a batch must not wait for each other while a worker sleeps."""
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, session, session)
    jobs = [rig.submit(lane, rig.rows(1, width=width)) for width in (1, 2, 3)]
    await rig.entered(session, runs=3)
    gate.set()
    await rig.done(*jobs)


async def test_parked_workers_share_what_is_too_much_for_one(rig):
    gate = rig.gate()
    gate.set()
    session = rig.session(gate=gate)
    lane = rig.lane(session, session, rows_max=4)
    await rig.done(rig.submit(lane))  # the threads are there now, and park
    await rig.until(lambda: len(lane._crew.parked) == 2)
    await rig.entered(session)
    gate.clear()
    jobs = [rig.submit(lane) for _ in range(8)]
    await rig.entered(session, runs=2)
    assert session.batches[1:] == [4, 4]
    gate.set()
    await rig.done(*jobs)


async def test_a_busy_worker_does_not_hold_up_an_idle_one(rig):
    gate = rig.gate()
    sessions = [rig.session(gate=gate, thread_safe="0") for _ in range(2)]
    lane = rig.lane(*sessions)
    first = rig.submit(lane)
    await rig.until(lambda: sum(len(s.batches) for s in sessions) == 1)
    second = rig.submit(lane)
    await rig.until(lambda: sum(len(s.batches) for s in sessions) == 2)
    assert [s.batches for s in sessions] == [[1], [1]]
    gate.set()
    await rig.done(first, second)


async def test_priorities_order_what_waits(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, rows_max=1)
    jobs = [rig.submit(lane)]
    await rig.entered(session)
    jobs += [rig.submit(lane, priority=p) for p in (3, 1, 2, 1)]
    gate.set()
    await rig.done(*jobs)
    assert [job.priority for job in rig.answered] == [0, 1, 1, 2, 3]


@MODES
async def test_a_model_that_does_not_batch(rig, inline):
    session = rig.session()
    lane = rig.lane(session, rows_max=0, inline=inline)
    jobs = [rig.submit(lane, rig.rows(rows, rows)) for rows in (1, 3, 2)]
    await rig.done(*jobs)
    assert session.batches == [1, 3, 2]
    for rows, job in zip((1, 3, 2), jobs, strict=True):
        same(job, rig.rows(rows, rows))
        assert job.reply.signature.tensors[0].shape == (rows, 2)


@MODES
async def test_a_job_larger_than_a_batch_runs_alone(rig, inline):
    session = rig.session()
    lane = rig.lane(session, rows_max=4, inline=inline)
    jobs = [rig.submit(lane, rig.rows(rows, rows)) for rows in (1, 4, 1)]
    await rig.done(*jobs)
    assert session.batches == [1, 4, 1]


# --- replies


@MODES
async def test_what_a_reply_holds(rig, inline):
    lane = rig.lane(rig.session(kind="add_sub", shape="2"), inline=inline)
    left, right = rig.rows(2, 5), rig.rows(2, 3)
    both = rig.submit(lane, left, right, id="one")
    swapped = rig.submit(lane, left, right, outputs=["OUTPUT1", "OUTPUT0"])
    single = rig.submit(lane, left, right, outputs=["OUTPUT1"])
    await rig.done(both, swapped, single)
    assert (both.reply.model, both.reply.version, both.reply.id) == ("m", "3", "one")
    total, difference = rig.rows(2, 8).tolist(), rig.rows(2, 2).tolist()
    for job, names in ((both, "01"), (swapped, "10"), (single, "1")):
        named = job.reply.named()
        assert list(named) == [f"OUTPUT{n}" for n in names]
        for name, array in named.items():
            assert array.tolist() == (total if name == "OUTPUT0" else difference)
        assert [spec.shape for spec in job.reply.signature.tensors] == [(2, 2)] * len(names)


@MODES
async def test_equal_replies_share_a_signature(rig, inline):
    lane = rig.lane(inline=inline)
    replies = []
    for rows, width in ((1, 2), (2, 2), (1, 3), (1, 2), (2, 2), (1, 3)):
        job = rig.submit(lane, rig.rows(rows, width=width))
        await rig.done(job)
        assert job.reply.signature.tensors[0].shape == (rows, width)
        replies.append(job.reply.signature)
    assert replies[:3] == replies[3:]
    assert len(set(replies)) == 3


@pytest.mark.parametrize("vary", ["rows", "width", "both"])
async def test_reply_signatures_are_bounded(rig, monkeypatch, vary):
    monkeypatch.setattr("penstock.server.splitting.SIGNATURES_MAX", 4)
    lane = rig.lane(rows_max=100, inline=True)
    signatures = weakref.WeakSet()

    class Watched(type(rig.request(rig.rows(1)).signature)):
        def __init__(self, *args):
            super().__init__(*args)
            signatures.add(self)

    monkeypatch.setattr("penstock.server.splitting.Signature", Watched)
    for i in range(30):
        rows = 1 + i % 3 if vary == "both" else 1 + i if vary == "rows" else 1
        width = 1 + i // 3 if vary == "both" else 1 + i if vary == "width" else 1
        job = rig.submit(lane, rig.rows(rows, width=width))
        await rig.done(job)
        assert job.reply.signature.tensors[0].shape == (rows, width)
        rig.answered.clear()
        del job
        assert len(signatures) <= 4


async def test_cancelled_jobs_do_not_keep_their_tensors(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    first = rig.submit(lane, rig.rows(1, 0))
    await rig.entered(session)
    live = rig.submit(lane, rig.rows(1, 1))  # What waits keeps the dead job in the queue's order.
    array = rig.rows(1, 2)
    gone = weakref.ref(array)
    job = rig.submit(lane, array)
    await asyncio.sleep(0)
    job.cancel()
    del job, array
    assert gone() is None
    gate.set()
    await rig.done(first, live)


# --- failures


@MODES
async def test_a_poison_job_fails_alone(rig, inline):
    session = rig.session(poison="-1")
    lane = rig.lane(session, inline=inline)
    values = [1, 2, -1, 4, 5, 6, 7]
    jobs = [rig.submit(lane, rig.rows(1, value)) for value in values]
    await rig.done(*jobs)
    for value, job in zip(values, jobs, strict=True):
        if value == -1:
            failed(job, Code.INVALID_ARGUMENT, "input 'INPUT0' contains the poison -1")
        else:
            same(job, rig.rows(1, value))
    assert lane.stats.fail_count[FailReason.BACKEND] == 1
    assert lane.stats.success_count == 6
    assert lane.in_flight == 0


@MODES
@pytest.mark.parametrize("rows_max", [0, 8])
@pytest.mark.parametrize(
    "returned",
    [
        lambda x: 1 / 0,
        lambda x: None,
        lambda x: [],
        lambda x: [x.copy(), x.copy()],
        lambda x: [[1, 2]],
        lambda x: [x.copy().tolist()],
    ],
    ids=["raises", "none", "too few", "too many", "a list", "lists"],
)
async def test_a_backend_out_of_contract_costs_its_batch_only(rig, inline, rows_max, returned):
    session = rig.session(
        compute=lambda inputs: returned(inputs[0]) if inputs[0].min() < 0 else [inputs[0].copy()]
    )
    lane = rig.lane(session, rows_max=rows_max, inline=inline)
    bad = [rig.submit(lane, rig.rows(1, -1)) for _ in range(3)]
    await rig.done(*bad)
    assert [job.error.code for job in bad] == [Code.INTERNAL] * 3
    good = rig.submit(lane, rig.rows(1, 5))
    await rig.done(good)
    same(good, rig.rows(1, 5))
    assert (lane.in_flight, lane.waiting) == (0, 0)


@MODES
@pytest.mark.parametrize(
    "returned",
    [lambda x: [np.array(3)], lambda x: [x[:0].copy()], lambda x: [np.concatenate([x, x])]],
    ids=["no dimensions", "no rows", "too many rows"],
)
async def test_outputs_that_are_not_one_row_for_each(rig, inline, returned):
    lane = rig.lane(rig.session(compute=lambda inputs: returned(inputs[0])), inline=inline)
    jobs = [rig.submit(lane, rig.rows(2)) for _ in range(3)]
    await rig.done(*jobs)
    for job in jobs:
        assert job.error.code is Code.INTERNAL
        assert "the model returned an output of shape" in job.error.message


@MODES
async def test_a_callback_that_raises_costs_nobody_else(rig, caplog, inline):
    lane = rig.lane(inline=inline)
    jobs = [rig.job(lane, rig.rows(1, i)) for i in range(3)]

    def broken(job):
        raise ZeroDivisionError("front door")

    jobs[1].on_done = broken
    for job in jobs:
        lane.submit(job)
    await rig.done(jobs[0], jobs[2])
    assert jobs[1].state is State.DONE
    assert lane.in_flight == 0
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "reply failed for model m"
    ]


@MODES
async def test_a_callback_may_cancel_and_submit(rig, inline):
    lane = rig.lane(inline=inline)
    first, second, third = (rig.job(lane, rig.rows(1, i)) for i in range(3))
    follower = rig.job(lane, rig.rows(1, 9))
    plain = first.on_done

    def chain(job):
        second.cancel()
        lane.submit(follower)
        plain(job)

    first.on_done = chain
    for job in (first, second, third):
        lane.submit(job)
    await rig.done(first, third, follower)
    same(follower, rig.rows(1, 9))
    assert (second.context.calls, second.reply, second.error) == (0, None, None)
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    assert lane.in_flight == 0


# --- cancelling


async def test_cancelled_in_the_queue(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    running = rig.submit(lane)
    await rig.entered(session)
    before, gone, after = (rig.submit(lane, rig.rows(1, i)) for i in (1, 2, 3))
    gone.cancel()
    assert (gone.state, lane.waiting, lane.in_flight) == (State.DONE, 2, 3)
    gate.set()
    await rig.done(running, before, after)
    assert session.batches == [1, 2]
    same(before, rig.rows(1, 1))
    same(after, rig.rows(1, 3))
    assert gone.context.calls == 0


async def test_cancelled_while_it_runs(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    jobs = [rig.submit(lane, rig.rows(2, i)) for i in range(3)]
    await rig.entered(session)
    jobs[1].cancel()
    jobs[1].cancel()
    assert lane.in_flight == 2
    gate.set()
    await rig.done(jobs[0], jobs[2])
    same(jobs[0], rig.rows(2, 0))
    same(jobs[2], rig.rows(2, 2))
    assert (jobs[1].context.calls, jobs[1].reply) == (0, None)
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    assert lane.stats.success_count == 2
    assert lane.stats.inference_count == 6  # its rows were run all the same


@pytest.mark.parametrize("poison", [False, True])
async def test_cancelling_what_is_done_does_nothing(rig, poison):
    lane = rig.lane(rig.session(poison="-1"))
    job = rig.submit(lane, rig.rows(1, -1 if poison else 1))
    await rig.done(job)
    job.cancel()
    assert job.context.calls == 1
    assert lane.in_flight == 0
    assert lane.stats.fail_count[FailReason.CANCELED] == 0


async def test_cancelling_a_rejected_job_does_nothing(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, jobs_max=1)
    running = rig.submit(lane)
    await rig.entered(session)
    waiting, refused = rig.submit(lane), rig.job(lane, rig.rows(1))
    with pytest.raises(InferError):
        lane.submit(refused)
    refused.cancel()
    assert (lane.waiting, lane.in_flight) == (1, 2)
    gate.set()
    await rig.done(running, waiting)


# --- deadlines


async def test_expires_in_the_queue_while_the_worker_is_stuck(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    stuck = rig.submit(lane)
    await rig.entered(session)
    late = rig.submit(lane, timeout_us=1000)
    patient = rig.submit(lane)
    await rig.done(late)
    failed(late, Code.UNAVAILABLE, "Request timeout expired")
    assert (lane.waiting, lane.in_flight) == (1, 2)
    gate.set()
    await rig.done(stuck, patient)
    same(stuck, rig.rows(1))
    assert session.batches == [1, 1]
    assert lane.stats.fail_count[FailReason.REJECTED] == 1


async def test_a_cancelled_job_does_not_expire(rig, puppet):
    lane = rig.lane(rig.session(), inline=True, loop=puppet)
    gone, other = rig.submit(lane, timeout_us=10), rig.submit(lane, timeout_us=10)
    gone.cancel()
    puppet.pass_us(10)
    assert rig.answered == [other]
    failed(other, Code.UNAVAILABLE, "Request timeout expired")
    assert lane.stats.fail_count[FailReason.REJECTED] == 1
    assert lane.stats.fail_count[FailReason.CANCELED] == 1


def stuck_lane(rig, puppet, first_us=1 << 40, **options):
    """On a puppet loop, with its one worker at a closed gate; returns (lane, what ends it)."""
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, loop=puppet, **options)
    first = rig.submit(lane, timeout_us=first_us)
    puppet.run()
    assert session.entered.acquire(timeout=10)
    rig.answered.clear()

    def finish():
        gate.set()
        end = time.monotonic() + 10
        while lane.in_flight and time.monotonic() < end:
            puppet.run()
            time.sleep(0.0005)
        same(first, rig.rows(1))

    return lane, finish


def test_what_runs_does_not_expire(rig, puppet):
    lane, finish = stuck_lane(rig, puppet, first_us=10)
    puppet.pass_us(1000)
    assert (rig.answered, lane.in_flight) == ([], 1)
    finish()


def test_timers_follow_the_earliest_deadline(rig, puppet, clock):
    lane, finish = stuck_lane(rig, puppet)
    start = clock()
    by = {us: rig.submit(lane, timeout_us=us) for us in (500, 300, 900, 100)}
    assert puppet.next_timer_ns == start + 100_000
    puppet.pass_us(99)
    assert rig.answered == []
    for us, next_us in ((100, 300), (300, 500), (500, 900)):
        puppet.pass_us(us - (clock() - start) // 1000)
        assert rig.answered[-1] is by[us]
        failed(by[us], Code.UNAVAILABLE, "Request timeout expired")
        assert puppet.next_timer_ns == start + next_us * 1000
    by[900].cancel()
    puppet.pass_us(1000)
    assert by[900].context.calls == 0
    finish()


def test_many_deadlines_need_few_timers(rig, puppet):
    lane, finish = stuck_lane(rig, puppet)
    before = puppet.timers_set
    for us in range(100, 1100):
        rig.submit(lane, timeout_us=us)
    assert puppet.timers_set - before == 1
    puppet.pass_us(5000)
    assert len(rig.answered) == 1000
    finish()


def test_a_timer_that_fires_early_is_set_again(rig, puppet, clock):
    """uvloop counts in milliseconds and may wake before the deadline."""
    lane, finish = stuck_lane(rig, puppet)
    job = rig.submit(lane, timeout_us=1000)
    deadline = puppet.next_timer_ns
    lane._alarm._rung()
    assert job.context.calls == 0
    assert puppet.next_timer_ns == deadline
    puppet.pass_us(1000)
    assert job.context.calls == 1
    finish()


def test_a_callback_of_an_expired_job_may_submit_a_more_urgent_one(rig, puppet, clock):
    lane, finish = stuck_lane(rig, puppet)
    first = rig.job(lane, rig.rows(1), timeout_us=100)
    urgent = rig.job(lane, rig.rows(1), timeout_us=50)
    first.on_done = lambda job: lane.submit(urgent)
    lane.submit(first)
    rig.submit(lane, timeout_us=5000)
    puppet.pass_us(100)
    puppet.pass_us(50)
    assert rig.answered == [urgent]
    finish()


@MODES
def test_a_job_past_its_deadline_is_not_run(rig, puppet, clock, inline):
    """Even when nobody has looked at the timer yet."""
    session = rig.session()
    lane = rig.lane(session, inline=inline, loop=puppet)
    late, fine = rig.submit(lane, timeout_us=10), rig.submit(lane, rig.rows(1, 4))
    clock.pass_us(11)
    lane._dispatch()
    end = time.monotonic() + 10
    while lane.in_flight and time.monotonic() < end:
        puppet.run()
        time.sleep(0.0005)
    failed(late, Code.UNAVAILABLE, "Request timeout expired")
    same(fine, rig.rows(1, 4))
    assert session.batches == [1]


def test_a_worker_that_finds_only_expired_jobs_tells(rig, puppet, clock):
    lane = rig.lane(rig.session(), loop=puppet)
    late = rig.submit(lane, timeout_us=10)
    clock.pass_us(11)
    puppet._timers.clear()  # the timer is slow today
    end = time.monotonic() + 10
    while not late.context.calls and time.monotonic() < end:
        puppet.run()
        time.sleep(0.0005)
    failed(late, Code.UNAVAILABLE, "Request timeout expired")


def test_an_expired_job_may_be_cancelled_before_it_is_told(rig, puppet, clock):
    lane, finish = stuck_lane(rig, puppet)
    job, other = rig.job(lane, rig.rows(1), timeout_us=10), rig.submit(lane, timeout_us=5)
    other.on_done = lambda _: job.cancel()
    lane.submit(job)
    puppet.pass_us(10)
    assert job.state is State.DONE
    assert job.context.calls == 0
    finish()
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    assert lane.stats.fail_count[FailReason.REJECTED] == 1


def test_of_the_requests_and_the_operators_timeout_the_shorter_holds(rig, puppet, clock):
    lane, finish = stuck_lane(rig, puppet, timeout_us=200)
    plain, hasty, patient = (rig.submit(lane, timeout_us=us) for us in (0, 100, 300))
    for expected in ([hasty], [hasty, plain, patient]):
        puppet.pass_us(100)
        assert rig.answered == expected
    finish()


# --- limits and the end


async def test_a_full_queue_refuses(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, jobs_max=2)
    jobs = [rig.submit(lane)]
    await rig.entered(session)
    jobs += [rig.submit(lane), rig.submit(lane)]
    refused = rig.job(lane, rig.rows(1))
    with pytest.raises(InferError) as caught:
        lane.submit(refused)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.message == "Exceeds maximum queue size of 2 for model 'm'"
    assert lane.in_flight == 3
    assert lane.stats.fail_count[FailReason.REJECTED] == 1
    jobs.pop().cancel()
    jobs.append(rig.submit(lane))
    gate.set()
    await rig.done(*jobs)
    assert refused.context.calls == 0


@MODES
async def test_drain_waits_for_all_in_flight_and_refuses_more(rig, inline):
    gate = rig.gate()
    session = rig.session(gate=None if inline else gate)
    lane = rig.lane(session, rows_max=2, inline=inline)
    jobs = [rig.submit(lane, rig.rows(1, i)) for i in range(5)]
    draining = asyncio.ensure_future(lane.drain())
    await asyncio.sleep(0)
    with pytest.raises(InferError) as caught:
        rig.submit(lane)
    assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, STOPPING)
    if not inline:
        await rig.entered(session)
        assert not draining.done()
        gate.set()
    await asyncio.wait_for(draining, 10)
    for i, job in enumerate(jobs):
        same(job, rig.rows(1, i))
    await lane.drain()


async def test_draining_ends_when_the_last_job_is_cancelled(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    running = rig.submit(lane)
    await rig.entered(session)
    waiting = rig.submit(lane)
    draining = asyncio.ensure_future(lane.drain())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.sleep(0)
    assert not draining.done()
    waiting.cancel()
    await asyncio.wait_for(draining, 10)
    assert session.closed == 0


async def test_draining_ends_when_the_last_job_expires(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    running = rig.submit(lane)
    await rig.entered(session)
    rig.submit(lane, timeout_us=1000)
    running.cancel()
    await asyncio.wait_for(lane.drain(), 10)


async def test_close_waits_for_a_run_whose_jobs_were_all_cancelled(rig):
    """The session asserts that it is not closed while it runs."""
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session)
    job = rig.submit(lane)
    await rig.entered(session)
    job.cancel()
    closing = asyncio.ensure_future(lane.close())
    await asyncio.sleep(0.005)
    assert not closing.done()
    gate.set()
    await asyncio.wait_for(closing, 10)
    assert session.closed == 1
    assert job.context.calls == 0


@MODES
async def test_close_ends_threads_and_closes_each_session_once(rig, inline):
    shared, own = rig.session(), rig.session()
    lane = rig.lane(shared, shared, own, inline=inline)
    jobs = [rig.submit(lane, rig.rows(1, width=1 + i % 4)) for i in range(20)]
    await rig.done(*jobs)
    names = {f"m:3#{i}" for i in range(3)}
    running = {t.name for t in threading.enumerate()} & names
    assert running == (set() if inline else names)
    await asyncio.wait_for(lane.close(), 10)
    assert not {t.name for t in threading.enumerate()} & names
    assert (shared.closed, own.closed) == (1, 1)


async def test_close_of_a_lane_that_never_ran(rig):
    session = rig.session()
    lane = rig.lane(session)
    await lane.close()
    assert session.closed == 1


async def test_close_while_work_waits(rig):
    gate = rig.gate()
    session = rig.session(gate=gate)
    lane = rig.lane(session, session, rows_max=2)
    jobs = [rig.submit(lane, rig.rows(1, i)) for i in range(9)]
    closing = asyncio.ensure_future(lane.close())
    await rig.entered(session)
    gate.set()
    await asyncio.wait_for(closing, 10)
    for i, job in enumerate(jobs):
        same(job, rig.rows(1, i))
    assert session.closed == 1


# --- memory


@MODES
@pytest.mark.parametrize("count", [1, 3])
async def test_nothing_is_kept_of_what_is_done(rig, inline, count):
    """Checked without a garbage collection: buffers of 100 MB must go at once."""
    lane = rig.lane(inline=inline)
    kept = []

    async def scene():
        arrays = [rig.rows(1, i) for i in range(count)]
        jobs = [rig.submit(lane, array, timeout_us=1 << 40) for array in arrays]
        await rig.done(*jobs)
        outputs = {id(a if a.base is None else a.base): a for j in jobs for a in j.reply.arrays}
        kept.extend(weakref.ref(array) for array in arrays)
        kept.extend(weakref.ref(a if a.base is None else a.base) for a in outputs.values())
        rig.answered.clear()

    gc.disable()
    try:
        await scene()
        if not inline:
            await rig.until(lambda: len(lane._crew.parked) == 1)
        await asyncio.sleep(0)
        await rig.until(lambda: all(ref() is None for ref in kept))
    finally:
        gc.enable()
    assert len(kept) > count


@MODES
async def test_nothing_is_kept_of_what_failed(rig, inline):
    lane = rig.lane(rig.session(kind="fail"), inline=inline)
    kept = []

    async def scene():
        array = rig.rows(1)
        kept.append(weakref.ref(array))
        await rig.done(rig.submit(lane, array))
        rig.answered.clear()

    gc.disable()
    try:
        await scene()
        lane._sessions[0].runs.clear()
        await rig.until(lambda: kept[0]() is None)
    finally:
        gc.enable()


# --- counters


def test_every_counter_of_a_scripted_day(rig, puppet, clock, monkeypatch):
    """Times are microseconds of the hand-moved clock: stacking takes 3, a row 10 (poison: 50)."""
    stack = Stacker.stack

    def slow_stack(stacker, jobs, rows):
        clock.pass_us(3)
        return stack(stacker, jobs, rows)

    monkeypatch.setattr(Stacker, "stack", slow_stack)

    def compute(inputs):
        clock.pass_us(10 * len(inputs[0]))
        if inputs[0].min() < 0:
            clock.pass_us(40)
            raise ZeroDivisionError
        return [inputs[0].copy()]

    lane = rig.lane(rig.session(compute=compute), rows_max=8, inline=True, loop=puppet, jobs_max=4)
    stats = lane.stats

    # 1. A lone job of 2 rows that waited 100.
    rig.submit(lane, rig.rows(2))
    puppet.pass_us(100)
    assert (stats.success_count, stats.success_ns) == (1, 123_000)
    assert (stats.queue_ns, stats.compute_input_ns) == (100_000, 3_000)
    assert (stats.compute_infer_ns, stats.compute_output_ns) == (20_000, 0)
    assert (stats.inference_count, stats.execution_count) == (2, 1)
    assert stats.last_inference_ms > 1_700_000_000_000

    # 2. Two jobs in a batch of 3 rows: 23 queued, 3 + 30 each.
    rig.submit(lane, rig.rows(1))
    clock.pass_us(6)
    rig.submit(lane, rig.rows(2))
    puppet.pass_us(20)
    assert (stats.success_count, stats.success_ns) == (3, 123_000 + 59_000 + 53_000)
    assert stats.queue_ns == 100_000 + 26_000 + 20_000
    assert stats.compute_input_ns == 3_000 + 2 * 3_000
    assert stats.compute_infer_ns == 20_000 + 2 * 30_000
    assert (stats.inference_count, stats.execution_count) == (5, 2)

    # 3. A batch with a culprit: run of both 3+60, of the good one 3+10, of the bad one 3+50.
    rig.submit(lane, rig.rows(1))
    rig.submit(lane, rig.rows(1, -1))
    puppet.run()
    assert (stats.success_count, stats.success_ns) == (4, 235_000 + 129_000)
    assert stats.queue_ns == 146_000 + 63_000
    assert stats.compute_input_ns == 9_000 + 3_000
    assert stats.compute_infer_ns == 80_000 + 10_000
    assert stats.compute_output_ns == 53_000  # it waited for the other half
    assert (stats.inference_count, stats.execution_count) == (6, 3)
    assert stats.fail_count[FailReason.BACKEND] == 1
    assert stats.fail_ns == 129_000

    # 4. One expires after 15, one is cancelled after 5, one is refused at once.
    rig.submit(lane, timeout_us=15)
    cancelled = rig.submit(lane)
    clock.pass_us(5)
    cancelled.cancel()
    assert stats.fail_ns == 129_000 + 5_000
    clock.pass_us(10)
    puppet.run()
    assert stats.fail_ns == 134_000 + 15_000
    for _ in range(4):
        rig.submit(lane)
    with pytest.raises(InferError):
        rig.submit(lane)
    puppet.run()
    assert stats.fail_count == {
        FailReason.BACKEND: 1,
        FailReason.CANCELED: 1,
        FailReason.REJECTED: 2,
        FailReason.OTHER: 0,
    }
    assert stats.fail_ns == 149_000

    # The sums agree.
    assert (stats.success_count, stats.inference_count, stats.execution_count) == (8, 10, 4)
    assert stats.success_ns == 364_000 + 4 * 43_000
    assert {rows: batch.count for rows, batch in stats.batches.items()} == {2: 1, 3: 1, 1: 1, 4: 1}
    assert stats.batches[3].compute_infer_ns == 30_000
    assert stats.batches[4].compute_input_ns == 3_000
    assert stats.batches[1].compute_output_ns == 53_000
    assert stats.batch_rows.counts == [1, 1, 2, *[0] * 9]
    assert stats.batch_rows.total == 10
    assert stats.latency.total == stats.success_ns
    assert sum(stats.latency.counts) == stats.success_count
    assert stats.latency.counts[:2] == [6, 2]  # up to 100 us, up to 200 us
    assert stats.queue.total == stats.queue_ns
    assert stats.queue.counts[0] == 8


# --- the end of the call itself


@MODES
def test_a_deadline_of_the_call_holds_without_a_policy(rig, puppet, clock, inline):
    session = rig.session()
    lane = rig.lane(session, inline=inline, loop=puppet)
    late = rig.job(lane, rig.rows(1))
    late.deadline_ns = clock() - 1
    lane.submit(late)
    puppet.run()
    failed(late, Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
    assert session.batches == []
    assert lane.stats.fail_count[FailReason.CANCELED] == 1
    assert lane.in_flight == 0


@pytest.mark.parametrize(
    ("call_us", "request_us", "policy_us", "code", "after_us"),
    [
        (500, 1000, 0, Code.DEADLINE_EXCEEDED, 500),
        (1000, 500, 0, Code.UNAVAILABLE, 500),
        (500, 0, 1000, Code.DEADLINE_EXCEEDED, 500),
        (1000, 0, 500, Code.UNAVAILABLE, 500),
        (700, 0, 0, Code.DEADLINE_EXCEEDED, 700),
    ],
)
def test_the_earlier_end_counts(rig, puppet, clock, call_us, request_us, policy_us, code, after_us):
    lane, finish = stuck_lane(rig, puppet, timeout_us=policy_us)
    late = rig.job(lane, rig.rows(1), timeout_us=request_us)
    late.deadline_ns = clock() + call_us * 1000
    lane.submit(late)
    puppet.pass_us(after_us - 1)
    assert late.context.calls == 0
    puppet.pass_us(1)
    text = "Deadline Exceeded" if code is Code.DEADLINE_EXCEEDED else "Request timeout expired"
    failed(late, code, text)
    finish()
