"""The digits network as a FlatBuffer of LiteRT, written with the schema that the engine ships.

LiteRT has pictures as NHWC and weights as ``[out, h, w, in]``. The picture has one channel, so its
rows become NHWC by a reshape; before the dense layers a transpose puts the features back into the
order that their weights were learned in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from tests.zoo import digits

TOLERANCE = 1e-5
"""FP32 throughout; only the order of the sums differs."""

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float64): schema.TensorType.FLOAT64,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.uint16): schema.TensorType.UINT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint32): schema.TensorType.UINT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.uint64): schema.TensorType.UINT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
    np.dtype(object): schema.TensorType.STRING,
}


class Graph:
    """A model of one subgraph, put together tensor by tensor; the methods give tensor numbers."""

    def __init__(self) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.buffers = [schema.BufferT()]  # number 0 means: not a constant
        self._model.operatorCodes = []
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any = np.float32,
        quantization: tuple[float, int] | None = None,
    ) -> int:
        """A value that is computed or given; -1 is a free dimension."""
        made = schema.TensorT()
        made.name, made.type = name, _TYPES[np.dtype(dtype)]
        made.shape = [1 if size == -1 else size for size in shape]
        if -1 in shape:
            made.shapeSignature = list(shape)
        if quantization is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = [quantization[0]]
            made.quantization.zeroPoint = [quantization[1]]
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, value: NDArray[Any]) -> int:
        number = self.tensor(name, value.shape, value.dtype)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        self._graph.tensors[number].buffer = len(self._model.buffers) - 1
        return number

    def node(
        self, code: str, inputs: Sequence[int], output: int, options: str = "", **fields: Any
    ) -> int:
        """An operator by its name in the schema, such as ``CONV_2D``; gives ``output`` back."""
        number = getattr(schema.BuiltinOperator, code)
        stated = schema.OperatorCodeT()
        stated.builtinCode, stated.deprecatedBuiltinCode = number, min(number, 127)
        self._model.operatorCodes.append(stated)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), [output]
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for field, value in fields.items():
                assert hasattr(operator.builtinOptions, field)
                setattr(operator.builtinOptions, field, value)
        self._graph.operators.append(operator)
        return output

    def signature(self, key: str, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Names for the caller, in place of those of the tensors."""
        made = schema.SignatureDefT()
        made.signatureKey = key
        made.inputs, made.outputs = _named(inputs), _named(outputs)
        self._model.signatureDefs = [*(self._model.signatureDefs or []), made]

    def bytes(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _named(tensors: dict[str, int]) -> list[schema.TensorMapT]:
    made = []
    for name, number in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, number
        made.append(entry)
    return made


def model() -> bytes:
    """image FP32 [n,1,8,8] to probabilities FP32 [n,10]."""
    graph, weights = Graph(), digits.parameters()
    relu = schema.ActivationFunctionType.RELU

    def shape(name: str, *sizes: int) -> int:
        return graph.constant(name, np.array(sizes, np.int32))

    def convolution(layer: str, x: int, channels: int) -> int:
        weight = graph.constant(f"{layer}.weight", weights[f"{layer}.weight"].transpose(0, 2, 3, 1))
        bias = graph.constant(f"{layer}.bias", weights[f"{layer}.bias"])
        out = graph.tensor(layer, (-1, 8, 8, channels))
        stated = {"strideW": 1, "strideH": 1, "padding": schema.Padding.SAME}
        activation = {"fusedActivationFunction": relu}
        return graph.node(
            "CONV_2D", [x, weight, bias], out, "Conv2DOptions", **stated, **activation
        )

    def dense(layer: str, x: int, units: int, activation: int) -> int:
        weight = graph.constant(f"{layer}.weight", weights[f"{layer}.weight"])
        bias = graph.constant(f"{layer}.bias", weights[f"{layer}.bias"])
        out = graph.tensor(layer, (-1, units))
        stated = {"fusedActivationFunction": activation}
        return graph.node(
            "FULLY_CONNECTED", [x, weight, bias], out, "FullyConnectedOptions", **stated
        )

    image = graph.tensor("image", (-1, 1, 8, 8))
    x = graph.tensor("nhwc", (-1, 8, 8, 1))
    x = graph.node("RESHAPE", [image, shape("to_nhwc", -1, 8, 8, 1)], x, "ReshapeOptions")
    x = convolution("conv2", convolution("conv1", x, 16), 32)
    pool = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2}
    x = graph.node(
        "MAX_POOL_2D", [x], graph.tensor("pooled", (-1, 4, 4, 32)), "Pool2DOptions", **pool
    )
    x = graph.node(
        "TRANSPOSE", [x, shape("to_nchw", 0, 3, 1, 2)], graph.tensor("nchw", (-1, 32, 4, 4)),
        "TransposeOptions",
    )  # fmt: skip
    flat = graph.tensor("flat", (-1, 512))
    x = graph.node("RESHAPE", [x, shape("to_flat", -1, 512)], flat, "ReshapeOptions")
    x = dense("dense1", x, 64, relu)
    x = dense("dense2", x, 10, schema.ActivationFunctionType.NONE)
    probabilities = graph.tensor("probabilities", (-1, 10))
    graph.node("SOFTMAX", [x], probabilities, "SoftmaxOptions", beta=1.0)
    return graph.bytes([image], [probabilities])


def write(version: Path) -> str:
    (version / "model.tflite").write_bytes(model())
    return digits.config("litert")
