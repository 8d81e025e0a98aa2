"""Which sizes a plan is built for: optimization profiles from batch sizes or from stated shapes.

Pure: declared shapes and options in, ranges out. Knows no engine.

An idle server runs single rows and a busy one full batches, so TensorRT, which chooses kernels for
one size in each profile, gets a profile for each of the two: ``(1, rows_max)``. One more costs time
to build and no scratch memory, since a worker's contexts share it, so ``buckets`` may name more
sizes. TensorRT for RTX compiles kernels for the sizes that it meets, and gets one profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from penstock.backends.base import LoadError
from penstock.backends.tensorrt.options import Recipe
from penstock.protocol.message import TensorSpec

ROWS_DEFAULT: Final = 64
"""The largest batch of a model whose configuration states none."""

Shape = tuple[int, ...]


class Range(NamedTuple):
    """The shapes of one input in one profile."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether ``shape``, of the right rank, is between the least and the greatest."""
        return all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, Range]


def profiles(
    inputs: Sequence[TensorSpec], recipe: Recipe, rows_max: int, kind: str
) -> list[Profile]:
    """The profiles of a network with these inputs, smallest batch first; none if all is fixed.

    Raises:
        LoadError: sizes are free that nobody stated, or what was stated does not fit the inputs.
    """
    free = [spec for spec in inputs if -1 in spec.shape]
    if recipe.max_shapes:
        return [_stated(inputs, recipe)]
    if not free:
        if recipe.buckets:
            raise LoadError("option 'buckets': the model has no free dimension to batch over")
        return []
    for spec in free:
        if -1 in spec.shape[1:]:
            raise LoadError(
                f"input {spec.name!r} has free dimensions behind the first ({list(spec.shape)}): "
                "state the options min_shapes, opt_shapes and max_shapes"
            )
    top = rows_max or ROWS_DEFAULT
    buckets = recipe.buckets or ((top,) if kind == "tensorrt_rtx" or top == 1 else (1, top))
    if rows_max > buckets[-1]:
        raise LoadError(
            f"option 'buckets' ends at {buckets[-1]} rows where max_batch_size is {rows_max}"
        )
    least = (1, *(size + 1 for size in buckets[:-1]))
    return [
        {spec.name: _rows(spec, low, high) for spec in free}
        for low, high in zip(least, buckets, strict=True)
    ]


def rows_limit(inputs: Sequence[TensorSpec], found: Sequence[Profile]) -> int:
    """The most rows that inputs with a free first dimension take in some profile; 0 if none has."""
    free = [spec.name for spec in inputs if spec.shape[:1] == (-1,)]
    limits = [min(profile[name].max[0] for name in free) for profile in found if free]
    return max(limits, default=0)


def _rows(spec: TensorSpec, low: int, high: int) -> Range:
    behind = spec.shape[1:]
    return Range((low, *behind), (high, *behind), (high, *behind))


def _stated(inputs: Sequence[TensorSpec], recipe: Recipe) -> Profile:
    by_name = {spec.name: spec for spec in inputs}
    tables = {
        "min_shapes": dict(recipe.min_shapes),
        "opt_shapes": dict(recipe.opt_shapes),
        "max_shapes": dict(recipe.max_shapes),
    }
    for option, table in tables.items():
        _check_names(option, table, by_name)
        for name, shape in table.items():
            _check_fits(option, shape, by_name[name])
    found = {}
    for name in tables["max_shapes"]:
        low, opt, high = (tables[option][name] for option in tables)
        ordered = all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
        if not ordered:
            raise LoadError(
                f"input {name!r}: min_shapes {list(low)}, opt_shapes {list(opt)} and max_shapes "
                f"{list(high)} must not fall in any dimension"
            )
        found[name] = Range(low, opt, high)
    return found


def _check_names(option: str, table: Mapping[str, Shape], inputs: Mapping[str, TensorSpec]) -> None:
    for name in table:
        if name not in inputs:
            raise LoadError(
                f"option {option!r} names {name!r}; the model's inputs are {', '.join(inputs)}"
            )
    missing = [name for name, spec in inputs.items() if -1 in spec.shape and name not in table]
    if missing:
        raise LoadError(f"option {option!r} lacks {', '.join(missing)}, whose shapes are free")


def _check_fits(option: str, shape: Shape, spec: TensorSpec) -> None:
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, size) for want, size in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise LoadError(
            f"option {option!r} gives {spec.name!r} the shape {list(shape)}; the model has "
            f"{list(spec.shape)}"
        )
