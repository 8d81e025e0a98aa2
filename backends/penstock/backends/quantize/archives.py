"""NumPy's files as mapped arrays: ``.npy``, and the members of ``.npz`` where they lie.

Knows the two formats: an ``.npz`` is a zip of ``.npy`` files, and ``numpy.savez`` stores them
uncompressed, so that each can be mapped at its place. Contract: no pickles, and nothing is read
whole but compressed members, up to a limit.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from penstock.backends.quantize.errors import DataError

COMPRESSED_BYTES_MAX: Final = 1 << 30
"""Of a member once it is unpacked."""
MEMBERS_MAX: Final = 1024
_LOCAL_HEADER: Final = struct.Struct("<26xHH")


def open_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file, mapped read-only.

    Raises:
        DataError: it cannot be read, is none, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            return _mapped(file, path, path.name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is no array file of NumPy: {_first_line(error)}") from error


def open_archive(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file by name; mapped read-only unless they are compressed.

    Raises:
        DataError: it cannot be read, is none, or a member is no array or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MEMBERS_MAX:
                raise DataError(
                    f"{path} has {len(members)} members; at most {MEMBERS_MAX} are read"
                )
            return {
                member.filename.removesuffix(".npy"): _member(path, archive, member)
                for member in members
            }
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file of NumPy: {_first_line(error)}") from error


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    name = member.filename
    if member.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(member.header_offset)
            name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            file.seek(name_bytes + extra_bytes, 1)
            return _mapped(file, path, name)
    if member.file_size > COMPRESSED_BYTES_MAX:
        raise DataError(
            f"{path}: {name} is compressed and has {member.file_size} bytes, which would all have "
            "to be in memory: save it with numpy.savez, which does not compress"
        )
    with archive.open(member) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _first_line(error: Exception) -> str:
    """NumPy explains at length how to read an unsafe file after all."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _mapped(file: IO[bytes], path: Path, name: str) -> NDArray[Any]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"{name} has version {version} of the format")
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are not read")
    if not math.prod(shape):
        return np.empty(shape, dtype)
    order: Any = "F" if fortran else "C"
    return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order=order)
