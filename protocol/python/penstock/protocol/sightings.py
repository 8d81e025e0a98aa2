"""Says whether something was seen before, in bounded memory.

For tables of what is worth remembering: what comes a second time will come again, what never does
(because of a time or a number in it) costs a set entry and pushes nothing out that is in use.
"""

from __future__ import annotations

from typing import Final

SIGHTINGS_MAX: Final = 4096


class Sightings:
    """The last few thousand things that were asked about, by hash: a collision of hashes only makes
    one thing look known too early."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def again(self, thing: object) -> bool:
        """Whether ``thing`` was asked about before."""
        mark = hash(thing)
        if mark in self._seen:
            return True
        if len(self._seen) >= SIGHTINGS_MAX:
            self._seen.clear()
        self._seen.add(mark)
        return False
