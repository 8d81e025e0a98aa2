"""A model is batched only where one free dimension runs through all its tensors."""

from types import SimpleNamespace

import pytest

from penstock.backends.batchable import supports_batching
from penstock.loadtest.models import write_identity
from penstock.protocol import dtype as dt
from penstock.protocol.message import TensorSpec


def session(inputs, outputs, symbols=None):
    def specs(shapes):
        return tuple(TensorSpec(f"t{i}", dt.FP32, tuple(s)) for i, s in enumerate(shapes))

    made = SimpleNamespace(inputs=specs(inputs), outputs=specs(outputs), thread_safe=True)
    if symbols is not None:
        made.symbols = symbols
    return made


@pytest.mark.parametrize(
    ("inputs", "outputs", "symbols", "batchable"),
    [
        ([(-1, 4)], [(-1,)], None, True),
        ([(-1, 4), (-1,)], [(-1, 2)], ("N", "N", "N"), True),
        ([(-1, 4)], [(-1, 4)], ("batch", "tokens"), False),
        ([(-1, 4)], [(-1, 4)], ("batch", None), True),
        ([(-1, 4)], [(-1, 4)], ("unk__12", "unk__13"), True),
        ([(-1, 4)], [(-1, 4)], ("batch", "Softmaxoutput_dim_0"), True),
        ([(4, 4)], [(4, 4)], None, False),
        ([(-1, 4)], [(1, 4)], None, False),
        ([(-1, 4), ()], [(-1, 4)], None, False),
        ([(-1, 4)], [()], None, False),
        ([], [(-1, 4)], None, False),
    ],
)
def test_supports_batching(inputs, outputs, symbols, batchable):
    assert supports_batching(session(inputs, outputs, symbols)) is batchable


@pytest.mark.parametrize(
    ("shape", "batchable"), [(("N", 2), True), ((1, 2), False), ((), False), ((1, "N"), False)]
)
def test_with_the_names_in_a_graph(tmp_path, load, shape, batchable):
    path = tmp_path / "model.onnx"
    write_identity(path, dt.FP32, shape)
    assert supports_batching(load(path)) is batchable
