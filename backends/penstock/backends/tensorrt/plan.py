"""What can be known of a plan without an engine: its header, and the description beside it.

Knows the first bytes of the files that TensorRT and TensorRT for RTX write, and our own
``model.json``, which ``penstock compile`` puts beside a plan. An engine that is handed garbage may
take the process with it, so what does not look like a plan is not handed on. Knows no engine.

Contract: ``read`` gives a plan that is whole as far as can be seen, or raises LoadError with one
line that an operator can act on.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.loading import artefact

FORMAT: Final = 1
DESCRIPTION_BYTES_MAX: Final = 1 << 20
_HEAD: Final = 28
_VERSION: Final = slice(24, 28)
_TAG: Final = b"trt"
"""The second to fourth byte of every plan; the first tells headers apart (``f``, ``v``)."""
_RTX: Final = b"vtrt"
_OLD: Final = b"ptrt"
_FIRST_TENSORRT: Final = 7
"""TensorRT for RTX began again at 1, and what TensorRT wrote below 7 had other headers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan and what is known of it: ``kind`` and ``version`` of the engine that wrote it.

    ``described`` is the content of the description beside it, empty where there is none.
    """

    blob: bytes
    kind: str
    version: str
    described: dict[str, Any] = field(default_factory=dict)


def content(path: Path) -> bytes:
    """The bytes of a model file that is there and not empty.

    Raises:
        LoadError: it is not.
    """
    try:
        return artefact(ModelSource(path.stem, path), path.name).read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from error


def read(path: Path) -> Plan:
    """The plan in ``path``, held against its own header and the description beside it.

    Raises:
        LoadError: no plan, not all of it, or not the one that is described.
    """
    blob = content(path)
    kind, version = _written_by(path, blob)
    described = describe(path)
    wanted = described.get("sha256")
    if wanted is not None and wanted != hashlib.sha256(blob).hexdigest():
        raise LoadError(
            f"{path} is not the plan that {description(path).name} describes: its SHA-256 differs; "
            "copy both again, or compile the model again"
        )
    return Plan(blob, kind, version, described)


def description(path: Path) -> Path:
    """Where the description of the plan ``path`` lies."""
    return path.with_suffix(".json")


def describe(path: Path) -> dict[str, Any]:
    """The description beside a plan; empty where there is none.

    Raises:
        LoadError: there is one that cannot be read.
    """
    beside = description(path)
    try:
        with beside.open("rb") as file:
            found = json.loads(file.read(DESCRIPTION_BYTES_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read the plan's description {beside}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise LoadError(
            f"{beside} is no description of a plan in format {FORMAT}: compile the model again, "
            "or remove it"
        )
    return found


def origin(plan: Plan) -> str:
    """Who made it, and for what: ``tensorrt 11.4.0.106 for NVIDIA H200``."""
    built_for = plan.described.get("built_for", "")
    return f"{plan.kind} {plan.version}" + (f" for {built_for}" if built_for else "")


def _written_by(path: Path, blob: bytes) -> tuple[str, str]:
    """The engine's kind and version, as its header says them."""
    tag = blob[:4]
    if tag == _OLD:
        raise LoadError(f"{path} was built by TensorRT 8.5 or older: build it again")
    if len(blob) < _HEAD or tag[1:] != _TAG:
        raise LoadError(f"{path} is no plan of TensorRT, or not all of it")
    if tag == _RTX:
        (total,) = struct.unpack_from("<Q", blob, 16)
        if total != len(blob):
            raise LoadError(
                f"{path} has {len(blob)} bytes where its header says {total}: copy it again"
            )
    numbers = blob[_VERSION]
    kind = "tensorrt" if numbers[0] >= _FIRST_TENSORRT else "tensorrt_rtx"
    return kind, ".".join(str(number) for number in numbers)
