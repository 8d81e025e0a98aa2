"""What a float model is brought into before anything is quantised, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.unit.backends.quantize import graphs

from penstock.backends.quantize import prepare as module
from penstock.backends.quantize.errors import ModelError
from penstock.backends.quantize.prepare import prepare, session
from penstock.backends.quantize.qdq import Plan
from penstock.backends.quantize.targets import TARGETS


def test_batch_normalisation_goes_and_old_opsets_are_raised(tmp_path: Path) -> None:
    model = graphs.mobile()
    assert model.opset_import[0].version == 11
    ready = graphs.prepared(model, tmp_path)
    assert ready.opset_import[0].version >= 13
    kinds = [node.op_type for node in ready.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 6
    names = [node.name for node in ready.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    feed = {"x": graphs.pictures(4)}
    real, found = (session(m).run(None, feed)[0] for m in (model, ready))
    np.testing.assert_allclose(found, real, rtol=1e-4, atol=1e-5)


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    model = graphs.residual()
    for node in model.graph.node:
        node.name = ""
    ready = graphs.prepared(model, tmp_path)
    names = [node.name for node in ready.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_inputs_that_have_a_value_become_constants(tmp_path: Path) -> None:
    model = graphs.residual()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    ready = graphs.prepared(model, tmp_path)
    assert [value.name for value in ready.graph.input] == ["x"]
    assert len(Plan(ready, TARGETS["cpu"]).layers) == 6


def test_weights_in_files_beside_the_model_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        graphs.residual(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    assert (tmp_path / "weights").stat().st_size > 10_000
    ready = prepare(path)
    (tmp_path / "weights").unlink()
    assert session(ready).run(None, {"x": graphs.pictures(1)})[0].shape == (1, 10)


def test_too_large_a_model_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graphs.residual(), path, save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.setattr(module, "BYTES_MAX", 10_000)
    with pytest.raises(ModelError, match=r"with its weights; quantising in one file ends at 2 GiB"):
        prepare(path)


def test_what_is_quantised_already_is_refused(tmp_path: Path) -> None:
    plan = Plan(graphs.prepared(graphs.residual(), tmp_path), TARGETS["cpu"])
    path = tmp_path / "again.onnx"
    onnx.save(plan.build({"stem"}, graphs.min_max(plan, {"x": graphs.pictures(2)})), path)
    with pytest.raises(ModelError, match="quantised already"):
        prepare(path)


def test_half_precision_models_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 2])],
        [onnx.numpy_helper.from_array(np.ones((2, 2), np.float16), "w")],
    )
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(ModelError, match="no FP32 weights"):
        prepare(path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08\x12\x07"])
def test_what_is_no_model_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx is (empty|not an ONNX model)"):
        prepare(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(graphs.residual().SerializeToString()[:-500])
    with pytest.raises(ModelError, match=r"cut\.onnx is not an ONNX model"):
        prepare(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*nothing\.onnx"):
        prepare(tmp_path / "nothing.onnx")
