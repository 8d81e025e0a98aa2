"""Which nodes of a graph a target can run in INT8, and what each of them reads and makes.

A *layer* is such a node. ReLU and Clip directly behind one belong to it: its *result* is theirs.

Knows ONNX's operators and graph. Knows nothing of ranges, of chosen layers, engines or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from penstock.backends.quantize.targets import FUSED, Target

Constants = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LayerNode:
    """``reads`` are the tensors that it takes as integers, constants among them; ``weight`` is its
    constant with a scale for each index of ``axis``; ``result`` is what others see."""

    name: str
    op_type: str
    reads: tuple[str, ...]
    result: str
    weight: str = ""
    axis: int | None = None
    bias: str = ""
    parameters: int = 0


class Graph:
    """A prepared model's graph with what its messages do not say: makers, readers, types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes: Final = list(graph.node)
        self.constants: Constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self.maker = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in graph.output}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}

    def is_activation(self, name: str) -> bool:
        """Whether it is an FP32 tensor that is computed or given, not a constant."""
        return name not in self.constants and self._types.get(name) == TensorProto.FLOAT

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads ``name``, unless others do or it is an output of the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def find_layers(graph: Graph, target: Target) -> tuple[LayerNode, ...]:
    """The layers of ``graph`` in its order."""
    found = []
    for node in graph.nodes:
        if node.domain in ("", "ai.onnx") and node.op_type in target.products | target.others:
            read = _RULES[node.op_type](graph, node, target)
            if read is not None:
                found.append(read)
    return tuple(found)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or ``default`` where the node does not state it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


Rule = Callable[[Graph, NodeProto, Target], LayerNode | None]


def _convolution(graph: Graph, node: NodeProto, target: Target) -> LayerNode | None:
    if node.op_type == "Conv":
        return _product(graph, node, 0)
    # A group of a transposed convolution has channels of its own along the same axis.
    return _product(graph, node, 1 if attribute(node, "group", 1) == 1 else None)


def _gemm(graph: Graph, node: NodeProto, target: Target) -> LayerNode | None:
    plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == 1.0
    if not plain or attribute(node, "beta", 1.0) != 1.0:
        return None
    found = _product(graph, node, 0 if attribute(node, "transB", 0) else 1)
    if found is not None and found.bias:
        weight, bias = graph.constants[found.weight], graph.constants[found.bias]
        if bias.size != weight.shape[found.axis or 0]:
            return None
    return found


def _matmul(graph: Graph, node: NodeProto, target: Target) -> LayerNode | None:
    weight = graph.constants.get(node.input[1])
    return _product(graph, node, 1) if weight is not None and weight.ndim == 2 else None


def _product(graph: Graph, node: NodeProto, axis: int | None) -> LayerNode | None:
    read, weight, bias = (*node.input, "")[:3]
    constants = graph.constants
    if not graph.is_activation(read) or weight not in constants or (bias and bias not in constants):
        return None
    size = constants[weight].size + (constants[bias].size if bias else 0)
    result = _result(graph, node)
    return LayerNode(node.name, node.op_type, (read,), result, weight, axis, bias, size)


def _sum(graph: Graph, node: NodeProto, target: Target) -> LayerNode | None:
    if not target.one_branch:
        return _elementwise(graph, node, target)
    # The branch that a product makes for this sum alone is fused with it; the other one skips.
    fused = [
        maker is not None and maker.op_type in target.products and graph.only_reader(name) is node
        for name, maker in ((name, graph.maker.get(name)) for name in node.input)
    ]
    if not any(fused) or not all(map(graph.is_activation, node.input)):
        return None
    skipping = node.input[1] if fused[0] else node.input[0]
    return LayerNode(node.name, node.op_type, (skipping,), _result(graph, node))


def _elementwise(graph: Graph, node: NodeProto, target: Target) -> LayerNode | None:
    known = all(graph.is_activation(name) or name in graph.constants for name in node.input)
    if not known or not any(map(graph.is_activation, node.input)):
        return None
    return LayerNode(node.name, node.op_type, tuple(node.input), _result(graph, node))


def _result(graph: Graph, node: NodeProto) -> str:
    reader = graph.only_reader(node.output[0])
    fused = reader is not None and reader.op_type in FUSED and reader.input[0] == node.output[0]
    return str(reader.output[0] if reader is not None and fused else node.output[0])


_RULES: Final[Mapping[str, Rule]] = {
    "Add": _sum,
    "AveragePool": _elementwise,
    "Concat": _elementwise,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "GlobalAveragePool": _elementwise,
    "LeakyRelu": _elementwise,
    "MatMul": _matmul,
    "Mul": _elementwise,
    "Sigmoid": _elementwise,
}
