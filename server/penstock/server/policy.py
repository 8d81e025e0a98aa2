"""What an operator allows a model's requests: how many wait, how long, who goes first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from penstock.server.model_config import DynamicBatching


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """``jobs_max`` jobs may wait. Times in the queue are microseconds, 0 is any.

    Without ``priority_levels`` all requests are alike, whatever they ask for. With them 1 goes
    first, and requests that ask for no level that exists get ``priority_default``. ``timeouts_us``
    are the levels' own.
    """

    jobs_max: int = 4096
    timeout_us: int = 0
    priority_levels: int = 0
    priority_default: int = 0
    timeouts_us: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))

    def priority(self, asked: int) -> int:
        """The level at which a request is served."""
        return asked if 0 < asked <= self.priority_levels else self.priority_default

    def time_us(self, asked_us: int, priority: int) -> int:
        """How long a request may wait: the shorter of what it and the operator say."""
        allowed_us = self.timeouts_us.get(priority, self.timeout_us)
        if asked_us and allowed_us:
            return min(asked_us, allowed_us)
        return asked_us or allowed_us


def policy_of(batching: DynamicBatching | None, jobs_max: int) -> LanePolicy:
    """The policy that a model's configuration states; ``jobs_max`` where it has no limit."""
    if batching is None:
        return LanePolicy(jobs_max)
    default = batching.default_queue_policy
    return LanePolicy(
        default.max_queue_size or jobs_max,
        default.default_timeout_us,
        batching.priority_levels,
        batching.default_priority_level,
        {
            level: policy.default_timeout_us
            for level, policy in batching.priority_queue_policy.items()
        },
    )
