"""Writes the outputs of one inference: as text, as JSON, or into an ``.npz`` file.

Knows arrays and files. Must not know how they were asked for.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.dtype import DType
from penstock.protocol.message import Array, widen_bf16
from penstock.server.commands.failure import CommandError
from penstock.server.commands.terminal import forgive

if TYPE_CHECKING:
    from penstock.server.commands.remote import Result


def write_result(result: Result, form: str, *, model: str = "", version: str = "") -> None:
    """``form`` is ``text``, ``json`` (both to stdout) or the path of a file.

    ``model`` and ``version`` are what was asked: a GraphPipe reply does not name what answered.
    """
    dtypes = [spec.dtype for spec in result.reply.signature.tensors]
    if form == "json":
        answered = {
            "model": result.reply.model or model,
            "version": result.reply.version or version,
        }
        print(json.dumps({**answered, **document(result, dtypes)}))
    elif form == "text":
        forgive(sys.stdout)
        print("\n".join(lines(result, dtypes)))
    else:
        write_npz(
            Path(form), {name: _plain(array, d) for (name, array), d in _typed(result, dtypes)}
        )
        print(f"wrote {form}: {', '.join(result)}", file=sys.stderr)


def _typed(result: Result, dtypes: list[DType]) -> Any:
    return zip(result.items(), dtypes, strict=True)


def lines(result: Result, dtypes: list[DType]) -> list[str]:
    """Each output's name, type and shape, and below it its values (shortened where many)."""
    made = []
    for (name, array), dtype in _typed(result, dtypes):
        made.append(f"{name} {dtype.name}[{','.join(map(str, array.shape))}]")
        made += ["  " + line for line in str(_plain(array, dtype)).splitlines()]
    return made


def document(result: Result, dtypes: list[DType]) -> dict[str, Any]:
    """The outputs as in a v2 reply, but nested; BYTES are text with escapes where not UTF-8."""
    return {
        "outputs": [
            {
                "name": name,
                "datatype": dtype.name,
                "shape": list(array.shape),
                "data": _values(array, dtype),
            }
            for (name, array), dtype in _typed(result, dtypes)
        ],
    }


def _values(array: Array, dtype: DType) -> Any:
    return _text(array.tolist()) if dtype is dt.BYTES else _plain(array, dtype).tolist()


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _plain(array: Array, dtype: DType) -> Array:
    """With NumPy's own types only: BF16 as FP32, BYTES as byte strings of one length."""
    if dtype is dt.BF16:
        return widen_bf16(array)
    return array.astype(np.bytes_) if dtype is dt.BYTES else array


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """What ``numpy.load`` reads back; unlike ``numpy.savez`` any name will do.

    Raises:
        CommandError: the file cannot be written.
    """
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
