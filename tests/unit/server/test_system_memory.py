"""Mapping the objects of /dev/shm: the right bytes, nothing else, and gone when nobody looks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.server.system_memory import FOLDER, map_system

CONTENT = bytes(range(256)) * 48  # three pages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "object").write_bytes(CONTENT)
    (tmp_path / "secret").write_bytes(CONTENT)
    return folder


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("key", ["object", "/object", "//object"])
@pytest.mark.parametrize("offset", [0, 1, 4096, 5001])
def test_the_bytes_are_those_of_the_file(folder: Path, key: str, offset: int) -> None:
    mapping = map_system(key, offset, 3000, folder)
    memory = mapping.read(7, 100)
    assert memory is not None
    assert bytes(memory) == CONTENT[offset + 7 : offset + 107]


def test_both_sides_see_what_the_other_writes(folder: Path) -> None:
    mapping = map_system("/object", 5000, 100, folder)
    place = mapping.write(10, 4)
    assert place is not None
    place[0][:] = b"here"
    content = (folder / "object").read_bytes()
    assert content == CONTENT[:5010] + b"here" + CONTENT[5014:]
    with (folder / "object").open("r+b") as file:
        file.seek(5020)
        file.write(b"there")
    assert bytes(mapping.read(20, 5) or b"") == b"there"


def test_the_real_folder() -> None:
    path = FOLDER / f"penstock-test-{os.getpid()}"
    path.write_bytes(CONTENT)
    try:
        memory = map_system(f"/{path.name}", 0, len(CONTENT)).read(0, len(CONTENT))
        assert memory == CONTENT
    finally:
        path.unlink()


ELSEWHERE = [
    "", "/", ".", "..", "/..", "../secret", "/../secret", "sub/object", "object/", "absent",
    "link", "hard/../object", "obj\0ect", "x" * 256, "folder", "pipe",
]  # fmt: skip


@pytest.mark.parametrize("key", ELSEWHERE)
def test_keys_that_lead_elsewhere(folder: Path, key: str) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folder").mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "object").write_bytes(CONTENT)
    os.mkfifo(folder / "pipe")
    with pytest.raises(OSError):
        map_system(key, 0, 10, folder)


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [
        (0, len(CONTENT) + 1), (1, len(CONTENT)), (len(CONTENT), 1), (len(CONTENT) + 4096, 1),
        (0, 0), (0, -1), (-1, 10), (-4096, 10), (1 << 62, 1), (0, 1 << 62), (1 << 64, 1 << 64),
    ],
)  # fmt: skip
def test_bytes_that_the_file_does_not_have(folder: Path, offset: int, byte_size: int) -> None:
    with pytest.raises(ValueError):
        map_system("object", offset, byte_size, folder)


def test_a_file_that_is_cut_short_is_not_touched(folder: Path) -> None:
    mapping = map_system("object", 4096, 8192, folder)
    os.truncate(folder / "object", 8192)
    assert mapping.read(0, 4097) is None
    assert mapping.write(4096, 1) is None
    assert bytes(mapping.read(0, 4096) or b"") == CONTENT[4096:8192]
    os.truncate(folder / "object", len(CONTENT))
    assert bytes(mapping.read(4096, 4096) or b"") == bytes(4096)


def test_a_deleted_file_stays_until_it_is_let_go(folder: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    mapping = map_system("object", 0, len(CONTENT), folder)
    (folder / "object").unlink()
    (folder / "object").write_bytes(b"another")
    memory = mapping.read(0, len(CONTENT))
    del mapping
    assert memory == CONTENT
    assert str(folder) in mapped_files()
    del memory
    assert str(folder) not in mapped_files()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_nothing_is_left_of_what_was_refused(folder: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    for size in (0, len(CONTENT) + 1):
        with pytest.raises(ValueError):
            map_system("object", 0, size, folder)
    assert len(os.listdir("/proc/self/fd")) == open_before


class _Kernel:
    """The mapped file, of a kernel that answers ``madvise`` by ``error``."""

    def __init__(self, file: Any, error: int) -> None:
        self.size = file.size
        self.asked: list[tuple[int, int]] = []
        self._error = error

    def madvise(self, option: int, start: int, length: int) -> None:
        self.asked.append((start, length))
        if self._error:
            raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize(
    ("error", "given"), [(0, True), (errno.EINVAL, True), (errno.EFAULT, False), (12, False)]
)
def test_memory_is_asked_for_before_a_place_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int, given: bool
) -> None:
    mapping = map_system("object", 5000, 6000, folder)
    kernel = _Kernel(mapping._file, error)
    monkeypatch.setattr(mapping, "_file", kernel)
    for _ in range(2):
        assert (mapping.read(4000, 100) is not None) is given
    # From the start of the page (5000 + 4000 - 4096 is on the second one mapped): once if it went.
    assert kernel.asked == [(4096, 908)] * (1 if given else 2)
    assert mapping.read(0, 0) is not None


_OVERCOMMITTED = """
import os, sys
from pathlib import Path
from penstock.server.system_memory import map_system
folder = Path(sys.argv[1])
with open(folder / "large", "wb") as file:
    file.truncate(8 << 20)
mapping = map_system("large", 0, 8 << 20, folder)
assert mapping.read(0, 8 << 20) is None
assert mapping.write(0, 8 << 20) is None
place = mapping.write(100, 100_000)
place[0][:] = bytes(100_000)
print("alive")
"""


def test_a_file_larger_than_its_file_system_does_not_end_the_server(tmp_path: Path) -> None:
    mounted = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} || exit 77; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    try:
        run = subprocess.run(
            [*command, sys.executable, "-c", _OVERCOMMITTED, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if run.returncode in (1, 77) and "alive" not in run.stdout and "Traceback" not in run.stderr:
        pytest.skip("mounting is not allowed here")
    assert run.stdout == "alive\n", run.stderr
