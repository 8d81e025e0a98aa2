"""The operator's policy: from the configuration, and what it gives a request."""

from __future__ import annotations

import pytest

from penstock.server.model_config import DynamicBatching, QueuePolicy
from penstock.server.policy import LanePolicy, policy_of


def test_without_a_word_from_the_operator() -> None:
    assert policy_of(None, 9) == LanePolicy(9)
    assert policy_of(DynamicBatching(), 9) == LanePolicy(9)


def test_every_stated_value_arrives() -> None:
    batching = DynamicBatching(
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(default_timeout_us=70, max_queue_size=5),
        priority_queue_policy={1: QueuePolicy(default_timeout_us=10), 3: QueuePolicy()},
    )
    assert policy_of(batching, 9) == LanePolicy(5, 70, 3, 2, {1: 10, 3: 0})


@pytest.mark.parametrize(
    ("asked_us", "priority", "given_us"),
    [
        (0, 2, 70),
        (50, 2, 50),
        (90, 2, 70),  # A client may hurry, but not overstay.
        (0, 1, 10),
        (50, 1, 10),
        (0, 3, 0),  # The level's own policy has no limit.
        (50, 3, 50),
    ],
)
def test_the_shorter_time_holds(asked_us: int, priority: int, given_us: int) -> None:
    policy = LanePolicy(timeout_us=70, priority_levels=3, timeouts_us={1: 10, 3: 0})
    assert policy.time_us(asked_us, priority) == given_us
