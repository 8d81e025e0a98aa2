"""Running batches: stack, run, check, split a failing batch; and the thread that does it."""

import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.backends.base import RunError
from penstock.protocol.errors import Code
from penstock.server.job import State
from penstock.server.stacking import Stacker
from penstock.server.worker import ThreadWorker, execute


@pytest.fixture
def jobs(new_job):
    """One job a value: so many rows of it."""

    def make(*values, rows=1):
        return [new_job(rows, arrays=[np.full((rows, 2), value, np.int32)]) for value in values]

    return make


def run(session, jobs, batches=True):
    return execute(session, Stacker(len(session.inputs)), jobs, batches)


def codes(runs):
    return [job_run.error and job_run.error.code for job_run in runs for _ in job_run.jobs]


def test_one_batch_one_run(rig, jobs):
    session, batch = rig.session(), jobs(1, 2, 3, rows=2)
    (result,) = run(session, batch)
    assert result.jobs == batch
    assert (result.rows, result.error) == (6, None)
    assert result.outputs[0].tolist() == [[v, v] for v in (1, 1, 2, 2, 3, 3)]
    assert session.batches == [6]


def test_times_of_the_phases(rig, jobs, clock, monkeypatch):
    def slow_stack(stacker, jobs, rows):
        clock.pass_us(7)
        return jobs[0].arrays

    monkeypatch.setattr(Stacker, "stack", slow_stack)
    session = rig.session(compute=lambda inputs: clock.pass_us(30) or [inputs[0].copy()])
    started = clock()
    (result,) = run(session, jobs(1))
    assert (result.started_ns, result.input_ns, result.infer_ns) == (started, 7_000, 30_000)


def test_what_was_cancelled_is_not_run_again(rig, jobs):
    """Its memory, and that of its results, may be another's by then."""
    session = rig.session(fail_runs="1")
    batch = jobs(1, 2, 3)
    failing = session.run

    def run_and_cancel(inputs):
        batch[1].state = State.DONE
        return failing(inputs)

    session.run = run_and_cancel
    (result,) = run(session, batch)
    assert result.jobs == [batch[0], batch[2]]
    assert result.outputs[0].tolist() == [[1, 1], [3, 3]]
    assert session.batches == [3, 2]
    batch[0].state = batch[2].state = State.DONE
    session._fail_runs = 1
    assert run(session, batch) == []


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_only_the_culprit_fails(rig, jobs, size):
    for culprit in range(size):
        session = rig.session(poison="-1")
        batch = jobs(*[-1 if i == culprit else i for i in range(size)], rows=2)
        runs = run(session, batch)
        assert [job for one in runs for job in one.jobs] == batch
        assert codes(runs) == [Code.INVALID_ARGUMENT if i == culprit else None for i in range(size)]
        for one in runs:
            if one.error is None:
                expected = [job.arrays[0] for job in one.jobs]
                assert np.array_equal(one.outputs[0], np.concatenate(expected))
                assert one.rows == 2 * len(one.jobs)
            else:
                assert one.error.message == "input 'INPUT0' contains the poison -1"


def test_a_failing_batch_costs_less_than_two_runs_a_job(rig, jobs):
    session = rig.session(kind="fail")
    runs = run(session, jobs(*range(8)))
    assert codes(runs) == [Code.INTERNAL] * 8
    assert {one.error.message for one in runs} == {"this model always fails"}
    assert session.batches == [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1]


def test_a_passing_failure_hurts_nobody(rig, jobs):
    session = rig.session(fail_runs="1")
    assert codes(run(session, jobs(1, 2, 3))) == [None, None, None]


@pytest.mark.parametrize(("fault", "code"), [("1", Code.INVALID_ARGUMENT), ("0", Code.INTERNAL)])
def test_whose_fault_it_is(rig, jobs, fault, code):
    session = rig.session(poison="-1", poison_is_caller_fault=fault)
    assert codes(run(session, jobs(-1))) == [code]


def raises(error):
    def compute(_):
        raise error

    return compute


OUT_OF_CONTRACT = {
    "another exception": (raises(KeyError("weights")), "KeyError: 'weights'"),
    "an assertion": (raises(AssertionError("no")), "AssertionError: no"),
    "a row too many": (
        lambda inputs: [np.zeros((len(inputs[0]) + 1, 2), np.int32)],
        "the model returned an output of shape [2, 2] for a batch of 1 rows",
    ),
    "no rows": (
        lambda inputs: [np.zeros((0, 2), np.int32)],
        "the model returned an output of shape [0, 2] for a batch of 1 rows",
    ),
    "no dimensions": (
        lambda inputs: [np.array(1, np.int32)],
        "the model returned an output of shape [] for a batch of 1 rows",
    ),
    "no output": (lambda inputs: [], "the model returned 0 outputs instead of 1"),
    "an output too many": (
        lambda inputs: [inputs[0].copy(), inputs[0].copy()],
        "the model returned 2 outputs instead of 1",
    ),
}


@pytest.mark.parametrize("fault", OUT_OF_CONTRACT)
def test_a_backend_out_of_contract_is_answered_for(rig, jobs, fault):
    compute, text = OUT_OF_CONTRACT[fault]
    (result,) = run(rig.session(compute=compute), jobs(1))
    assert (result.error.code, result.error.message) == (Code.INTERNAL, text)
    runs = run(rig.session(compute=compute), jobs(*range(5), rows=3))
    assert codes(runs) == [Code.INTERNAL] * 5


@pytest.mark.parametrize("returned", [None, [None], [[1, 2]], 7, [], [np.zeros(1)] * 2])
@pytest.mark.parametrize("batches", [True, False])
def test_no_arrays_at_all(rig, jobs, returned, batches):
    (result,) = run(rig.session(compute=lambda _: returned), jobs(1), batches)
    assert result.error.code is Code.INTERNAL


def test_where_nothing_batches_any_shape_is_right(rig, jobs):
    for shape in ((), (5,), (0, 3)):
        session = rig.session(compute=lambda _, shape=shape: [np.zeros(shape, np.int32)])
        (result,) = run(session, jobs(1), batches=False)
        assert result.error is None
        assert result.outputs[0].shape == shape


def test_inputs_that_cannot_be_stacked_are_answered_for(rig, new_job):
    bad = [new_job(1, arrays=[np.zeros((1, width), np.int32)]) for width in (2, 3)]
    session = rig.session()
    assert codes(run(session, bad)) == [None, None]  # apart they are fine
    assert session.batches == [1, 1]


class Feed:
    """The other side of a worker: batches to pull, results delivered."""

    def __init__(self):
        self.batches = deque()
        self.parked = threading.Semaphore(0)
        self.results = []
        self.ended = False

    def pull(self, worker):
        if self.batches:
            return self.batches.popleft()
        if self.ended:
            return None
        self.parked.release()
        return []

    def wait_parked(self):
        assert self.parked.acquire(timeout=10)


async def test_a_worker_pulls_until_nothing_waits_then_parks(rig, jobs):
    session, feed = rig.session(), Feed()
    feed.batches.extend([jobs(1), jobs(2, 3)])
    worker = ThreadWorker("worker", session, True, feed.pull, feed.results.extend)
    feed.wait_parked()
    assert session.batches == [1, 2]
    assert [one.rows for one in feed.results] == [1, 2]

    feed.batches.append(jobs(4))
    worker.unpark()
    feed.wait_parked()
    assert session.batches == [1, 2, 1]

    feed.ended = True
    assert not worker.join(0)
    worker.unpark()
    assert worker.join(10)
    assert "worker" not in {thread.name for thread in threading.enumerate()}


async def test_a_worker_survives_every_failure(rig, jobs):
    errors = deque([RunError("first"), KeyError("second")])

    def compute(inputs):
        if errors:
            raise errors.popleft()
        return [inputs[0].copy()]

    feed = Feed()
    feed.batches.extend([jobs(1), jobs(2), jobs(3)])
    worker = ThreadWorker(
        "worker", rig.session(compute=compute), True, feed.pull, feed.results.extend
    )
    feed.wait_parked()
    assert [one.error and one.error.message for one in feed.results] == [
        "first",
        "KeyError: 'second'",
        None,
    ]
    feed.ended = True
    worker.unpark()
    assert worker.join(10)


def test_what_was_given_up_is_not_tried_in_halves(rig, jobs):
    session = rig.session(kind="fail")
    worker = SimpleNamespace(gave_up=False)

    def fails(inputs):
        worker.gave_up = True
        raise RunError("interrupted")

    session.run = fails
    batch = jobs(1, 2, 3, 4)
    (result,) = execute(session, Stacker(1), batch, True, None, worker)
    assert (result.jobs, result.given_up) == (batch, True)
    assert result.error.code is Code.DEADLINE_EXCEEDED


def test_how_long_a_batch_is_wanted(rig, jobs):
    """Until the last deadline, if all have one; the queue's patience is none of a run."""
    worker = ThreadWorker("w", rig.session(able="1"), True, lambda _: None, lambda _: None)
    assert worker.wanted_until() is None, "it runs nothing"
    first, second = jobs(1, 2)
    worker.begin([first, second])
    assert worker.wanted_until() is None
    first.deadline_ns, second.deadline_ns = 70, 30
    assert worker.wanted_until() == 70
    first.state = State.DONE
    assert worker.wanted_until() == 30
    second.impatient = True
    assert worker.wanted_until() is None
    second.state = State.DONE
    assert worker.wanted_until() == 0
    worker.give_up()
    assert (worker.gave_up, worker.wanted_until()) == (True, 0)
    worker.begin([first])
    assert not worker.gave_up
    assert worker.join(10)
