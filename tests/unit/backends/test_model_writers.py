"""The hand-written ONNX files are valid and compute what they say, at the sizes benchmarks use."""

import numpy as np
import onnx
import pytest

from penstock.loadtest.models import write_add_sub, write_identity, write_image_mean, write_mlp
from penstock.protocol import dtype as dt


@pytest.mark.parametrize(
    "write",
    [
        write_add_sub,
        write_mlp,
        write_image_mean,
        *[lambda path, d=d: write_identity(path, d) for d in dt.ALL],
        lambda path: write_identity(path, dt.FP32, ()),
        lambda path: write_mlp(path, 300, 3),
    ],
)
def test_files_are_valid_and_always_the_same(tmp_path, write):
    one, two = tmp_path / "a" / "1" / "model.onnx", tmp_path / "b.onnx"
    write(one)
    write(two)
    assert one.read_bytes() == two.read_bytes()
    onnx.checker.check_model(str(one), full_check=True)


def test_mlp(tmp_path, load):
    path = tmp_path / "mlp.onnx"
    write_mlp(path)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    given = np.random.default_rng(2).random((3, 784), np.float32)
    hidden = given
    for i in (0, 1):
        hidden = np.maximum(hidden @ weights[f"W{i}"] + weights[f"B{i}"], 0)
    wanted = hidden @ weights["W2"] + weights["B2"]
    session = load(path)
    assert [weights[f"W{i}"].shape for i in range(3)] == [(784, 512), (512, 512), (512, 10)]
    np.testing.assert_allclose(session.run([given])[0], wanted, rtol=1e-4, atol=1e-4)


def test_image_mean(tmp_path, load):
    path = tmp_path / "mean.onnx"
    write_image_mean(path)
    session = load(path)
    assert session.inputs[0].shape == (-1, 3, 224, 224)
    given = np.random.default_rng(3).random((2, 3, 224, 224), np.float32)
    (mean,) = session.run([given])
    assert mean.shape == (2, 1)
    np.testing.assert_allclose(mean[:, 0], given.mean((1, 2, 3)), rtol=1e-4)


def test_add_sub_of_another_type(tmp_path, load):
    path = tmp_path / "add_sub.onnx"
    write_add_sub(path, dt.FP32, 4)
    total, difference = load(path).run([np.full((1, 4), 3, "f4"), np.full((1, 4), 1, "f4")])
    assert total.tolist() == [[4] * 4]
    assert difference.tolist() == [[2] * 4]
