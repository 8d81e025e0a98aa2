"""The worker threads of one lane: which of them sleep, and how their runs and they are ended.

Knows workers and sessions. Knows nothing of queues, policies and replies.

Contract: everything but ``dismiss`` is called under the lane's lock, under which workers also take
their batches: so an interrupt meets the batch that it was meant for, or none. ``dismiss`` needs no
lock, because it is called when there are no more batches to take.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

from penstock.backends.base import Session
from penstock.server.worker import ThreadWorker

_log = logging.getLogger(__name__)

JOIN_S_MAX = 5.0
"""For all threads of a lane together."""
AGAIN_NS = 20_000_000
"""A session forgets an interrupt that came just before its run began, so it gets another."""


class Crew:
    """``workers`` are all, ``parked`` those that sleep until they are unparked."""

    __slots__ = ("parked", "workers")

    def __init__(self) -> None:
        self.workers: list[ThreadWorker] = []
        self.parked: list[ThreadWorker] = []

    @property
    def awake(self) -> int:
        """How many do not sleep."""
        return len(self.workers) - len(self.parked)

    def hire(self, worker: ThreadWorker) -> None:
        """Takes on ``worker``; of those that share a session none may interrupt it."""
        self.workers.append(worker)
        sharing = [other for other in self.workers if other.session is worker.session]
        if len(sharing) > 1:
            for other in sharing:
                other.interruptible = None

    def give_up(self, now_ns: int, other_ns: int = 0) -> int:
        """Interrupts each run of which nobody wants the results any more.

        Returns when to look again: when the next run will be of no use to anybody, soon if one was
        interrupted, or at ``other_ns`` if that is earlier; 0, of all, is never.
        """
        times = [other_ns] if other_ns else []
        for worker in self.workers:
            until = worker.wanted_until()
            if until is None:
                continue
            if until <= now_ns:
                worker.give_up()
                until = now_ns + AGAIN_NS
            times.append(until)
        return min(times, default=0)

    def call_up(self) -> list[ThreadWorker]:
        """Those that slept, all of whom the caller is to unpark."""
        parked = self.parked.copy()
        self.parked.clear()
        return parked

    def dismiss(self, model: str, sessions: Sequence[Session]) -> bool:
        """Waits for the threads, which were told to end, and closes the sessions; False if one
        hangs and so the sessions stay open. All jobs are answered: what still runs is interrupted.
        Blocks."""
        until = monotonic() + JOIN_S_MAX
        ended = [_ends(worker, until) for worker in self.workers]  # Each is told, whoever hangs.
        if not all(ended):
            # A run that never returns, of jobs that nobody waits for: its session is in use.
            _log.error("a worker of model %s hangs; its sessions stay open", model)
            return False
        for session in {id(session): session for session in sessions}.values():
            try:
                session.close()
            except Exception:
                _log.exception("a session of model %s did not close", model)
        # They hold the lane in turn, and a collector that was told to leave old objects alone would
        # keep all of it.
        self.workers.clear()
        return True


def _ends(worker: ThreadWorker, until: float) -> bool:
    while not worker.join(AGAIN_NS / 1e9):
        worker.give_up()
        if monotonic() > until:
            return False
    return True
