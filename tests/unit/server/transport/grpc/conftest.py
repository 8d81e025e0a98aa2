"""A gRPC client in memory on a listener with echoing methods behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.server.transport.grpc.fake import EchoMethods, GrpcWire


@pytest.fixture
def echo() -> EchoMethods:
    return EchoMethods()


@pytest.fixture
def make_wire(echo: EchoMethods) -> Callable[..., GrpcWire]:
    """``make_wire(preface=True, **limits)``; every call has its own listener."""

    def make(preface: bool = True, **limits: Any) -> GrpcWire:
        return GrpcWire(echo.listener(**limits), preface)

    return make


@pytest.fixture
def wire(make_wire: Callable[..., GrpcWire]) -> GrpcWire:
    return make_wire()
