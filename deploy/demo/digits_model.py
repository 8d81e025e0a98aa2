"""The files of the demonstration model: ONNX graph, labels, configuration, held-out pictures.

Knows how ``convnet``'s network is written in ONNX and how a Triton model repository is laid out;
does not know how the parameters were found. The graph is checked by ``onnx.checker`` and, in
ONNX Runtime, against the NumPy forward before anything is written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
from convnet import Floats, Parameters, probabilities
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # the oldest that opset 17 allows, so that older runtimes load the file too
TOLERANCE = 1e-5

CONFIG = """\
# The demonstration model in Triton's model configuration format.
name: "digits"
backend: "onnxruntime"
max_batch_size: 1024
input [
  {
    name: "image"
    data_type: TYPE_FP32
    dims: [ 1, 8, 8 ]
  }
]
output [
  {
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ 10 ]
    label_filename: "labels.txt"
  }
]
dynamic_batching { }
"""


def build(parameters: Parameters) -> onnx.ModelProto:
    """The network as a checked ONNX model with a free first dimension named ``batch``."""
    nodes = [
        _convolution("image", "conv1"),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        _convolution("relu1", "conv2"),
        helper.make_node("Relu", ["conv2"], ["relu2"]),
        helper.make_node("MaxPool", ["relu2"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "dense1.weight", "dense1.bias"], ["dense1"], transB=1),
        helper.make_node("Relu", ["dense1"], ["relu3"]),
        helper.make_node("Gemm", ["relu3", "dense2.weight", "dense2.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    for node in nodes:
        node.name = node.output[0]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in parameters.items()],
        doc_string="image: 8x8 handwritten digits, 0 (paper) to 1 (ink). probabilities: of 0..9.",
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="penstock",
        model_version=1,
        doc_string="Handwritten digits, Penstock's demonstration model (deploy/demo).",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _convolution(source: str, layer: str) -> onnx.NodeProto:
    inputs = [source, f"{layer}.weight", f"{layer}.bias"]
    return helper.make_node("Conv", inputs, [layer], kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def verify(model: onnx.ModelProto, parameters: Parameters, images: Floats) -> float:
    """The largest difference between ONNX Runtime and NumPy over ``images``.

    Raises AssertionError where it exceeds ``TOLERANCE``, at batch 1 or at the whole batch.
    """
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    worst = 0.0
    for batch in (images[:1], images):
        (found,) = session.run(["probabilities"], {"image": batch})
        worst = max(worst, float(np.abs(found - probabilities(parameters, batch)).max()))
    if not worst <= TOLERANCE:
        raise AssertionError(f"ONNX Runtime and NumPy differ by {worst:.2g} (> {TOLERANCE:g})")
    return worst


def write(
    out: Path, model: onnx.ModelProto, raw: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> list[Path]:
    """Writes the model repository and the held-out pictures under ``out``; returns the files."""
    folder = out / "models" / "digits"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    files = [folder / "1" / "model.onnx", folder / "labels.txt", folder / "config.pbtxt"]
    files[0].write_bytes(model.SerializeToString(deterministic=True))
    files[1].write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8")
    files[2].write_text(CONFIG, encoding="utf-8")
    files.append(out / "digits_heldout.npz")
    np.savez_compressed(files[-1], images=raw, labels=labels)
    return files
