"""Checks a version's files against checksums before anything is made of them.

Knows two places where checksums are stated: a file ``SHA256SUMS`` at the top of the version, in the
form that ``sha256sum`` writes, and Triton's repository agent ``checksum`` in the configuration.
Must not know backends. Says that files are whole and the ones that were meant; not who made them.

Contract: with ``SHA256SUMS`` every file of a version must be listed, because an artefact may read
others beside it. Blocks as long as it takes to read the files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from penstock.backends.base import LoadError
from penstock.server.model_config import Checksum

SUMS_FILENAME: Final = "SHA256SUMS"
_SUMS_BYTES_MAX: Final = 1 << 20
_FILES_MAX: Final = 10_000
"""In a version; links that lead back to themselves would have no end."""
_LINE: Final = re.compile(r"(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>.+)")
_CACHES: Final = ("__pycache__",)
"""Written by what runs, not by who made the version."""


def verify(
    artefact: Path, *, folder: Path, stated: Iterable[Checksum] = (), required: bool = False
) -> None:
    """Checks ``artefact`` and the files of its version; returns if all is well or nothing stated.

    ``folder`` is the model's directory, to which ``stated`` is relative; an artefact directly in it
    has no version directory, and only itself is checked.

    Raises:
        LoadError: a file differs, is missing or is not listed; or ``required``, and a file of the
            version has no checksum.
    """
    stated = list(stated)
    for checksum in stated:
        _check(folder, checksum.path, checksum.algorithm, checksum.digest, "config.pbtxt")
    # An artefact may lie in a folder of its version; the list is at the top.
    version = folder / artefact.relative_to(folder).parts[0]
    top = folder if version == artefact else version
    sums = top / SUMS_FILENAME
    # Something that is there but cannot be read is no leave to go without.
    if os.path.lexists(sums):
        _check_list(sums, version)
    elif required:
        named = {folder / checksum.path for checksum in stated}
        if not named.issuperset(_files(version)):
            raise LoadError(
                f"there is no {sums}, and this server wants one; in {top} run: "
                f"find -L . -type f ! -name {SUMS_FILENAME} -exec sha256sum {{}} + > "
                f"{SUMS_FILENAME}"
            )


def write_sums(version: Path) -> None:
    """Writes the list of every file that is in ``version`` now.

    Raises:
        OSError: it cannot be written.
        LoadError: there are too many files.
    """
    lines = []
    for path in sorted(_files(version)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(version).as_posix()}\n")
    (version / SUMS_FILENAME).write_text("".join(lines), encoding="utf-8")


def _check_list(sums: Path, version: Path) -> None:
    listed = _read(sums)
    present = {path.relative_to(sums.parent).as_posix() for path in _files(version) if path != sums}
    for name in sorted(present - listed.keys()):
        raise LoadError(f"{name} is not listed in {sums}")
    # Beside a model that is one file lie others, which are not its own.
    for name in listed if sums.parent == version else present:
        _check(sums.parent, name, "sha256", listed[name], SUMS_FILENAME)


def _files(version: Path) -> Iterator[Path]:
    """Every file of a version: in its directory, or itself."""
    if not version.is_dir():
        yield version
    count = 0
    for parent, folders, names in os.walk(version, followlinks=True):
        folders[:] = [name for name in folders if name not in _CACHES]
        count += len(names) + len(folders)
        if count > _FILES_MAX:
            raise LoadError(
                f"{version} holds more than {_FILES_MAX} files, of which none was checked"
            )
        yield from (Path(parent, name) for name in names)


def _read(sums: Path) -> Mapping[str, str]:
    """Digests by name."""
    try:
        with sums.open("rb") as file:
            raw = file.read(_SUMS_BYTES_MAX + 1)
        if len(raw) > _SUMS_BYTES_MAX:
            raise LoadError(f"{sums} is larger than {_SUMS_BYTES_MAX >> 20} MiB")
        # Windows marks the beginning and ends lines in its own way. Names may hold what
        # splitlines takes for an end.
        lines = raw.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise LoadError(f"cannot read {sums}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LoadError(f"{sums} is not text: {error}") from error
    listed: dict[str, str] = {}
    for number, line in enumerate((line.removesuffix("\r") for line in lines), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise LoadError(f"{sums}, line {number} is not a line of sha256sum: {line[:100]!r}")
        name, digest = Path(match["name"]).as_posix(), match["digest"].lower()
        if listed.setdefault(name, digest) != digest:
            raise LoadError(f"{sums}, line {number} lists {name} again, with another checksum")
    return listed


def _check(folder: Path, name: str, algorithm: str, digest: str, said_by: str) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise LoadError(f"{said_by} lists {name!r}, which is not a file inside {folder}")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise LoadError(f"{said_by} lists {name}, which is not a file")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    except OSError as error:
        raise LoadError(
            f"{said_by} lists {name}, which cannot be read: {error.strerror}"
        ) from error
    if found.hexdigest() != digest.lower():
        raise LoadError(
            f"{path} is not the file that {said_by} lists: its {algorithm.upper()} is "
            f"{found.hexdigest()}, not {digest.lower()}; copy it there again"
        )
