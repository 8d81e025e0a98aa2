"""What a serving process owes to the system around it: descriptors, and a file that says "ready".

Must not know the server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
from pathlib import Path
from types import TracebackType
from typing import Final

from penstock.server.commands.failure import CommandError

_log = logging.getLogger(__name__)
_DESCRIPTORS_SPARE: Final = 256
"""For everything that is not a client's connection."""


def raise_descriptor_limit(connections_max: int) -> None:
    """Raises the soft limit of open files so far that ``connections_max`` clients fit.

    Each connection is a file; the usual soft limit is 1024, and at the limit a server cannot even
    refuse. The hard limit is the operator's: where it is too low, that is logged.
    """
    wanted = connections_max + _DESCRIPTORS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft < wanted:
        _log.warning(
            "%d open files are allowed, too few for %d connections: raise the limit "
            "(ulimit -Hn, LimitNOFILE=) or lower --http-max-connections and "
            "--grpc-max-connections",
            soft,
            connections_max,
        )


class ReadyFile:
    """The file of ``--ready-file``, or nothing where ``path`` is None.

    As a context manager it removes what an earlier process left, and in the end its own file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path.absolute() if path else None

    def write(
        self,
        http: int | None,
        metrics: int | None,
        uds: Path | None,
        grpc: int | None = None,
        grpc_uds: Path | None = None,
    ) -> None:
        """Puts the whole file there at once, so that nobody reads half of it.

        Raises:
            CommandError: it cannot be written.
        """
        if self._path is None:
            return
        sockets = [str(path.absolute()) if path else None for path in (uds, grpc_uds)]
        told = {
            "http": http, "metrics": metrics, "uds": sockets[0],
            "grpc": grpc, "grpc_uds": sockets[1], "pid": os.getpid(),
        }  # fmt: skip
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(told) + "\n", encoding="ascii")
            draft.replace(self._path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise CommandError(
                f"cannot write --ready-file {self._path}: {error.strerror}"
            ) from error

    def __enter__(self) -> ReadyFile:
        if self._path is not None:
            if not self._path.parent.is_dir():
                raise CommandError(f"--ready-file: there is no folder {self._path.parent}")
            self._remove(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._path is not None:
            with contextlib.suppress(CommandError):
                self._remove(self._path)

    @staticmethod
    def _remove(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CommandError(f"cannot replace --ready-file {path}: {error.strerror}") from error
