"""Writes the loops in which a compiled model spends its time: dense layers and convolutions.

Knows TVM's builder of loop programs (TIR) and how a CPU likes to multiply. Knows nothing of graphs,
files and requests; TVM and its compiler must be installed, and are imported when a kernel is made.

TVM's own lowering of a matrix product is three plain loops, tens of times slower than a library.
Here a dense layer and a convolution are one scheme. The weights lie packed in *panels*: for every
``tile.vectors * lanes`` columns (output channels) all their values in the order in which the
innermost loop wants them. A tile of ``tile.rows`` rows (a row of the batch, or a pixel) is summed
up in registers, a step along the depth being one load for each vector of the panel, and one
broadcast and some fused multiply-adds for each row; bias and ReLU are applied before the only
store.
What is left of the rows goes through tiles of half the height, and so on to one.

Contract: a kernel takes (input, packed weights, packed bias, output); ``pack`` and ``pack_bias``
give the two in the middle. The first dimension of the input may be free.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from penstock.protocol.message import Array

CHUNK_TILES: Final = 8
"""Tiles of rows that one task of a parallel loop does at least."""
MARK: Final = "penstock.kernel"
"""The attribute by which a kernel is known."""
PARALLEL_FROM: Final = 2_000_000
"""Multiply-adds below which waking other threads costs more than they save."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What is held in registers at a time: ``rows`` times ``vectors`` vectors of sums."""

    rows: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Dense:
    """[n, depth] times [depth, columns]."""

    depth: int
    columns: int

    @property
    def multiplies(self) -> int:
        """A row's multiply-adds."""
        return self.depth * self.columns


@dataclass(frozen=True, slots=True)
class Convolution:
    """[n, height, width, channels] (padding included) with a window, to [n, ..., columns].

    ``depthwise``: an output channel has only the input channel of its number, and there are a whole
    number of vectors of them.
    """

    image: tuple[int, int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    columns: int
    depthwise: bool = False

    @property
    def depth(self) -> int:
        """Input values that go into one output value."""
        return self.window[0] * self.window[1] * (1 if self.depthwise else self.image[2])

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = zip(self.image, self.window, self.strides, self.dilation, strict=False)
        high, wide = (
            (size - (window - 1) * dilation - 1) // stride + 1
            for size, window, stride, dilation in sizes
        )
        return high, wide

    @property
    def multiplies(self) -> int:
        """An image's multiply-adds."""
        return self.depth * self.columns * self.out[0] * self.out[1]


Shape = Dense | Convolution


def tiles(columns: int, lanes: int, registers: int) -> list[Tile]:
    """Tiles worth trying, the one to take untried first."""
    found = []
    most = max(1, min(4, -(-columns // lanes)))
    for vectors in sorted({most, min(most, 2), 1}, reverse=True):
        for rows in (4, 8, 6, 12, 2):
            # Fewer sums in flight than this, and each waits for the one before it.
            if 8 <= rows * vectors <= registers - vectors - 2:
                found.append(Tile(rows, vectors))
    return found or [Tile(4, 1)]


def pack(weights: Array, tile: Tile, lanes: int) -> Array:
    """[depth, columns] as panels [panels, depth, width], filled up with zeros."""
    depth, columns = weights.shape
    width = tile.vectors * lanes
    panels = -(-columns // width)
    padded = np.zeros((depth, panels * width), weights.dtype)
    padded[:, :columns] = weights
    return np.ascontiguousarray(padded.reshape(depth, panels, width).transpose(1, 0, 2))


def pack_bias(bias: Array | None, columns: int, tile: Tile, lanes: int, dtype: Any) -> Array:
    """A value for every column of every panel; zeros where there is no bias."""
    width = tile.vectors * lanes
    padded = np.zeros(-(-columns // width) * width, dtype)
    if bias is not None:
        padded[:columns] = bias
    return padded


def kernel(shape: Shape, tile: Tile, lanes: int, dtype: str, *, relu: bool) -> Any:
    """The loop program for ``shape``, as a ``PrimFunc``."""
    return _Writer(shape, tile, lanes, dtype, relu).write()


class _Writer:
    """One kernel in the making. ``self.t`` is TVM's builder, which keeps the place to write at."""

    def __init__(self, shape: Shape, tile: Tile, lanes: int, dtype: str, relu: bool) -> None:
        self.t: Any = importlib.import_module("tvm.tirx.script.builder")
        self.tirx: Any = importlib.import_module("tvm.tirx")
        self.shape, self.tile, self.lanes = shape, tile, lanes
        self.dtype, self.relu = dtype, relu
        self.width = tile.vectors * lanes
        self.panels = -(-shape.columns // self.width)

    def write(self) -> Any:
        t, shape = self.t, self.shape
        builder = importlib.import_module("tvm.script.ir_builder").IRBuilder
        with builder() as made, t.prim_func():
            t.func_name("panels")
            # No other pass may take it apart or merge it (kOpaque).
            t.func_attr({"tirx.noalias": True, "op_pattern": 8, MARK: True})
            handles = [t.arg(name, t.handle()) for name in ("x", "w", "b", "y")]
            n = self.tirx.Var("n", "int64")
            x, y, self.per_image = self._ends(n)
            self.x = t.match_buffer(handles[0], x, self.dtype)
            panel = (self.panels, shape.depth, self.width)
            self.w = t.match_buffer(handles[1], panel, self.dtype)
            self.b = t.match_buffer(handles[2], (self.panels * self.width,), self.dtype)
            self.y = t.match_buffer(handles[3], y, self.dtype)
            self.row_count = n * self.per_image
            self._choose(n)
        return made.get()

    def _ends(self, n: Any) -> tuple[Sequence[Any], Sequence[Any], int]:
        """Shapes of input and output, and the rows that an element of the batch makes."""
        shape = self.shape
        if isinstance(shape, Dense):
            return (n, shape.depth), (n, shape.columns), 1
        return (n, *shape.image), (n, *shape.out, shape.columns), shape.out[0] * shape.out[1]

    def _choose(self, n: Any) -> None:
        """The same loops twice: small work must not wake the other threads."""
        t = self.t
        least = -(-PARALLEL_FROM // self.shape.multiplies)
        if least <= 1:
            self._tasks(t.parallel)
            return
        with t.If(n >= least):
            with t.Then():
                self._tasks(t.parallel)
            with t.Else():
                self._tasks(t.serial)

    def _tasks(self, loop: Callable[[int, Any], Any]) -> None:
        t, chunk = self.t, self.tile.rows * CHUNK_TILES
        chunks = self.tirx.floordiv(self.row_count + (chunk - 1), chunk)
        with loop(0, chunks * self.panels) as task:
            panel = self._kept(self.tirx.floordiv(task, chunks))
            first = self._kept(self.tirx.floormod(task, chunks) * chunk)
            count = self._kept(t.min(self.row_count - first, chunk))
            whole, left = divmod(self.shape.columns, self.width)
            if whole and left:
                with t.If(panel < whole):
                    with t.Then():
                        self._rows(panel, first, count, self.width)
                    with t.Else():
                        self._rows(panel, first, count, left)
            else:
                self._rows(panel, first, count, left or self.width)

    def _rows(self, panel: Any, first: Any, count: Any, columns: int) -> None:
        t, rows = self.t, self.tile.rows
        tall = self.tirx.floordiv(count, rows)
        with t.serial(0, tall) as i:
            self._tile(panel, first + i * rows, rows, columns)
        done, left = self._variable(first + tall * rows), self._variable(count - tall * rows)
        while rows > 1:
            rows = 1 << ((rows - 1).bit_length() - 1)
            with t.If(left[0] >= rows), t.Then():
                self._tile(panel, done[0], rows, columns)
                t.buffer_store(done, done[0] + rows, [0])
                t.buffer_store(left, left[0] - rows, [0])

    def _variable(self, number: Any) -> Any:
        """``number`` in a place of its own, which TVM's arithmetic does not see through.

        It would take minutes to simplify what it saw, and fail for some tiles.
        """
        place = self.t.alloc_buffer((1,), "int64")
        self.t.buffer_store(place, number, [0])
        return place

    def _kept(self, number: Any) -> Any:
        return self._variable(number)[0]

    def _tile(self, panel: Any, first: Any, rows: int, columns: int) -> None:
        """``rows`` rows of ``columns`` columns of a panel: bias, sums, ReLU, store."""
        t, lanes = self.t, self.lanes
        vectors = -(-columns // lanes)
        lane, whole = t.ramp(0, 1, lanes), range(vectors)
        sums = [[t.alloc_buffer((lanes,), self.dtype) for _ in whole] for _ in range(rows)]
        for row in sums:
            for v in whole:
                bias = self.b[t.ramp(panel * self.width + v * lanes, 1, lanes)]
                t.buffer_store(row[v], bias, [lane])
        places = [self._place(first + r) for r in range(rows)]
        self._depth(panel, places, sums)
        for place, row in zip(places, sums, strict=True):
            for v in whole:
                at = panel * self.width + v * lanes
                kept = min(lanes, columns - v * lanes)
                self._store(place, at, kept, row[v])

    def _place(self, row: Any) -> Sequence[Any]:
        """Where a row begins: its element of the batch, and of an image the output's pixel."""
        if isinstance(self.shape, Dense):
            return (row,)
        wide = self.shape.out[1]
        pixel = self.tirx.floormod(row, self.per_image)
        return (
            self._kept(self.tirx.floordiv(row, self.per_image)),
            self._kept(self.tirx.floordiv(pixel, wide)),
            self._kept(self.tirx.floormod(pixel, wide)),
        )

    def _depth(self, panel: Any, places: Sequence[Sequence[Any]], sums: Any) -> None:
        """The loop, or loops, along what is summed up."""
        t, shape = self.t, self.shape
        if isinstance(shape, Dense):
            with t.serial(0, shape.depth) as k:
                self._step(panel, k, [(*place, k) for place in places], sums)
            return
        (down, right), (vertical, horizontal) = shape.strides, shape.dilation
        channels = 1 if shape.depthwise else shape.image[2]
        high, wide = shape.window
        with t.serial(0, high) as i, t.serial(0, wide) as j, t.serial(0, channels) as c:
            k = (i * wide + j) * channels + c
            at = [(n, y * down + i * vertical, x * right + j * horizontal, c) for n, y, x in places]
            self._step(panel, k, at, sums)

    def _step(self, panel: Any, k: Any, at: Sequence[Sequence[Any]], sums: Any) -> None:
        t, lanes = self.t, self.lanes
        lane = t.ramp(0, 1, lanes)
        weights = [self.w[panel, k, t.ramp(v * lanes, 1, lanes)] for v in range(len(sums[0]))]
        apart = isinstance(self.shape, Convolution) and self.shape.depthwise
        for place, row in zip(at, sums, strict=True):
            for v, (total, weight) in enumerate(zip(row, weights, strict=True)):
                if apart:
                    first = panel * self.width + v * lanes
                    value = self.x[(*place[:-1], t.ramp(first, 1, lanes))]
                else:
                    value = t.broadcast(self.x[place], lanes)
                t.buffer_store(total, total[lane] + value * weight, [lane])

    def _store(self, place: Sequence[Any], at: Any, kept: int, total: Any) -> None:
        t, lanes = self.t, self.lanes
        if kept < lanes:
            for i in range(kept):
                value = total[i]
                least = self.tirx.const(0, self.dtype)
                t.buffer_store(
                    self.y, t.max(value, least) if self.relu else value, [*place, at + i]
                )
            return
        value = total[t.ramp(0, 1, lanes)]
        if self.relu:
            value = t.max(value, t.broadcast(self.tirx.const(0, self.dtype), lanes))
        t.buffer_store(self.y, value, [*place, t.ramp(at, 1, lanes)])


__all__ = ["MARK", "Convolution", "Dense", "Shape", "Tile", "kernel", "pack", "pack_bias", "tiles"]
