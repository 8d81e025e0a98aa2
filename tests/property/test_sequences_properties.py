"""Sequences under random requests, cancellations, deadlines and failures, against a plain model.

Whatever happens, each request that is not cancelled is answered exactly once; a request that has a
result was run on the states that the one before it left, and on none of an older start; and one is
told to start only if there was nothing to go on from.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.backends.base import ModelSource
from penstock.backends.fake import FakeBackend
from penstock.protocol import dtype as dt
from penstock.protocol.errors import InferError
from penstock.protocol.message import InferRequest, Signature, TensorSpec
from penstock.server.admission import Admission
from penstock.server.job import Job
from penstock.server.lane import Lane
from penstock.server.model_config_sequence import SequenceBatching, StateTensor
from penstock.server.policy import LanePolicy
from penstock.server.sequence_session import SequenceSession, initial_states
from penstock.server.sequences import Sequences

WIDE = (-1, 1)
CONFIG = SequenceBatching(60_000_000, (), (StateTensor("S_IN", "S_OUT", dt.BYTES, (1,), (1,)),))
SIGNATURE = Signature([TensorSpec("INPUT", dt.BYTES, (1, 1))])


@dataclass(frozen=True)
class Ask:
    sequence: int
    start: bool
    end: bool
    fails: bool
    late: bool


@dataclass(frozen=True)
class Cancel:
    back: int


@dataclass(frozen=True)
class Pause:
    turns: int


ASK = st.builds(
    Ask,
    sequence=st.sampled_from([1, 1, 2]),
    start=st.sampled_from([False, False, True]),
    end=st.sampled_from([False] * 5 + [True]),
    fails=st.sampled_from([False] * 9 + [True]),
    late=st.sampled_from([False] * 9 + [True]),
)
STEPS = st.lists(
    st.one_of(
        ASK,
        ASK,
        ASK,
        st.builds(Cancel, st.sampled_from([1, 1, 2, 3])),
        st.builds(Pause, st.integers(0, 3)),
    ),
    min_size=15,
    max_size=60,
)


def append(inputs: Any) -> Any:
    """The state is the history: what was given since the start, separated by blanks."""
    given, before = inputs
    if any(b"!" in value for value in given.reshape(-1)):
        raise RuntimeError("a request that fails")
    history = before + b" " + given
    return [history, history]


class Run:
    """One lane, what was asked of it and what came back."""

    def __init__(self, inline: bool) -> None:
        specs = [TensorSpec(name, dt.BYTES, WIDE) for name in ("INPUT", "S_IN")]
        outs = [TensorSpec(name, dt.BYTES, WIDE) for name in ("OUTPUT", "S_OUT")]
        backend = FakeBackend(inputs=specs, outputs=outs, compute=append)
        session = SequenceSession(backend.load(ModelSource("m", Path())), CONFIG)
        admission = Admission("m", session.inputs[:1], session.outputs[:1], 4)
        self.lane = Lane("m", "1", [session], admission, policy=LanePolicy(20))
        self.lane.learned(0 if inline else 1 << 40)
        self.sequences = Sequences(self.lane, CONFIG, initial_states(CONFIG, Path()), [], 1)
        self.asked: list[tuple[Ask, Job]] = []
        self.refused: list[tuple[int, int]] = []
        """Sequences that were told to start, and how many requests were accepted before."""
        self.calls: dict[Job, int] = {}
        self.cancelled: set[Job] = set()

    def ask(self, step: Ask) -> None:
        word = f"{len(self.asked)}{'!' if step.fails else ''}".encode()
        array = np.array([[word]], object)
        flags = {"sequence_start": step.start, "sequence_end": step.end}
        request = InferRequest(
            SIGNATURE, [array], "m", id=word.decode(),
            parameters={"sequence_id": step.sequence, **flags},
        )  # fmt: skip
        plan = self.lane.admission.plan(SIGNATURE)
        deadline = monotonic_ns() + 1000 if step.late else 0
        try:
            job = self.sequences.infer(request, [array], plan, self._done, None, deadline)
        except InferError as error:
            if "START flag" in error.message:
                self.refused.append((step.sequence, len(self.asked)))
            return
        self.asked.append((step, job))

    def _done(self, job: Job) -> None:
        self.calls[job] = self.calls.get(job, 0) + 1

    def cancel(self, back: int) -> None:
        if back <= len(self.asked):
            job = self.asked[-back][1]
            if job not in self.calls:
                self.cancelled.add(job)
            job.cancel()

    def check(self) -> None:
        for number, (step, job) in enumerate(self.asked):
            assert self.calls.get(job, 0) == (0 if job in self.cancelled else 1)
            if job.error is not None and "START flag" in job.error.message:
                self.refused.append((step.sequence, number))
            if job.reply is None or job in self.cancelled:
                continue
            words = job.reply.arrays[0][0, 0].decode().split()
            assert words == self._history(number), (number, step)
        for sequence, before in self.refused:
            assert not self._goes_on(sequence, before)
        assert self.lane.in_flight == self.lane.waiting == 0

    def _goes_on(self, sequence: int, before: int) -> bool:
        """Whether ``sequence`` had begun, and not ended, after so many requests."""
        begun = False
        for step, job in self.asked[:before]:
            if step.sequence == sequence and (step.start or step.end):
                answered = job.reply is not None and job not in self.cancelled
                begun = step.start and answered and not step.end
        return begun

    def _history(self, number: int) -> list[str]:
        """What request ``number`` was run on, told from who was answered."""
        history: list[str] = []
        sequence = self.asked[number][0].sequence
        for step, job in self.asked[: number + 1]:
            if step.sequence != sequence:
                continue
            if step.start:
                history = []
            if job.reply is not None and job not in self.cancelled:
                history.append(job.request.id)
        return history


@given(STEPS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_states_are_those_of_the_requests_before(steps: list[Any], inline: bool) -> None:
    async def run() -> Run:
        made = Run(inline)
        for step in steps:
            if isinstance(step, Ask):
                made.ask(step)
            elif isinstance(step, Cancel):
                made.cancel(step.back)
            else:
                for _ in range(step.turns):
                    await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await made.lane.close()
        return made

    asyncio.run(run()).check()
