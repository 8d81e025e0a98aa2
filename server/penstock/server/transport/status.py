"""HTTP's own words: status lines, and the error of a request that HTTP itself cannot accept."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

REASONS: Final[dict[int, str]] = {status.value: status.phrase for status in HTTPStatus}
REASONS[499] = "Client Closed Request"
REASON_MAX: Final = 200


class BadRequest(Exception):
    """A request that cannot be served at the level of HTTP; ends the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def reason_of(status: int, text: str = "") -> str:
    """A reason phrase: ``text`` made safe and short, or the standard one.

    Old GraphPipe clients show nothing of an error but this phrase.
    """
    line = text.split("\n", 1)[0]
    safe = "".join(c if " " <= c <= "~" else "?" for c in line).strip()
    if len(safe) > REASON_MAX:
        safe = safe[: REASON_MAX - 3] + "..."
    return safe or REASONS.get(status, "Unknown")
