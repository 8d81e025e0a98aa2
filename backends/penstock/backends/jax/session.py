"""One exported JAX function, compiled by XLA for the shapes that come.

Knows ``jax.export.Exported`` and JAX's compiled programs; the module is handed in. Must not know
files or how JAX is set up.

Contract, beyond ``base``: sessions are ``thread_safe``. XLA makes a program for every shape, which
takes from a tenth of a second to minutes; so batches are filled up with zeros to powers of two
where rows do not influence each other, which is tried at load, and the ``PROGRAMS_MAX`` programs
used last are kept. BF16 travels as ``uint16`` bits. Outputs are read-only.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.batchable import supports_batching
from penstock.backends.checks import flag, refusal
from penstock.backends.loading import one_line
from penstock.backends.naming import labels, named
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec

OPTIONS: Final = frozenset({"pad_rows", "precompile"})
PROGRAMS_MAX: Final = 64
_WIDE: Final = frozenset({dt.INT64, dt.UINT64, dt.FP64})
_LIKE: Final = 1e-3
"""How far a row may be from itself in another batch, relative and absolute."""


class JaxSession:
    """``exported`` on ``device``.

    ``symbols`` has for every input, then every output, the name of its first dimension.
    """

    thread_safe = True

    def __init__(self, jax: Any, exported: Any, source: ModelSource, device: Any) -> None:
        inputs, outputs = _labels(jax.tree_util, exported)
        self.inputs = named(_specs(inputs, exported.in_avals), source.inputs, "input")
        self.outputs = named(_specs(outputs, exported.out_avals), source.outputs, "output")
        self.symbols = tuple(_symbol(aval) for aval in (*exported.in_avals, *exported.out_avals))
        self._types = [np.dtype(aval.dtype) for aval in exported.in_avals]
        self._wide = any(spec.dtype in _WIDE for spec in (*self.inputs, *self.outputs))
        self._jax = jax
        self._jitted = _flat(jax, exported, device)
        self._compiling = threading.Lock()
        keeping = functools.lru_cache(PROGRAMS_MAX)
        self._program: Callable[[tuple[tuple[int, ...], ...]], Any] = keeping(self._compile)
        self._rows_max = source.rows_max
        self._pads = False
        self._prepare(source)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See ``Session.run``."""
        refused = refusal(self.inputs, inputs)
        if refused:
            raise RunError(refused, caller_fault=True)
        given = [a if a.dtype == t else a.view(t) for a, t in zip(inputs, self._types, strict=True)]
        if not self._pads:
            return self._outputs(given)
        rows = {len(array) for array in given}
        if len(rows) > 1:
            raise RunError(f"inputs have different numbers of rows: {rows}", caller_fault=True)
        wanted = rows.pop()
        bucket = self._bucket(wanted)
        if bucket == wanted:
            return self._outputs(given)
        return [array[:wanted] for array in self._outputs([_padded(a, bucket) for a in given])]

    def close(self) -> None:
        """See ``Session.close``."""
        if self._program is not _closed:
            self._program = self._jitted = _closed
            # What JAX remembers of how functions were traced outlives them. Programs of other
            # sessions are compiled, and do without.
            self._jax.clear_caches()

    def _outputs(self, given: Sequence[Array]) -> list[Array]:
        # Without it JAX would make 32 bits of 64, at compiling and at each run.
        with self._jax.enable_x64(True) if self._wide else contextlib.nullcontext():
            program = self._program(tuple(array.shape for array in given))
            try:
                made = [np.asarray(array) for array in program(*given)]
            except Exception as error:
                raise RunError(one_line(error)) from error
        return [_own(array, given) for array in made]

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        structs = [
            self._jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in zip(shapes, self._types, strict=True)
        ]
        with self._compiling:
            try:
                return self._jitted.lower(*structs).compile()
            except (TypeError, ValueError) as error:  # sizes that do not go with each other
                raise RunError(one_line(error), caller_fault=True) from error
            except Exception as error:
                raise RunError(one_line(error)) from error

    def _bucket(self, rows: int) -> int:
        """The number of rows to run ``rows`` as: a power of two, or the largest batch."""
        if rows == 0:
            return 0
        power = 1 << (rows - 1).bit_length()
        return self._rows_max if rows <= self._rows_max < power else power

    def _prepare(self, source: ModelSource) -> None:
        """Finds out whether rows may be added, and compiles for the batches that may come.

        Raises:
            LoadError: an option's value; or the function cannot be compiled or run here.
        """
        pads = flag("pad_rows", source.options.get("pad_rows", "1"))
        ahead = flag("precompile", source.options.get("precompile", "1"))
        known = not any(-1 in spec.shape[1:] for spec in self.inputs)
        if not known:
            return  # which sizes may come, nobody can tell: a program for each that does
        try:
            self._pads = pads and supports_batching(self) and self._rows_are_independent()
            if ahead:
                for rows in self._sizes():
                    self._outputs(_made_up(self.inputs, self._types, rows))
        except RunError as error:
            raise LoadError(f"{source.name}: cannot run it here: {error}") from error

    def _sizes(self) -> list[int]:
        """Numbers of rows to compile for, as far as they can be foreseen."""
        if self._pads:
            return sorted({self._bucket(rows) for rows in range(1, self._rows_max + 1)})
        return [] if any(spec.shape[:1] == (-1,) for spec in self.inputs) else [1]

    def _rows_are_independent(self) -> bool:
        """Whether a row gives the same alone and beside another, or a row of zeros."""
        pair = _made_up(self.inputs, self._types, 2)
        alone = self._outputs([array[:1] for array in pair])
        for others in (pair, [_padded(array[:1], 2) for array in pair]):
            beside = self._outputs(others)
            for spec, one, two in zip(self.outputs, alone, beside, strict=True):
                if not _alike(spec, one, two[:1]):
                    return False
        return True


def _flat(jax: Any, exported: Any, device: Any) -> Any:
    """The function from arrays to arrays, without the containers that it was written with."""
    tree, here = jax.tree_util, jax.sharding.SingleDeviceSharding(device)

    def flat(*leaves: Any) -> Any:
        args, kwargs = tree.tree_unflatten(exported.in_tree, leaves)
        return tree.tree_leaves(exported.call(*args, **kwargs))

    return jax.jit(flat, in_shardings=here, out_shardings=here)


def _labels(tree: Any, exported: Any) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs, from where they stand in arguments and results."""

    def paths(structure: Any, leaves: Any) -> list[Any]:
        found = tree.tree_flatten_with_path(tree.tree_unflatten(structure, list(leaves)))[0]
        return [path for path, _ in found]

    # The first step is 0 for what is passed by position and 1 for what is passed by name.
    inputs = [path[1:] for path in paths(exported.in_tree, exported.in_avals)]
    if len({str(path[0]) for path in inputs}) == 1:
        inputs = [path[1:] or path for path in inputs]  # one argument: its parts' names will do
    return labels(inputs, "input"), labels(paths(exported.out_tree, exported.out_avals), "output")


def _specs(names: Sequence[str], avals: Sequence[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, aval in zip(names, avals, strict=True):
        try:
            dtype = dt.of_numpy(np.dtype(aval.dtype))
        except TypeError as error:
            raise LoadError(
                f"tensor {name!r} is {aval.dtype}, which no request can carry"
            ) from error
        shape = tuple(size if isinstance(size, int) else -1 for size in aval.shape)
        specs.append(TensorSpec(name, dtype, shape))
    return tuple(specs)


def _symbol(aval: Any) -> str | None:
    first = aval.shape[0] if aval.shape else None
    return None if first is None or isinstance(first, int) else str(first)


def _made_up(specs: Sequence[TensorSpec], types: Sequence[Any], rows: int) -> list[Array]:
    random = np.random.default_rng(0)
    return [
        random.uniform(0, 2, [rows if size == -1 else size for size in spec.shape]).astype(dtype)
        for spec, dtype in zip(specs, types, strict=True)
    ]


def _padded(array: Array, rows: int) -> Array:
    filled = np.zeros((rows, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def _alike(spec: TensorSpec, one: Array, other: Array) -> bool:
    if spec.dtype is dt.BF16:
        one, other = (a.astype(np.uint32).__lshift__(16).view(np.float32) for a in (one, other))
    return one.shape == other.shape and np.allclose(
        one.astype(np.float64), other.astype(np.float64), rtol=_LIKE, atol=_LIKE, equal_nan=True
    )


def _own(array: Array, given: Sequence[Array]) -> Array:
    """As an array of the contract: never an input that only passed through."""
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    if any(np.may_share_memory(array, other) for other in given):
        return array.copy()
    return np.ascontiguousarray(array) if array.ndim else array


def _closed(_: object) -> Any:
    raise RunError("the session is closed")


__all__ = ["OPTIONS", "PROGRAMS_MAX", "JaxSession"]
