"""What a model's files looked like: enough to tell whether they changed, without reading them.

Knows files' names, sizes, times of change and inodes. Must not know what is loaded, or time: two
equal stamps, taken some time apart, say that nobody was writing in between.

Contract: files that are evidently unfinished (``is_temporary``) do not count. A directory without
end is refused, not walked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.server.repository_layout import LayoutError, ModelDirectory, is_temporary

FILES_MAX: Final = 50_000
DEPTH_MAX: Final = 16

_File = tuple[str, int, int, int]
"""Name, size, time of change, inode."""
_Files = tuple[_File, ...]


@dataclass(frozen=True, slots=True)
class ModelStamp:
    """``shared`` concerns all versions; ``versions`` is by version."""

    shared: tuple[object, ...]
    versions: Mapping[int, _Files]

    def same(self, other: ModelStamp | None, version: int) -> bool:
        """Whether ``version``, and all that it depends on, is there and as in ``other``."""
        return (
            other is not None
            and version in self.versions
            and self.shared == other.shared
            and self.versions[version] == other.versions.get(version)
        )


def stamp(model: ModelDirectory, override: str | None = None) -> ModelStamp:
    """The stamp of ``model``, loaded with the configuration ``override`` instead of its own.

    Raises:
        LayoutError: the files cannot be looked at, or there are too many; never for a model with
            problems, whose files are not looked at.
    """
    shared = (model.path, model.config_path, model.config_text, model.problems, override)
    if model.problems:
        return ModelStamp(shared, {})
    try:
        if model.file:
            beside = _listed(model.path.parent, lambda name: name.startswith(model.path.name))
            return ModelStamp(shared, {1: _files(beside)})
        numbered = {str(version) for version in model.versions}
        around = _files(_listed(model.path, lambda name: name not in numbered))
        versions = {v: _files(_listed(model.path / str(v))) for v in model.versions}
        return ModelStamp((*shared, around), versions)
    except OSError as error:
        raise LayoutError(f"cannot look at {model.path}: {error.strerror}") from error


def _files(entries: list[os.DirEntry[str]]) -> _Files:
    listed: list[_File] = []
    _walk(entries, "", 0, listed)
    return tuple(sorted(listed))


def _walk(entries: list[os.DirEntry[str]], prefix: str, depth: int, listed: list[_File]) -> None:
    """Adds the files in ``entries`` and below to ``listed``; links are followed."""
    if depth > DEPTH_MAX or len(listed) + len(entries) > FILES_MAX:
        raise LayoutError(
            f"a model of more than {FILES_MAX} files, or nested deeper than {DEPTH_MAX}, is not "
            "looked after"
        )
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            listed.append((name + "/", 0, 0, 0))
            _walk(_listed(Path(entry.path)), name + "/", depth + 1, listed)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:  # a link to nowhere, or gone since: both are a state of the file
            listed.append((name, -1, 0, 0))
        else:
            listed.append((name, status.st_size, status.st_mtime_ns, status.st_ino))


def _listed(
    folder: Path, counts: Callable[[str], bool] = lambda name: True
) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [e for e in entries if not is_temporary(e.name) and counts(e.name)]
