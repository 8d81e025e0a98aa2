"""Runs a float model over samples, and keeps a histogram of each of its tensors.

Knows samples, the model's file, histograms and the cache of a run that was broken off; how ranges
are chosen it leaves to ``thresholds``. One run serves all methods and both schemes of integers.

Contract. Memory does not depend on how many samples there are: ``activation_bytes_max`` for the
activations of a batch that are looked at, and 64 KiB a tensor. Where a batch has more of them, the
model is run over the samples several times, each time watching others; where a single tensor has
more, batches get smaller, down to one row. The session has threads of its own, and none that spin.
Histograms are the same for every batch size, as far as the model's own arithmetic is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.backends.quantize.calibration_cache import Key, State, load_state, save_state
from penstock.backends.quantize.data import Samples
from penstock.backends.quantize.errors import DataError
from penstock.backends.quantize.histogram import Histogram
from penstock.backends.quantize.model_file import Watch, read_model
from penstock.backends.quantize.ranges import Ranges
from penstock.backends.quantize.thresholds import Method, find

ACTIVATION_BYTES_MAX: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How to run the model.

    ``tensors``: what to watch; None is every float activation of the main graph.
    ``channels``: tensors of which the largest magnitude of each channel is wanted too, each with
    its channel axis. ``checkpoint_s``: how often the cache is written.
    """

    rows: int = 32
    threads: int = 2
    tensors: tuple[str, ...] | None = None
    channels: Mapping[str, int] = field(default_factory=dict)
    activation_bytes_max: int = ACTIVATION_BYTES_MAX
    checkpoint_s: float = 15.0

    def __post_init__(self) -> None:
        if min(self.rows, self.threads, self.activation_bytes_max) < 1:
            raise ValueError("rows, threads and activation_bytes_max must be at least 1")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. ``rows_total`` counts samples once for each ``passes``."""

    tensors: int
    passes: int
    rows_done: int
    rows_total: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was seen: a histogram by tensor name, and channel maxima of those asked for."""

    histograms: Mapping[str, Histogram]
    channel_maxima: Mapping[str, NDArray[np.float32]]
    model: str
    data: str
    rows: int

    def ranges(self, method: Method | None = None, *, symmetric: bool) -> Ranges:
        """The range of every tensor by ``method``, entropy if none is given."""
        method = method or Method()
        found = {n: find(h, method, symmetric=symmetric) for n, h in self.histograms.items()}
        settings = {
            "method": method.name,
            "percent": method.percent,
            "level_zero": method.level_zero,
            "symmetric": symmetric,
        }
        return Ranges(found, self.model, self.data, self.rows, settings)


def collect(
    model: Path | Any,
    samples: Samples,
    settings: CalibrationSettings | None = None,
    *,
    cache: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Runs a model, a file or an ``onnx.ModelProto``, over all ``samples``.

    With ``cache`` the state is written there now and then, and when all is done; called again after
    a crash, the run goes on from it, and a finished run is only read. ``progress`` is called after
    each batch, and may raise to break off.

    Raises:
        ModelError: the model cannot be run, or a tensor asked for is not in it.
        DataError: no sample makes a whole batch of a model with a fixed one.
        CacheError: ``cache`` is damaged, or of another model, other data or other settings.
    """
    settings = settings or CalibrationSettings()
    run = _Run(model, samples, settings, cache, progress, clock)
    state = run.resumed() or run.planned()
    while state.at_pass < len(state.passes):
        run.one_pass(state)
    run.save(state)
    return Collected(
        state.histograms, state.channel_maxima, run.key.model, run.key.data, len(samples)
    )


class _Run:
    """One call of ``collect``: what does not change during it."""

    def __init__(
        self,
        model: Path | Any,
        samples: Samples,
        settings: CalibrationSettings,
        cache: Path | None,
        progress: Callable[[Progress], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._samples, self._settings = samples, settings
        self._cache, self._progress, self._clock = cache, progress, clock
        self._model = read_model(model)
        self._names = self._model.activations(settings.tensors)
        self.key = Key(self._model.fingerprint(), samples.fingerprint, self._key_settings())
        self._saved_at = clock()

    def _key_settings(self) -> dict[str, Any]:
        chosen = self._settings
        return {
            "rows": chosen.rows,
            "tensors": self._names,
            "channels": dict(sorted(chosen.channels.items())),
            "activation_bytes_max": chosen.activation_bytes_max,
        }

    def resumed(self) -> State | None:
        return load_state(self._cache, self.key) if self._cache else None

    def planned(self) -> State:
        """A first batch of one row shows which tensors are floats, and how large they are."""
        watch = Watch(self._model, self._watched(), self._settings.threads)
        try:
            sizes = [spec.shape[0] for spec in self._model.inputs if spec.shape]
            fixed = max(sizes, default=-1)
            rows = fixed if fixed > 0 else 1
            first = next(self._samples.batches(rows, whole=fixed > 0), None)
            if first is None:
                raise DataError(
                    f"the model takes batches of {fixed}, there are {len(self._samples)} samples"
                )
            room_of = {name: a.nbytes // rows for name, a in watch.run(first, watch.tensors)}
        finally:
            watch.close()
        largest = max(room_of.values(), default=1)
        room = self._settings.activation_bytes_max
        if fixed < 0:
            rows = max(1, min(self._settings.rows, room // max(1, largest)))
        order = [name for name in self._watched() if name in room_of]
        passes = _packed({name: room_of[name] * rows for name in order}, room)
        wanted = set(self._names)
        histograms = {name: Histogram() for name in order if name in wanted}
        return State(passes, rows, fixed > 0, histograms, {})

    def _watched(self) -> list[str]:
        return self._model.activations({*self._names, *self._settings.channels})

    def one_pass(self, state: State) -> None:
        names = state.passes[state.at_pass]
        watch = Watch(self._model, names, self._settings.threads)
        try:
            batches = self._samples.batches(state.rows, start=state.at_row, whole=state.whole)
            for batch in batches:
                for name, array in watch.run(batch, names):
                    self._count(state, name, array)
                state.at_row += min(state.rows, len(self._samples) - state.at_row)
                self._tell(state)
        finally:
            watch.close()
        state.at_pass, state.at_row = state.at_pass + 1, 0

    def _count(self, state: State, name: str, array: NDArray[Any]) -> None:
        if name in state.histograms:
            state.histograms[name].add(array)
        axis = self._settings.channels.get(name)
        if axis is not None:
            top = _channel_maxima(array, axis)
            seen = state.channel_maxima.get(name)
            state.channel_maxima[name] = top if seen is None else np.maximum(seen, top)

    def _tell(self, state: State) -> None:
        if self._cache and self._clock() - self._saved_at >= self._settings.checkpoint_s:
            self.save(state)
        if self._progress:
            done = state.at_pass * len(self._samples) + state.at_row
            total = len(state.passes) * len(self._samples)
            self._progress(Progress(len(state.histograms), len(state.passes), done, total))

    def save(self, state: State) -> None:
        if self._cache:
            save_state(self._cache, self.key, state)
            self._saved_at = self._clock()


def _packed(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Names in order, in as few runs as hold no more than ``room`` bytes, or one tensor, each."""
    passes: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not passes or size > left:
            passes.append([])
            left = room
        passes[-1].append(name)
        left -= size
    return passes


def _channel_maxima(array: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Of the finite values; 0 for a channel without any."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    magnitudes = np.abs(array)
    finite = np.isfinite(magnitudes)
    top: NDArray[np.float32] = magnitudes.max(axis=others, initial=0, where=finite).astype(
        np.float32
    )
    return top
