"""Keep-alive connections of one client, bounded and shared by its threads.

Knows: connections as things to open, keep and close. Must not know HTTP or calls.

The connection used last is reused first, so that those of a past burst grow old and are closed. A
server may close an idle connection at any time: one that was closed, or on which anything arrived
unasked, is noticed when it is taken. What cannot be noticed is a close that is still under way;
then the exchange fails with ``StaleConnection`` and the client asks for a ``fresh`` connection.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from penstock.client.errors import ClientClosed, DeadlineExceeded
from penstock.client.http1 import Connection

IDLE_S_MAX: Final = 50.0
"""Seconds: less than the minute after which most servers and balancers drop idle connections."""


class Pool:
    """At most ``connections_max`` connections, made by ``connect(deadline)``. Thread-safe.

    A process that forks does not share its connections with the child: the child's pool starts
    empty.
    """

    def __init__(
        self,
        connect: Callable[[float], Connection],
        connections_max: int,
        clock: Callable[[], float],
    ) -> None:
        if connections_max < 1:
            raise ValueError(f"connections_max is {connections_max}")
        self._connect = connect
        self._connections_max = connections_max
        self._clock = clock
        self._idle: list[Connection] = []
        self._open = 0
        self._closed = False
        self._freed = threading.Condition(threading.Lock())
        _POOLS.add(self)

    def acquire(self, deadline: float, *, fresh: bool = False) -> Connection:
        """A connection of the caller's own until it is released.

        Raises:
            ClientClosed, DeadlineExceeded, ConnectError
        """
        now = self._clock()
        while True:
            with self._freed:
                connection = self._take(deadline)
            if connection is None:
                break
            stale = fresh or now - connection.idle_since > IDLE_S_MAX
            if not stale and connection.is_quiet():
                return connection
            self._drop(connection)
        try:
            return self._connect(deadline)
        except BaseException:
            self._give_up_place()
            raise

    def release(self, connection: Connection) -> None:
        """Give a connection back, also after an error: it is kept only if it is ``reusable``."""
        if connection.reusable:
            connection.idle_since = self._clock()
            with self._freed:
                if not self._closed:
                    self._idle.append(connection)
                    self._freed.notify()
                    return
        self._drop(connection)

    def close(self) -> None:
        """Close the idle connections now and the others when they are released."""
        with self._freed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._open -= len(idle)
            self._freed.notify_all()
        for connection in idle:
            connection.close()

    def forget(self) -> None:
        """Start anew in a forked child: the connections are the parent's."""
        self._freed = threading.Condition(threading.Lock())
        idle, self._idle, self._open = self._idle, [], 0
        for connection in idle:
            connection.close()  # Closes the child's descriptor only; says nothing to the server.

    def _take(self, deadline: float) -> Connection | None:
        """An idle connection, or None and a place for a new one."""
        while True:
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._idle:
                return self._idle.pop()
            if self._open < self._connections_max:
                self._open += 1
                return None
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"no connection became free; all {self._connections_max} are in use"
                )
            self._freed.wait(left_s)

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._give_up_place()

    def _give_up_place(self) -> None:
        with self._freed:
            self._open -= 1
            self._freed.notify()


_POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)
