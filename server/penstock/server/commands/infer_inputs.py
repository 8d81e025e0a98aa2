"""Reads the values of ``penstock infer --input``: files and JSON, as arrays that a model takes.

Knows the forms of a value and the declared tensors. Must not know clients. Values become the type
that the model declares where that cannot change their meaning: whole numbers within range and
numbers to floats, never fractions to whole numbers. Shapes are the server's to judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec
from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.signature import spec_text

_NAMED: Final = re.compile(r"([^=\[\]{}\"@]+)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arrays by name; ``dtypes`` names the types that NumPy has no type for."""

    arrays: dict[str, Array] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)


def read_inputs(texts: Sequence[str], specs: Sequence[TensorSpec], stdin: TextIO) -> Inputs:
    """All ``--input`` values.

    Raises:
        CommandError: one cannot be read or does not fit what the model declares.
    """
    inputs = Inputs()
    for text in texts:
        if text == "-":
            document = _json(stdin.read(), "stdin")
            named = document if isinstance(document, dict) else {"": document}
            for name, value in named.items():
                _add(inputs, specs, name, value)
            continue
        match = _NAMED.fullmatch(text)
        name, value_text = (match[1].strip(), match[2]) if match else ("", text)
        _add(inputs, specs, name, _value(value_text, text))
    return inputs


def _add(inputs: Inputs, specs: Sequence[TensorSpec], name: str, value: Any) -> None:
    spec = _spec(specs, name)
    if spec.name in inputs.arrays:
        raise _wrong(f"input {spec.name!r} is given twice")
    inputs.arrays[spec.name] = converted(spec, value)
    if spec.dtype is dt.BF16:
        inputs.dtypes[spec.name] = spec.dtype.name


def _spec(specs: Sequence[TensorSpec], name: str) -> TensorSpec:
    taken = ", ".join(map(spec_text, specs)) or "nothing"
    if not name:
        if len(specs) != 1:
            raise _wrong(f"name the input, as in --input NAME=VALUE; the model takes {taken}")
        return specs[0]
    found = next((spec for spec in specs if spec.name == name), None)
    if found is None:
        raise _wrong(f"the model has no input {name!r}; it takes {taken}")
    return found


def _value(text: str, whole: str) -> Any:
    if not text.startswith("@") and not text.endswith(".npy"):
        return _json(text, f"--input {whole}")
    path = Path(text.removeprefix("@"))
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return _json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise _wrong(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        hint = "\n  save strings as text: array.astype(str)" if "allow_pickle" in str(error) else ""
        raise _wrong(f"cannot read {path}: {error}{hint}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _wrong(
            f"{where} is not JSON: {error}\n"
            "  a value is JSON such as [[1,2]], a file.npy, or @file.json"
        ) from error


def converted(spec: TensorSpec, value: Any) -> Array:
    """``value`` as an array of the declared type.

    Raises:
        CommandError: that would change its meaning, or it is no array at all.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise _wrong(f"input {spec.name!r}: rows of different lengths: {error}") from error
    kind, wanted = array.dtype.kind, spec.dtype
    if not array.size and kind == "f":  # An empty list has no type of its own.
        return array.astype(wanted.numpy)
    if wanted is dt.BYTES:
        fits = kind in "US"
    elif wanted is dt.BF16:
        return _floats(spec, array, np.dtype(np.float32)) if kind != "u" else array
    elif wanted.numpy.kind == "f":
        return _floats(spec, array, wanted.numpy)
    elif wanted is dt.BOOL:
        fits = kind == "b" or (kind in "iu" and bool(np.all((array == 0) | (array == 1))))
    else:
        limits = np.iinfo(wanted.numpy)
        fits = kind in "iu" and int(array.min()) >= limits.min and int(array.max()) <= limits.max
    if not fits:
        raise _unfit(spec, array)
    return array if wanted is dt.BYTES else array.astype(wanted.numpy)


def _floats(spec: TensorSpec, array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind not in "iuf":
        raise _unfit(spec, array)
    with np.errstate(over="ignore"):
        made = array.astype(dtype, copy=False)
    if array.dtype != dtype and not np.array_equal(np.isinf(made), np.isinf(array)):
        raise _wrong(f"input {spec.name!r} takes {spec.dtype.name}; some values are too large")
    return made


def _unfit(spec: TensorSpec, array: Array) -> CommandError:
    return _wrong(
        f"input {spec.name!r} takes {spec.dtype.name}; values of {array.dtype} do not fit"
    )


def _wrong(message: str) -> CommandError:
    return CommandError(message, status=USAGE)
