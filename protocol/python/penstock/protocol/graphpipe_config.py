"""What travels in GraphPipe's ``config`` string: SPEC.md §6.

Knows: the keys of the JSON object, their types, and the form that a reply must take. Must not know:
frames. A ``config`` that is not a JSON object is an opaque string of the model's own and becomes
the one parameter ``config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from penstock.protocol.errors import ProtocolError
from penstock.protocol.limits import WireLimits
from penstock.protocol.message import NO_PARAMETERS, Parameter

OPAQUE_KEY: Final = "config"
RESERVED_KEYS: Final = frozenset({"id", "timeout_us", "priority", "dtypes", "errors"})
TIMEOUT_US_MAX: Final = (1 << 63) - 1
PRIORITY_MAX: Final = (1 << 32) - 1
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class GraphpipeForm:
    """How the peer wants its reply.

    ``extended``: it understands the types BOOL and BF16. ``error_frames``: it reads errors from
    ``InferResponse.errors`` rather than from the HTTP status.
    """

    extended: bool = False
    error_frames: bool = False


FORMS: Final = {
    (extended, frames): GraphpipeForm(extended, frames)
    for extended in (False, True)
    for frames in (False, True)
}
LEGACY: Final = FORMS[False, False]


class Config(NamedTuple):
    """A parsed ``config``."""

    form: GraphpipeForm = LEGACY
    id: str = ""
    timeout_us: int = 0
    priority: int = 0
    parameters: Mapping[str, Parameter] = NO_PARAMETERS


NO_CONFIG: Final = Config()


def parse_config(raw: bytes, limits: WireLimits) -> Config:
    """What ``raw`` says; see SPEC.md §6.

    Raises:
        ProtocolError: a reserved key has a wrong type or range, or a value is nested.
    """
    if not raw:
        return NO_CONFIG
    try:
        found: Any = msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply to be ours
        found = None
    if not isinstance(found, dict):
        text = raw.decode("utf-8", "surrogateescape")
        return Config(parameters=MappingProxyType({OPAQUE_KEY: text}))
    dtypes = _text(found, "dtypes", limits)
    errors = _text(found, "errors", limits)
    return Config(
        FORMS[dtypes == "extended", errors == "frame"],
        _text(found, "id", limits),
        _whole(found, "timeout_us", TIMEOUT_US_MAX),
        _whole(found, "priority", PRIORITY_MAX),
        _parameters(found, limits),
    )


_ANNOUNCEMENTS: Final = {
    (False, False): b"",
    (True, False): b'{"dtypes":"extended"}',
    (False, True): b'{"errors":"frame"}',
    (True, True): b'{"dtypes":"extended","errors":"frame"}',
}


def write_config(
    *,
    form: GraphpipeForm,
    id: str,
    timeout_us: int,
    priority: int,
    parameters: Mapping[str, Parameter],
) -> bytes:
    """The ``config`` that says this; empty if there is nothing to say.

    With no announcement to make, parameters that are just ``{"config": text}`` are written as the
    opaque text itself, which is what a server that is not Penstock expects.

    Raises:
        ValueError, TypeError: something that cannot be said (a reserved key among the parameters,
            a value out of range or of a type that is no ``Parameter``).
    """
    if not (id or timeout_us or priority or parameters):
        return _ANNOUNCEMENTS[form.extended, form.error_frames]
    if not 0 <= timeout_us <= TIMEOUT_US_MAX or not 0 <= priority <= PRIORITY_MAX:
        raise ValueError(f"timeout_us {timeout_us} or priority {priority} is out of range")
    said: dict[str, Parameter] = {}
    if form.extended:
        said["dtypes"] = "extended"
    if form.error_frames:
        said["errors"] = "frame"
    if id:
        said["id"] = id
    if timeout_us:
        said["timeout_us"] = timeout_us
    if priority:
        said["priority"] = priority
    if not said and parameters.keys() == {OPAQUE_KEY}:
        return str(parameters[OPAQUE_KEY]).encode("utf-8", "surrogateescape")
    for key, value in parameters.items():
        if key in RESERVED_KEYS:
            raise ValueError(f"parameter {key!r} has a field of its own")
        said[key] = _sayable(key, value)
    return msgspec.json.encode(said) if said else b""


def _sayable(key: str, value: Parameter) -> Parameter:
    if not isinstance(value, str | int | float):
        raise TypeError(f"parameter {key!r} is a {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"parameter {key!r} is {value}, which JSON cannot hold")
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        raise ValueError(f"parameter {key!r} does not fit 64 bits")
    return value


def _text(found: dict[str, Any], key: str, limits: WireLimits) -> str:
    value = found.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolError("must be a string", field=f"config.{key}")
    if len(value) > limits.name_bytes_max:
        raise ProtocolError(f"longer than {limits.name_bytes_max}", field=f"config.{key}")
    return value


def _whole(found: dict[str, Any], key: str, largest: int) -> int:
    value = found.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= largest:
        raise ProtocolError(f"must be a whole number from 0 to {largest}", field=f"config.{key}")
    return value


def _parameters(found: dict[str, Any], limits: WireLimits) -> Mapping[str, Parameter]:
    kept: dict[str, Parameter] = {}
    for key, value in found.items():
        if key in RESERVED_KEYS or value is None:  # null means "not given" everywhere
            continue
        if not isinstance(value, str | int | float):
            raise ProtocolError("nested values are not allowed", field=f"config.{key}")
        if isinstance(value, str) and len(value) > limits.name_bytes_max:
            raise ProtocolError(f"longer than {limits.name_bytes_max}", field=f"config.{key}")
        if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
            raise ProtocolError("does not fit 64 bits", field=f"config.{key}")
        kept[key] = value
    return MappingProxyType(kept) if kept else NO_PARAMETERS
