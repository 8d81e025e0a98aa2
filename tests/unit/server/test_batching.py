"""Which waiting jobs run together."""

import weakref

import numpy as np
import pytest

from penstock.server.batching import BatchQueue
from penstock.server.job import State


def filled(jobs, rows_max=8, jobs_max=100):
    queue = BatchQueue(rows_max, jobs_max)
    assert all(queue.offer(job) for job in jobs)
    return queue


def batches(queue):
    """Everything that waits, batch by batch."""
    taken = []
    while batch := queue.take():
        taken.append(batch)
    return taken


def test_nothing_waits():
    queue = BatchQueue(8, 8)
    assert queue.take() == []
    assert queue.expire(1 << 60) == []
    assert queue.wake_at() == 0
    assert len(queue) == 0


def test_takes_in_order_of_arrival_up_to_rows_max(new_job):
    jobs = [new_job() for _ in range(20)]
    queue = filled(jobs, rows_max=8)
    assert batches(queue) == [jobs[:8], jobs[8:16], jobs[16:]]
    assert len(queue) == 0


def test_taking_marks_the_jobs(new_job):
    first, second = new_job(key="a"), new_job(key="b")
    queue = filled([first, second])
    assert queue.take() == [first]
    assert (first.state, second.state) == (State.TAKEN, State.QUEUED)


def test_a_batch_is_formed_when_it_is_taken(new_job):
    early, late = new_job(), new_job()
    queue = filled([early])
    assert queue.offer(late)
    assert queue.take() == [early, late]


def test_only_equal_keys_share_a_batch(new_job):
    a1, b1, a2, b2 = (new_job(key=key) for key in "abab")
    assert batches(filled([a1, b1, a2, b2])) == [[a1, a2], [b1, b2]]


def test_keys_are_compared_by_value(new_job):
    jobs = [new_job(key=((int(n),),)) for n in ("300", "300")]
    assert filled(jobs).take() == jobs


def test_rows_are_counted_not_jobs(new_job):
    jobs = [new_job(rows) for rows in (3, 3, 2, 1)]
    assert batches(filled(jobs, rows_max=8)) == [jobs[:3], jobs[3:]]


@pytest.mark.parametrize(("rows", "count"), [(0, 8), (1, 1), (3, 3), (8, 8), (9, 8)])
def test_a_batch_may_be_asked_to_be_smaller(new_job, rows, count):
    jobs = [new_job() for _ in range(10)]
    queue = filled(jobs, rows_max=8)
    assert queue.take(rows) == jobs[:count]
    assert len(queue) == 10 - count


def test_a_job_larger_than_was_asked_for_runs_alone(new_job):
    jobs = [new_job(5), new_job(1)]
    assert filled(jobs, rows_max=8).take(3) == jobs[:1]


def test_a_job_that_does_not_fit_is_not_overtaken(new_job):
    first, big, small = new_job(5), new_job(4), new_job(1)
    assert batches(filled([first, big, small], rows_max=8)) == [[first], [big, small]]


def test_a_job_larger_than_a_batch_runs_alone(new_job):
    before, huge, after = new_job(1), new_job(30), new_job(1)
    assert batches(filled([before, huge, after], rows_max=8)) == [[before], [huge], [after]]


def test_jobs_without_rows_take_no_room(new_job):
    jobs = [new_job(0), new_job(4), new_job(0), new_job(4), new_job(0)]
    assert batches(filled(jobs, rows_max=8)) == [jobs[:4], jobs[4:]]


def test_a_smaller_priority_number_goes_first(new_job):
    low, high, middle = (new_job(8, priority=p) for p in (9, 1, 5))
    assert batches(filled([low, high, middle], rows_max=8)) == [[high], [middle], [low]]


def test_lower_priorities_with_the_same_key_fill_the_room(new_job):
    low = [new_job(1, priority=2), new_job(1, key="other", priority=2), new_job(1, priority=2)]
    high = [new_job(1, priority=1)]
    queue = filled([*low, *high], rows_max=8)
    assert batches(queue) == [[*high, low[0], low[2]], [low[1]]]


def test_lower_priorities_never_displace_higher_ones(new_job):
    low = [new_job(2, priority=2) for _ in range(4)]
    high = [new_job(3, priority=1) for _ in range(3)]
    queue = filled([*low, *high], rows_max=8)
    assert batches(queue) == [[high[0], high[1], low[0]], [high[2], low[1], low[2]], [low[3]]]


def test_refuses_when_full_and_leaves_the_job_alone(new_job):
    queue = filled([new_job(), new_job()], jobs_max=2)
    extra = new_job(deadline_ns=5)
    assert not queue.offer(extra)
    assert (len(queue), queue.wake_at(), extra.state) == (2, 0, State.QUEUED)


@pytest.mark.parametrize("leave", ["take", "cancel", "expire"])
def test_whoever_leaves_makes_room(new_job, leave):
    job = new_job(deadline_ns=5)
    queue = filled([job], jobs_max=1)
    assert not queue.offer(new_job())
    assert {
        "take": queue.take,
        "cancel": lambda: queue.cancel(job),
        "expire": lambda: queue.expire(5),
    }[leave]()
    assert queue.offer(new_job())


def test_closed_refuses_but_what_waits_is_taken(new_job):
    waiting, late = new_job(), new_job()
    queue = filled([waiting])
    queue.close()
    assert not queue.offer(late)
    assert batches(queue) == [[waiting]]


def test_cancel_takes_one_job_out(new_job):
    jobs = [new_job() for _ in range(3)]
    queue = filled(jobs)
    assert queue.cancel(jobs[1])
    assert jobs[1].state is State.DONE
    assert len(queue) == 2
    assert not queue.cancel(jobs[1])
    assert batches(queue) == [[jobs[0], jobs[2]]]


def test_cancel_of_a_taken_job_changes_nothing(new_job):
    taken, waiting = new_job(key="a"), new_job(key="b")
    queue = filled([taken, waiting])
    queue.take()
    assert not queue.cancel(taken)
    assert taken.state is State.TAKEN
    assert len(queue) == 1


def test_a_cancelled_head_does_not_choose_the_key(new_job):
    a, b, more_b = new_job(key="a"), new_job(key="b"), new_job(key="b")
    queue = filled([a, b, more_b])
    queue.cancel(a)
    assert queue.take() == [b, more_b]


def test_expires_what_is_due_earliest_first(new_job):
    third, first, never, second = (new_job(deadline_ns=at) for at in (30, 10, 0, 20))
    queue = filled([third, first, never, second])
    assert queue.wake_at() == 10
    assert queue.expire(9) == []
    assert queue.expire(20) == [first, second]
    assert (first.state, second.state) == (State.TAKEN, State.TAKEN)
    assert queue.wake_at() == 30
    assert batches(queue) == [[third, never]]
    assert queue.wake_at() == 0


def test_equal_deadlines_expire_in_order_of_arrival(new_job):
    jobs = [new_job(deadline_ns=7) for _ in range(5)]
    assert filled(jobs).expire(7) == jobs


def test_wake_at_forgets_jobs_that_left(new_job):
    cancelled, taken, waiting = (
        new_job(key=key, deadline_ns=at) for key, at in (("a", 1), ("b", 2), ("c", 3))
    )
    queue = filled([cancelled, taken, waiting])
    queue.cancel(cancelled)
    assert queue.take() == [taken]
    assert queue.wake_at() == 3


def test_an_expired_job_is_not_cancelled_twice(new_job):
    job = new_job(deadline_ns=1)
    queue = filled([job])
    assert queue.expire(1) == [job]
    assert not queue.cancel(job)
    assert len(queue) == 0


def test_priorities_come_and_go(new_job):
    queue = BatchQueue(1, 1000)
    for priority in range(200):
        queue.offer(new_job(priority=priority))
        assert [job.priority for job in queue.take()] == [priority]
    last = [new_job(priority=p) for p in (3, 1, 2)]
    assert all(queue.offer(job) for job in last)
    assert [batch[0].priority for batch in batches(queue)] == [1, 2, 3]


@pytest.mark.parametrize("leave", ["take", "cancel", "expire"])
def test_an_empty_queue_holds_on_to_nothing(new_job, leave):
    """A job's arrays may be a received buffer of 100 MB: the last one must not linger."""
    array = np.zeros(4)
    queue = BatchQueue(8, 8)
    job = new_job(deadline_ns=5, arrays=[array])
    queue.offer(job)
    if leave == "take":
        queue.take()
    elif leave == "cancel":
        queue.cancel(job)
    else:
        queue.expire(5)
    kept = weakref.ref(array)
    del job, array
    assert kept() is None


@pytest.mark.parametrize("leave", ["take", "cancel", "expire"])
def test_jobs_that_left_do_not_pile_up_behind_one_that_stays(new_job, leave):
    queue = BatchQueue(1, 1000)
    stays = new_job(key="stays", priority=0 if leave != "take" else 1)
    queue.offer(stays)
    arrays = []
    for i in range(1000):
        array = np.zeros(1)
        job = new_job(key=f"k{i}", priority=0, deadline_ns=1 + i, arrays=[array])
        arrays.append(weakref.ref(array))
        del array
        assert queue.offer(job)
        if leave == "take":
            assert queue.take() == [job]
        elif leave == "cancel":
            queue.cancel(job)
        else:
            assert queue.expire(1 + i) == [job]
        del job
    assert sum(ref() is not None for ref in arrays) <= 70
    assert batches(queue) == [[stays]]


def test_a_held_job_waits_but_is_not_taken_before_it_is_released(new_job):
    queue = BatchQueue(8, 3)
    held, late, other = new_job(), new_job(deadline_ns=50), new_job()
    assert queue.offer(held, held=True)
    assert queue.offer(late, held=True)
    assert queue.offer(other)
    assert not queue.offer(new_job())
    assert (len(queue), queue.ready) == (3, 1)
    assert queue.take() == [other]
    assert queue.take() == []
    assert queue.wake_at() == 50
    queue.close()
    assert queue.release(held)
    assert not queue.release(held)
    assert (len(queue), queue.ready) == (2, 1)
    assert queue.take() == [held]
    assert queue.expire(50) == [late]
    assert not queue.release(late)
    assert (len(queue), queue.ready) == (0, 0)


def test_a_held_job_can_be_cancelled(new_job):
    queue = BatchQueue(8, 3)
    job = new_job()
    queue.offer(job, held=True)
    assert queue.cancel(job)
    assert not queue.release(job)
    assert (len(queue), queue.ready, queue.take()) == (0, 0, [])
