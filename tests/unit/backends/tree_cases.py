"""Damaged copies of a model file, for engines that crash on some of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from penstock.backends.base import Backend, LoadError, ModelSource


def refusals(backend: Backend, source: ModelSource, count: int) -> list[str]:
    """What ``backend`` says of those of ``count`` damaged copies of its file that it refuses."""
    said = []
    for data in _damaged(source.path.read_bytes(), count):
        source.path.write_bytes(data)
        try:
            backend.load(source).close()
        except LoadError as error:
            said.append(str(error))
    return said


def _damaged(data: bytes, count: int) -> Iterator[bytes]:
    """Bytes changed, lost, or cut off; always the same ones."""
    chance = random.Random(1)
    for i in range(count):
        copy = bytearray(data)
        place = chance.randrange(len(copy) // 10, len(copy) // 2)
        if i % 3 == 0:
            copy[place] = chance.randrange(256)
        elif i % 3 == 1:
            del copy[place : place + chance.randrange(1, 60)]
        else:
            del copy[place:]
        yield bytes(copy)
