"""Which model ``penstock quantize`` means, and where the new one and the reports go.

Knows Triton's layout and the flags. Must not know what becomes of the model. Whatever can be wrong
with a place is found before the work, which may take hours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.placing import (
    NewVersion,
    configured_backend,
    configured_filename,
    existing,
    is_configured,
    is_version,
    new_version,
    versions_of,
)

RECORD_FILENAME: Final = "quantization.json"
"""Lies beside a quantised model in a repository: how it was made and measured."""
_MODEL_FILENAME: Final = "model.onnx"
BATCH_MAX: Final = 4096
"""Samples are repeated to fill a batch, in memory."""
_REPORT_ENDINGS: Final = (".html", ".json")


def model_file(path: Path) -> Path:
    """The ``.onnx`` file that ``path`` means; of a model's directory that of the highest version
    that was not quantised here.

    Raises:
        CommandError: there is none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise CommandError(f"there is no file {path}")
        return path
    try:
        versions = list(versions_of(path).values())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    if not versions:
        raise CommandError(
            f"{path} has no versions", "name an .onnx file, or the directory of one model"
        )
    given = [version for version in versions if not (version / RECORD_FILENAME).exists()]
    if not given:
        raise CommandError(f"all versions in {path} are quantised already; name a float model")
    files = sorted(given[-1].glob("*.onnx"))
    if len(files) != 1:
        raise CommandError(f"{given[-1]} holds {len(files)} .onnx files; name one of them")
    return files[0]


def check(arguments: argparse.Namespace, source: Path) -> None:
    """Refuses flags that would destroy something, or measure nothing.

    Raises:
        CommandError: with what is meant, probably.
    """
    output, into = arguments.output, arguments.into
    cores = os.cpu_count() or 1
    if arguments.threads > cores:
        raise CommandError(f"--threads: this machine has {cores} cores", status=USAGE)
    if max(arguments.batch, default=0) > BATCH_MAX:
        raise CommandError(f"--batch: {BATCH_MAX} is the largest", status=USAGE)
    if output is not None and output.is_dir():
        raise CommandError(
            f"--output: {output} is a directory", "name a file; for a repository there is --into",
            status=USAGE,
        )  # fmt: skip
    if _same(output, source):
        raise CommandError(f"--output: {output} is the float model itself", status=USAGE)
    if _same(arguments.eval, arguments.data):
        raise CommandError(
            "--eval: samples that calibrate cannot judge, and these are --data",
            "without --eval those of --data judge that did not calibrate",
            status=USAGE,
        )
    if into is not None and _is_repository(into):
        raise CommandError(
            f"--into: {into} is a repository, not one model in it",
            f"name the model: --into {into / name_of(arguments.model, source)}",
            status=USAGE,
        )
    for path in (output, report_base(arguments, source)):
        if path is not None:
            _try(existing(path.absolute().parent))


def _try(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):  # Permissions alone do not tell.
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def place(arguments: argparse.Namespace, source: Path) -> Iterator[tuple[Path, NewVersion | None]]:
    """Where the model is to be written, and the new version that this is, if it is one."""
    if arguments.dry_run:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            yield Path(folder) / _MODEL_FILENAME, None
        return
    into = arguments.into
    if into is None and arguments.output is None:
        into = _model_around(arguments.model, source)
    if into is None:
        yield arguments.output or source.with_suffix(".int8.onnx"), None
        return
    backend = configured_backend(into)
    wanted = ("", "onnxruntime") if arguments.target == "cpu" else ("", "onnxruntime", "tensorrt")
    if backend not in wanted:
        raise CommandError(
            f"{into} is a model of backend '{backend}', which this one is not for",
            "name another directory with --into, or a file with --output",
        )
    filename = configured_filename(into) or _MODEL_FILENAME
    if not filename.endswith(".onnx"):
        raise CommandError(
            f"{into} has default_model_filename '{filename}', and this one is ONNX",
            "name another directory with --into, or a file with --output",
        )
    with new_version(into) as made:
        yield made.folder / filename, made


def report_base(arguments: argparse.Namespace, source: Path) -> Path:
    """The reports' path without their endings."""
    path: Path | None = arguments.report
    name = f"{name_of(arguments.model, source)}-int8"
    if path is None or path.is_dir():
        return (path or Path()) / name
    return path.with_suffix("") if path.suffix in _REPORT_ENDINGS else path


def report_files(base: Path) -> list[Path]:
    return [base.with_name(base.name + ending) for ending in _REPORT_ENDINGS]


def name_of(given: Path, source: Path) -> str:
    """A model in a repository is called by its directory; its file is always model.onnx."""
    model = _model_around(given, source)
    return source.stem if model is None else model.name


def _model_around(given: Path, source: Path) -> Path | None:
    """The model's directory, where ``source``, for which ``given`` was said, is of a version."""
    # Not resolved: stores link versions and files to places of any name.
    version = Path(os.path.abspath(source)).parent
    model = version.parent
    if given == source and source.name != _MODEL_FILENAME and not is_configured(model):
        return None  # Folders may be called by numbers for other reasons.
    return model if model.name and is_version(version) else None


def _is_repository(path: Path) -> bool:
    try:
        if not path.is_dir() or versions_of(path):
            return False
        folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        return any(versions_of(folder) for folder in folders)
    except OSError:  # Writing there will tell.
        return False


def _same(one: Path | None, other: Path) -> bool:
    return one is not None and one.exists() and other.exists() and one.samefile(other)
