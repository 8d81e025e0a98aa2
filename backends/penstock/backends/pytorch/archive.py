"""Tells PyTorch's artefacts apart by what is in them, without PyTorch.

Knows the members of its zip archives. Reads no pickle and runs nothing.
"""

from __future__ import annotations

import json
import platform
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError

EXPORTED: Final = "exported"
PACKAGE: Final = "package"
SCRIPT: Final = "script"

_METADATA_BYTES_MAX: Final = 1 << 20
_FLAGS: Final = {
    # Words of AOTI_CPU_ISA, and Linux' for the same instructions.
    "AVX2": "avx2",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AMX": "amx_tile",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """``kind`` is one of the three above; ``metadata`` is what a package was compiled for."""

    kind: str
    metadata: dict[str, Any] = field(default_factory=dict)


def opened(path: Path) -> Archive:
    """What ``path`` is.

    Raises:
        LoadError: none of PyTorch's artefacts, a damaged one, or one that holds weights only.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _archive(path, archive)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise LoadError(
            f"cannot load {path}: it is not an archive as torch.export.save, "
            f"aoti_compile_and_package or torch.jit.save write it, or was cut short ({error})"
        ) from error


def _archive(path: Path, archive: zipfile.ZipFile) -> Archive:
    names = [name.partition("/")[2] for name in archive.namelist()]
    if any(name.startswith("data/aotinductor/") for name in names):
        # It is machine code: of what else is damaged the engine complains, of this nobody.
        damaged = archive.testzip()
        if damaged is not None:
            raise LoadError(f"cannot load {path}: {damaged} in it is damaged")
        return Archive(PACKAGE, _metadata(archive))
    if any(name.startswith("models/") for name in names):
        return Archive(EXPORTED)
    if "constants.pkl" in names:
        return Archive(SCRIPT)
    if "data.pkl" in names:
        raise LoadError(
            f"cannot load {path}: torch.save wrote it, so it holds weights or a pickled object and "
            "no program; export the model with torch.export.export and torch.export.save"
        )
    raise LoadError(f"cannot load {path}: the archive is none of PyTorch's")


def _metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    for entry in archive.infolist():
        if entry.filename.endswith(".wrapper_metadata.json"):
            if entry.file_size > _METADATA_BYTES_MAX:
                break
            found = json.loads(archive.read(entry))
            return found if isinstance(found, dict) else {}
    return {}


def refusal_of(metadata: dict[str, Any], device: str, cpuinfo: Path) -> str | None:
    """Why a package compiled for ``metadata`` cannot run on ``device`` here; None if it can."""
    built = metadata.get("AOTI_DEVICE_KEY", "")
    if built and built != device.partition(":")[0]:
        return f"it was compiled for {built}, not for {device}"
    machine = metadata.get("AOTI_MACHINE", "")
    if machine and machine != platform.machine():
        return f"it was compiled for {machine}, not for {platform.machine()}"
    if built != "cpu":
        return None
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return None
    wanted = str(metadata.get("AOTI_CPU_ISA", "")).split()
    missing = [word for word in wanted if word in _FLAGS and _FLAGS[word] not in words]
    if missing:
        return f"it was compiled for {', '.join(missing)}, which this CPU lacks"
    return None
