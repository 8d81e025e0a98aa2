"""The retry policy, without clocks or sleeping."""

from __future__ import annotations

import pytest

from penstock.client.errors import BadReply, ConnectError, DeadlineExceeded, Unavailable, error_of
from penstock.client.retry import Retrier, RetryPolicy
from penstock.protocol.errors import Code, PenstockError

BUSY = Unavailable(Code.RESOURCE_EXHAUSTED, "busy")


def test_the_pause_grows_to_its_bound_with_full_jitter() -> None:
    policy = RetryPolicy(attempts_max=100, backoff_s_first=0.1, backoff_s_max=1.0,
                         budget_tokens=1000)  # fmt: skip
    half = Retrier(policy, lambda: 0.5)
    pauses = [half.pause_s(BUSY, attempts, 60) for attempts in (1, 2, 3, 4, 5, 99)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])
    assert Retrier(policy, lambda: 0.0).pause_s(BUSY, 1, 60) == 0.0


def test_retry_after_is_a_lower_bound() -> None:
    retrier = Retrier(RetryPolicy(backoff_s_first=0.1), lambda: 0.5)
    error = Unavailable(Code.UNAVAILABLE, "draining", retry_after_s=3.0)
    assert retrier.pause_s(error, 1, 60) == pytest.approx(3.05)
    assert retrier.pause_s(error, 1, 3.0) is None


def test_no_pause_beyond_the_deadline() -> None:
    retrier = Retrier(RetryPolicy(backoff_s_first=1.0), lambda: 0.5)
    assert retrier.pause_s(BUSY, 1, 0.5) is None
    assert retrier.pause_s(BUSY, 1, 0.51) == 0.5
    assert retrier.tokens == 9


def test_attempts_are_counted() -> None:
    retrier = Retrier(RetryPolicy(attempts_max=2), lambda: 0.0)
    assert retrier.pause_s(BUSY, 1, 60) is not None
    assert retrier.pause_s(BUSY, 2, 60) is None
    assert Retrier(RetryPolicy(attempts_max=1)).pause_s(BUSY, 1, 60) is None


@pytest.mark.parametrize("code", Code)
def test_only_retryable_codes(code: Code) -> None:
    pause_s = Retrier(RetryPolicy()).pause_s(error_of(code, ""), 1, 60)
    assert (pause_s is not None) is code.retryable


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectError("lost"), True),
        (ConnectError("who?", Code.UNAUTHENTICATED), False),
        (DeadlineExceeded("late"), False),
        (BadReply("what?"), False),
    ],
)
def test_local_errors(error: PenstockError, again: bool) -> None:
    assert (Retrier(RetryPolicy()).pause_s(error, 1, 60) is not None) is again


def test_the_budget_is_spent_and_earned() -> None:
    retrier = Retrier(RetryPolicy(budget_tokens=2, budget_refill=0.5), lambda: 0.0)
    assert [retrier.pause_s(BUSY, 1, 60) for _ in range(3)] == [0.0, 0.0, None]
    retrier.succeeded()
    assert retrier.pause_s(BUSY, 1, 60) is None
    retrier.succeeded()
    assert retrier.pause_s(BUSY, 1, 60) == 0.0
    for _ in range(100):
        retrier.succeeded()
    assert retrier.tokens == 2


@pytest.mark.parametrize(
    "wrong",
    [{"attempts_max": 0}, {"backoff_s_first": -1.0}, {"budget_tokens": -1.0}],
)
def test_policies_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
