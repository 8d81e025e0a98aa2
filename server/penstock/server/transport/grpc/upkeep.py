"""When a connection is asked whether it still lives, asked to go, or given up. Time is an argument.

Knows the rules of gRPC's keepalive and of a connection's age. Must not know sockets.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from penstock.server.transport.http2.frames import PING, frame
from penstock.server.transport.http2.machine import Machine

_PING: Final = frame(PING, 0, 0, b"penstock")


class KeepaliveLimits(Protocol):
    """Times in seconds; see ``GrpcLimits``."""

    @property
    def idle_timeout_s(self) -> int: ...
    @property
    def read_timeout_s(self) -> int: ...
    @property
    def keepalive_time_s(self) -> int: ...
    @property
    def keepalive_timeout_s(self) -> int: ...
    @property
    def keepalive_without_calls(self) -> bool: ...
    @property
    def connection_age_s_max(self) -> int: ...
    @property
    def connection_grace_s(self) -> int: ...


class Verdict(enum.Enum):
    STAY = "it may stay"
    ABORT = "it is given up at once"


class Upkeep:
    """One connection's times, in ticks of a second."""

    __slots__ = (
        "_born", "_busy", "_left", "_limits", "_machine", "_opened", "_pinged", "_pongs",
        "_waited",
    )  # fmt: skip

    def __init__(self, limits: KeepaliveLimits, machine: Machine) -> None:
        self._limits = limits
        self._machine = machine
        self._born = machine.tick
        self._busy = machine.tick
        """When there was a call last."""
        self._opened = 0
        self._pinged = -1
        """When we pinged, if nothing was heard since."""
        self._pongs = 0
        self._left = -1
        """When it was asked to go."""
        self._waited = machine.tick
        """Since when a frame or the preface is incomplete."""

    def sweep(self, tick: int) -> Verdict:
        machine = self._machine
        limits = self._limits
        machine.forgive()
        if machine.paused or (machine.begun and not machine.partial):
            self._waited = tick
        elif tick - max(self._waited, machine.heard) > limits.read_timeout_s:
            return Verdict.ABORT
        if not machine.settled and tick - self._born > limits.read_timeout_s:
            return Verdict.ABORT
        if machine.streams or machine.opened != self._opened:
            self._busy = tick
            self._opened = machine.opened
        if machine.goaways:
            return self._leaving(tick)
        age_s = limits.connection_age_s_max
        idle_s = limits.idle_timeout_s
        if (age_s and tick - self._born >= age_s) or (idle_s and tick - self._busy >= idle_s):
            machine.leave(False)
            return self._leaving(tick)
        return self._keepalive(tick)

    def _leaving(self, tick: int) -> Verdict:
        machine = self._machine
        if self._left < 0:
            self._left = tick
        elif machine.goaways == 1 and tick > self._left:
            machine.leave(True)  # It does not answer; it had the time to.
        grace_s = self._limits.connection_grace_s
        if grace_s and tick - self._left > grace_s:
            return Verdict.ABORT
        return Verdict.STAY

    def _keepalive(self, tick: int) -> Verdict:
        machine = self._machine
        limits = self._limits
        if machine.heard > self._pinged or machine.pongs != self._pongs:
            self._pinged = -1
        if self._pinged >= 0:
            if tick - self._pinged > limits.keepalive_timeout_s:
                return Verdict.ABORT
        elif (
            tick - machine.heard >= limits.keepalive_time_s
            and (machine.streams or limits.keepalive_without_calls)
            and not machine.paused
        ):
            self._pinged = tick
            self._pongs = machine.pongs
            machine.emit(_PING)
        return Verdict.STAY
