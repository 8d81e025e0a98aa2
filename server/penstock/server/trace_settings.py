"""What is traced: the settings of Triton's trace extension, for the server and for single models.

Knows the settings' names, values and how they inherit. Must not know requests, files or wires: a
setting is a name and a list of strings (empty: cleared), as both wires can say it.

A model's setting that was never set, or was cleared, is the server's; the server's that was cleared
is what the server was started with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from penstock.protocol.errors import Code, InferError

Values = Mapping[str, Sequence[str]]

MODE: Final = "triton"
LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
MODELS_MAX: Final = 4096
"""Models with settings of their own; each was loaded once."""


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """``rate``: one request in so many; ``count``: how many in all, -1 for no limit;
    ``log_frequency``: traces a file, 0 for one file; ``file`` empty: traces go to the log.
    """

    level: frozenset[str] = frozenset()
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""

    @property
    def on(self) -> bool:
        return bool(self.level) and self.rate > 0 and self.count != 0


_FIELDS: Final = {
    "trace_level": "level",
    "trace_rate": "rate",
    "trace_count": "count",
    "log_frequency": "log_frequency",
}
_LEAST: Final = {"trace_rate": 0, "trace_count": -1, "log_frequency": 0}
_MOST: Final = (1 << 31) - 1


class TraceBook:
    """The settings of one server. ``changed()`` is called after each update."""

    def __init__(
        self, start: TraceSettings | None = None, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._start = start or TraceSettings()
        self._server = self._start
        self._models: dict[str, dict[str, Any]] = {}
        self._changed = changed

    def of(self, model: str = "") -> TraceSettings:
        """What applies to ``model``, or to those without settings of their own."""
        own = self._models.get(model)
        return replace(self._server, **own) if own else self._server

    @property
    def models(self) -> tuple[str, ...]:
        """Those with settings of their own."""
        return tuple(self._models)

    def document(self, model: str = "") -> dict[str, str | list[str]]:
        """The settings under Triton's names; numbers are strings there."""
        settings = self.of(model)
        level = [name for name in LEVELS if name in settings.level] or ["OFF"]
        return {
            "trace_level": list(level),
            "trace_rate": str(settings.rate),
            "trace_count": str(settings.count),
            "log_frequency": str(settings.log_frequency),
            "trace_file": settings.file,
            "trace_mode": MODE,
        }

    def update(self, changes: Values, model: str = "") -> None:
        """Takes over ``changes``: all of them, or none if one is wrong.

        Raises:
            InferError: INVALID_ARGUMENT, or UNIMPLEMENTED for what only the operator may set.
        """
        made = {name: _read(name, values) for name, values in changes.items()}
        made.pop("trace_mode", None)  # There is one, and it stays.
        if model:
            self._update_model(made, model)
        else:
            self._server = replace(
                self._server,
                **{
                    _FIELDS[name]: getattr(self._start, _FIELDS[name]) if value is None else value
                    for name, value in made.items()
                },
            )
        self._changed()

    def _update_model(self, made: Mapping[str, Any], model: str) -> None:
        own = dict(self._models.get(model, {}))
        for name, value in made.items():
            if value is None:
                own.pop(_FIELDS[name], None)
            else:
                own[_FIELDS[name]] = value
        if not own:
            self._models.pop(model, None)
        elif model in self._models or len(self._models) < MODELS_MAX:
            self._models[model] = own
        else:
            raise InferError(
                Code.RESOURCE_EXHAUSTED, f"more than {MODELS_MAX} models have trace settings"
            )


def settings_of(parts: Sequence[str]) -> TraceSettings:
    """The settings that ``--trace-config`` states, each part ``name=value`` or
    ``triton,name=value``.

    Raises:
        ValueError: names the part that cannot be.
    """
    changes: dict[str, list[str]] = {}
    file = ""
    for part in parts:
        name, equals, value = part.removeprefix("triton,").partition("=")
        if not equals:
            raise ValueError(f"'{part}' is not name=value")
        if name == "mode":
            if value != MODE:
                raise ValueError(f"trace mode '{value}' is not known; there is '{MODE}'")
        elif name == "file":
            file = value
        else:
            name = name.replace("-", "_")
            full = name if name == "log_frequency" else f"trace_{name}"
            changes.setdefault(full, []).append(value)
    book = TraceBook(TraceSettings(file=file))
    try:
        book.update(changes)
    except InferError as error:
        raise ValueError(error.message) from None
    return book.of()


def _read(name: str, values: Sequence[str]) -> Any:
    """The value of a setting; None where it is cleared."""
    if name == "trace_file" or (name == "trace_mode" and tuple(values) != (MODE,)):
        what = "file location" if name == "trace_file" else "mode"
        raise InferError(
            Code.UNIMPLEMENTED, f"trace {what} can not be updated through network protocol"
        )
    if name == "trace_mode":
        return MODE
    if name not in _FIELDS:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"unknown trace setting '{name}', expecting {', '.join(_FIELDS)}",
        )
    if not values:
        return None
    if name == "trace_level":
        return _level(values)
    text = values[0]
    if len(values) != 1:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"expect only 1 value for '{name}', got {len(values)}",
        )
    try:
        number = int(text)
    except ValueError:
        raise _wrong(name, text) from None
    if number < _LEAST[name]:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"Unable to parse '{name}'. Expecting value >= {_LEAST[name]}, got:{number}",
        )
    if number > _MOST:
        raise _wrong(name, text)
    return number


def _level(values: Sequence[str]) -> frozenset[str]:
    for value in values:
        if value not in LEVELS:
            raise InferError(
                Code.INVALID_ARGUMENT,
                f"unknown 'trace_level' '{value}', expecting {', '.join(LEVELS)}",
            )
    if "OFF" in values and len(values) > 1:
        raise InferError(Code.INVALID_ARGUMENT, "Expect only one trace level 'OFF' is specified")
    return frozenset(values) - {"OFF"}


def _wrong(name: str, text: str) -> InferError:
    return InferError(Code.INVALID_ARGUMENT, f"Unable to parse '{name}', got: {text[:64]}")
