"""Reads the options of a TensorRT model and of ``penstock compile``.

Knows their names, values and defaults. Knows no engine: what only one of the two can do is refused
here by the engine's name.

Contract: an option that is not known, or has a value that cannot be, raises LoadError by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from penstock.backends.base import LoadError
from penstock.backends.checks import flag, unknown_option, whole

KINDS: Final = ("tensorrt", "tensorrt_rtx")
CACHE_VARIABLE: Final = "PENSTOCK_TENSORRT_CACHE"
HARDWARE: Final = ("none", "ampere_plus", "same_compute_capability")
PROFILES_MAX: Final = 16

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_SHAPE: Final = re.compile(r"(?P<name>.+):(?P<dims>[0-9]+(?:x[0-9]+)*)")
_NOT_FOR: Final[Mapping[str, Mapping[str, str]]] = {
    "tensorrt": {
        "compute_capabilities": "it builds for the GPU that it runs on",
    },
    "tensorrt_rtx": {
        "hardware_compatibility": "its plans run on every GPU that it knows",
        "host_code": "its plans bring no runtime of their own",
        "version_compatible": "its plans bring no runtime of their own",
    },
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a plan is built: whatever is here is part of the key that a plan is kept under."""

    buckets: tuple[int, ...] = ()
    min_shapes: Shapes = ()
    opt_shapes: Shapes = ()
    max_shapes: Shapes = ()
    workspace_bytes_max: int = 0
    builder_optimization_level: int = -1
    tf32: bool = True
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """For keys and descriptions, in JSON's types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may say. ``engine`` is empty where the installed one is to be taken."""

    recipe: Recipe
    engine: str = ""
    cache_dir: Path | None = None
    cache_bytes_max: int = 16 << 30
    build_s_max: int = 3600
    host_code: bool = False
    staging_bytes: int = 4 << 20
    blocking_wait: bool = False


_RECIPE: Final = frozenset(field.name for field in fields(Recipe))
NAMES: Final = _RECIPE | (frozenset(field.name for field in fields(Options)) - {"recipe"})


def read(given: Mapping[str, str], backend: str) -> Options:
    """The options of a model.

    Raises:
        LoadError: one is not known, or cannot have this value.
    """
    values: dict[str, object] = {}
    for key, text in given.items():
        if key not in NAMES:
            raise unknown_option(key, NAMES, backend)
        values[key] = _value(key, text)
    recipe = {key: values.pop(key) for key in list(values) if key in _RECIPE}
    options = Options(Recipe(**recipe), **values)  # type: ignore[arg-type]
    _check_shapes(options.recipe)
    return options


def check_engine(given: Mapping[str, str], kind: str) -> None:
    """Refuses what the engine ``kind`` cannot do.

    Raises:
        LoadError: names the option and the reason.
    """
    for key, reason in _NOT_FOR[kind].items():
        if key in given:
            raise LoadError(f"option {key!r} is not for engine {kind!r}: {reason}")


def default_cache() -> Path:
    """Where plans are kept unless the operator says: $PENSTOCK_TENSORRT_CACHE, or the user's.

    Raises:
        LoadError: the user has no home.
    """
    stated = os.environ.get(CACHE_VARIABLE)
    if stated:
        return Path(stated)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _expanded("~/.cache")) / "penstock" / "tensorrt"


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # a user that the machine does not know, as in containers
        raise LoadError(
            f"plans cannot be kept in {text}: {error} Set option 'cache_dir', or option "
            "'cache_bytes_max' to 0"
        ) from error


def _value(key: str, text: str) -> object:
    if key == "engine":
        return _one_of(key, text, KINDS)
    if key == "hardware_compatibility":
        return _one_of(key, text, HARDWARE)
    if key == "cache_dir":
        return _folder(key, text)
    if key == "buckets":
        return _buckets(key, text)
    if key == "compute_capabilities":
        return _capabilities(key, text)
    if key.endswith("_shapes"):
        return _shapes(key, text)
    if key in ("tf32", "version_compatible", "host_code", "blocking_wait"):
        return flag(key, text)
    if key == "builder_optimization_level":
        level = whole(key, text)
        if level > 5:
            raise LoadError(f"option {key!r} is {text!r}; it must be at most 5")
        return level
    least = {"staging_bytes": 4096, "build_s_max": 1}
    return whole(key, text, least.get(key, 0))


def _one_of(key: str, text: str, names: tuple[str, ...]) -> str:
    name = text.strip().lower()
    if name not in names:
        raise LoadError(f"option {key!r} is {text!r}; it must be one of {', '.join(names)}")
    return name


def _folder(key: str, text: str) -> Path:
    path = _expanded(text.strip())
    if not path.is_absolute():
        raise LoadError(f"option {key!r} is {text!r}; it must be an absolute path")
    return path


def _buckets(key: str, text: str) -> tuple[int, ...]:
    sizes = tuple(whole(key, part, 1) for part in text.split(","))
    if list(sizes) != sorted(set(sizes)) or len(sizes) > PROFILES_MAX:
        raise LoadError(
            f"option {key!r} is {text!r}; it must be rising numbers of rows such as 1,8,64, "
            f"at most {PROFILES_MAX} of them"
        )
    return sizes


def _capabilities(key: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(re.fullmatch(r"[0-9]+\.[0-9]", name) for name in names):
        raise LoadError(f"option {key!r} is {text!r}; it must be such as 8.6,8.9")
    return names


def _shapes(key: str, text: str) -> Shapes:
    shapes = {}
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None:
            raise LoadError(f"option {key!r} is {text!r}; it must be such as ids:1x16,mask:1x16")
        shapes[match["name"]] = tuple(int(size) for size in match["dims"].split("x"))
    return tuple(sorted(shapes.items()))


def _check_shapes(recipe: Recipe) -> None:
    given = [bool(recipe.min_shapes), bool(recipe.opt_shapes), bool(recipe.max_shapes)]
    if any(given) and not all(given):
        raise LoadError("options min_shapes, opt_shapes and max_shapes belong together: give all")
    if all(given) and recipe.buckets:
        raise LoadError("options buckets and max_shapes exclude each other: each says all sizes")
