"""Small ONNX models, built with the onnx package where the load test's writers do not reach."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.base import ModelSource
from penstock.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from penstock.loadtest.models import write_add_sub

Build = Callable[..., Path]
Load = Callable[..., OnnxRuntimeSession]


@pytest.fixture
def add_sub(tmp_path: Path) -> Path:
    path = tmp_path / "add_sub" / "model.onnx"
    write_add_sub(path)
    return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes a graph; values are ``name=(onnx type, shape)``, in the order of the mapping."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, tuple[int, Sequence[object]]],
        outputs: Mapping[str, tuple[int, Sequence[object]] | onnx.ValueInfoProto],
        constants: Sequence[onnx.TensorProto] = (),
    ) -> Path:
        def values(of: Mapping[str, object]) -> list[onnx.ValueInfoProto]:
            return [
                v if isinstance(v, onnx.ValueInfoProto) else helper.make_tensor_value_info(k, *v)
                for k, v in of.items()
            ]

        graph = helper.make_graph(list(nodes), "g", values(inputs), values(outputs), constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "built.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def reshape_to_4(build: Build) -> Path:
    """FP32 [N, K] to [A, 4]: fails inside a node where N * K is no multiple of 4."""
    return build(
        [helper.make_node("Reshape", ["x", "to"], ["y"], name="fold")],
        {"x": (TensorProto.FLOAT, ["N", "K"])},
        {"y": (TensorProto.FLOAT, ["A", 4])},
        [helper.make_tensor("to", TensorProto.INT64, [2], [-1, 4])],
    )


@pytest.fixture
def load() -> Iterator[Load]:
    """Loads a path with ONNX Runtime; closes the sessions at the end of the test."""
    sessions: list[OnnxRuntimeSession] = []

    def make(path: Path, device: str = "cpu", **options: str) -> OnnxRuntimeSession:
        source = ModelSource("m", path, device=device, options=options)
        sessions.append(OnnxRuntimeBackend().load(source))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
