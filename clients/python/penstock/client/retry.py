"""When a failed call is tried again, and after what pause.

Knows: codes, attempts, budgets. Must not know clocks, sleeping or sockets: time left comes in as a
number, the pause goes out as a number.

A retry needs all of: a retryable code (``Code.retryable``; connection failures are UNAVAILABLE),
an attempt left, a token in the budget, and a pause that ends before the call's deadline. The pause
is exponential with full jitter; where the server named a ``Retry-After`` it is that plus the jitter
(so that a crowd sent away together does not come back together), never less.

Why the budget: when a server is down, every call of every client would be sent ``attempts_max``
times, which is how short outages become long ones. Each retry takes one token and each success
gives a fraction of one back, so retries stay a small share of the traffic.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from penstock.client.errors import Unavailable
from penstock.protocol.errors import PenstockError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of retrying; ``RetryPolicy(attempts_max=1)`` never retries.

    Attempts count the first one. ``budget_tokens`` is how many retries may happen in a burst,
    ``budget_refill`` how many each successful call earns.
    """

    attempts_max: int = 3
    backoff_s_first: float = 0.05
    backoff_s_max: float = 2.0
    budget_tokens: float = 10.0
    budget_refill: float = 0.1

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ValueError(f"attempts_max is {self.attempts_max}; the first attempt counts as 1")
        if min(self.backoff_s_first, self.backoff_s_max) < 0:
            raise ValueError("a backoff cannot be negative")
        if min(self.budget_tokens, self.budget_refill) < 0:
            raise ValueError("a retry budget cannot be negative")


class Retrier:
    """A policy with its budget, shared by all calls of one client.

    Threads may use it together without a lock: a race may lose a fraction of a token, which a
    budget can bear and a hot path should not pay for.
    """

    __slots__ = ("_random", "policy", "tokens")

    def __init__(
        self, policy: RetryPolicy, random_unit: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy
        self.tokens = policy.budget_tokens
        self._random = random_unit

    def succeeded(self) -> None:
        """Refill the budget."""
        policy = self.policy
        if self.tokens < policy.budget_tokens:
            self.tokens = min(policy.budget_tokens, self.tokens + policy.budget_refill)

    def pause_s(self, error: PenstockError, attempts: int, left_s: float) -> float | None:
        """How long to wait before the next attempt; None says: raise ``error``.

        ``attempts`` have been made; ``left_s`` seconds remain until the call's deadline. Takes a
        token from the budget if it answers with a pause.
        """
        policy = self.policy
        if not error.code.retryable or attempts >= policy.attempts_max:
            return None
        # The exponent is bounded because a large float power overflows.
        ceiling_s = min(policy.backoff_s_max, policy.backoff_s_first * 2.0 ** min(attempts - 1, 60))
        pause_s = ceiling_s * self._random()
        if isinstance(error, Unavailable) and error.retry_after_s is not None:
            pause_s += error.retry_after_s
        if pause_s >= left_s:
            return None
        if self.tokens < 1:
            return None
        self.tokens -= 1
        return pause_s
