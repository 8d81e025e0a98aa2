"""Sequences over a lane of a fake model: order, controls, states, and what ends them."""

import asyncio
import gc
import weakref
from pathlib import Path
from time import monotonic_ns

import numpy as np
import pytest

from penstock.backends.base import BoundSession, InterruptibleSession, LoadError, ModelSource
from penstock.backends.fake import FakeBackend
from penstock.protocol import dtype as dt
from penstock.protocol.errors import Code, InferError
from penstock.protocol.message import InferRequest, Signature, TensorSpec
from penstock.server import sequences
from penstock.server.admission import Admission
from penstock.server.lane import Lane
from penstock.server.model_config_sequence import ControlInput, SequenceBatching, StateTensor
from penstock.server.policy import LanePolicy
from penstock.server.sequence_session import SequenceSession, initial_states
from penstock.server.sequences import Sequences
from penstock.server.stats import FailReason

WIDE = (-1, 1)
CONFIG = SequenceBatching(
    idle_us=1_000_000,
    controls=(
        ControlInput("START", "START", dt.INT32, (0, 1)),
        ControlInput("END", "END", dt.INT32, (0, 1)),
        ControlInput("ID", "CORRID", dt.UINT64),
    ),
    states=(StateTensor("SUM_IN", "SUM_OUT", dt.INT32, (1,), (1,)),),
)


def accumulate(inputs):
    """INPUT, ID, SUM_IN, END, START (the model's own order) to SUM_OUT, OUTPUT."""
    given, _, total, end, start = inputs
    out = total + given
    return [out, out + 1000 * start + 10_000 * end]


class Fixture:
    def __init__(self, rig, clock_ns, gate=None, config=CONFIG, compute=accumulate, jobs_max=4096):
        backend = FakeBackend(
            inputs=[
                TensorSpec("INPUT", dt.INT32, WIDE), TensorSpec("ID", dt.UINT64, WIDE),
                TensorSpec("SUM_IN", dt.INT32, WIDE), TensorSpec("END", dt.INT32, WIDE),
                TensorSpec("START", dt.INT32, WIDE),
            ],
            outputs=[TensorSpec("SUM_OUT", dt.INT32, WIDE), TensorSpec("OUTPUT", dt.INT32, WIDE)],
            compute=compute, gate=gate,
        )  # fmt: skip
        self.rig = rig
        self.clock_ns = clock_ns
        self.fake = backend.load(ModelSource("m", Path()))
        session = SequenceSession(self.fake, config)
        assert [spec.name for spec in session.inputs] == ["INPUT", "START", "END", "ID", "SUM_IN"]
        assert [spec.name for spec in session.outputs] == ["OUTPUT", "SUM_OUT"]
        admission = Admission("m", session.inputs[:1], session.outputs[:1], 8)
        self.lane = Lane("m", "1", [session], admission, policy=LanePolicy(jobs_max))
        self.lane.learned(1 << 40)
        rig.lanes.append(self.lane)
        initial = initial_states(config, None)
        self.sequences = Sequences(
            self.lane, config, initial, [2, 2, 2], 1, clock=lambda: self.clock_ns[0]
        )

    def send(self, value, id, start=False, end=False, deadline_ns=0, outcome=None, **extra):
        parameters = {"sequence_id": id, "sequence_start": start, "sequence_end": end, **extra}
        array = np.array([[value]], np.int32)
        signature = Signature([TensorSpec("INPUT", dt.INT32, (1, 1))])
        request = InferRequest(signature, [array], "m", parameters=parameters)
        plan = self.lane.admission.plan(signature)
        outcome = outcome or _Outcome()
        return self.sequences.infer(request, [array], plan, outcome.done, outcome, deadline_ns)

    async def ask(self, *args, **fields):
        job = self.send(*args, **fields)
        await job.context.wait()
        if job.error is not None:
            raise job.error
        assert [spec.name for spec in job.reply.signature.tensors] == ["OUTPUT"]
        (array,) = job.reply.arrays
        return int(array[0, 0])


class _Outcome:
    def __init__(self):
        self.calls = 0
        self._event = asyncio.Event()

    def done(self, job):
        self.calls += 1
        self._event.set()

    async def wait(self):
        async with asyncio.timeout(10):
            await self._event.wait()


@pytest.fixture
def clock_ns():
    return [1_000_000_000]


@pytest.fixture
async def sums(rig, clock_ns):
    return Fixture(rig, clock_ns)


async def test_a_sequence_keeps_its_state_and_knows_its_ends(sums):
    assert await sums.ask(1, 7, start=True) == 1001
    assert await sums.ask(2, 7) == 3
    assert await sums.ask(3, 7, end=True) == 10_006
    assert len(sums.sequences) == 0


async def test_sequences_do_not_mix(sums):
    assert await sums.ask(1, 1, start=True) == 1001
    assert await sums.ask(100, 2, start=True) == 1100
    assert await sums.ask(1, 1) == 2
    assert await sums.ask(1, 2) == 101


async def test_a_start_begins_anew(sums):
    await sums.ask(5, 7, start=True)
    assert await sums.ask(1, 7, start=True) == 1001


async def test_requests_of_one_sequence_run_in_order_and_apart(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    jobs = [sums.send(i, 7, start=i == 0) for i in range(5)]
    others = [sums.send(100, 8 + i, start=True) for i in range(3)]
    gate.set()
    for job in (*jobs, *others):
        await job.context.wait()
    assert [int(job.reply.arrays[0][0, 0]) for job in jobs] == [1000, 1, 3, 6, 10]
    assert {int(job.reply.arrays[0][0, 0]) for job in others} == {1100}


@pytest.mark.parametrize(
    ("id", "start", "text"),
    [
        (0, True, "must specify a non-zero or non-empty correlation ID"),
        ("", True, "must specify a non-zero or non-empty correlation ID"),
        (True, True, "must specify a non-zero or non-empty correlation ID"),
        (7, False, "sequence 7 to model 'm' must specify the START flag on the first request"),
        ("x", True, "of type UINT64, not the string 'x'"),
        (1 << 64, True, "does not fit UINT64"),
    ],
)
async def test_what_belongs_to_no_sequence_is_refused(sums, id, start, text):
    with pytest.raises(InferError) as caught:
        await sums.ask(1, id, start=start)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert text in caught.value.message
    assert len(sums.sequences) == 0


async def test_flags_must_be_booleans(sums):
    with pytest.raises(InferError, match="'sequence_start' must be a boolean"):
        await sums.ask(1, 7, start="yes")


async def test_after_its_end_a_sequence_must_start_again(sums):
    await sums.ask(1, 7, start=True, end=True)
    with pytest.raises(InferError, match="START flag"):
        await sums.ask(1, 7)


async def test_what_waits_behind_an_end_must_start_again(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    last = sums.send(1, 7, start=True, end=True)
    late, fresh = sums.send(1, 7), sums.send(5, 7, start=True)
    gate.set()
    for job in (last, late, fresh):
        await job.context.wait()
    assert last.error is None
    assert "START flag" in late.error.message
    assert int(fresh.reply.arrays[0][0, 0]) == 1005
    assert await sums.ask(1, 7) == 6


async def test_silent_sequences_are_forgotten(sums, clock_ns):
    await sums.ask(1, 7, start=True)
    clock_ns[0] += 900_000_000
    await sums.ask(1, 8, start=True)
    assert await sums.ask(1, 7) == 2
    clock_ns[0] += 1_100_000_000
    with pytest.raises(InferError, match="START flag"):
        await sums.ask(1, 7)
    assert len(sums.sequences) == 0


async def test_a_slow_model_is_not_the_sequences_silence(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    first = sums.send(1, 7, start=True)
    clock_ns[0] += 5_000_000_000
    second = sums.send(1, 7)
    gate.set()
    await first.context.wait()
    await second.context.wait()
    assert int(second.reply.arrays[0][0, 0]) == 2


async def test_a_cancelled_request_lets_the_sequence_go_on(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    first = sums.send(1, 7, start=True)
    waiting, last = sums.send(10, 7), sums.send(100, 7)
    waiting.cancel()
    waiting.cancel()
    gate.set()
    await first.context.wait()
    await last.context.wait()
    assert waiting.context.calls == 0
    assert int(last.reply.arrays[0][0, 0]) == 101
    gate.clear()
    running = sums.send(1000, 7)
    following = sums.send(1, 7)
    running.cancel()
    gate.set()
    await following.context.wait()
    assert int(following.reply.arrays[0][0, 0]) == 102


async def test_a_failing_start_starts_nothing(rig, clock_ns):
    def fail(inputs):
        raise RuntimeError("no")

    sums = Fixture(rig, clock_ns, compute=fail)
    with pytest.raises(InferError):
        await sums.ask(1, 7, start=True)
    with pytest.raises(InferError, match="START flag"):
        await sums.ask(1, 7)


async def test_limits(rig, clock_ns, monkeypatch):
    monkeypatch.setattr(sequences, "SEQUENCES_MAX", 2)
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate, jobs_max=1)
    for number in (1, 2):
        sums.send(1, number, start=True)
        await rig.until(lambda: not sums.lane.waiting)
        gate.set()
        await rig.until(lambda: not sums.lane.in_flight)
        gate.clear()
    with pytest.raises(InferError, match="more than 2 sequences"):
        sums.send(1, 3, start=True)
    sums.send(1, 1)
    await rig.until(lambda: not sums.lane.waiting)
    sums.send(1, 1)
    assert sums.lane.waiting == 1
    for number in (1, 2):
        with pytest.raises(InferError, match="Exceeds maximum queue size of 1"):
            sums.send(1, number)
    assert sums.lane.stats.fail_count[FailReason.REJECTED] == 2
    assert sums.lane.stats.fail_count[FailReason.OTHER] == 1


async def test_initial_states_from_files(tmp_path):
    state = StateTensor("A", "B", dt.FP32, (2,), (2,), "a.bin")
    config = SequenceBatching(states=(state,))
    with pytest.raises(LoadError, match=r"a\.bin"):
        initial_states(config, tmp_path)
    (tmp_path / "initial_state").mkdir()
    (tmp_path / "initial_state" / "a.bin").write_bytes(np.array([1, 2], "<f4").tobytes())
    (array,) = initial_states(config, tmp_path)
    assert array.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            SequenceBatching(controls=(ControlInput("NOPE", "START", dt.INT32, (0, 1)),)),
            "no input NOPE",
        ),
        (
            SequenceBatching(controls=(ControlInput("INPUT0", "START", dt.FP32, (0, 1)),)),
            "configured as FP32, but the model takes INT32",
        ),
        (
            SequenceBatching(states=(StateTensor("INPUT0", "X", dt.INT32, (1,), (1,)),)),
            "no output X",
        ),
    ],
)
def test_a_model_without_such_tensors_is_refused(config, text):
    session = FakeBackend().load(ModelSource("m", Path(), options={"shape": "-1"}))
    with pytest.raises(LoadError, match=text):
        SequenceSession(session, config)


def test_what_the_model_can_do_its_sequences_can(rig):
    """Interrupts go through; results are written in place in the order of the sequence."""
    plain, able = (
        FakeBackend(
            inputs=[TensorSpec("SUM_IN", dt.INT32, WIDE), TensorSpec("INPUT", dt.INT32, WIDE)],
            outputs=[TensorSpec("SUM_OUT", dt.INT32, WIDE), TensorSpec("OUTPUT", dt.INT32, WIDE)],
            compute=lambda inputs: [inputs[0] + 1, inputs[1] + 10],
        ).load(ModelSource("m", Path(), options={"able": text}))
        for text in "01"
    )
    config = SequenceBatching(states=(StateTensor("SUM_IN", "SUM_OUT", dt.INT32, (1,), (1,)),))
    unable = SequenceSession(plain, config)
    assert not isinstance(unable, InterruptibleSession | BoundSession)
    session = SequenceSession(able, config)
    assert isinstance(session, InterruptibleSession)
    assert isinstance(session, BoundSession)
    session.interrupt()
    assert able.interrupts == 1
    given, state = np.full((1, 1), 5, np.int32), np.full((1, 1), 7, np.int32)
    place = np.zeros((1, 1), np.int32)
    output, after = session.run_into([given, state], [place, None])
    assert output is place
    assert (output.item(), after.item()) == (15, 8)


@pytest.mark.parametrize("inline", [False, True])
async def test_what_waits_behind_its_sequence_is_drained(rig, clock_ns, inline):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    if inline:
        gate.set()
        sums.lane.learned(0)
    jobs = [sums.send(i, 7, start=i == 0) for i in range(5)]
    assert sums.lane.in_flight == 5
    closing = asyncio.ensure_future(sums.lane.close())
    await asyncio.sleep(0)
    with pytest.raises(InferError) as caught:
        sums.send(1, 7)
    assert caught.value.code is Code.UNAVAILABLE
    gate.set()
    async with asyncio.timeout(10):
        await closing
    assert [int(job.reply.arrays[0][0, 0]) for job in jobs] == [1000, 1, 3, 6, 10]
    assert sums.fake.closed == 1


async def test_a_held_lane_does_not_spin(rig, clock_ns, monkeypatch):
    """Nothing is dispatched for what waits behind its sequence."""
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    sums.send(1, 7, start=True)
    await rig.entered(sums.fake)
    dispatched = []
    monkeypatch.setattr(sums.lane, "_dispatch", lambda: dispatched.append(1))
    sums.send(1, 7)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not dispatched


async def test_a_deadline_passes_while_the_sequence_is_busy(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    first = sums.send(1, 7, start=True)
    late = sums.send(10, 7, deadline_ns=monotonic_ns() + 1_000_000)
    last = sums.send(100, 7)
    await late.context.wait()
    assert late.error.code is Code.DEADLINE_EXCEEDED
    assert first.context.calls == 0
    assert late.arrays == ()
    gate.set()
    await last.context.wait()
    assert int(last.reply.arrays[0][0, 0]) == 101
    assert late.context.calls == 1
    assert sums.lane.in_flight == 0


@pytest.mark.parametrize("how", ["cancelled", "late", "cancelled as it runs"])
async def test_nothing_runs_on_the_states_before_a_start_that_was_lost(rig, clock_ns, how):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    gate.set()
    assert await sums.ask(5, 7, start=True) == 1005
    gate.clear()
    if how == "cancelled as it runs":
        start = sums.send(1, 7, start=True)
        following = sums.send(1, 7)
        start.cancel()
    else:
        sums.send(1, 7)
        late = monotonic_ns() + 1 if how == "late" else 0
        start = sums.send(1, 7, start=True, deadline_ns=late)
        following = sums.send(1, 7)
        if late:
            await start.context.wait()
        else:
            start.cancel()
    gate.set()
    await following.context.wait()
    assert "START flag" in following.error.message
    assert await sums.ask(2, 7, start=True) == 1002


async def test_a_refused_start_leaves_the_sequence_as_it_was(rig, clock_ns):
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate, jobs_max=1)
    gate.set()
    assert await sums.ask(5, 7, start=True) == 1005
    gate.clear()
    sums.send(1, 8, start=True)
    await rig.entered(sums.fake, 2)
    waiting = sums.send(1, 9, start=True)
    with pytest.raises(InferError, match="queue size"):
        sums.send(1, 7, start=True)
    gate.set()
    await waiting.context.wait()
    assert await sums.ask(1, 7) == 6


async def test_a_refusals_callback_may_send_the_next_request(rig, clock_ns):
    """It does not overtake what waits, and a callback that fails costs nobody an answer."""
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    last = sums.send(1, 7, start=True, end=True)
    sent = []

    class Sending(_Outcome):
        def done(self, job):
            super().done(job)
            sent.append(sums.send(100, 7))
            raise RuntimeError("a bug")

    refused = sums.send(1, 7, outcome=Sending())
    fresh, following = sums.send(5, 7, start=True), sums.send(6, 7)
    gate.set()
    for job in (last, refused, fresh, following, *sent):
        await job.context.wait()
    assert "START flag" in refused.error.message
    assert int(fresh.reply.arrays[0][0, 0]) == 1005
    assert int(following.reply.arrays[0][0, 0]) == 11
    await sent[0].context.wait()
    assert int(sent[0].reply.arrays[0][0, 0]) == 111


async def test_silence_counts_from_the_last_answer(rig, clock_ns):
    """Of each sequence by itself, whichever was asked first."""
    gate = rig.gate()
    sums = Fixture(rig, clock_ns, gate)
    gate.set()
    await sums.ask(1, 8, start=True)
    gate.clear()
    slow = sums.send(1, 7, start=True)
    sums.send(1, 8).cancel()
    clock_ns[0] += 5_000_000_000
    gate.set()
    await slow.context.wait()
    clock_ns[0] += 900_000_000
    with pytest.raises(InferError, match="START flag"):
        await sums.ask(1, 8)
    assert await sums.ask(1, 7) == 2


async def test_silent_sequences_go_without_further_requests(rig):
    config = SequenceBatching(1000, CONFIG.controls, CONFIG.states)
    sums = Fixture(rig, [0], config=config)
    sums.sequences._clock = monotonic_ns
    await sums.ask(1, 7, start=True)
    await sums.ask(1, 8, start=True)
    await rig.until(lambda: len(sums.sequences) == 0)


async def test_a_timer_does_not_keep_what_was_unloaded(sums):
    await sums.ask(1, 7, start=True)
    gone = weakref.ref(sums.sequences)
    del sums.sequences
    gc.collect()
    assert gone() is None


async def test_large_ids_are_one_whatever_their_sign(sums):
    """gRPC's clients send ids from 2**63 on as negative numbers."""
    assert await sums.ask(1, -1, start=True) == 1001
    assert await sums.ask(1, (1 << 64) - 1) == 2
    assert len(sums.sequences) == 1


async def test_a_long_id_is_cut_in_errors(sums):
    with pytest.raises(InferError) as caught:
        await sums.ask(1, "x" * 4000)
    assert len(caught.value.message) < 300


class Plain:
    """A model of one state, which is what it answers: the input appended to the state."""

    def __init__(self, rig, dtype, shape, state, rows_max, compute, controls=()):
        specs = [TensorSpec(name, dtype, shape) for name in ("INPUT", "S_IN")]
        specs += [TensorSpec(c.name, c.dtype, shape) for c in controls]
        outs = [TensorSpec(name, dtype, shape) for name in ("OUTPUT", "S_OUT")]
        backend = FakeBackend(inputs=specs, outputs=outs, compute=compute)
        config = SequenceBatching(controls=tuple(controls), states=(state,))
        session = SequenceSession(backend.load(ModelSource("m", Path())), config)
        admission = Admission("m", session.inputs[:1], session.outputs[:1], rows_max)
        self.dtype = dtype
        self.lane = Lane("m", "1", [session], admission)
        rig.lanes.append(self.lane)
        ranks = [len(shape)] * len(controls)
        self.sequences = Sequences(self.lane, config, initial_states(config, None), ranks, 1)

    async def ask(self, array, id, **flags):
        signature = Signature([TensorSpec("INPUT", self.dtype, array.shape)])
        request = InferRequest(signature, [array], "m", parameters={"sequence_id": id, **flags})
        outcome = _Outcome()
        plan = self.lane.admission.plan(signature)
        job = self.sequences.infer(request, [array], plan, outcome.done, outcome)
        await outcome.wait()
        if job.error is not None:
            raise job.error
        return job.reply.arrays[0]


async def test_states_that_grow(rig):
    """Of a free size, of a model that does not batch; two sequences at a time."""
    state = StateTensor("S_IN", "S_OUT", dt.FP32, (-1,), (1,))

    def append(inputs):
        given, before = inputs
        return [np.concatenate([before, given])] * 2

    model = Plain(rig, dt.FP32, (-1,), state, 0, append)
    one, two = np.ones(1, np.float32), np.full(2, 2, np.float32)
    assert (await model.ask(one, 1, sequence_start=True)).tolist() == [0, 1]
    assert (await model.ask(two, 2, sequence_start=True)).tolist() == [0, 2, 2]
    assert (await model.ask(one, 2)).tolist() == [0, 2, 2, 1]
    assert (await model.ask(two, 1)).tolist() == [0, 1, 2, 2]


async def test_states_of_growing_rows_do_not_share_a_batch(rig):
    state = StateTensor("S_IN", "S_OUT", dt.FP32, (-1,), (1,))

    def append(inputs):
        given, before = inputs
        return [np.concatenate([before, given], axis=1)] * 2

    model = Plain(rig, dt.FP32, (-1, -1), state, 4, append)
    one = np.ones((1, 1), np.float32)
    await model.ask(one, 1, sequence_start=True)
    replies = await asyncio.gather(model.ask(one, 1), model.ask(one, 2, sequence_start=True))
    assert [reply.tolist() for reply in replies] == [[[0, 1, 1]], [[0, 1]]]
    with pytest.raises(InferError, match="2 rows does not continue sequence 1"):
        await model.ask(np.ones((2, 1), np.float32), 1)


async def test_states_and_ids_that_are_strings(rig):
    state = StateTensor("S_IN", "S_OUT", dt.BYTES, (1,), (1,))
    told = ControlInput("ID", "CORRID", dt.BYTES)

    def append(inputs):
        given, name, before = inputs
        return [before + given + name] * 2

    model = Plain(rig, dt.BYTES, (-1, 1), state, 4, lambda i: append((i[0], i[2], i[1])), [told])
    word = np.array([[b"a"]], object)
    assert (await model.ask(word, "x", sequence_start=True)).tolist() == [[b"ax"]]
    assert (await model.ask(word, "x")).tolist() == [[b"axax"]]
    assert (await model.ask(word, 12, sequence_start=True)).tolist() == [[b"a12"]]
