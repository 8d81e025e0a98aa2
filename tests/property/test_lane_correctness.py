"""Every job gets its own rows back, exactly once, whatever else goes on in its lane.

Random mixes of shapes, rows, priorities, cancellations, deadlines and poison, on one to three
workers, on sessions that may and may not be shared or interrupted, starting inline or on threads;
the borders between the two are set so close that lanes switch while they work.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.backends.base import ModelSource
from penstock.backends.fake import FakeAbleSession, FakeBackend, FakeSession
from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code
from penstock.protocol.message import Array, InferRequest, Signature, TensorSpec
from penstock.server.admission import Admission
from penstock.server.job import Job, State
from penstock.server.lane import Lane

POISON = -7
ROWS_MAX = 8


@dataclass(frozen=True)
class Submit:
    rows: int
    width: int
    priority: int
    timeout_us: int
    poison: bool
    deadline_us: int = 0


@dataclass(frozen=True)
class Cancel:
    back: int
    """How many jobs ago."""


@dataclass(frozen=True)
class Pause:
    turns: int


SUBMIT = st.builds(
    Submit,
    rows=st.sampled_from([1, 1, 1, 2, 3, 5, 8]),
    width=st.sampled_from([1, 2, 2, 2, 3]),
    priority=st.sampled_from([0, 0, 1, 2]),
    timeout_us=st.sampled_from([0, 0, 0, 1, 300, 1 << 40]),
    poison=st.sampled_from([False] * 7 + [True]),
    deadline_us=st.sampled_from([0, 0, 0, 0, 400, 2000, 1 << 40]),
)
STEPS = st.lists(
    st.one_of(
        SUBMIT,
        SUBMIT,
        SUBMIT,
        st.builds(Cancel, st.integers(1, 6)),
        st.builds(Pause, st.integers(0, 3)),
    ),
    min_size=1,
    max_size=60,
)


@dataclass
class Sent:
    """One job, what it should get back, and what it got."""

    job: Job
    step: Submit
    rows: Array
    cancelled: bool = False
    calls: int = 0


def _compute(inputs: Sequence[Array]) -> Sequence[Array]:
    # Now and then longer than the border between inline and threads; always lets others in.
    time.sleep(0.0003 if inputs[0][0, 0] % 50 == 0 else 0)
    return [inputs[0].copy(), -inputs[0]]


def _sessions(count: int, thread_safe: bool, able: bool) -> list[FakeSession]:
    free = (-1, -1)
    backend = FakeBackend(
        inputs=[TensorSpec("X", dt.INT32, free)],
        outputs=[TensorSpec("SAME", dt.INT32, free), TensorSpec("MINUS", dt.INT32, free)],
        compute=_compute,
    )
    options = {"poison": str(POISON), "thread_safe": str(int(thread_safe)), "able": str(int(able))}
    if able:  # long enough for an interrupt to meet it
        options["delay_ms"] = "1"
    source = ModelSource("m", Path(), options=options)
    if thread_safe:
        return [backend.load(source)] * count
    return [backend.load(source) for _ in range(count)]


class Scene:
    def __init__(self, sessions: list[FakeSession], inline: bool) -> None:
        self.sessions = sessions
        able = isinstance(sessions[0], FakeAbleSession)
        self.pause_s = 0.0004 if able else 0  # long enough for a run to begin
        admission = Admission("m", sessions[0].inputs, sessions[0].outputs, ROWS_MAX)
        self.lane = Lane("m", "1", sessions, admission)
        self.lane.learned(0 if inline else 1_000_000)
        self.sent: list[Sent] = []

    async def play(self, steps: Sequence[Submit | Cancel | Pause]) -> None:
        for step in steps:
            if isinstance(step, Submit):
                self._submit(step)
            elif isinstance(step, Pause):
                for _ in range(step.turns):
                    await asyncio.sleep(self.pause_s)
            elif step.back <= len(self.sent):
                self._cancel(self.sent[-step.back])

    def _submit(self, step: Submit) -> None:
        first = 1 + 1000 * len(self.sent)
        rows = np.arange(first, first + step.rows * step.width, dtype=np.int32)
        rows = rows.reshape(step.rows, step.width)
        if step.poison:
            rows[-1, -1] = POISON
        request = InferRequest(
            Signature([TensorSpec("X", dt.INT32, rows.shape)]), [rows], timeout_us=step.timeout_us
        )
        plan = self.lane.admission.plan(request.signature)
        job = Job(request, [rows], plan.rows, plan.key, plan.wanted, self._done)
        job.priority = step.priority
        if step.deadline_us:
            job.deadline_ns = time.monotonic_ns() + step.deadline_us * 1000
        job.context = Sent(job, step, rows.copy())
        self.sent.append(job.context)
        self.lane.submit(job)

    def _cancel(self, sent: Sent) -> None:
        sent.cancelled = sent.cancelled or not sent.calls
        sent.job.cancel()

    def _done(self, job: Job) -> None:
        job.context.calls += 1

    def check(self) -> None:
        for sent in self.sent:
            assert sent.job.state is State.DONE
            assert sent.calls == (0 if sent.cancelled else 1)
            if not sent.cancelled:
                self._check_answer(sent)
        assert self.lane.in_flight == 0
        assert self.lane.waiting == 0
        assert all(session.closed == 1 for session in self.sessions)
        stats = self.lane.stats
        assert stats.success_count + sum(stats.fail_count.values()) == len(self.sent)
        assert stats.success_count == sum(s.job.reply is not None for s in self.sent)

    def _check_answer(self, sent: Sent) -> None:
        job, step = sent.job, sent.step
        assert (job.reply is None) != (job.error is None)
        if job.error is not None:
            # Never that of an interrupt: it meets runs that nobody waits for, and no others.
            if job.error.code is Code.UNAVAILABLE:
                assert step.timeout_us
            elif job.error.code is Code.DEADLINE_EXCEEDED:
                assert time.monotonic_ns() >= job.deadline_ns > 0
            else:
                assert step.poison
                assert job.error.code is Code.INVALID_ARGUMENT
                assert job.error.message == f"input 'X' contains the poison {POISON}"
            return
        assert not step.poison
        same, minus = job.reply.arrays
        assert np.array_equal(same, sent.rows)
        assert np.array_equal(minus, -sent.rows)
        shapes = [spec.shape for spec in job.reply.signature.tensors]
        assert shapes == [sent.rows.shape] * 2


async def _run(
    scene_of: tuple[int, bool, bool, bool], steps: Sequence[Submit | Cancel | Pause]
) -> None:
    workers, thread_safe, able, inline = scene_of
    scene = Scene(_sessions(workers, thread_safe, able), inline)
    async with asyncio.timeout(20):
        await scene.play(steps)
        await scene.lane.close()
    scene.check()
    batches = [rows for session in set(scene.sessions) for rows in session.batches]
    assert max(batches, default=0) <= ROWS_MAX


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), STEPS)
def test_every_job_gets_its_own_answer_once(
    workers: int, thread_safe: bool, able: bool, inline: bool, steps: list[Submit | Cancel | Pause]
) -> None:
    with (
        mock.patch("penstock.server.pace.INLINE_BELOW_NS", 90_000),
        mock.patch("penstock.server.pace.THREADS_ABOVE_NS", 110_000),
    ):
        asyncio.run(_run((workers, thread_safe, able, inline), steps))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.lists(st.sampled_from([None, 0, 1, 1, 2]), min_size=6, max_size=20))
def test_an_interrupt_never_hits_a_neighbour(workers: int, cancels: list[int | None]) -> None:
    """A job a batch, each cancelled after so many pauses or never: what is ended is its own run."""
    steps: list[Submit | Cancel | Pause] = []
    for width, pauses in enumerate(cancels, start=1):
        steps.append(Submit(1, width, 0, 0, poison=False))
        if pauses is not None:
            steps += [Pause(pauses), Cancel(1)]
    asyncio.run(_run((workers, False, True, False), steps))


@settings(max_examples=10, deadline=None)
@given(st.booleans(), st.integers(1, 40), st.randoms(use_true_random=False))
def test_poison_among_many(inline: bool, healthy: int, random: Random) -> None:
    """All in one turn, so that they share batches."""
    steps = [Submit(1, 2, 0, 0, poison) for poison in [True] * 3 + [False] * healthy]
    random.shuffle(steps)
    asyncio.run(_run((1, True, False, inline), steps))
