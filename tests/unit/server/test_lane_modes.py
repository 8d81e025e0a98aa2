"""Where a lane runs its batches: on the loop or on threads, as it learned."""

import asyncio
import threading
import time

import numpy as np
import pytest

from penstock.backends.base import RunError
from penstock.server.pace import INLINE_BELOW_NS, STALL_NS, THREADS_ABOVE_NS


def same(job, array):
    assert job.error is None
    assert job.context.calls == 1
    (got,) = job.reply.arrays
    assert np.array_equal(got, array)
    assert got.dtype == array.dtype


@pytest.mark.parametrize(
    ("run_ns", "mode"),
    [(0, "inline"), (INLINE_BELOW_NS - 1, "inline"), (INLINE_BELOW_NS, "threads")],
)
async def test_the_first_mode_is_what_loading_measured(rig, run_ns, mode):
    lane = rig.lane()
    lane.learned(run_ns)
    assert lane.mode == mode


def inline_lane(rig, puppet, clock):
    """Inline, on a model whose runs take ``times.us``."""

    class Times:
        us = 10

    times = Times()

    def compute(inputs):
        clock.pass_us(times.us)
        return [inputs[0].copy()]

    return rig.lane(rig.session(compute=compute), inline=True, loop=puppet), times


def test_inline_runs_on_the_loop_and_threads_elsewhere(rig, puppet):
    seen = []

    def compute(inputs):
        seen.append(threading.current_thread())
        return [inputs[0].copy()]

    for inline in (True, False):
        lane = rig.lane(rig.session(compute=compute), inline=inline, loop=puppet)
        job = rig.submit(lane)
        while not job.context.calls:
            puppet.run()
            time.sleep(0.0005)
    assert seen[0] is threading.current_thread()
    assert seen[1] is not threading.current_thread()


def test_longer_runs_leave_the_loop(rig, puppet, clock):
    lane, times = inline_lane(rig, puppet, clock)
    times.us = THREADS_ABOVE_NS // 1000 * 10
    rig.submit(lane)
    puppet.run()
    assert lane.mode == "threads"


def test_a_single_long_run_does_not_move_a_short_model(rig, puppet, clock):
    lane, times = inline_lane(rig, puppet, clock)
    times.us = THREADS_ABOVE_NS // 1000 * 4
    rig.submit(lane)
    puppet.run()
    assert lane.mode == "inline"
    while lane.mode == "inline":
        rig.submit(lane)
        puppet.run()
    assert len(rig.answered) < 10


async def test_after_a_stall_of_the_loop_the_lane_stays_on_threads(rig, clock):
    us = 10

    def compute(inputs):
        clock.pass_us(us)
        return [inputs[0].copy()]

    lane = rig.lane(rig.session(compute=compute), inline=True)

    async def runs_until_inline():
        for count in range(10_000):
            if lane.mode == "inline":
                return count
            await rig.done(rig.submit(lane))
        raise AssertionError("it never came back")

    waits = []
    for _ in range(2):
        us = STALL_NS // 1000 + 1
        await rig.done(rig.submit(lane))
        assert lane.mode == "threads"
        us = 10
        waits.append(await runs_until_inline())
    assert waits[0] >= 1024
    assert waits[1] >= 2048


async def test_failed_runs_teach_nothing(rig, clock):
    us = THREADS_ABOVE_NS // 1000 * 4

    def compute(inputs):
        if inputs[0].flat[0] < 0:
            raise RunError("no")
        clock.pass_us(us)
        return [inputs[0].copy()]

    lane = rig.lane(rig.session(compute=compute))
    await rig.done(rig.submit(lane))
    for _ in range(100):
        await rig.done(rig.submit(lane, rig.rows(1, -1)))
    assert lane.mode == "threads"


def test_run_times_between_the_borders_change_nothing(rig, puppet, clock):
    lane, times = inline_lane(rig, puppet, clock)
    times.us = (INLINE_BELOW_NS + THREADS_ABOVE_NS) // 2000
    for _ in range(100):
        rig.submit(lane)
        puppet.run()
    assert lane.mode == "inline"


@pytest.mark.parametrize("thread_safe", ["0", "1"])
async def test_it_switches_both_ways_and_never_runs_twice_at_once(rig, clock, thread_safe):
    """A session that is not thread-safe refuses overlapping runs itself."""
    us = 10
    ran_on = []

    def compute(inputs):
        ran_on.append(threading.current_thread())
        clock.pass_us(us)
        time.sleep(0)
        return [inputs[0].copy()]

    session = rig.session(compute=compute, thread_safe=thread_safe)
    lane = rig.lane(session, rows_max=4)
    lane.learned(THREADS_ABOVE_NS)
    modes, value = [lane.mode], 0
    for us in (10, 2000, 10, 2000, 10):  # noqa: B007 compute reads it
        for _ in range(60):
            jobs = []
            for _ in range(3):
                value += 1
                jobs.append(rig.submit(lane, rig.rows(1 + value % 3, value)))
                await asyncio.sleep(0)
            await rig.done(*jobs)
            for job in jobs:
                same(job, job.request.arrays[0])
            if lane.mode != modes[-1]:
                modes.append(lane.mode)
    assert modes == ["threads", "inline", "threads", "inline", "threads", "inline"]
    assert threading.main_thread() in ran_on
    assert len(set(ran_on)) == 2


async def test_it_stays_with_threads_while_one_is_running(rig, clock):
    """Two sessions: short runs of one must not bring the lane inline while the other works."""
    gate = rig.gate()
    slow = rig.session(gate=gate, thread_safe="0")
    quick = rig.session(thread_safe="0")
    lane = rig.lane(slow, quick)
    lane.learned(THREADS_ABOVE_NS)
    stuck = rig.submit(lane)
    await rig.until(lambda: slow.batches or quick.batches)
    while not slow.batches:  # it went to the quick one: try again
        await rig.done(stuck)
        stuck = rig.submit(lane)
        await rig.until(lambda: slow.batches or lane.in_flight == 0)
    for _ in range(100):
        await rig.done(rig.submit(lane))
    assert lane.mode == "threads"
    assert slow.batches == [1]
    gate.set()
    await rig.done(stuck)
    for _ in range(10):
        await rig.done(rig.submit(lane))
        await rig.until(lambda: lane.mode == "inline" or len(lane._crew.parked) == 2)
    assert lane.mode == "inline"


async def test_a_session_that_says_so_never_runs_on_the_loop(rig):
    """It may hang, however short its runs were so far."""
    session = rig.session()
    session.off_loop = True
    lane = rig.lane(session, inline=True)
    for _ in range(100):
        assert lane.mode == "threads"
        await rig.done(rig.submit(lane))
