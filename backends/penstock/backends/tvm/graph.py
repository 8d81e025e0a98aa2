"""Turns an ONNX graph into a TVM module in which the heavy layers are kernels of our own.

Knows TVM's graphs (Relax) and schedules. Knows nothing of files, targets' names and serving. TVM
with its compiler must be installed; it is passed in, so that this module imports without it.

The way: convolutions get the layout in which channels lie side by side; a dense layer or a
convolution with constant weights, with the bias and ReLU behind it, becomes one call of a kernel
(``kernels``) whose weights are packed now; everything else is lowered by TVM, what is
elementwise is merged into its neighbours, and windows (pooling, depthwise convolutions) are turned
so that the innermost loop runs along the channels.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from penstock.backends.tvm.kernels import (
    MARK,
    Convolution,
    Dense,
    Shape,
    Tile,
    kernel,
    pack,
    pack_bias,
)
from penstock.protocol.message import Array

KINDS: Final = ("float32", "float64")
"""Element types that kernels compute in."""

_HEAVY: Final = {"dense": "relax.matmul", "conv": "relax.nn.conv2d"}

Choice = Callable[[Shape, str], Tile]
"""Which tile a layer gets, by its shape and element type."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vector registers of a target."""

    nbytes: int
    registers: int

    def lanes(self, dtype: str) -> int:
        return max(2, self.nbytes // np.dtype(dtype).itemsize)


def simplified(tvm: Any, module: Any) -> Any:
    """Batch normalisation taken apart, constants computed, channels last."""
    relax = tvm.relax.transform
    many = tvm.transform.Sequential
    module = many([relax.DecomposeOpsForInference(), relax.FoldConstant()])(module)
    if has(tvm, module, _named("relax.nn.conv2d")):
        turn = relax.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})
        # Some graphs it cannot turn, as with a sum of five dimensions; they stay as they are.
        with contextlib.suppress(tvm.error.InternalError):
            module = many([turn, relax.Normalize(), relax.FoldConstant()])(module)
    return relax.DeadCodeElimination()(module)


def marked(tvm: Any, module: Any, vectors: Vectors) -> Any:
    """Each layer that a kernel can do as a function of its own, by the name of its kind."""
    dpl = tvm.relax.dpl
    can = functools.partial(_can, vectors)
    patterns = []
    for kind, name in _HEAVY.items():
        bias = dpl.is_const()
        layer = dpl.is_op(name)(dpl.wildcard(), dpl.is_const())
        biased = dpl.is_op("relax.add")(layer, bias)
        plain, more = {"layer": layer}, {"layer": layer, "bias": bias}
        patterns += [
            (f"{kind}.relu", dpl.is_op("relax.nn.relu")(biased), more, can),
            (kind, biased, more, can),
            (f"{kind}.relu", dpl.is_op("relax.nn.relu")(layer), plain, can),
            (kind, layer, plain, can),
        ]
    return tvm.relax.transform.FuseOpsByPattern(patterns, bind_constants=True)(module)


def layers(tvm: Any, module: Any) -> Iterator[tuple[Shape, str]]:
    """The shape and element type of every marked layer."""
    for function in module.functions.values():
        if isinstance(function, tvm.relax.Function) and _kind(function):
            layer = _Layer(tvm, function)
            yield layer.shape, layer.dtype


def with_kernels(tvm: Any, module: Any, vectors: Vectors, choice: Choice) -> Any:
    """Calls of marked layers as calls of kernels with packed weights."""
    relax = tvm.relax

    @relax.expr_functor.mutator
    class Rewriter(relax.expr_functor.PyExprMutator):  # type: ignore[name-defined, misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if not isinstance(call.op, tvm.ir.GlobalVar):
                return call
            function = module[call.op]
            if not (isinstance(function, relax.Function) and _kind(function)):
                return call
            layer = _Layer(tvm, function)
            tile, lanes = choice(layer.shape, layer.dtype), vectors.lanes(layer.dtype)
            made = kernel(layer.shape, tile, lanes, layer.dtype, relu=layer.relu)
            made = made.without_attr("global_symbol")  # One is found for each when it is added.
            name = self.builder_.add_func(made, f"{layer.kind}_kernel")
            weights = pack(layer.weights, tile, lanes)
            bias = pack_bias(layer.bias, layer.shape.columns, tile, lanes, layer.dtype)
            return layer.call(self.builder_, name, call.args[0], (weights, bias))

    rewriter = Rewriter(module)
    for name, function in module.functions_items():
        if isinstance(function, relax.Function) and not _kind(function):
            rewriter.builder_.update_func(name, rewriter.visit_expr(function))
    return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


def lowered(tvm: Any, module: Any) -> Any:
    """Everything as loops, elementwise ones merged into what makes or takes their values."""
    relax = tvm.relax.transform
    passes = [
        relax.LegalizeOps(),
        relax.AnnotateTIROpPattern(),
        relax.FoldConstant(),
        relax.FuseOps(),
        relax.FuseTIR(),
        relax.DeadCodeElimination(),
    ]
    module = tvm.transform.Sequential(passes)(module)
    for name, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and not _ours(function):
            module[name] = _scheduled(tvm, function)
    return module


class _Layer:
    """A marked function, read: what it computes, and its constants."""

    def __init__(self, tvm: Any, function: Any) -> None:
        self._relax = tvm.relax
        self.kind, _, relu = _kind(function).partition(".")
        self.relu = bool(relu)
        calls = {str(b.value.op.name): b.value for b in function.body.blocks[0].bindings}
        heavy = calls[_HEAVY[self.kind]]
        weights = heavy.args[1].value.numpy()
        self.dtype = str(weights.dtype)
        self.padding = (0, 0, 0, 0)
        self.shape: Shape
        if self.kind == "dense":
            self.weights, self.shape = weights, Dense(*weights.shape)
        else:
            self.weights, self.shape = self._convolution(heavy, weights)
        self.bias: Array | None = None
        if "relax.add" in calls:
            (bias,) = (side for side in calls["relax.add"].args if hasattr(side, "value"))
            self.bias = np.broadcast_to(bias.value.numpy().reshape(-1), (self.shape.columns,))

    def _convolution(self, call: Any, weights: Array) -> tuple[Array, Convolution]:
        top, left, bottom, right = (int(p) for p in call.attrs.padding)
        self.padding = top, left, bottom, right
        high, wide, channels = _known(call.args[0])[1:]
        out, *window, _ = weights.shape
        depthwise = int(call.attrs.groups) > 1
        shape = Convolution(
            (high + top + bottom, wide + left + right, channels),
            (window[0], window[1]),
            _pair(call.attrs.strides),
            _pair(call.attrs.dilation),
            out,
            depthwise,
        )
        return weights.transpose(1, 2, 3, 0).reshape(-1, out), shape

    def call(self, builder: Any, name: Any, given: Any, constants: tuple[Array, Array]) -> Any:
        """The kernel's call; the input padded, or its leading dimensions made one, before it."""
        relax = self._relax
        dims = list(given.ty.shape)
        out = [*dims[:-1], self.shape.columns]
        if isinstance(self.shape, Convolution):
            top, left, bottom, right = self.padding
            if any(self.padding):
                widths = [0, 0, top, bottom, left, right, 0, 0]
                given = builder.emit(relax.op.nn.pad(given, widths))
            out = [dims[0], *self.shape.out, self.shape.columns]
        elif len(dims) != 2:
            rows = math.prod(dims[:-1])
            given = builder.emit(relax.op.reshape(given, (rows, dims[-1])))
        flat = out if self.kind == "conv" else [math.prod(out[:-1]), out[-1]]
        arguments = [given, *(relax.const(array, self.dtype) for array in constants)]
        made = relax.call_tir(name, arguments, relax.TensorType(flat, self.dtype))
        if len(flat) != len(out):
            made = relax.op.reshape(builder.emit(made), out)
        return made


def _can(vectors: Vectors, context: Any) -> bool:
    """Whether a kernel can do the layer of a match."""
    within = set(context.matched_bindings)
    between = [v for v, made in context.matched_bindings.items() if made != context.matched_expr]
    if any(user not in within for v in between for user in context.var_usages[v]):
        return False  # A kernel gives the last value only, and others want one before it.
    found = {str(name): expr for name, expr in context.annotated_expr.items()}
    layer = found["layer"]
    given, weights = layer.args
    dtype = str(weights.ty.dtype)
    if dtype not in KINDS or str(given.ty.dtype) != dtype:
        return False
    sizes, inner = _known(given), _known(weights)
    columns = inner[-1]
    if str(layer.op.name) == _HEAVY["dense"]:
        if len(inner) != 2 or len(sizes) < 2 or sizes[-1] != inner[0]:
            return False
    else:
        attributes = layer.attrs
        columns = inner[0]
        layouts = (str(attributes.data_layout), str(attributes.kernel_layout))
        if layouts != ("NHWC", "OHWI") or -1 in sizes[1:]:
            return False
        # Each channel by itself, and no part of a vector: what kernels can do of groups.
        alone = attributes.groups == columns == sizes[3] and columns % vectors.lanes(dtype) == 0
        if attributes.groups != 1 and not alone:
            return False
    # An empty product has no loop to write. A bias of other shape is no bias of columns; one of
    # more dimensions gives them to the sum.
    bias = _known(found["bias"]) if "bias" in found else (1,)
    plain = math.prod(bias) == 1 or math.prod(bias) == columns == bias[-1]
    return 0 not in inner and plain and len(bias) <= len(sizes)


def _pair(numbers: Any) -> tuple[int, int]:
    one, other = numbers
    return int(one), int(other)


def _known(expression: Any) -> tuple[int, ...]:
    """The sizes of a tensor; -1 for those that are known when it runs."""
    return tuple(int(d.value) if hasattr(d, "value") else -1 for d in expression.ty.shape)


def _kind(function: Any) -> str:
    attributes = function.attrs
    return str(attributes["Composite"]) if attributes and "Composite" in attributes else ""


def _ours(function: Any) -> bool:
    return bool(function.attrs) and MARK in function.attrs


def has(tvm: Any, module: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether an expression of the module is wanted."""
    found = False

    def look(expression: Any) -> None:
        nonlocal found
        found = found or wanted(expression)

    for function in module.functions.values():
        if isinstance(function, tvm.relax.Function):
            tvm.relax.analysis.post_order_visit(function, look)
    return found


def _named(operator: str) -> Callable[[Any], bool]:
    return lambda expression: str(getattr(getattr(expression, "op", None), "name", "")) == operator


def _scheduled(tvm: Any, function: Any) -> Any:
    """Loops merged and turned where that is possible; where it is not, they stay as they are."""
    schedule = tvm.s_tir.Schedule(function)
    dlight = tvm.s_tir.dlight
    blocks = dlight.analysis.normalize_prim_func(schedule)
    if blocks is None:
        return function
    left = []
    for block in blocks:
        # A window of one pixel seems elementwise, and would lose all but its first value.
        try:
            if schedule.get(block.block_rv).init is not None:
                left.append(block.block_rv)
            else:
                schedule.compute_inline(block.block_rv)
        except tvm.s_tir.schedule.ScheduleError:
            left.append(block.block_rv)
    try:
        for block in left:
            _turn(tvm, schedule, block)
    except tvm.s_tir.schedule.ScheduleError:
        return function
    return schedule.mod["main"].with_attrs(function.attrs)


def _turn(tvm: Any, schedule: Any, block: Any) -> None:
    """A window's loops outside that over the channels, which LLVM then makes vectors of."""
    statement, loops = schedule.get(block), schedule.get_loops(block)
    kinds = [i.iter_type for i in statement.iter_vars]
    reduce = tvm.tirx.IterVar.CommReduce
    if len(kinds) != len(loops) or reduce not in kinds or not statement.reads:
        return
    inner = [i for i, kind in enumerate(kinds) if kind != reduce][-1:]
    last = statement.reads[0].region[-1].min
    if not inner or not last.same_as(statement.iter_vars[inner[0]].var):
        return
    sums = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == reduce]
    schedule.reorder(*sums, loops[inner[0]])
    schedule.decompose_reduction(block, sums[0])


__all__ = ["Vectors", "has", "layers", "lowered", "marked", "simplified", "with_kernels"]
