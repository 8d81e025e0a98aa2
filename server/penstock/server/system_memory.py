"""Maps POSIX shared memory objects: the files of /dev/shm.

Knows: where the objects are and how to open one without being led elsewhere. Knows nothing of
regions' names and of requests.

Whoever may register a region may make the server read and write any object that it has the right
to, but nothing that is not directly in the folder: keys have no slashes but leading ones, and links
are not followed.

A file may be cut short while it is mapped, and whoever then touches what is gone dies of SIGBUS:
POSIX has no way to hold a file's size that works for these objects. So each use asks the kernel for
the size first (0.3 us). A file may also promise more memory than its file system has left, as those
of a container's small /dev/shm often do: so the kernel is asked for the memory itself before a
place is used for the first time. A client that cuts its file while a request that names it is in
flight can still end the server; that is why clients' memory has to be allowed.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/dev/shm")
KEY_BYTES_MAX: Final = 255
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE, which Python does not name; kernels before 5.14 do not know it."""
_PLACES_MAX: Final = 4096
"""Places of one region that are known to have memory behind them."""


class SystemMapping:
    """``byte_size`` bytes from ``offset`` of a file; unmapped when no view of them is left."""

    __slots__ = ("_backed", "_file", "_memory", "_offset", "_skip", "memory_key")

    def __init__(self, descriptor: int, offset: int, byte_size: int) -> None:
        """``descriptor`` may be closed afterwards.

        Raises:
            ValueError: the file is smaller.
        """
        status = os.fstat(descriptor)
        self.memory_key = status.st_dev, status.st_ino
        skip = offset % mmap.ALLOCATIONGRANULARITY
        self._file = mmap.mmap(descriptor, skip + byte_size, offset=offset - skip)
        self._memory = memoryview(self._file)[skip:]
        self._offset = offset
        self._skip = skip
        self._backed: set[tuple[int, int]] = set()

    def read(self, offset: int, byte_size: int) -> memoryview | None:
        """See ``shared_memory.Mapping``."""
        end = offset + byte_size
        if self._file.size() < self._offset + end:
            return None
        if (offset, byte_size) not in self._backed and not self._back(offset, byte_size):
            return None
        return self._memory[offset:end]

    def _back(self, offset: int, byte_size: int) -> bool:
        """Makes sure that there is memory behind a place; False if there is none left."""
        start = self._skip + offset
        page = start - start % mmap.PAGESIZE
        try:
            if byte_size:
                self._file.madvise(_POPULATE_WRITE, page, start + byte_size - page)
        except OSError as error:
            if error.errno != errno.EINVAL:
                return False
        if len(self._backed) >= _PLACES_MAX:
            self._backed.clear()
        self._backed.add((offset, byte_size))
        return True

    def write(
        self, offset: int, byte_size: int
    ) -> tuple[memoryview, Callable[[int], None] | None] | None:
        """See ``shared_memory.Mapping``."""
        memory = self.read(offset, byte_size)
        return None if memory is None else (memory, None)

    def guard(self, offset: int, byte_size: int) -> tuple[Callable[[], int], int]:
        """See ``shared_memory.Mapping``."""
        return self._file.size, self._offset + offset + byte_size


def map_system(key: str, offset: int, byte_size: int, folder: Path = FOLDER) -> SystemMapping:
    """The bytes of the object that clients call ``key``; see ``shared_memory.MapSystem``."""
    name = os.fsencode(key.lstrip("/"))
    if not name or len(name) > KEY_BYTES_MAX or b"/" in name or name in (b".", b".."):
        raise FileNotFoundError(key)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(os.fsencode(folder) + b"/" + name, flags)
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(key) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(key)
        if offset < 0 or byte_size <= 0 or byte_size > status.st_size - offset:
            raise ValueError(key)
        return SystemMapping(descriptor, offset, byte_size)
    finally:
        os.close(descriptor)
