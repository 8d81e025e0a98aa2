"""SmoothQuant: moves the outliers of activations into the weights that they are multiplied with.

Source: G. Xiao et al., "SmoothQuant", ICML 2023. Where channel j of X is divided by s_j and row j
of W multiplied by it, X W stays what it is; with ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``
both are about equally hard to hold in 8 bits. One scale for all of X then no longer has to serve a
channel a hundred times as large as the others, as those after LayerNormalization often are.

Knows ``onnx`` graphs: MatMul and Gemm with a constant on the right. Knows nothing of integers. The
division goes into whatever makes X where that is possible (LayerNormalization, a product before it,
through ReLU); only where it is not, a Mul is put in, which costs time. The result is a float model
that computes the same, to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

Floats = NDArray[np.float32]

FACTOR_MAX: Final = 1e4
"""No channel is made larger or smaller by more: weights shall not become outliers themselves."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """A tensor that was smoothed.

    ``products`` are the nodes whose weights took the factors up; ``folded_into`` is the node that
    divides now, None if a Mul was put in; ``factor_max`` is the largest divisor.
    """

    tensor: str
    products: tuple[str, ...]
    folded_into: str | None
    factor_max: float


def smoothable(model: ModelProto) -> dict[str, int]:
    """Tensors that can be smoothed, each with its channel axis: for ``CalibrationSettings``."""
    return dict.fromkeys(_Graph(model.graph).products, -1)


def smoothed(
    model: ModelProto,
    maxima: Mapping[str, NDArray[np.float32]],
    *,
    alpha: float = 0.5,
    insert: bool = True,
) -> tuple[ModelProto, tuple[Smoothing, ...]]:
    """A smoothed copy of ``model``, and what was done.

    Args:
        maxima: the largest magnitude of every channel, as ``collect`` finds them for ``smoothable``
            tensors; those without stay as they are.
        alpha: how much of the difficulty goes to the weights, from 0 to 1.
        insert: put in a Mul where nothing can take the division up; else leave such tensors.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 to 1")
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = _Graph(copy.graph)
    done = []
    for tensor, products in graph.products.items():
        if tensor not in maxima:
            continue
        factors = _factors(maxima[tensor], [graph.rows_of(node) for node in products], alpha)
        if factors is None:
            continue
        chain = graph.makers(tensor, factors.size)
        if not chain and not insert:
            continue
        names = tuple(node.name or node.output[0] for node in products)
        for node in products:
            graph.multiply(node, 1, factors, graph.row_axis(node))
        if chain:
            graph.fold(chain, factors)
        else:
            graph.put_in(tensor, products, factors)
        folded = (chain[0].name or chain[0].output[0]) if chain else None
        done.append(Smoothing(tensor, names, folded, float(factors.max())))
    graph.sweep()
    onnx.checker.check_model(copy)
    return copy, tuple(done)


def _factors(maxima: Floats, weights: list[Floats], alpha: float) -> Floats | None:
    """What to divide each channel by; None if the numbers of channels differ."""
    if any(len(weight) != maxima.size for weight in weights):
        return None
    tops = np.max([np.abs(weight).max(axis=1, initial=0) for weight in weights], axis=0)
    known = (maxima > 0) & (tops > 0)
    ratio = np.ones(maxima.size)
    np.divide(
        maxima.astype(np.float64) ** alpha,
        tops.astype(np.float64) ** (1 - alpha),
        out=ratio,
        where=known,
    )
    return np.clip(ratio, 1 / FACTOR_MAX, FACTOR_MAX).astype(np.float32)


class _Graph:
    """A graph with who makes and who reads each tensor, and its FP32 constants."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self._maker = {name: node for node in graph.node for name in node.output if name}
        self._reads = Counter(_read(graph))
        self._reads.update(value.name for value in graph.output)
        self.products: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            if self._is_product(node) and node.input[0] not in self._constants:
                self.products.setdefault(node.input[0], []).append(node)

    def _is_product(self, node: NodeProto) -> bool:
        if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
            return False
        weight = self._constants.get(node.input[1])
        return weight is not None and len(weight.dims) == 2 and not _flag(node, "transA")

    def row_axis(self, node: NodeProto) -> int:
        """Of a product's weights: the axis that goes with X's channels."""
        return 1 if node.op_type == "Gemm" and _flag(node, "transB") else 0

    def rows_of(self, node: NodeProto) -> Floats:
        """A product's weights, a row for each channel of X."""
        weight = numpy_helper.to_array(self._constants[node.input[1]])
        return weight.T if self.row_axis(node) else weight

    def multiply(self, node: NodeProto, at: int, factors: Floats, axis: int) -> None:
        """Gives ``node`` a constant of its own: that at input ``at``, times ``factors``."""
        name = node.input[at]
        array = numpy_helper.to_array(self._constants[name])
        shape = [1] * array.ndim
        shape[axis] = -1
        node.input[at] = self._constant(f"{name}.smooth", array * factors.reshape(shape))

    def makers(self, tensor: str, channels: int) -> list[NodeProto]:
        """The nodes that can take the division of ``tensor`` up, the first that has constants to
        change first; empty if there are none."""
        chain: list[NodeProto] = []
        readers = len(self.products[tensor])
        while (node := self._maker.get(tensor)) is not None and self._reads[tensor] == readers:
            constants = _SCALED.get(node.op_type)
            chain.insert(0, node)
            if node.op_type == "Relu":
                tensor, readers = node.input[0], 1
            elif node.op_type == "Add" and (at := self._bias_at(node, channels)) is not None:
                tensor, readers = node.input[1 - at], 1
            elif constants is not None and self._has_constants(node, constants, channels):
                return chain
            else:
                break
        return []

    def _bias_at(self, node: NodeProto, channels: int) -> int | None:
        return next((at for at in (0, 1) if self._dims(node.input[at]) == [channels]), None)

    def _has_constants(self, node: NodeProto, at: tuple[int, ...], channels: int) -> bool:
        """Whether all are constants that have the channels on their last axis (a Gemm's on the
        first with ``transB``)."""
        if node.op_type in ("MatMul", "Gemm"):
            if not self._is_product(node):
                return False
            weight = self._dims(node.input[1]) or []
            rest = [name for name in node.input[2:] if name]
            fits = weight[1 - self.row_axis(node)] == channels
            return fits and all(self._dims(name) == [channels] for name in rest)
        last = _number(node, "axis", -1) == -1
        names = [node.input[i] for i in at if i < len(node.input) and node.input[i]]
        return last and all(self._dims(name) == [channels] for name in names)

    def _dims(self, name: str) -> list[int] | None:
        found = self._constants.get(name)
        return None if found is None else list(found.dims)

    def fold(self, chain: list[NodeProto], factors: Floats) -> None:
        """Divides what the last of ``chain`` makes, by changing the constants of all of them."""
        inverse = np.float32(1) / factors
        for node in chain:
            if node.op_type == "Add":
                at = self._bias_at(node, factors.size)
                self.multiply(node, 0 if at == 0 else 1, inverse, 0)
            elif node.op_type != "Relu":
                for at in _SCALED[node.op_type]:
                    if at < len(node.input) and node.input[at]:
                        axis = -1 if at != 1 or not self.row_axis(node) else 0
                        self.multiply(node, at, inverse, axis)

    def put_in(self, tensor: str, products: list[NodeProto], factors: Floats) -> None:
        """A Mul between ``tensor`` and ``products``."""
        made = f"{tensor}.smooth"
        factor = self._constant(f"{tensor}.smooth_factors", np.float32(1) / factors)
        node = helper.make_node("Mul", [tensor, factor], [made], name=made)
        for product in products:
            product.input[0] = made
        nodes = list(self._graph.node)
        first = min(i for i, other in enumerate(nodes) if made in other.input)
        self._graph.node.insert(first, node)

    def _constant(self, name: str, array: Floats) -> str:
        taken = {*self._constants, *self._maker, *self._reads}
        unused = next(n for n in _numbered(name) if n not in taken)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array, np.float32), unused)
        self._graph.initializer.append(tensor)
        self._constants[unused] = self._graph.initializer[-1]
        return unused

    def sweep(self) -> None:
        """Takes constants out that nobody reads any more."""
        read = {*_read(self._graph), *(value.name for value in self._graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


_SCALED: Final[Mapping[str, tuple[int, ...]]] = {
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (1,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
}
"""Operators whose result is scaled by scaling these inputs."""


def _read(graph: GraphProto) -> Iterator[str]:
    """Every name read by a node, those of inner graphs included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _read(attribute.g)
                yield from (value.name for value in attribute.g.output)
            for inner in attribute.graphs:
                yield from _read(inner)


def _number(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _flag(node: NodeProto, name: str) -> bool:
    return bool(_number(node, name, 0))


def _numbered(name: str) -> Iterator[str]:
    yield name
    count = 2
    while True:
        yield f"{name}{count}"
        count += 1


def outlier_ratio(maxima: NDArray[Any]) -> float:
    """How much larger the largest channel is than the median one; 1 where nothing is known."""
    middle = float(np.median(maxima)) if maxima.size else 0.0
    return float(maxima.max()) / middle if middle else 1.0
