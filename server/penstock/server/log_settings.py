"""What the server logs, changeable while it runs: the settings of Triton's logging extension.

Knows Python's logging and Triton's names. Must not know wires. The handler of the process is set up
elsewhere; this filters what reaches it and chooses its time format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from penstock.protocol.errors import Code, InferError

FORMATS: Final = ("default", "ISO8601")
VERBOSE_MAX: Final = 1000
_SWITCHES: Final = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
NAMES: Final = ("log_file", *_SWITCHES, "log_verbose_level", "log_format")


class LogSettings(logging.Filter):
    """The settings of one process, acting on ``handlers`` (those of the root logger if None)."""

    def __init__(self, handlers: list[logging.Handler] | None = None) -> None:
        super().__init__()
        self._root = logging.getLogger()
        self._handlers = self._root.handlers if handlers is None else handlers
        level = self._root.getEffectiveLevel()
        self._on = {name: severity >= level for name, severity in _SWITCHES.items()}
        self._verbose = int(level <= logging.DEBUG)
        self._format = "default"
        self._level_before: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        severity = record.levelno
        if severity >= logging.ERROR:
            return self._on["log_error"]
        if severity >= logging.WARNING:
            return self._on["log_warning"]
        if severity >= logging.INFO:
            return self._on["log_info"]
        return self._verbose > 0

    def document(self) -> dict[str, str | bool | int]:
        """All settings under Triton's names."""
        return {
            "log_file": "",
            **self._on,
            "log_verbose_level": self._verbose,
            "log_format": self._format,
        }

    def update(self, changes: Mapping[str, Any]) -> None:
        """Takes over ``changes``, all of them or none.

        Raises:
            InferError: INVALID_ARGUMENT, or UNIMPLEMENTED for what only the operator may set.
        """
        for name, value in changes.items():
            _check(name, value)
        for name, value in changes.items():
            if name in _SWITCHES:
                self._on[name] = value
            elif name == "log_verbose_level":
                self._verbose = value
            elif name == "log_format":
                self._format = value
        self._apply()

    def _apply(self) -> None:
        wanted = [severity for name, severity in _SWITCHES.items() if self._on[name]]
        if self._verbose:
            wanted.append(logging.DEBUG)
        if self._level_before is None:
            self._level_before = self._root.level
        self._root.setLevel(min(wanted, default=logging.CRITICAL + 1))
        for handler in self._handlers:
            if self not in handler.filters:
                handler.addFilter(self)
            _set_time_format(handler, self._format == "ISO8601")

    def remove(self) -> None:
        """Puts logging back: another server of this process goes on with it."""
        if self._level_before is None:
            return
        self._root.setLevel(self._level_before)
        self._level_before = None
        for handler in self._handlers:
            handler.removeFilter(self)
            _set_time_format(handler, False)


def _set_time_format(handler: logging.Handler, iso: bool) -> None:
    formatter = handler.formatter
    if formatter is not None and formatter.usesTime():
        formatter.datefmt = "%Y-%m-%dT%H:%M:%SZ" if iso else None
        formatter.converter = time.gmtime if iso else time.localtime


def _check(name: str, value: object) -> None:
    if name == "log_file":
        raise InferError(
            Code.UNIMPLEMENTED, "log file location can not be updated through network protocol"
        )
    if name not in NAMES:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"unknown log setting '{name}', expecting {', '.join(NAMES)}",
        )
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise _wrong(name, "a boolean")
    elif name == "log_verbose_level":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= VERBOSE_MAX:
            raise _wrong(name, f"an integer from 0 to {VERBOSE_MAX}")
    elif value not in FORMATS:
        raise InferError(
            Code.INVALID_ARGUMENT,
            f"invalid argument for {name}, got: {str(value)[:100]}, not {' or '.join(FORMATS)}",
        )


def _wrong(name: str, expected: str) -> InferError:
    return InferError(Code.INVALID_ARGUMENT, f"Invalid value for '{name}': expected {expected}")
