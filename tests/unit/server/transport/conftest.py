"""A client in memory on a listener with an echo behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.server.transport.fake import Echo, Wire
from penstock.server.transport.http1 import Http1Connection
from penstock.server.transport.listener import Http1Listener, HttpLimits


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def make_wire(echo: Echo) -> Callable[..., Wire]:
    """``make_wire(endpoint=echo, half_close=True, **limits)``; every call has its own listener."""

    def make(endpoint: Any = echo, half_close: bool = True, **limits: int) -> Wire:
        listener = Http1Listener(lambda head: endpoint, Http1Connection, HttpLimits(**limits))
        return Wire(listener, half_close)

    return make


@pytest.fixture
def wire(make_wire: Callable[..., Wire]) -> Wire:
    return make_wire()
