"""BatchQueue against a list: any sequence of offers, takes, cancellations and expiries."""

import weakref

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.protocol.message import InferRequest, Signature
from penstock.server.batching import BatchQueue
from penstock.server.job import Job, State

KEYS = st.sampled_from(["a", "b", ("a", 1)])
PRIORITIES = st.sampled_from([0, 0, 0, 1, 2, 64])
LATER_NS = st.sampled_from([0, 0, 1, 5, 1000])


class Buffer:
    """Stands for the memory that a job holds; counted while anybody can reach it."""


class Model:
    """What a BatchQueue should do, slowly: ``waiting`` is in order of arrival."""

    def __init__(self, rows_max: int, jobs_max: int) -> None:
        self.rows_max = rows_max
        self.jobs_max = jobs_max
        self.waiting: list[Job] = []
        self.closed = False

    def take(self, rows: int) -> list[Job]:
        batch: list[Job] = []
        room = min(rows, self.rows_max) if rows else self.rows_max
        for priority in sorted({job.priority for job in self.waiting}):
            level = [job for job in self.waiting if job.priority == priority]
            key = batch[0].key if batch else level[0].key
            for job in (job for job in level if job.key == key):
                if room <= 0 or (batch and job.rows > room):
                    break
                batch.append(job)
                room -= job.rows
        self.waiting = [job for job in self.waiting if job not in batch]
        return batch

    def expire(self, now: int) -> list[Job]:
        due = [job for job in self.waiting if 0 < job.deadline_ns <= now]
        due.sort(key=lambda job: job.deadline_ns)
        self.waiting = [job for job in self.waiting if job not in due]
        return due


class BatchQueueMachine(RuleBasedStateMachine):
    @initialize(rows_max=st.integers(1, 12), jobs_max=st.sampled_from([1, 3, 20, 1000]))
    def begin(self, rows_max: int, jobs_max: int) -> None:
        self.queue = BatchQueue(rows_max, jobs_max)
        self.model = Model(rows_max, jobs_max)
        self.now = 1
        self.buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def new_job(self, rows: int, key: object, priority: int, later: int) -> Job:
        request = InferRequest(Signature(()), ())
        job = Job(request, (), rows, key, (), lambda job: None, Buffer())
        job.priority = priority
        job.deadline_ns = self.now + later if later else 0
        self.buffers.add(job.context)
        return job

    @rule(rows=st.integers(0, 20), key=KEYS, priority=PRIORITIES, later=LATER_NS)
    def offer(self, rows: int, key: object, priority: int, later: int) -> None:
        job = self.new_job(rows, key, priority, later)
        room = not self.model.closed and len(self.model.waiting) < self.model.jobs_max
        assert self.queue.offer(job) is room
        assert job.state is State.QUEUED
        if room:
            self.model.waiting.append(job)

    @rule(count=st.integers(1, 150), key=KEYS, priority=PRIORITIES, later=LATER_NS)
    def offer_many(self, count: int, key: object, priority: int, later: int) -> None:
        for i in range(count):
            self.offer(1 + i % 3, key, priority, later)

    @rule(limit=st.sampled_from([0, 0, 1, 3, 100]))
    def take(self, limit: int) -> None:
        expected = self.model.take(limit)
        batch = self.queue.take(limit)
        assert batch == expected
        assert all(job.state is State.TAKEN for job in batch)
        assert len({job.key for job in batch}) <= 1
        most = min(limit or 100, self.model.rows_max)
        assert sum(job.rows for job in batch) <= most or len([j for j in batch if j.rows]) == 1

    @rule()
    def take_all(self) -> None:
        while self.model.waiting:
            self.take(0)
        assert self.queue.take() == []

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.model.waiting:
            index = data.draw(st.integers(0, len(self.model.waiting) - 1))
            job = self.model.waiting.pop(index)
            assert self.queue.cancel(job)
            assert job.state is State.DONE
            assert not self.queue.cancel(job)

    @rule(keep=st.integers(0, 3), first=st.booleans())
    def cancel_all_but(self, keep: int, first: bool) -> None:
        """A storm: clients go away, a few stay at one end of the queue."""
        waiting = self.model.waiting
        cut = keep if first else max(len(waiting) - keep, 0)
        gone = waiting[cut:] if first else waiting[:cut]
        self.model.waiting = waiting[:cut] if first else waiting[cut:]
        for job in gone:
            assert self.queue.cancel(job)

    @rule(count=st.integers(1, 400), key=KEYS, priority=PRIORITIES)
    def come_and_go(self, count: int, key: object, priority: int) -> None:
        """A storm that nobody takes part of, perhaps behind a job that stays."""
        for _ in range(count):
            job = self.new_job(1, key, priority, 1000)
            if not self.queue.offer(job):
                return  # full or closed
            assert self.queue.cancel(job)

    @rule(passed=st.sampled_from([0, 1, 4, 500]))
    def expire(self, passed: int) -> None:
        self.now += passed
        due = self.model.expire(self.now)
        expired = self.queue.expire(self.now)
        assert expired == due
        assert all(job.state is State.TAKEN for job in expired)
        assert not any(self.queue.cancel(job) for job in expired)

    @rule()
    def close(self) -> None:
        self.queue.close()
        self.model.closed = True

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.model.waiting)
        assert all(job.state is State.QUEUED for job in self.model.waiting)

    @invariant()
    def wakes_for_the_earliest_deadline(self) -> None:
        deadlines = [job.deadline_ns for job in self.model.waiting if job.deadline_ns]
        assert self.queue.wake_at() == min(deadlines, default=0)

    @invariant()
    def holds_little_more_than_what_waits(self) -> None:
        waiting = len(self.model.waiting)
        assert len(self.buffers) <= (3 * waiting + 200 if waiting else 0)

    @invariant()
    def containers_stay_small(self) -> None:
        queue, waiting = self.queue, len(self.model.waiting)
        bound = 3 * waiting + 200
        assert sum(len(level.order) for level in queue._levels.values()) <= bound
        groups = [group for level in queue._levels.values() for group in level.by_key.values()]
        assert len(groups) <= 12
        assert sum(map(len, groups)) <= bound
        assert len(queue._deadlines) <= bound

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.take_all()
            assert len(self.queue) == 0


TestBatchQueue = BatchQueueMachine.TestCase
TestBatchQueue.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
