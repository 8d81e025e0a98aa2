"""Samples to calibrate and to judge with: read from files, in batches, without loading them whole.

Knows NumPy's files and what a model's inputs are declared to be; no engine. What it takes:

* ``x.npz``: an array for each input, by name, first axis = samples; ``labels`` if there are any;
* ``x.npy``: the samples of a model with one input;
* a folder of ``.npy`` files named as the inputs (and ``labels.npy``);
* a folder of ``.npz`` or of ``.npy`` shards of the above, taken in the order of their names.

Contract. Files are mapped, so only the batch in hand is in memory; the members of a *compressed*
archive cannot be mapped and are read whole, up to ``COMPRESSED_BYTES_MAX``. Nothing in a file is
executed. Everything is checked against the model when it is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.backends.quantize.archives import open_archive, open_array
from penstock.backends.quantize.errors import DataError
from penstock.protocol.message import TensorSpec

Array = NDArray[Any]
Batch = dict[str, Array]

LABELS: Final = "labels"
SHARDS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Shard:
    """Samples that lie together: an array for each input, all with ``rows`` rows."""

    source: str
    arrays: Mapping[str, Array]
    labels: Array | None

    @property
    def rows(self) -> int:
        """Samples in it."""
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class Samples:
    """Checked samples in a fixed order. ``order`` are positions in all shards, end to end."""

    shards: Sequence[Shard]
    order: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs there are arrays for."""
        return tuple(self.shards[0].arrays)

    @property
    def labels(self) -> Array | None:
        """The label of each sample, in order; None where there are none."""
        parts = [shard.labels for shard in self.shards]
        known = [part for part in parts if part is not None]
        return np.concatenate(known)[self.order] if known else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names, dtypes, order and every value; reads all of it once."""
        digest = hashlib.sha256(self.order.tobytes())
        for shard in self.shards:
            for name, array in shard.arrays.items():
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                step = max(1, (1 << 22) // max(1, array[:1].nbytes))
                for start in range(0, len(array), step):
                    digest.update(np.ascontiguousarray(array[start : start + step]).data)
        return digest.hexdigest()

    def batches(self, rows: int, *, start: int = 0, whole: bool = False) -> Iterator[Batch]:
        """Arrays by input name, of ``rows`` samples each; the last may have fewer.

        Args:
            start: sample to begin with.
            whole: leave out a last batch with fewer rows, for models that take ``rows`` exactly.
        """
        if rows < 1:
            raise ValueError(f"a batch cannot have {rows} rows")
        end = len(self.order) - len(self.order) % rows if whole else len(self.order)
        for first in range(start, end, rows):
            chosen = self.order[first : min(first + rows, end)]
            yield {name: self._rows(name, chosen) for name in self.names}

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([shard.rows for shard in self.shards])

    def _rows(self, name: str, chosen: NDArray[np.int64]) -> Array:
        shards = np.searchsorted(self._ends, chosen, side="right")
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(chosen)]
        parts = []
        for first, last in pairwise(cuts):
            at = int(shards[first])
            begin = int(self._ends[at - 1]) if at else 0
            parts.append(_taken(self.shards[at].arrays[name], chosen[first:last] - begin))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_samples(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    samples_max: int | None = None,
    seed: int | None = None,
) -> Samples:
    """Opens samples for a model with ``inputs``.

    Args:
        path: a file or folder as the module describes.
        inputs: what the model declares; -1 is a dimension of any size.
        samples_max: take no more; the first ones, or with a seed any.
        seed: shuffle, the same way for the same seed.

    Raises:
        DataError: with the file, and what to do.
    """
    shards = [_checked(shard, inputs) for shard in _shards(path, inputs)]
    if len({shard.labels is None for shard in shards}) > 1:
        missing = next(shard.source for shard in shards if shard.labels is None)
        raise DataError(f"{missing} has no {LABELS}, other files of {path} have")
    return _selected(shards, str(path), samples_max, seed)


def samples_of(
    arrays: Mapping[str, Array],
    labels: Array | None = None,
    *,
    samples_max: int | None = None,
    seed: int | None = None,
) -> Samples:
    """Samples that are in memory already: an array for each input, first axis = samples.

    Raises:
        DataError: the arrays have different numbers of samples, or none.
    """
    if not arrays:
        raise DataError("no arrays were given")
    shard = _even(Shard("memory", dict(arrays), labels))
    return _selected([shard], "memory", samples_max, seed)


def _selected(
    shards: Sequence[Shard], source: str, samples_max: int | None, seed: int | None
) -> Samples:
    if samples_max is not None and samples_max < 1:
        raise DataError(f"{samples_max} samples were asked for; at least one is needed")
    total = sum(shard.rows for shard in shards)
    if not total:
        raise DataError(f"{source} has no samples")
    order = np.arange(total)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(total)
    return Samples(shards, order[:samples_max])


def _shards(path: Path, inputs: Sequence[TensorSpec]) -> Iterator[Shard]:
    if path.is_file():
        yield _shard(path, inputs)
        return
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}")
    files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz"))
    if not files:
        raise DataError(f"{path} has no .npz or .npy files")
    if len(files) > SHARDS_MAX:
        raise DataError(f"{path} has {len(files)} files; at most {SHARDS_MAX} are read: join them")
    if len({p.suffix for p in files}) > 1:
        raise DataError(f"{path} has both .npz and .npy files; which are the samples?")
    names = {spec.name for spec in inputs}
    if files[0].suffix == ".npy" and names <= {p.stem for p in files} <= names | {LABELS}:
        arrays = {p.stem: open_array(p) for p in files}
        labels = arrays.pop(LABELS, None) if LABELS not in names else None
        yield Shard(str(path), arrays, labels)
        return
    for file in files:
        yield _shard(file, inputs)


def _shard(path: Path, inputs: Sequence[TensorSpec]) -> Shard:
    if path.suffix == ".npz":
        arrays = open_archive(path)
        named = LABELS in {spec.name for spec in inputs}
        labels = None if named else arrays.pop(LABELS, None)
        return Shard(str(path), arrays, labels)
    if path.suffix != ".npy":
        raise DataError(f"{path} is neither .npz nor .npy; numpy.savez writes the first")
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{path} holds one array, the model has the inputs {names}: use an .npz with all of "
            "them by name, or a folder with a .npy file for each"
        )
    return Shard(str(path), {inputs[0].name: open_array(path)}, None)


def _checked(shard: Shard, inputs: Sequence[TensorSpec]) -> Shard:
    known = {spec.name for spec in inputs}
    missing = known - shard.arrays.keys()
    if missing:
        raise DataError(
            f"{shard.source} has no array for input {', '.join(sorted(missing))}; "
            f"it has {', '.join(sorted(shard.arrays)) or 'none'}"
        )
    arrays = {spec.name: shard.arrays[spec.name] for spec in inputs}  # others are left alone
    for spec in inputs:
        _fits(shard.source, arrays[spec.name], spec)
    return _even(Shard(shard.source, arrays, shard.labels))


def _fits(source: str, array: Array, spec: TensorSpec) -> None:
    if array.dtype != spec.dtype.numpy:
        raise DataError(
            f"{source}: {spec.name!r} is {array.dtype}, the model takes {spec.dtype.numpy}: "
            f"save it as .astype('{spec.dtype.numpy}')"
        )
    wanted, found = spec.shape[1:], array.shape[1:]
    fits = array.ndim == len(spec.shape) and all(
        want in (-1, size) for want, size in zip(wanted, found, strict=True)
    )
    if not fits:
        raise DataError(
            f"{source}: {spec.name!r} has shape {list(array.shape)}, the model takes "
            f"{['samples', *wanted]} (-1 is any size)"
        )


def _even(shard: Shard) -> Shard:
    sizes = {name: array.shape[:1] for name, array in shard.arrays.items()}
    if shard.labels is not None:
        sizes[LABELS] = shard.labels.shape[:1]
    if () in sizes.values() or len(set(sizes.values())) > 1:
        counts = ", ".join(f"{name} {list(size)}" for name, size in sizes.items())
        raise DataError(f"{shard.source}: the numbers of samples differ: {counts}")
    return shard


def _taken(array: Array, rows: NDArray[np.int64]) -> Array:
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and np.array_equal(rows, np.arange(first, last + 1)):
        return np.asarray(array[first : last + 1])
    return np.asarray(array[rows])


__all__ = ["LABELS", "SHARDS_MAX", "Batch", "Samples", "Shard", "open_samples", "samples_of"]
