"""Names for tensors of artefacts that keep none: from where they stand in a function's arguments
or results, or else those of the configuration.

Knows specs and paths through nested containers, of JAX's and PyTorch's making alike. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from penstock.backends.base import LoadError
from penstock.protocol.message import TensorSpec


def named(
    own: Sequence[TensorSpec], stated: Sequence[TensorSpec], kind: str
) -> tuple[TensorSpec, ...]:
    """``own`` under the names of ``stated``: the i-th under the i-th name.

    Where the stated names are those of ``own``, in whatever order, or none are stated, ``own`` is
    right as it is. ``kind`` is ``input`` or ``output``.

    Raises:
        LoadError: there are more or fewer, or a type or a shape is another one.
    """
    if not stated or {spec.name for spec in stated} == {spec.name for spec in own}:
        return tuple(own)
    if len(own) != len(stated):
        raise LoadError(
            f"the configuration states {len(stated)} {kind}s, but the model has {len(own)}: "
            f"{', '.join(map(_text, own))}"
        )
    for mine, other in zip(own, stated, strict=True):
        if mine.dtype is not other.dtype or not _agree(mine.shape, other.shape):
            raise LoadError(
                f"the configuration states {kind} {_text(other)} where the model has {_text(mine)}"
            )
    return tuple(replace(mine, name=other.name) for mine, other in zip(own, stated, strict=True))


def labels(paths: Sequence[Sequence[Any]], kind: str) -> list[str]:
    """A name for each path: the keys of its steps with dots between, and ``kind_i`` for what has
    only a number. Numbered throughout if two would be the same.
    """
    names = [".".join(str(_key(step)) for step in path) for path in paths]
    names = [name if name and not name[0].isdecimal() else f"{kind}_{name or 0}" for name in names]
    return names if len(set(names)) == len(names) else [f"{kind}_{i}" for i in range(len(names))]


def _key(step: Any) -> Any:
    return next(getattr(step, a) for a in ("key", "idx", "name") if hasattr(step, a))


def _agree(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(
        -1 in (a, b) or a == b for a, b in zip(one, other, strict=True)
    )


def _text(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype.name} {list(spec.shape)}"


__all__ = ["labels", "named"]
