"""Runs models over samples side by side, for the figures of ``gate`` and of single layers.

Knows sessions of ONNX Runtime and samples. Knows nothing of placement, of searching or of bounds.
Memory is bounded: what is compared row by row is summed up, and only the float model's outputs are
kept, up to a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from penstock.backends.quantize.data import Batch, Samples
from penstock.backends.quantize.errors import DataError, ModelError
from penstock.backends.quantize.gate import Meter, decibels
from penstock.backends.quantize.prepare import line, session
from penstock.backends.quantize.result import Measure

Array = NDArray[Any]

KEPT_BYTES_MAX: Final = 256 << 20
ROWS_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Compared:
    """A batch, what the float model made of it, and the right answers if they are known."""

    feed: Batch
    outputs: Sequence[Array]
    labels: Array | None

    @property
    def rows(self) -> int:
        """Samples in it."""
        return len(next(iter(self.feed.values())))

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(a.nbytes for a in (*self.feed.values(), *self.outputs))


def run(session: Any, feed: Batch) -> Sequence[Array]:
    """A batch's outputs.

    Raises:
        ModelError: the model failed.
    """
    try:
        outputs: Sequence[Array] = session.run(None, feed)
    except Exception as error:
        raise ModelError(f"the model failed on a batch: {line(error)}") from error
    if not all(isinstance(output, np.ndarray) for output in outputs):
        raise ModelError(
            "an output of the model is no tensor but a sequence or a map, which no client can be "
            "sent: export it without (of skl2onnx: options={'zipmap': False})"
        )
    return outputs


def compared(session: Any, samples: Samples, rows: int) -> Iterator[Compared]:
    """The float model's outputs over all ``samples``, a batch at a time.

    A model that takes batches of one size only gets those, and a remainder is left out.

    Raises:
        DataError: there are fewer samples than the model takes in one batch.
    """
    fixed = fixed_rows(session)
    rows, labels, at = fixed or rows, samples.labels, 0
    if len(samples) < (fixed or 1):
        raise DataError(f"the model takes batches of {fixed}, there are {len(samples)} samples")
    for feed in samples.batches(rows, whole=fixed is not None):
        count = len(next(iter(feed.values())))
        yield Compared(
            feed, run(session, feed), None if labels is None else labels[at : at + count]
        )
        at += count


def fixed_rows(session: Any) -> int | None:
    """The only batch that the model takes; None if it takes any."""
    sizes = [i.shape[0] for i in session.get_inputs() if i.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def kept(
    batches: Iterable[Compared], bytes_max: int = KEPT_BYTES_MAX, rows_max: int = ROWS_MAX
) -> list[Compared]:
    """As many of ``batches`` as fit, at least one."""
    found: list[Compared] = []
    for batch in batches:
        bytes_max, rows_max = bytes_max - batch.bytes, rows_max - batch.rows
        if found and (bytes_max < 0 or rows_max < 0):
            break
        found.append(batch)
    return found


def measure(session: Any, batches: Iterable[Compared]) -> Measure:
    """A variant beside the float model."""
    meter = Meter()
    for batch in batches:
        meter.add(batch.outputs, run(session, batch.feed), batch.labels, batch.rows)
    return meter.measure()


def tensor_db(
    real: onnx.ModelProto,
    found: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Sequence[Compared],
    threads: int,
    progress: Callable[[float], None],
) -> Mapping[str, float | None]:
    """The SQNR of tensors that two models have in common.

    The models are run on slices of batches, so that all tensors of a slice fit in memory.
    """
    sessions = [session(_showing(model, tensors), threads) for model in (real, found)]
    whole = fixed_rows(sessions[0]) is not None
    energies = np.zeros((2, len(tensors)))
    for done, batch in enumerate(batches):
        step = batch.rows if whole else 4
        for start in range(0, batch.rows, step):
            feed = {name: array[start : start + step] for name, array in batch.feed.items()}
            pairs = zip(*(s.run(list(tensors), feed) for s in sessions), strict=True)
            for place, (a, b) in enumerate(pairs):
                difference = a.astype(np.float64) - b
                energies[:, place] += np.vdot(a, a), np.vdot(difference, difference)
        progress((done + 1) / len(batches))
    return {
        name: decibels(float(signal), float(noise))
        for name, signal, noise in zip(tensors, *energies, strict=True)
    }


def _showing(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """``model`` with ``tensors`` as its only outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return shown


def parted(samples: Samples, every: int) -> tuple[Samples, Samples]:
    """(calibration, selection): every ``every``-th sample is kept from calibration.

    Raises:
        DataError: there are too few for two parts.
    """
    if len(samples) < 2:
        raise DataError("one sample cannot both calibrate and choose; give at least some hundred")
    places = np.arange(len(samples))
    chosen = places % every == min(every, len(samples)) - 1
    return replace(samples, order=samples.order[~chosen]), replace(
        samples, order=samples.order[chosen]
    )
