from pathlib import Path
from typing import IO

import pytest

from penstock.backends.quantize.durable import write_whole


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def fails(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(path, fails)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
