"""Why an address cannot be had, in an operator's words. Pure; knows the flags behind addresses."""

from __future__ import annotations

import errno
import socket
from typing import Final

from penstock.server.commands.failure import CommandError
from penstock.server.ports import ListenError

_FLAGS: Final = {
    "http": "--http-port",
    "metrics": "--metrics-port",
    "grpc": "--grpc-port",
    "sagemaker": "--sagemaker-port",
}
_SOCKETS: Final = {"uds": "--uds", "grpc-uds": "--grpc-uds"}
_NO_PERMISSION: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


def listen_failure(error: ListenError) -> CommandError:
    """What happened and what to do about it."""
    if error.what in _SOCKETS:
        return CommandError(
            f"cannot listen on the socket {error.where}: {_socket_reason(error)}",
            f"{_SOCKETS[error.what]} takes a path of at most 107 bytes, in a folder that this user "
            "may write to",
        )
    flag = _FLAGS[error.what]
    message, hint = _port_failure(error, flag)
    return CommandError(message, hint)


def _port_failure(error: ListenError, flag: str) -> tuple[str, str]:
    where = error.where
    if isinstance(error.__cause__, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: this machine has no such address", (
            "--host takes one of its addresses: 127.0.0.1 for itself alone, 0.0.0.0 for everyone"
        )
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the port is in use", (
            f"end the process that listens there, or choose another port with {flag} "
            f"({flag} 0: any free one)"
        )
    if error.errno in _NO_PERMISSION:
        return f"cannot listen on {where}: no permission", (
            f"ports below 1024 need privileges; choose another with {flag}"
        )
    return f"cannot listen on {where}: {error.strerror or error}", f"see {flag} and --host"


def _socket_reason(error: ListenError) -> str:
    if error.errno == errno.ENOENT:
        return "its folder does not exist"
    if error.errno in _NO_PERMISSION:
        return "no permission"
    if error.errno == errno.EADDRINUSE:
        return "there is a file of another kind in its place"
    return error.strerror or str(error)
