"""The file that lets a calibration go on where it was broken off.

Knows what a run's state consists of and how it is written: an ``.npz`` with JSON and bins, replaced
as a whole. A state is only ever loaded for the very model, data and settings it was made with.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.backends.quantize.durable import write_whole
from penstock.backends.quantize.errors import CacheError
from penstock.backends.quantize.histogram import BINS, Histogram

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Key:
    """What a state holds for: fingerprints of model and data, and the settings that matter."""

    model: str
    data: str
    settings: Mapping[str, Any]


@dataclass(slots=True)
class State:
    """A run between two batches.

    ``passes`` are the tensors watched each time that the model is run over the samples, ``rows`` at
    a time (``whole``: never fewer); ``at_pass`` and ``at_row`` are where to go on.
    """

    passes: list[list[str]]
    rows: int
    whole: bool
    histograms: dict[str, Histogram]
    channel_maxima: dict[str, NDArray[np.float32]]
    at_pass: int = 0
    at_row: int = 0


def save_state(path: Path, key: Key, state: State) -> None:
    """Writes the state; the file is whole at any time.

    Raises:
        CacheError: it cannot be written.
    """
    head = {
        "version": VERSION,
        "bins": BINS,
        "model": key.model,
        "data": key.data,
        "settings": dict(key.settings),
        "passes": state.passes,
        "rows": state.rows,
        "whole": state.whole,
        "at": [state.at_pass, state.at_row],
        "histograms": {name: found.state() for name, found in state.histograms.items()},
        "channels": list(state.channel_maxima),
    }
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        **{f"h{i}": found.signed() for i, found in enumerate(state.histograms.values())},
        **{f"c{i}": found for i, found in enumerate(state.channel_maxima.values())},
    }
    try:
        write_whole(path, lambda file: np.savez_compressed(file, **arrays))
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror}") from error


def load_state(path: Path, key: Key) -> State | None:
    """The state in ``path``; None where there is no such file.

    Raises:
        CacheError: it is damaged, or of another version, model, data or settings.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            _refuse_another(path, head, key)
            histograms = {
                name: Histogram.of_state(found, file[f"h{i}"])
                for i, (name, found) in enumerate(head["histograms"].items())
            }
            channels = {name: file[f"c{i}"] for i, name in enumerate(head["channels"])}
        at_pass, at_row = head["at"]
        return State(
            head["passes"], head["rows"], head["whole"], histograms, channels, at_pass, at_row
        )
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CacheError(f"{path} is no cache of a calibration, or damaged: remove it") from error


def _refuse_another(path: Path, head: Mapping[str, Any], key: Key) -> None:
    if (head["version"], head["bins"]) != (VERSION, BINS):
        raise CacheError(f"{path} was written by another version of this program: remove it")
    for what, found, wanted in (
        ("another model", head["model"], key.model),
        ("other data", head["data"], key.data),
        ("other settings", head["settings"], json.loads(json.dumps(dict(key.settings)))),
    ):
        if found != wanted:
            raise CacheError(f"{path} was made with {what}: remove it, or name another file")
