"""The clauses about declarations and about what one run gives back; inputs made up to fit.

Knows the contract only. ``conformance`` and its parts build on these; a broken clause raises
AssertionError with a sentence that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from penstock.backends.base import Session
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array, TensorSpec, wire_array

_FREE: Final = 3
"""Size given to free dimensions behind the first when inputs are made up."""


def made_up(specs: Sequence[TensorSpec], rows: int, seed: int = 0) -> list[Array]:
    """Arrays that fit ``specs``: ``rows`` in a free first dimension; small numbers, repeatable."""
    return [_values(spec, rows, seed + i) for i, spec in enumerate(specs)]


def _values(spec: TensorSpec, rows: int, seed: int) -> Array:
    sizes = [rows if i == 0 else _FREE for i in range(len(spec.shape))]
    shape = [sizes[i] if want == -1 else want for i, want in enumerate(spec.shape)]
    count: Array = (np.arange(int(np.prod(shape))) + seed) % 5
    if spec.dtype is dt.BYTES:
        return wire_array(np.array([f"text {n}" for n in count.tolist()], object).reshape(shape))[1]
    if spec.dtype is dt.BF16:
        return wire_array((count / 4).astype(np.float32).reshape(shape), dt.BF16)[1]
    if spec.dtype.numpy.kind == "f":
        count = count / 4
    return count.astype(spec.dtype.numpy).reshape(shape)


def check_specs(session: Session) -> None:
    """The clauses about ``inputs``, ``outputs`` and ``thread_safe``."""
    assert isinstance(session.thread_safe, bool), "thread_safe must be True or False"
    assert session.outputs, "a session must declare at least one output"
    for kind, specs in (("inputs", session.inputs), ("outputs", session.outputs)):
        assert isinstance(specs, tuple), f"{kind} must be a tuple of TensorSpec"
        names = [spec.name for spec in specs]
        assert all(names), f"{kind} must all have names, but they are {names}"
        assert len(set(names)) == len(names), f"{kind} must have different names, not {names}"
        for spec in specs:
            assert spec.dtype in dt.ALL, f"{spec.name}: {spec.dtype!r} is no element type of ours"
            assert isinstance(spec.shape, tuple), f"{spec.name}: the shape must be a tuple"
            sane = all(type(size) is int and size >= -1 for size in spec.shape)
            assert sane, f"{spec.name}: sizes must be ints of at least -1, not {spec.shape}"


def run_checked(session: Session, inputs: Sequence[Array]) -> list[Array]:
    """One run with every clause about what comes back."""
    return check_outputs(session, session.run(inputs))


def check_outputs(session: Session, returned: Sequence[Array]) -> list[Array]:
    """The clauses about what a run, or one response of a stream, gives back."""
    outputs = list(returned)
    wanted = len(session.outputs)
    assert len(outputs) == wanted, f"run must return {wanted} outputs, it returned {len(outputs)}"
    for spec, array in zip(session.outputs, outputs, strict=True):
        what = f"output {spec.name!r}"
        assert isinstance(array, np.ndarray), f"{what} must be an ndarray, not {type(array)}"
        right = array.dtype == spec.dtype.numpy
        assert right, f"{what} is declared {spec.dtype} but came as {array.dtype}"
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)
        )
        assert fits, f"{what} is declared with shape {spec.shape} but came with {array.shape}"
        assert array.flags.c_contiguous, f"{what} must be C-contiguous"
        assert array.flags.aligned, f"{what} must be aligned"
        if spec.dtype is dt.BYTES:
            only_bytes = all(type(item) is bytes for item in array.reshape(-1).tolist())
            assert only_bytes, f"{what} must hold bytes objects only"
    return outputs


def assert_sentence(text: str, what: str) -> None:
    assert text.strip(), f"{what} must say what is wrong"
    assert "\n" not in text, f"{what} must be one line, not {text!r}"


def assert_like(
    got: Sequence[Array], wanted: Sequence[Array], clause: str, *, exact: bool = False
) -> None:
    assert len(got) == len(wanted), f"{clause}: {len(got)} arrays, not {len(wanted)}"
    for i, (mine, other) in enumerate(zip(got, wanted, strict=True)):
        same = mine.shape == other.shape and mine.dtype == other.dtype
        if same and mine.dtype.kind == "f":
            slack = 0.0 if exact else 1e-3
            same = np.allclose(mine, other, rtol=slack, atol=slack / 10, equal_nan=True)
        elif same:
            same = np.array_equal(mine, other)
        assert same, f"{clause}; array {i} differs"
