"""What cannot be loaded is a LoadError that tells an operator what is wrong and what to do."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.onnxruntime import OnnxRuntimeBackend
from penstock.backends.onnxruntime_errors import load_reason
from penstock.loadtest.models import write_mlp


def one_node(op="Relu", domain="", opset=17, ir=8):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir
    return model.SerializeToString()


def beside(change):
    """A model whose weights are in ``w.bin``, after ``change(path of the model)``."""

    def write(path: Path) -> None:
        weights = numpy_helper.from_array(np.ones((4, 400), np.float32), "w")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 400])
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "g", [x], [y], [weights])
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        change(path)

    return write


def moved_to(location):
    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location.format(above=path.parent.parent)
        path.write_bytes(model.SerializeToString())
        (path.parent.parent / "w.bin").write_bytes((path.parent / "w.bin").read_bytes())

    return change


def cut(keep):
    def write(path: Path) -> None:
        write_mlp(path, 64)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return write


def bytes_of(content):
    return lambda path: path.write_bytes(content)


WEIGHTS = "the files of its weights must lie beside the model, whole"
DAMAGED = "the file is damaged or cut short, or no ONNX model: copy it here again"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (cut(0.5), DAMAGED),
        (cut(0.999), DAMAGED),
        (bytes_of(b"<html>404 Not Found</html>"), DAMAGED),
        (bytes_of(b"\x08\x08"), DAMAGED),
        (bytes_of(b""), "is empty: copy the model there again"),
        (bytes_of(b"version https://git-lfs.github.com/spec/v1\noid"), "run git lfs pull"),
        (bytes_of(one_node(ir=99)), r"IR version: 99, .*: 13; .*older ir_version"),
        (bytes_of(one_node(opset=99)), r"Opset 99 is .*; export .*older opset"),
        (bytes_of(one_node("Foo", "com.acme")), r"com\.acme:Foo.*; custom operators are not"),
        (bytes_of(one_node("Frob")), r"No Op registered for Frob.*; export the model again"),
        (beside(lambda p: (p.parent / "w.bin").unlink()), rf"w\.bin.*; {WEIGHTS}"),
        (beside(lambda p: (p.parent / "w.bin").write_bytes(b"x" * 100)), WEIGHTS),
        (beside(moved_to("../w.bin")), rf"escapes model directory.*; {WEIGHTS}"),
        (beside(moved_to("{above}/w.bin")), rf"Absolute path not allowed.*; {WEIGHTS}"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(tmp_path, write, said):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "model.onnx")
    with pytest.raises(LoadError, match=said) as caught:
        OnnxRuntimeBackend().load(ModelSource("m", folder))
    text = str(caught.value)
    assert str(folder / "model.onnx") in text
    assert "\n" not in text
    assert "onnxruntime_src" not in text


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_cut_ort_file(tmp_path, keep):
    write_mlp(tmp_path / "model.onnx", 64)
    path = tmp_path / "model.ort"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(tmp_path / "model.onnx"), options)
    OnnxRuntimeBackend().load(ModelSource("m", path)).close()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(LoadError, match=f"verification failed; {DAMAGED}"):
        OnnxRuntimeBackend().load(ModelSource("m", path))


def test_a_missing_library_of_tensorrt_has_advice():
    text = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    assert "needs TensorRT 10" in load_reason(RuntimeError(text))
