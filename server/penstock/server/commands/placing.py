"""Puts what a command made into a model repository, as the next version of a model.

Knows Triton's layout. Must not know what an artefact is. A server that polls the repository never
sees half a version: it is written under a name that repositories skip, and renamed once whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from penstock.server.commands.failure import CommandError
from penstock.server.commands.unwinding import signals_unwind

if TYPE_CHECKING:
    from penstock.server.model_config import ModelConfig

CONFIG_FILENAME: Final = "config.pbtxt"
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_TRIES: Final = 100
"""Others may add versions at the same time, each of which costs one try."""


class NewVersion:
    """A version in the making. ``folder`` is where its files go; ``number`` is known at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.path = folder
        """Where it lies in the end."""
        self.keep = True
        """Set to False, nothing comes of it."""


@contextlib.contextmanager
def new_version(model: Path, *, config: str = "") -> Iterator[NewVersion]:
    """An empty directory that becomes the next version of ``model`` when the block ends well.

    ``model`` is the model's directory and need not exist: until the end nothing of it does, so a
    server does not take it for a model without versions. Where it has no ``config.pbtxt`` one is
    written with the text ``config``, if that is not empty; where its versions have lists of
    checksums the new one gets its own. When the block raises, nothing stays.

    Raises:
        CommandError: the directory cannot be written.
    """
    with signals_unwind():
        try:
            folder = Path(tempfile.mkdtemp(prefix=".making-", dir=existing(model)))
        except OSError as error:
            raise _unwritable(model, error) from error
        made = NewVersion(folder)
        try:
            yield made
            if made.keep:
                _keep(made, model, config)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _keep(made: NewVersion, model: Path, config: str) -> None:
    new = [path for path in (model, *model.parents) if not path.exists()]
    try:
        model.mkdir(parents=True, exist_ok=True)
        _write_sums(model, made.folder)
        # mkdtemp's directories are for their owner alone; a server may be somebody else.
        made.folder.chmod(0o777 & ~_umask())
        _write_config(model, config, made.folder.name)
        made.number, made.path = _rename_to_next(model, made.folder)
    except OSError as error:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()  # Fails, as it should, where something lies in it.
        raise _unwritable(model, error) from error


def _write_sums(model: Path, folder: Path) -> None:
    # Where they are wanted, the server would refuse a version without.
    from penstock.server.model_checksums import SUMS_FILENAME, write_sums

    if any((version / SUMS_FILENAME).exists() for version in versions_of(model).values()):
        write_sums(folder)


def versions_of(model: Path) -> dict[int, Path]:
    """The directories of ``model``'s versions by their numbers, ascending.

    Raises:
        OSError: ``model`` cannot be read.
    """
    found = sorted((int(p.name), p) for p in model.iterdir() if is_version(p))
    return dict(found)


def is_version(path: Path) -> bool:
    """Whether ``path`` is a directory that a server takes for a version of a model."""
    return _VERSION.fullmatch(path.name) is not None and path.is_dir()


def is_configured(model: Path) -> bool:
    """Whether ``model`` has a configuration."""
    return (model / CONFIG_FILENAME).is_file()


def configured_backend(model: Path) -> str:
    """The backend that ``model``'s configuration names; empty without one.

    Raises:
        CommandError: it cannot be read.
    """
    config = _config(model)
    return (config.backend or config.platform) if config else ""


def configured_filename(model: Path) -> str:
    """The artefact's name that ``model``'s configuration states; empty without one.

    Raises:
        CommandError: it cannot be read.
    """
    config = _config(model)
    return config.default_model_filename if config else ""


def _config(model: Path) -> ModelConfig | None:
    path = model / CONFIG_FILENAME
    if not is_configured(model):
        return None
    # They need protobuf, which is not among the base dependencies.
    from penstock.server.model_config import ConfigError
    from penstock.server.model_config_parse import parse_pbtxt

    try:
        return parse_pbtxt(path.read_text(encoding="utf-8-sig"), path, name=model.name)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}") from error


def existing(path: Path) -> Path:
    """``path``, or the nearest above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def _write_config(model: Path, text: str, mark: str) -> None:
    path = model / CONFIG_FILENAME
    if not text or path.exists():
        return
    unfinished = model / f"{mark}.tmp"  # Others may be at it too.
    unfinished.write_text(text)
    unfinished.replace(path)


def _rename_to_next(model: Path, folder: Path) -> tuple[int, Path]:
    for _ in range(_TRIES):
        number = max(versions_of(model), default=0) + 1
        try:
            # Onto a directory that holds something this fails; onto nothing it is one step.
            folder.rename(model / str(number))
        except OSError:
            if not (model / str(number)).exists():
                raise
            continue
        return number, model / str(number)
    raise CommandError(f"other programs add versions to {model} faster than this one can")


def _unwritable(model: Path, error: OSError) -> CommandError:
    return CommandError(f"cannot write to {model}: {error.strerror or error}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
