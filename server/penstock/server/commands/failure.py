"""How a command ends when it cannot do what was asked: a text for people, never a traceback."""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
USAGE: Final = 2


class CommandError(Exception):
    """What went wrong (``message``), what to do about it (``hint``), and the exit ``status``."""

    def __init__(self, message: str, hint: str = "", *, status: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def text(self, command: str) -> str:
        """The whole text for the error stream, without the last line end."""
        lines = [f"penstock {command}: error: {self.message}"]
        lines += [f"  {line}" for line in self.hint.splitlines()]
        return "\n".join(lines)
