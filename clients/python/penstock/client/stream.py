"""A connected socket whose every operation ends by a deadline.

Knows: sockets, Unix sockets, waiting. Must not know HTTP. TLS is in ``tls.py``, imported on demand.

The socket is non-blocking and waited for with ``poll``: Python's own socket timeouts cost a system
call to set, one more on each operation, and start anew with each byte that drips in. Operations
raise ``DeadlineExceeded`` or plain ``OSError``; the caller knows what a broken connection means.
A stream is used by one thread at a time.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from penstock.client.endpoint import Endpoint
from penstock.client.errors import ConnectError, DeadlineExceeded
from penstock.protocol.errors import PenstockError

if TYPE_CHECKING:
    import ssl

    from penstock.client.exchange import Buffer

CLOCK: Final = time.monotonic
_VECTOR_MAX: Final = max(16, min(1024, os.sysconf("SC_IOV_MAX")))
_POLL_MS_MAX: Final = 1 << 30


class Stream:
    """A plain TCP or Unix connection; owns ``sock``."""

    __slots__ = ("_either", "_readable", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._either = select.poll()
        self._either.register(sock, select.POLLIN | select.POLLOUT)

    def send(self, buffers: Sequence[Buffer], length: int, deadline: float) -> bool:
        """Send ``buffers``, ``length`` bytes in all, from where they lie.

        False: the peer began to answer before it had everything; the rest was not sent.
        """
        sent = 0
        if len(buffers) <= _VECTOR_MAX:
            try:
                sent = self._sock.sendmsg(buffers)
            except BlockingIOError:
                sent = 0
        return sent == length or self._send_rest(buffers, sent, deadline)

    def _send_rest(self, buffers: Sequence[Buffer], sent: int, deadline: float) -> bool:
        views = [memoryview(b) for b in buffers]
        views = [view.cast("B") for view in views if view.nbytes]
        at = 0
        while True:
            while at < len(views) and sent >= len(views[at]):
                sent -= len(views[at])
                at += 1
            if at == len(views):
                return True
            views[at] = views[at][sent:]
            try:
                sent = self._sock.sendmsg(views[at : at + _VECTOR_MAX])
            except BlockingIOError:
                sent = 0
                if wait(self._either, deadline, "sending the request") & select.POLLIN:
                    return False

    def await_reply(self, deadline: float) -> None:
        """Wait until there is something to receive: cheaper than to try in vain first."""
        wait(self._readable, deadline, "waiting for the reply")

    def recv_into(self, view: memoryview, deadline: float) -> int:
        """Receive into ``view``, at least one byte; 0 at the end of the stream."""
        while True:
            try:
                return self._sock.recv_into(view)
            except BlockingIOError:
                wait(self._readable, deadline, "receiving the reply")

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open and nothing unasked for has arrived."""
        return not self._readable.poll(0)

    def close(self) -> None:
        self._sock.close()


def wait(poll: select.poll, deadline: float, doing: str) -> int:
    """Wait for one of the events of ``poll``, which has one socket; the events that came.

    Raises:
        DeadlineExceeded: none came in time.
    """
    while True:
        left_s = deadline - CLOCK()
        # Rounded up: rounded down, the last millisecond would be spent spinning.
        ready = poll.poll(min(_POLL_MS_MAX, math.ceil(left_s * 1000)) if left_s > 0 else 0)
        if ready:
            return ready[0][1]
        if left_s <= 0:
            raise DeadlineExceeded(f"the time was over while {doing}")


def connect(endpoint: Endpoint, deadline: float, context: ssl.SSLContext | None) -> Stream:
    """A new connection. Addresses of one name are tried in turn within the deadline.

    The name lookup itself is the operating system's and cannot be interrupted.

    Raises:
        ConnectError, DeadlineExceeded: with the endpoint in the message.
    """
    try:
        sock = _connected(endpoint, deadline)
    except PenstockError:
        raise
    except TimeoutError:
        raise DeadlineExceeded(f"the time was over while connecting to {endpoint}") from None
    except OSError as error:
        raise ConnectError(f"cannot connect to {endpoint}: {error}") from error
    if not endpoint.tls:
        return Stream(sock)
    from penstock.client.tls import secured

    return secured(sock, endpoint, deadline, context)


def _connected(endpoint: Endpoint, deadline: float) -> socket.socket:
    if endpoint.unix:
        return _open(socket.AF_UNIX, endpoint.unix, deadline)
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    for family, _, _, _, address in found[:-1]:
        try:
            return _open(family, address, deadline)
        except OSError:
            continue
    return _open(found[-1][0], found[-1][4], deadline)


def _open(family: int, address: object, deadline: float) -> socket.socket:
    left_s = deadline - CLOCK()
    if left_s <= 0:
        raise TimeoutError
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(left_s)
        sock.connect(address)  # type: ignore[arg-type]
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock
