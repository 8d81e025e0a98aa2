"""Puts Q/DQ pairs into a graph: the INT8 model for any choice of its layers.

``Plan`` holds what is the same for every choice; ``Plan.build`` makes the model for one choice in
milliseconds, so that a search may try many. Layers that are not chosen see plain FP32.

The rules. A tensor gets a pair where an INT8 layer reads it, and where one makes it that has to
give integers. In the latter case everybody reads behind the pair, for the real numbers are never
there; otherwise only INT8 layers do. What merely moves values stays in integers, with the scale of
what it moves. Weights have a scale for each output channel; an INT32 bias has the product of the
input's and the weight's.

Knows ONNX's graph and number formats. Knows nothing of engines, data, accuracy or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from penstock.backends.quantize.affine import (
    S8_MAX,
    Affine,
    quantized,
    quantized_weights,
    weight_scales,
)
from penstock.backends.quantize.errors import ModelError
from penstock.backends.quantize.layers import Graph, LayerNode, find_layers
from penstock.backends.quantize.ranges import Range
from penstock.backends.quantize.targets import FUSED, PASSING, Target

S7_MAX: Final = 63
"""Of weights with reduced range: two products of a 7-bit weight and an 8-bit activation fit 16
bits, in which x86 without VNNI adds them up."""
BIAS_MAX: Final = 2**30
"""Half of INT32, so that a bias leaves room for the sum that it is added to."""


class Plan:
    """The layers of a prepared model that ``target`` can run in INT8.

    Raises ModelError if there is none.
    """

    def __init__(
        self, model: onnx.ModelProto, target: Target, *, reduce_range: bool = False
    ) -> None:
        self.target = target
        self.graph = Graph(model)
        self.layers: Final = find_layers(self.graph, target)
        if not any(layer.weight for layer in self.layers):
            raise ModelError(
                f"target {target.name!r} can run none of the model's operators in INT8: it needs "
                f"{', '.join(sorted(target.products))} with constant FP32 weights"
            )
        if not target.foreign:
            _refuse_foreign(model, target)
        self.mark: Final = _mark(self.graph)
        self.by_name: Final = {layer.name: layer for layer in self.layers}
        self._steps = S7_MAX if reduce_range else S8_MAX
        self._weights: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]] = {}

    @property
    def tensors(self) -> tuple[str, ...]:
        """The activations whose ranges ``build`` may ask for."""
        names = {name: None for layer in self.layers for name in (*layer.reads, layer.result)}
        return tuple(name for name in names if name not in self.graph.constants)

    def worth(self, chosen: Set[str]) -> frozenset[str]:
        """``chosen`` without what would be slower in INT8 than in FP32.

        A sum or a pooling pays only where integers reach it anyway.
        """
        made: set[str] = set()
        kept: set[str] = set()
        for node in self.graph.nodes:
            layer = self.by_name.get(node.name)
            if layer is None:
                if self.passes(node, made):
                    made.add(node.output[0])
            elif layer.name in chosen and (
                layer.weight or not self.target.chains or made.intersection(layer.reads)
            ):
                kept.add(layer.name)
                if layer.op_type in self.target.integer_out:
                    made.add(layer.result)
        return frozenset(kept)

    def build(self, chosen: Set[str], ranges: Mapping[str, Range]) -> onnx.ModelProto:
        """The model with the layers named in ``chosen`` in INT8 and all others as they were.

        Raises:
            ModelError: ``ranges`` lacks a tensor.
        """
        return _Build(self, chosen, ranges).model()

    def affines(self, chosen: Set[str], ranges: Mapping[str, Range]) -> dict[str, Affine]:
        """The activations that are integers where ``chosen`` are, and how."""
        build = _Build(self, chosen, ranges)
        build.model()
        return {**build.made, **build.beside}

    def integers(self, layer: LayerNode) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """A layer's weight as integers, and their scales; worked out once."""
        found = self._weights.get(layer.name)
        if found is None:
            weight = self.graph.constants[layer.weight]
            scales = self.scales(layer)
            found = quantized_weights(weight, scales, layer.axis), scales
            self._weights[layer.name] = found
        return found

    def scales(self, layer: LayerNode) -> NDArray[np.float32]:
        """One for each output channel of the layer's weight, a scalar where it has no axis."""
        found = weight_scales(self.graph.constants[layer.weight], layer.axis)
        scales = found * np.float32(S8_MAX / self._steps)
        return scales if layer.axis is not None else scales.reshape(())

    def passes(self, node: NodeProto, made: Set[str] | Mapping[str, Affine]) -> bool:
        """Whether ``node`` moves integers on, given the tensors that are integers."""
        return self.target.chains and node.op_type in PASSING and node.input[0] in made


class _Build:
    """The nodes and constants of one model, in the making."""

    def __init__(self, plan: Plan, chosen: Set[str], ranges: Mapping[str, Range]) -> None:
        self._plan = plan
        self._chosen = [layer for layer in plan.layers if layer.name in chosen]
        self._layer_of = {layer.name: layer for layer in self._chosen}
        self._ranges = ranges
        self.made: dict[str, Affine] = {}
        self.beside: dict[str, Affine] = {}
        self._find_made()
        chains = plan.target.chains
        self._loose = {x.result for x in self._chosen if chains and x.result not in self.made}
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        source = self._plan.graph.model
        for node in self._plan.graph.nodes:
            self._add(node)
        used = set(_read(self._nodes))
        used.update(output.name for output in source.graph.output)
        kept = [tensor for tensor in source.graph.initializer if tensor.name in used]
        graph = helper.make_graph(
            self._nodes,
            source.graph.name,
            source.graph.input,
            source.graph.output,
            [*kept, *self._constants.values()],
            source.graph.doc_string,
            source.graph.value_info,
        )
        made = helper.make_model(
            graph,
            opset_imports=source.opset_import,
            ir_version=source.ir_version,
            functions=source.functions,
            producer_name="penstock",
            doc_string=source.doc_string,
        )
        made.metadata_props.extend(source.metadata_props)
        return made

    def _find_made(self) -> None:
        """The tensors that exist as integers only, everybody reads them behind their pair."""
        plan = self._plan
        if not plan.target.chains:
            return
        wanted = {name for layer in self._chosen for name in layer.reads}
        for node in reversed(plan.graph.nodes):
            if node.op_type in PASSING and node.output[0] in wanted:
                wanted.add(node.input[0])
        for node in plan.graph.nodes:
            layer = self._layer_of.get(node.name)
            if layer is None:
                if plan.passes(node, self.made):
                    self.made[node.output[0]] = self.made[node.input[0]]
            elif layer.op_type in plan.target.integer_out or layer.result in wanted:
                self.made[layer.result] = self._affine(layer.result)

    def _add(self, node: NodeProto) -> None:
        if (
            node.op_type in FUSED
            and node.output[0] in self._loose
            and any((node.op_type == "Relu", *node.input[1:]))
        ):
            self._spell_out(node)
            return
        copy = NodeProto()
        copy.CopyFrom(node)
        layer = self._layer_of.get(node.name)
        if layer is not None and layer.weight:
            self._take_product(copy, layer)
        elif layer is not None:
            for place, name in enumerate(copy.input):
                if name in layer.reads:
                    copy.input[place] = self._integers_of(name)
        made = [name for name in copy.output if name in self.made]
        for place, name in enumerate(copy.output):
            if name in self.made:
                copy.output[place] = self._part(name, "float")
        self._nodes.append(copy)
        for name in made:
            self._pair(name, self._part(name, "float"), name, self.made[name])

    def _spell_out(self, node: NodeProto) -> None:
        """ReLU and Clip as Max and Min, behind a product that gives real numbers.

        ONNX Runtime's integer kernels of products are found by the ReLU that integers behind it
        make superfluous. Where there are none the whole layer would fall back to float.
        """
        low, high = (*node.input[1:], "", "")[:2]
        if node.op_type == "Relu":
            low = self._constant(self._part(node.name, "low"), np.float32(0))
        bounds = [(kind, bound) for kind, bound in (("Max", low), ("Min", high)) if bound]
        name = node.input[0]
        for place, (kind, bound) in enumerate(bounds, 1):
            made = node.output[0] if place == len(bounds) else self._part(node.name, "raised")
            self._nodes.append(helper.make_node(kind, [name, bound], [made], made))
            name = made

    def _take_product(self, node: NodeProto, layer: LayerNode) -> None:
        """Rewires a product's activation, weight and bias to integers."""
        plan, source = self._plan, layer.reads[0]
        node.input[0] = self._integers_of(source)
        weight, scales = plan.integers(layer)
        if layer.bias and plan.target.integer_bias:
            bias = plan.graph.constants[layer.bias].reshape(-1)
            activation = np.float32(self._affine(source).scale)
            roomy = (np.abs(bias) / (activation * np.float32(BIAS_MAX))).astype(np.float32)
            if (roomy > scales).any():
                scales = np.maximum(scales, roomy)
                weight = quantized_weights(plan.graph.constants[layer.weight], scales, layer.axis)
            steps = np.rint(bias.astype(np.float64) / activation / scales).astype(np.int32)
            node.input[2] = self._stored(
                self._part(layer.name, "bias"), steps, activation * scales, 0
            )
        node.input[1] = self._stored(self._part(layer.name, "weight"), weight, scales, layer.axis)

    def _integers_of(self, name: str) -> str:
        """Where INT8 layers read the tensor ``name``; makes the place at the first call."""
        if name in self.made:
            return name
        back = self._part(name, "back")
        if name in self._plan.graph.constants:
            affine = self._affine(name)
            integers = quantized(self._plan.graph.constants[name], affine)
            return self._stored(name, integers, np.float32(affine.scale), None, affine.zero_point)
        if name not in self.beside:
            self.beside[name] = self._affine(name)
            self._pair(name, name, back, self.beside[name])
        return back

    def _affine(self, name: str) -> Affine:
        constant = self._plan.graph.constants.get(name)
        if constant is not None:
            low, high = min(float(constant.min()), 0.0), max(float(constant.max()), 0.0)
            return self._plan.target.affine(Range(low, high, "constant"))
        if name in self.made:
            return self.made[name]
        found = self._ranges.get(name)
        if found is None:
            raise ModelError(f"there is no range for tensor {name!r}; calibrate it first")
        return self._plan.target.affine(found)

    def _pair(self, tensor: str, source: str, back: str, affine: Affine) -> None:
        integers = np.uint8 if affine.kind == "u8" else np.int8
        scale = self._constant(self._part(tensor, "scale"), np.float32(affine.scale))
        zero = self._constant(self._part(tensor, "zero"), integers(affine.zero_point))
        middle = self._part(tensor, "int8")
        self._nodes += [
            helper.make_node(
                "QuantizeLinear", [source, scale, zero], [middle], self._part(tensor, "q")
            ),
            helper.make_node(
                "DequantizeLinear", [middle, scale, zero], [back], self._part(tensor, "dq")
            ),
        ]

    def _stored(
        self, name: str, integers: NDArray[Any], scales: Any, axis: int | None, zero_point: int = 0
    ) -> str:
        """A constant kept as integers; the name under which it is read as real numbers."""
        back = self._part(name, "back")
        if self._part(name, "int8") not in self._constants:
            zeros = np.full(np.shape(scales), zero_point, integers.dtype)
            inputs = [
                self._constant(self._part(name, "int8"), integers),
                self._constant(self._part(name, "scale"), scales),
                self._constant(self._part(name, "zero"), zeros),
            ]
            node = helper.make_node("DequantizeLinear", inputs, [back], self._part(name, "dq"))
            if axis is not None:
                node.attribute.append(helper.make_attribute("axis", axis))
            self._nodes.append(node)
        return back

    def _part(self, name: str, part: str) -> str:
        """A new name for something that belongs to ``name``."""
        return f"{name}{self._plan.mark}{part}"

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _read(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """The names that nodes read, those of graphs inside them among them."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _read(graph.node)
                yield from (output.name for output in graph.output)


def _mark(graph: Graph) -> str:
    """What stands between a name and the part of it that is new, so that no name is taken."""
    taken = {name for node in graph.nodes for name in (node.name, *node.input, *node.output)}
    parts = ("back", "bias", "dq", "float", "int8", "low", "q", "raised", "scale", "weight", "zero")
    mark = "/"
    while any(name.endswith(f"{mark}{part}") for name in taken for part in parts):
        mark += "/"
    return mark


def _refuse_foreign(model: onnx.ModelProto, target: Target) -> None:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"target {target.name!r} does not know {node.op_type} of {node.domain} (node "
                f"{node.name!r}); export the model with operators of ONNX alone"
            )
