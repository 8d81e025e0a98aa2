"""Reads the values of command-line flags: sizes, ports, file modes, times.

Pure. Each reader takes the text of one flag and raises ``argparse.ArgumentTypeError`` with what is
expected instead, which argparse shows with the flag's name.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from typing import Final

UNITS: Final = {
    "": 1, "B": 1,
    "K": 1 << 10, "KIB": 1 << 10, "KB": 10**3,
    "M": 1 << 20, "MIB": 1 << 20, "MB": 10**6,
    "G": 1 << 30, "GIB": 1 << 30, "GB": 10**9,
    "T": 1 << 40, "TIB": 1 << 40, "TB": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", re.ASCII)
_PORT_MAX: Final = 65535
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def size(text: str) -> int:
    """Bytes: ``1048576``, ``64MiB``, ``1.5G`` (KiB is K, 1024 bytes; KB is 1000; M, G, T alike)."""
    match = _SIZE.fullmatch(text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ArgumentTypeError(f"{text!r} is not a size; write bytes, or 512KiB, 64MiB, 2GiB")
    nbytes = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if nbytes < 1:
        raise ArgumentTypeError(f"{text!r}: the size must be at least one byte")
    return nbytes


def port(text: str) -> int | None:
    """A TCP port; 0 is any free one, ``off`` (None) is no port at all."""
    if text.strip().lower() in ("off", "none"):
        return None
    number = _whole(text)
    if number is None or number > _PORT_MAX:
        raise ArgumentTypeError(
            f"{text!r} is not a port; write 1 to {_PORT_MAX}, 0 for any free one, or off"
        )
    return number


def file_mode(text: str) -> int:
    """Permissions in octal digits: ``660``, ``0660`` and ``0o660`` are the same."""
    digits = text.strip().lower().removeprefix("0o")
    if not re.fullmatch(r"0?[0-7]{3}", digits):
        raise ArgumentTypeError(f"{text!r} is no file mode; write octal digits such as 660 or 600")
    return int(digits, 8)


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = _whole(text)
    if not number:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def index(text: str) -> int:
    """A whole number of at least 0."""
    number = _whole(text)
    if number is None:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return number


def seconds(text: str) -> float:
    """A time of at least 0 s; ``30``, ``0.5`` and ``30s`` are understood."""
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentTypeError(f"{text!r} is not a time in seconds such as 30 or 0.5")
    return value


def positive_seconds(text: str) -> float:
    """A time that can be waited for: more than 0 s."""
    value = seconds(text)
    if not value:
        raise ArgumentTypeError(f"{text!r}: the time must be more than 0 seconds")
    return value


def amount(text: str) -> float:
    """A number of at least 0."""
    number = _number(text)
    if number is None or number < 0:
        raise ArgumentTypeError(f"{text!r}: write a number of at least 0")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    number = _number(text)
    if number is None or not 0 <= number <= 1:
        raise ArgumentTypeError(f"{text!r}: write a number from 0 to 1, such as 0.995")
    return number


def truth(text: str) -> bool:
    """Triton's ``true`` and ``false``."""
    word = text.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return word in _TRUE


def _whole(text: str) -> int | None:
    stripped = text.strip()
    digits = stripped.isascii() and stripped.isdigit() and len(stripped) <= 18
    return int(stripped) if digits else None


def _number(text: str) -> float | None:
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None
