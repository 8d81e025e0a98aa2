"""The files that a load request brings, as a model's directory of their own.

Knows names and bytes. Must not know what is in them, or requests.

Contract: files are written below one private directory and nowhere else; it lives until ``remove``.
Blocking: for threads only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from penstock.server.repository_layout import LayoutError, ModelDirectory, read_model

FILES_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 1024

_PIECE: Final = 1 << 20
"""Written at a time, so that the event loop is not kept waiting for the GIL."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A model directory that only this process reads."""

    path: Path

    def model(self, name: str) -> ModelDirectory:
        """The directory as a model of this name."""
        return replace(read_model(self.path / "model"), name=name)

    def remove(self) -> None:
        """Removes the directory, if it is still there."""
        shutil.rmtree(self.path, ignore_errors=True)


def write_upload(files: Mapping[str, bytes | memoryview]) -> Upload:
    """Writes ``files``, by path within the model's directory (``1/model.onnx``).

    Raises:
        LayoutError: a name leads elsewhere or is taken twice, there are too many, or the disk does
            not take them; then nothing is left behind.
    """
    if len(files) > FILES_MAX:
        raise LayoutError(f"{len(files)} files are too many for a load request ({FILES_MAX})")
    places = {_place(name): content for name, content in files.items()}
    if len(places) != len(files):
        raise LayoutError("a load request names the same file twice")
    try:
        upload = Upload(Path(tempfile.mkdtemp(prefix="penstock-model-")))
    except OSError as error:
        raise LayoutError(f"no directory for the files of the request: {error.strerror}") from error
    try:
        for place, content in places.items():
            path = upload.path / "model" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out, memoryview(content).cast("B") as view:
                for start in range(0, len(view), _PIECE):
                    out.write(view[start : start + _PIECE])
    except BaseException as error:
        upload.remove()
        if isinstance(error, OSError):
            raise LayoutError(f"cannot write the request's file: {error.strerror}") from error
        raise
    return upload


def _place(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    bad = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name
    if bad or not name.isprintable() or len(name) > NAME_CHARACTERS_MAX:
        raise LayoutError(
            f"Invalid file parameter {name[:NAME_CHARACTERS_MAX]!r}: the path must stay within "
            "the model directory"
        )
    return path
