"""Keeps built plans, and what building measured, in a folder of the operator's.

Knows files, locks between processes and checksums; nothing of engines. Several servers may use one
folder.

Contract: what comes out is what was put in, or nothing: a damaged file is removed and counts as not
there. Files appear whole or not at all. The folder stays below its limit by giving up what was used
least lately. It must belong to this user alone, because plans are programs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from penstock.backends.base import LoadError

_log = logging.getLogger(__name__)

_MAGIC: Final = b"penstock-kept 1\n"
_SUFFIX: Final = ".kept"
_DIGEST: Final = 64
_POLL_S: Final = 0.05
_STALE_S: Final = 3600.0
_FILES_MAX: Final = 10_000
"""Files beside a model that are looked at for being its external data."""
_CHUNK: Final = 1 << 20


def fingerprint(path: Path, onnx: bytes) -> str:
    """SHA-256 of a model and of the files beside it that hold its weights.

    A file of external data is named in the model, so every file below the model's folder whose
    relative name occurs in its bytes counts; one too many only makes a key that is too strict.
    """
    whole = hashlib.sha256(onnx)
    if b"location" not in onnx:  # what ONNX calls it where data is elsewhere
        return whole.hexdigest()
    seen = 0
    for folder, _, names in os.walk(path.parent):
        for name in sorted(names):
            seen += 1
            if seen > _FILES_MAX:
                raise LoadError(f"{path.parent} has more than {_FILES_MAX} files beside the model")
            beside = Path(folder) / name
            relative = beside.relative_to(path.parent).as_posix()
            if beside != path and relative.encode() in onnx:
                whole.update(relative.encode() + b"\0" + _digest(beside).encode())
    return whole.hexdigest()


def key(facts: Mapping[str, object]) -> str:
    """The name of what was made of ``facts``, all of which count."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class PlanCache:
    """A folder of at most ``bytes_max``; 0 keeps nothing."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    def open(self) -> None:
        """Makes the folder if it has to, and looks at who may write to it.

        Raises:
            LoadError: it cannot be used.
        """
        if not self._bytes_max:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.stat()
        except OSError as error:
            raise LoadError(
                f"plans cannot be kept in {self._folder}: {error.strerror}; set option "
                "'cache_dir', or option 'cache_bytes_max' to 0"
            ) from error
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise LoadError(
                f"plans are not kept in {self._folder}: others may write to it, and plans are "
                f"programs; chmod go-w, or set option 'cache_dir'"
            )

    def get(self, name: str) -> bytes | None:
        """What was kept under ``name``; None if there is nothing, or nothing whole."""
        if not self._bytes_max:
            return None
        path = self._path(name)
        try:
            data = _owned(path)
        except OSError:
            return None
        start = len(_MAGIC) + _DIGEST + 1
        blob = data[start:]
        head = _MAGIC + hashlib.sha256(blob).hexdigest().encode() + b"\n"
        if data[:start] != head:
            _log.warning("%s is damaged: it is removed and made again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return blob

    def put(self, name: str, blob: bytes) -> None:
        """Keeps ``blob`` under ``name``, if there is any; a full disk is not an error."""
        if not blob or not self._bytes_max:
            return
        head = _MAGIC + hashlib.sha256(blob).hexdigest().encode() + b"\n"
        size = len(head) + len(blob)
        if size > self._bytes_max:
            _log.warning("%d bytes are not kept: the limit is %d", size, self._bytes_max)
            return
        try:
            self._shrink(self._bytes_max - size, spare=name)
            self._write(self._path(name), head, blob)
        except OSError as error:
            _log.warning("nothing can be kept in %s: %s", self._folder, error)

    def made(self, name: str, wait_s_max: float, make: Callable[[], bytes]) -> bytes:
        """What is kept under ``name``, or else made and kept; by one process at a time.

        Whoever waits longer than ``wait_s_max`` for another process makes it too.

        Raises:
            LoadError: what ``make`` raises.
        """
        if not self._bytes_max:
            return make()
        found = self.get(name)
        if found is not None:
            return found
        with self._alone(name, wait_s_max):
            found = self.get(name)
            if found is None:
                found = make()
                self.put(name, found)
            return found

    @contextlib.contextmanager
    def _alone(self, name: str, wait_s_max: float) -> Iterator[None]:
        """A lock that ends with its holder. Its file is left to ``_shrink`` for an hour, because
        who has opened it may still be waiting. Where locks cannot be had, there is none: then some
        work is done twice, and nothing else."""
        deadline = time.monotonic() + wait_s_max
        with contextlib.ExitStack() as held:
            try:
                path = self._path(name).with_suffix(".lock")
                file = held.enter_context(path.open("wb"))
                while not _locked(file) and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
            except OSError as error:
                _log.warning("nothing can be locked in %s: %s", self._folder, error)
            yield

    def _shrink(self, bytes_max: int, spare: str) -> None:
        """Removes what was used least lately until no more than ``bytes_max`` are left."""
        files = []
        now = time.time()
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.suffix == _SUFFIX:
                    files.append((found.st_mtime, found.st_size, path))
                elif path.suffix in (".lock", ".tmp") and found.st_mtime < now - _STALE_S:
                    path.unlink()
        spared = self._path(spare)
        left = sum(size for _, size, path in files if path != spared)
        for _, size, path in sorted(files):
            if left <= bytes_max:
                return
            if path != spared:
                path.unlink(missing_ok=True)
                left -= size

    def _write(self, path: Path, head: bytes, blob: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(head)
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owned(path: Path) -> bytes:
    """The content of a file of this user's, whoever could rename the folders above it.

    Raises:
        OSError: there is none, or it is a link or another's.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to somebody else")
        return file.read()


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error
    return whole.hexdigest()
