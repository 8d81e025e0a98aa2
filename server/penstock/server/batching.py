"""Which waiting jobs run together, and when they have waited too long. Pure: time is an argument.

There is no delay to configure: whoever is free takes what waits. While every worker is busy the
next batch keeps growing; when one is idle a lone job starts at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heapify, heappop, heappush

from penstock.server.job import Job, State

_COMPACT_FROM = 64
"""Dead entries are swept out once there are more of them than of live ones plus this many."""


class _Level:
    """The jobs of one priority: in order of arrival, and the same jobs grouped by stack key.

    Jobs that left (taken, cancelled, expired) stay in ``order`` until they surface or a sweep
    removes them; their state tells.
    """

    __slots__ = ("by_key", "order")

    def __init__(self) -> None:
        self.order: deque[Job] = deque()
        self.by_key: dict[Hashable, deque[Job]] = {}

    def append(self, job: Job) -> None:
        self.order.append(job)
        group = self.by_key.get(job.key)
        if group is None:
            group = self.by_key[job.key] = deque()
        group.append(job)

    def head(self) -> Job | None:
        order = self.order
        while order:
            if order[0].state is State.QUEUED:
                return order[0]
            order.popleft()
        self.by_key.clear()
        return None

    def sweep(self) -> None:
        live = [job for job in self.order if job.state is State.QUEUED]
        self.order.clear()
        self.by_key.clear()
        for job in live:
            self.append(job)


class BatchQueue:
    """Jobs waiting for a worker of one lane.

    * FIFO within a priority; a smaller ``priority`` number goes first.
    * Only jobs with equal ``key`` share a batch, of at most ``rows_max`` rows; a single job with
      more rows than that runs alone.
    * The batch is formed when it is taken, never earlier: late arrivals still join.
    * Cancelling or expiring one job never changes another's place or result.
    * A job may be held: it has its place among ``jobs_max`` and its deadline, but is not taken
      before it is released.
    * At most ``jobs_max`` jobs wait. Every operation is O(1) amortised but for the O(log n) of a
      job that has a deadline.

    Not thread-safe: the lane guards it.
    """

    __slots__ = (
        "_closed", "_dead", "_deadlines", "_held", "_levels", "_live", "_seq", "jobs_max",
        "rows_max",
    )  # fmt: skip

    def __init__(self, rows_max: int, jobs_max: int) -> None:
        self.rows_max = rows_max
        self.jobs_max = jobs_max
        self._levels: dict[int, _Level] = {}
        self._held: set[Job] = set()
        self._deadlines: list[tuple[int, int, Job]] = []
        self._live = 0
        self._dead = 0
        self._seq = 0
        self._closed = False

    def __len__(self) -> int:
        return self._live

    @property
    def ready(self) -> int:
        """Jobs that could be taken now."""
        return self._live - len(self._held)

    def offer(self, job: Job, held: bool = False) -> bool:
        """Queues ``job``; False when the queue is full or closed (the job is untouched)."""
        if self._live >= self.jobs_max or self._closed:
            return False
        if held:
            self._held.add(job)
        else:
            self._append(job)
        self._live += 1
        if job.deadline_ns:
            self._seq += 1
            heappush(self._deadlines, (job.deadline_ns, self._seq, job))
        return True

    def release(self, job: Job) -> bool:
        """Lets a held job be taken. False when it does not wait any more."""
        if job not in self._held:
            return False
        self._held.remove(job)
        self._append(job)
        return True

    def _append(self, job: Job) -> None:
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = _Level()
            self._levels = dict(sorted(self._levels.items()))
        level.append(job)

    def take(self, rows: int = 0) -> list[Job]:
        """Removes and returns the next batch, oldest job of the highest priority first.

        Empty when nothing waits. Jobs of lower priority with the same key fill what room is left.
        ``rows`` > 0 makes the batch smaller than ``rows_max``.
        """
        batch: list[Job] = []
        room = min(rows, self.rows_max) if rows else self.rows_max
        key: Hashable = None
        for level in self._levels.values():
            if not batch:
                head = level.head()
                if head is None:
                    continue
                key = head.key
            group = level.by_key.get(key)
            while group:
                job = group[0]
                if job.state is State.QUEUED:
                    if batch and job.rows > room:
                        break
                    job.state = State.TAKEN
                    room -= job.rows
                    batch.append(job)
                group.popleft()
                if room <= 0:
                    break
            if group is not None and not group:
                del level.by_key[key]
            if room <= 0:
                break
        self._live -= len(batch)
        self._died(len(batch))
        return batch

    def cancel(self, job: Job) -> bool:
        """Takes ``job`` out. False when it does not wait here any more (it runs or is done)."""
        if job.state is not State.QUEUED:
            return False
        job.state = State.DONE
        self._held.discard(job)
        self._live -= 1
        self._died(1)
        return True

    def wake_at(self) -> int:
        """The time at which the next waiting job expires; 0 when none will."""
        deadlines = self._deadlines
        while deadlines:
            if deadlines[0][2].state is State.QUEUED:
                return deadlines[0][0]
            heappop(deadlines)
        return 0

    def expire(self, now_ns: int) -> list[Job]:
        """Removes and returns the jobs whose deadline has passed, earliest first."""
        expired: list[Job] = []
        while (at := self.wake_at()) and at <= now_ns:
            job = heappop(self._deadlines)[2]
            job.state = State.TAKEN
            self._held.discard(job)
            expired.append(job)
        self._live -= len(expired)
        self._died(len(expired))
        return expired

    def close(self) -> None:
        """Refuses further offers; what waits stays and is taken as before."""
        self._closed = True

    def _died(self, count: int) -> None:
        # Taken jobs count as dead too: they linger in `order` and in the heap. The sweep costs
        # O(live + dead) after at least `live` removals: constant per removal.
        self._dead += count
        if not self._live:
            # Dead jobs keep their arrays alive, and nobody may come to surface them for hours.
            self._dead = 0
            self._deadlines.clear()
            if len(self._levels) > 1:
                self._levels.clear()
            for level in self._levels.values():
                level.order.clear()
                level.by_key.clear()
        elif self._dead > self._live + _COMPACT_FROM:
            self._dead = 0
            for priority in [p for p, level in self._levels.items() if level.head() is None]:
                del self._levels[priority]
            for level in self._levels.values():
                level.sweep()
            if len(self._deadlines) > self._live + _COMPACT_FROM:
                self._deadlines = [d for d in self._deadlines if d[2].state is State.QUEUED]
                heapify(self._deadlines)
