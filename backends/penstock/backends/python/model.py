"""What a ``model.py`` may import: the context of its model, and how to blame a caller.

Knows the standard library only, so that it can be had in any interpreter: in a worker process it is
there whether Penstock is installed beside it or not. ``docs/backends/python.md`` shows its use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class BadInput(Exception):
    """Raised by ``predict`` where the inputs are at fault: the caller is told the message.

    Every other exception is the model's own fault: callers get its type and message as an internal
    error, and the server's log gets the traceback.
    """


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told about itself, if its ``__init__`` takes an argument.

    ``directory`` is where ``model.py`` lies, with all that lies beside it. ``device`` is ``cpu`` or
    ``cuda:N``: to use it is up to the model. ``threads`` is how many cores one call may use.
    ``rows_max`` is the configured largest batch, 0 where none is configured. ``parameters`` are the
    configuration's parameters that begin with ``model.``, without that.
    """

    name: str
    version: str
    directory: Path
    device: str = "cpu"
    threads: int = 1
    rows_max: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)


__all__ = ["BadInput", "Context"]
