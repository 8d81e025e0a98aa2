"""Damaged and hostile array files: one clear error each, and never a pickle that runs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from penstock.backends.quantize import archives
from penstock.backends.quantize.archives import open_archive, open_array
from penstock.backends.quantize.errors import DataError

VALUES = np.arange(1000, dtype=np.float32)


def test_what_is_mapped_cannot_be_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=VALUES)
    found = open_archive(tmp_path / "a.npz")["x"]
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert np.array_equal(found, VALUES)


def test_empty_arrays_and_long_headers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", empty=VALUES[:0])
    assert open_archive(tmp_path / "a.npz")["empty"].shape == (0,)
    with (tmp_path / "two.npy").open("wb") as file:
        np.lib.format.write_array(file, VALUES, version=(2, 0))
    assert np.array_equal(open_array(tmp_path / "two.npy"), VALUES)
    wide = np.zeros(2, [(f"field{i}", "f4") for i in range(5000)])
    with pytest.warns(UserWarning, match="format 2.0"):
        np.save(tmp_path / "wide.npy", wide)
    with pytest.raises(DataError, match=r"may not be safe to load securely\.$"):
        open_array(tmp_path / "wide.npy")


@pytest.mark.parametrize("keep", [0, 1, 50, 500, 3000, -30])
def test_truncated_files(keep: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=VALUES)
    np.save(tmp_path / "a.npy", VALUES)
    for name, read in (("a.npz", open_archive), ("a.npy", open_array)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=f"{name} is no"):
            read(path)


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(DataError, match=r"is no \.npz file"):
        open_archive(path)
    with pytest.raises(DataError, match="is no array file"):
        open_array(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(DataError, match=r"is no \.npz file"):
        open_archive(path)
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        open_array(tmp_path / "missing")


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pickles_are_not_loaded(save: object, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.array([_Runs()]))  # type: ignore[operator]
    with pytest.raises(DataError):
        open_archive(tmp_path / "a.npz")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=VALUES, y=VALUES)
    monkeypatch.setattr(archives, "COMPRESSED_BYTES_MAX", 1000)
    with pytest.raises(DataError, match="compressed and has 4128 bytes"):
        open_archive(tmp_path / "a.npz")
    monkeypatch.setattr(archives, "MEMBERS_MAX", 1)
    with pytest.raises(DataError, match="has 2 members; at most 1"):
        open_archive(tmp_path / "a.npz")
