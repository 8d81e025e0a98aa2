"""Keeps what a caller sends from making compiled code read, write or divide where it must not.

TVM trusts the numbers in tensors: an index beyond the end is used as it is, so a request could read
the server's memory, write to it or end the process, and so can an integer divided by zero. Knows
TVM's graphs (Relax) and which operators take indices. Knows nothing of targets, kernels and files.

Contract: after ``guarded`` an index out of bounds or a division by zero raises IndexError with
``BEYOND`` or ``BY_ZERO`` when the model runs; what is known when it is compiled costs nothing. An
operator that cannot be held to that is refused with LoadError.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from penstock.backends.base import LoadError
from penstock.backends.tvm.kernels import MARK

BEYOND: Final = "an index is outside of the tensor that it is for"
BY_ZERO: Final = "an integer is divided by zero"

_INDEXED: Final = {
    "relax.take", "relax.gather_elements", "relax.gather_nd",
    "relax.scatter_elements", "relax.scatter_nd",
}  # fmt: skip
_DIVIDING: Final = {"relax.divide", "relax.floor_divide", "relax.mod", "relax.floor_mod"}
_REFUSED: Final = {"relax.vision.roi_align": "RoiAlign", "relax.vision.roi_pool": "MaxRoiPool"}


def guarded(tvm: Any, module: Any, device: str) -> Any:
    """The module with checks before whatever trusts its inputs.

    Raises:
        LoadError: it has an operator that cannot be checked, or not on this device.
    """
    relax = tvm.relax

    @relax.expr_functor.mutator
    class Mutator(relax.expr_functor.PyExprMutator):  # type: ignore[name-defined, misc]
        def visit_call_(self, call: Any) -> Any:
            return _Guard(tvm, self.builder_, device).call(self.visit_expr_post_order(call))

    mutator = Mutator(module)
    for place, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(place, mutator.visit_expr(function))
    return mutator.builder_.get()


class _Guard:
    """Writes the checks of one call to where ``builder`` is."""

    def __init__(self, tvm: Any, builder: Any, device: str) -> None:
        self.tvm, self.relax = tvm, tvm.relax
        self.builder, self.device = builder, device

    def call(self, call: Any) -> Any:
        """What to put in the place of ``call``: itself, mostly."""
        name = str(getattr(call.op, "name", ""))
        if name in _REFUSED:
            raise LoadError(f"{_REFUSED[name]} would read any picture that a caller names")
        if name in _INDEXED:
            return self._indexed(name, call)
        if name in _DIVIDING and self.device == "cpu" and _whole(call.args[1]):
            return self._divided(call)  # GPUs make some number of it, and go on.
        return call

    def _indexed(self, name: str, call: Any) -> Any:
        data, indices, *more = call.args
        axes = list(_axes(name, call))
        if _inside(data, indices, axes):
            return call
        if self.device != "cpu" and name == "relax.take":
            return self.relax.op.take(data, indices, axes[0], mode="clip")
        least = -1 if name == "relax.scatter_elements" else 0  # Others never see any below.
        checked = self._checked(name, indices, data, axes, BEYOND, least)
        return self.relax.Call(call.op, [data, checked, *more], call.attrs)

    def _divided(self, call: Any) -> Any:
        relax, (dividend, divisor) = self.relax, call.args
        known = _constant(divisor)
        if known is not None and known.all() and (known != -1).all():
            return call
        divisor = self._checked("division", divisor, None, [], BY_ZERO)
        dtype = str(divisor.ty.dtype)
        if dtype.startswith("uint"):
            return relax.Call(call.op, [dividend, divisor], call.attrs)
        # The least number by -1 is one too large, for which processors trap as well.
        emit = self.builder.emit
        minus = emit(relax.op.equal(divisor, relax.const(-1, dtype)))
        other = emit(relax.op.where(minus, relax.const(1, dtype), divisor))
        made = emit(relax.Call(call.op, [dividend, other], call.attrs))
        divides = "divide" in str(call.op.name)
        opposite = relax.op.negative(made) if divides else relax.op.zeros_like(made)
        return relax.op.where(minus, emit(opposite), made)

    def _checked(
        self, name: str, numbers: Any, data: Any, axes: Sequence[int], said: str, least: int = 0
    ) -> Any:
        """``numbers`` once more, as long as they are right."""
        if self.device != "cpu":
            raise LoadError(f"{name} cannot be checked on a GPU; compile for a CPU")
        if numbers.ty.shape is None or (data is not None and data.ty.shape is None):
            raise LoadError(f"{name} cannot be checked where a shape is not known")
        made = _check(self.tvm, numbers, data, axes, said, least)
        place = self.builder.add_func(made, "check")
        arguments = [numbers] if data is None else [numbers, data]
        kind = self.relax.TensorType(numbers.ty.shape, str(numbers.ty.dtype))
        return self.builder.emit(self.relax.call_tir(place, arguments, kind))


def _axes(name: str, call: Any) -> Iterator[int]:
    """The dimensions of the data that are indexed; several where an index has several numbers."""
    data, indices = call.args[:2]
    if name == "relax.gather_nd":
        first = int(call.attrs.batch_dims)
        yield from range(first, first + int(indices.ty.shape[-1].value))
    elif name == "relax.scatter_nd":
        yield from range(int(indices.ty.shape[-1].value))
    else:
        axis = getattr(call.attrs, "axis", None)
        yield int(axis if axis is not None else 0) % len(data.ty.shape)


def _inside(data: Any, indices: Any, axes: Sequence[int]) -> bool:
    """Whether it is known now that all indices are in bounds."""
    known = _constant(indices)
    if known is None or data.ty.shape is None:
        return False
    sizes = [int(getattr(data.ty.shape[axis], "value", -1)) for axis in axes]
    return bool((known >= 0).all() and (known < np.array(sizes)).all())


def _whole(expression: Any) -> bool:
    return str(getattr(expression.ty, "dtype", "")).startswith(("int", "uint"))


def _constant(expression: Any) -> Any:
    return expression.value.numpy() if hasattr(expression, "value") else None


def _check(tvm: Any, numbers: Any, data: Any, axes: Sequence[int], said: str, least: int) -> Any:
    """A loop program (numbers[, data], checked numbers): copies them while they are right.

    Indices begin at ``least`` sizes: at -1 those below zero count from the end.
    """
    t, tirx = importlib.import_module("tvm.tirx.script.builder"), tvm.tirx
    builder = importlib.import_module("tvm.script.ir_builder").IRBuilder
    dtype = str(numbers.ty.dtype)

    def sizes(expression: Any, letter: str) -> list[Any]:
        return [
            int(size.value) if hasattr(size, "value") else tirx.Var(f"{letter}{i}", "int64")
            for i, size in enumerate(expression.ty.shape)
        ]

    with builder() as made, t.prim_func():
        t.func_name("check")
        # No other pass may take it apart or merge it (kOpaque).
        t.func_attr({"tirx.noalias": True, "op_pattern": 8, MARK: True})
        names = ("numbers", "checked") if data is None else ("numbers", "data", "checked")
        handles = [t.arg(name, t.handle()) for name in names]
        shape = sizes(numbers, "n")
        given = t.match_buffer(handles[0], shape, dtype)
        limits: list[Any] = []
        if data is not None:
            bounds = sizes(data, "d")
            t.match_buffer(handles[1], bounds, str(data.ty.dtype))
            limits = [bounds[axis] for axis in axes]
        checked = t.match_buffer(handles[-1], shape, dtype)
        several = len(limits) > 1
        outer = shape[:-1] if several else shape
        with contextlib.ExitStack() as loops:
            loops.enter_context(t.sblock("root"))  # A pass that looks for reshapes wants one.
            at = [loops.enter_context(t.serial(0, size)) for size in outer]
            for k, limit in enumerate(limits or [None]):
                place = [*at, k] if several else at
                value = given[place]
                if limit is None:
                    right = value != tirx.const(0, dtype)
                else:
                    whole = value.astype("int64")
                    right = tirx.all(whole >= least * limit, whole < limit)
                    if least:
                        wrapped = (whole + limit).astype(dtype)
                        value = tirx.Select(whole < 0, wrapped, value)
                with t.Assert(right, said, "IndexError"):
                    t.buffer_store(checked, value, place)
    return made.get()


__all__ = ["BEYOND", "BY_ZERO", "guarded"]
