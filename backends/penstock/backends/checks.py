"""Says in words why arrays do not fit declared specs, and reads devices and options.

Knows the contract's types only. Backends call ``refusal`` where their engine is silent or vague
about what is wrong; it is not on the path of runs that succeed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from penstock.backends.base import LoadError, ModelSource
from penstock.protocol.message import Array, TensorSpec


def refusal(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> str | None:
    """Why ``arrays`` cannot be the inputs declared by ``specs``; None where they can."""
    if len(arrays) != len(specs):
        return f"{len(arrays)} inputs given where the model has {len(specs)}"
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype != spec.dtype.numpy:
            return (
                f"input {spec.name!r} is {array.dtype}; "
                f"the model wants {spec.dtype.name} ({spec.dtype.numpy})"
            )
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            return (
                f"input {spec.name!r} has shape {list(array.shape)}; "
                f"the model wants {list(spec.shape)}"
            )
    return None


def unknown_option(key: str, known: Iterable[str], backend: str) -> LoadError:
    """The refusal of an option: names the key, what was perhaps meant, or what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return LoadError(f"option {key!r} is not known to backend {backend!r}; {hint}")


def known_options(given: Iterable[str], known: Iterable[str], backend: str) -> None:
    """Refuses the first of the ``given`` options that is not ``known``."""
    for key in given:
        if key not in known:
            raise unknown_option(key, known, backend)


def flag(key: str, value: str) -> bool:
    """An on/off option: 1, true, 0 or false in any case.

    Raises:
        LoadError: another value.
    """
    lowered = value.strip().lower()
    if lowered in ("1", "true"):
        return True
    if lowered in ("0", "false"):
        return False
    raise LoadError(f"option {key!r} is {value!r}; it must be 1, true, 0 or false")


def whole(key: str, value: str, least: int = 0) -> int:
    """A whole number of at least ``least``.

    Raises:
        LoadError: anything else.
    """
    text = value.strip()
    # isdecimal alone would let "٣" through, and int() alone "1_000".
    if text.isascii() and text.removeprefix("-").isdecimal() and int(text) >= least:
        return int(text)
    raise LoadError(f"option {key!r} is {value!r}; it must be a whole number of at least {least}")


def only_cpu(source: ModelSource, backend: str) -> None:
    """Refuses every device but the CPU."""
    if source.device != "cpu":
        raise LoadError(
            f"device {source.device!r} is not known to backend {backend!r}, which runs on the CPU: "
            "state kind: KIND_CPU in instance_group"
        )


def cuda_number(source: ModelSource, backend: str) -> int | None:
    """The number of the CUDA device that is asked for; None where it is the CPU.

    Raises:
        LoadError: it is neither.
    """
    match = re.fullmatch(r"cpu|cuda:(\d+)", source.device, re.ASCII)
    if match is None:
        raise LoadError(
            f"device {source.device!r} is not known to backend {backend!r}; use cpu or cuda:N"
        )
    return None if match[1] is None else int(match[1])
