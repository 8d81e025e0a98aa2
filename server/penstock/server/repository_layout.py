"""Triton's model repository layout, read and nothing else.

``<root>/<model>/[config.pbtxt] [labels] [configs/<name>.pbtxt] <version>/<artefact>``, and for
models that are a single file ``<root>/<model>.onnx``.

Knows: directory names, which of them count, and where an artefact lies. Must not know what a
configuration means, sessions, or time: a scan is one look at the disk, whoever polls compares two.

Contract: what is wrong with one model is a text in its ``problems`` and never hides another model;
only a root that cannot be a repository raises. Names that start with a dot are nobody's. Symbolic
links are followed, because model stores are built of them; names never lead upwards.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from penstock.server.model_config import All, Latest, VersionPolicy

CONFIG_FILENAME: Final = "config.pbtxt"
CONFIG_BYTES_MAX: Final = 1 << 20

_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)  # a version number is an int64
_MODEL_ENDINGS: Final = (".onnx", ".ort")
_TEMPORARY_ENDINGS: Final = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", "~")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)


class LayoutError(Exception):
    """A root or an artefact is not where it should be. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """One model as found on disk.

    ``path`` is its directory, or the artefact itself for a model that is a single file (``file``
    is True, the only version is 1). ``versions`` ascend. With ``problems`` it is not servable.
    """

    name: str
    path: Path
    config_text: str | None = None
    config_path: Path | None = None
    versions: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    file: bool = False

    @property
    def directory(self) -> Path:
        """Where labels, warm-up data and other files of the model lie."""
        return self.path.parent if self.file else self.path

    def artefact(self, version: int, filename: str) -> Path:
        """The artefact of ``version``; ``filename`` as in the function of the same name."""
        return self.path if self.file else artefact(self.path / str(version), filename)


def scan(
    roots: Sequence[Path], *, config_name: str = "", only: str | None = None
) -> list[ModelDirectory]:
    """The models under ``roots``, ordered by name.

    A root that is a file is a model itself, and so is a model file in a root: version 1, named by
    the file's stem. ``config_name`` picks ``configs/<config_name>.pbtxt`` in the models that have
    it. With ``only``, models of other names are not looked at.

    Raises:
        LayoutError: a root is missing, unreadable, one model's directory or one version's.
    """
    found: list[ModelDirectory] = []
    for root in _distinct(roots):
        for path in _model_paths(root):
            if only is None or only == _name_of(path):
                found.append(_model(path, config_name))
    places: dict[str, list[Path]] = defaultdict(list)
    for model in found:
        places[model.name].append(model.path)
    models = [_mark_doubled(model, places[model.name]) for model in found]
    return sorted(models, key=lambda model: (model.name, model.path))


def model_names(roots: Sequence[Path]) -> list[str]:
    """The names of the models under ``roots``, ordered, without a look into the models.

    Raises:
        LayoutError: as ``scan``.
    """
    return sorted({_name_of(path) for root in _distinct(roots) for path in _model_paths(root)})


def read_model(directory: Path) -> ModelDirectory:
    """The model in ``directory``, wherever that lies."""
    return _scan_model(directory, "")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is somebody's unfinished work, to be renamed when it is whole."""
    return name.startswith(".") or name.lower().endswith(_TEMPORARY_ENDINGS)


def versions_to_serve(policy: VersionPolicy, available: Sequence[int]) -> tuple[int, ...]:
    """Those of ``available`` that ``policy`` wants, ascending."""
    ascending = sorted(set(available))
    if isinstance(policy, All):
        return tuple(ascending)
    if isinstance(policy, Latest):
        return tuple(ascending[-policy.n :])
    return tuple(version for version in ascending if version in policy.versions)


def artefact(version_dir: Path, filename: str) -> Path:
    """``version_dir/filename``, a file or a directory (backends accept either).

    ``filename`` is the configuration's ``default_model_filename`` or else the backend's.

    Raises:
        LayoutError: it would lie outside, or does not exist; names what lies there instead.
    """
    relative = Path(filename)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in filename:
        raise LayoutError(f"{filename!r} is not the name of a file inside {version_dir}")
    path = version_dir / relative
    try:
        if path.exists():
            return path
        present = sorted(entry.name for entry in version_dir.iterdir() if _counts(entry))
    except OSError as error:
        raise LayoutError(f"cannot read {version_dir}: {error.strerror}") from error
    held = f"it holds {', '.join(present[:8])}" if present else "it is empty"
    raise LayoutError(
        f"no {filename} in {version_dir}; {held}. Rename the model file or set "
        "default_model_filename in config.pbtxt"
    )


def _counts(entry: Path) -> bool:
    return not entry.name.startswith(".")


def _distinct(roots: Sequence[Path]) -> Iterable[Path]:
    # The name comes from the path as given: a store may link model.onnx to a file of any name.
    return {os.path.realpath(root): Path(os.path.abspath(root)) for root in roots}.values()


def _model_paths(root: Path) -> list[Path]:
    """Where the models of one root lie: directories, and files of the kinds that are models."""
    try:
        if root.is_file():
            return [root]
        if not root.exists():
            raise LayoutError(f"model repository {root} does not exist")
        entries = sorted(entry for entry in root.iterdir() if _counts(entry))
        folders = [entry for entry in entries if entry.is_dir() or _dangles(entry)]
        files = [e for e in entries if e.name.endswith(_MODEL_ENDINGS) and e.is_file()]
    except OSError as error:
        raise LayoutError(f"cannot read model repository {root}: {error.strerror}") from error
    _refuse_model_directory(root, folders)
    if files and not folders:
        _refuse_version_directory(root)
    return [*folders, *files]


def _name_of(path: Path) -> str:
    return _stem_name(path) if path.is_file() else path.name


def _model(path: Path, config_name: str) -> ModelDirectory:
    if path.is_file():
        return ModelDirectory(_stem_name(path), path, versions=(1,), file=True)
    return _scan_model(path, config_name)


def _dangles(entry: Path) -> bool:
    return entry.is_symlink() and not entry.exists()


def _stem_name(path: Path) -> str:
    return _NOT_IN_A_NAME.sub("_", path.stem).strip("_.-") or "model"


def _refuse_model_directory(root: Path, folders: Sequence[Path]) -> None:
    """The likeliest slip is to name a model's directory instead of the one that holds it."""
    numbered = bool(folders) and all(_VERSION.fullmatch(folder.name) for folder in folders)
    if (root / CONFIG_FILENAME).is_file() or (numbered and not any(map(_has_versions, folders))):
        raise LayoutError(
            f"{root} is the directory of one model, not a model repository; "
            f"name the directory that holds it: {root.parent}"
        )


def _refuse_version_directory(root: Path) -> None:
    if _VERSION.fullmatch(root.name):
        raise LayoutError(
            f"{root} is one version of a model, not a model repository; "
            f"name the directory that holds the model: {root.parent.parent}"
        )


def _has_versions(folder: Path) -> bool:
    try:
        return bool(_versions(folder))
    except OSError:  # unreadable: a problem of that model, found again when it is scanned
        return True


def _versions(directory: Path) -> tuple[int, ...]:
    return tuple(
        sorted(
            int(entry.name)
            for entry in directory.iterdir()
            if _VERSION.fullmatch(entry.name) and entry.is_dir()
        )
    )


def _scan_model(directory: Path, config_name: str) -> ModelDirectory:
    problems: list[str] = []
    versions: tuple[int, ...] = ()
    if not directory.name.isprintable():
        problems.append(f"directory name {directory.name!r} is no usable model name")
    try:
        versions = _versions(directory)
        if not versions:
            problems.append(
                f"no version directory in {directory}: put the model file into {directory / '1'}"
            )
    except OSError as error:
        problems.append(f"cannot read {directory}: {error.strerror}")
    path, text = None, None
    try:
        path = _config_path(directory, config_name)
        text = _read_config(path) if path else None
    except (OSError, ValueError) as error:
        problems.append(f"cannot read the configuration of {directory}: {error}")
    return ModelDirectory(directory.name, directory, text, path, versions, tuple(problems))


def _config_path(directory: Path, config_name: str) -> Path | None:
    candidates = [directory / CONFIG_FILENAME]
    if config_name:
        candidates.insert(0, directory / "configs" / f"{Path(config_name).name}.pbtxt")
    return next((path for path in candidates if path.exists() or path.is_symlink()), None)


def _read_config(path: Path) -> str:
    size = path.stat().st_size
    if size > CONFIG_BYTES_MAX:
        raise ValueError(f"{path} has {size} bytes, more than {CONFIG_BYTES_MAX}")
    return path.read_text(encoding="utf-8-sig")


def _mark_doubled(model: ModelDirectory, places: Sequence[Path]) -> ModelDirectory:
    if len(places) == 1:
        return model
    listed = ", ".join(str(place) for place in places)
    problem = f"model '{model.name}' is in more than one place: {listed}"
    return replace(model, problems=(*model.problems, problem))
