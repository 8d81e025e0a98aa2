"""A stream through TLS. Imported only for ``https://``: ``ssl`` is slow to import.

Same contract as ``stream.Stream``. What TLS makes different: it may have received bytes that the
socket no longer shows, so it is asked before the socket is waited for; either direction may have to
wait for the other; there is no vectored write.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from penstock.client.endpoint import Endpoint
from penstock.client.errors import ConnectError, DeadlineExceeded
from penstock.client.stream import Stream, wait
from penstock.protocol.errors import Code

if TYPE_CHECKING:
    from penstock.client.exchange import Buffer

T = TypeVar("T")
_JOIN_MAX: Final = 16 << 10
"""Bytes: one TLS record. Smaller messages are copied together, larger parts are sent as they lie"""


class TlsStream(Stream):
    """A TLS connection; ``sock`` has been wrapped but has not shaken hands."""

    __slots__ = ("_tls", "_writable")
    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._tls = sock
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)

    def handshake(self, deadline: float) -> None:
        self._persistently(self._tls.do_handshake, deadline, "shaking hands")

    def send(self, buffers: Sequence[Buffer], length: int, deadline: float) -> bool:
        parts: Sequence[Buffer] = [b"".join(buffers)] if length <= _JOIN_MAX else buffers
        for part in parts:
            view = memoryview(part)
            rest = view.cast("B") if view.nbytes else view[:0]
            while rest:
                piece = rest
                sent = self._persistently(
                    lambda piece=piece: self._tls.send(piece),  # type: ignore[misc]
                    deadline,
                    "sending the request",
                )
                rest = rest[sent:]
        return True

    def await_reply(self, deadline: float) -> None:
        """Nothing: the next bytes may already have been received."""

    def recv_into(self, view: memoryview, deadline: float) -> int:
        return self._persistently(
            lambda: self._tls.recv_into(view), deadline, "receiving the reply"
        )

    def is_quiet(self) -> bool:
        """As for plain sockets; session tickets that came late are read and forgotten here."""
        if not self._readable.poll(0):
            return not self._tls.pending()
        try:
            self._tls.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        return False

    def _persistently(self, act: Callable[[], T], deadline: float, doing: str) -> T:
        while True:
            try:
                return act()
            except ssl.SSLWantReadError:
                wait(self._readable, deadline, doing)
            except ssl.SSLWantWriteError:
                wait(self._writable, deadline, doing)


def secured(
    sock: socket.socket, endpoint: Endpoint, deadline: float, context: ssl.SSLContext | None
) -> TlsStream:
    """``sock`` after the TLS handshake; it is closed if that fails.

    Raises:
        ConnectError: UNAUTHENTICATED if the peer's certificate is not accepted.
        DeadlineExceeded
    """
    context = context or ssl.create_default_context()
    sock.setblocking(False)
    try:
        wrapped = context.wrap_socket(
            sock, server_hostname=endpoint.host, do_handshake_on_connect=False
        )
    except BaseException:
        sock.close()
        raise
    stream = TlsStream(wrapped)
    try:
        stream.handshake(deadline)
    except DeadlineExceeded:
        stream.close()
        raise
    except ssl.SSLCertVerificationError as error:
        stream.close()
        raise ConnectError(f"{endpoint}: {error.verify_message}", Code.UNAUTHENTICATED) from error
    except OSError as error:
        stream.close()
        raise ConnectError(f"no TLS connection to {endpoint}: {error}") from error
    except BaseException:
        stream.close()
        raise
    return stream
