"""What TVM compiles answers as ONNX Runtime does, whatever its layers are, and says what it cannot.

All models are compiled by one other process, because this one may have the runtime alone.
"""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.zoo import digits
from tests.zoo.engines import engine_or_skip

from penstock.backends.base import LoadError, ModelSource, RunError
from penstock.backends.batchable import supports_batching
from penstock.backends.tvm import TvmBackend
from penstock.backends.tvm.library import FEATURES, cpu_flags
from penstock.loadtest.models import write_add_sub, write_identity, write_image_mean, write_mlp
from penstock.protocol import dtype as dt
from penstock.protocol.aligned import aligned_bytes

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(5)
TOLERANCE = 1e-4
FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT64 = TensorProto.INT64

COMPILE = """
import json, sys
from pathlib import Path
from penstock.backends.base import CompileTask, LoadError
from penstock.backends.tvm import TvmBackend
told, steps = {}, []
for name, more in json.loads(sys.argv[2]).items():
    into = Path(sys.argv[1]) / name
    into.mkdir()
    try:
        TvmBackend().compile(CompileTask(
            Path(sys.argv[1]) / (name.split("@")[0] + ".onnx"), into, rows_max=4,
            progress=lambda step, share: steps.append(share), **more,
        ))
        told[name] = ""
    except LoadError as error:
        told[name] = str(error)
assert all(0 <= share <= 1 for share in steps)
print(json.dumps(told))
"""


def random(*shape, scale=1.0, dtype=np.float32):
    return (RANDOM.standard_normal(shape) * scale).astype(dtype)


class Graphs:
    """Writes ONNX files into a folder: ``nodes`` are (operator, inputs, outputs, attributes)."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, nodes, x, y, **constants):
        values = {
            kind: [
                helper.make_tensor_value_info(v, element, shape)
                for v, (element, shape) in s.items()
            ]
            for kind, s in (("in", x), ("out", y))
        }
        graph = helper.make_graph(
            [helper.make_node(op, list(i), list(o), **a) for op, i, o, a in nodes],
            name, values["in"], values["out"],
            [numpy_helper.from_array(np.asarray(c), n) for n, c in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, self.folder / f"{name}.onnx")

    def convolution(self, name, channels, columns, side, window=3, groups=1, *, bias=True, **more):
        weights = random(columns, channels // groups, window, window, scale=0.2)
        inputs = ("x", "w", "b") if bias else ("x", "w")
        constants = {"w": weights} | ({"b": random(columns)} if bias else {})
        nodes = [("Conv", inputs, ("s",), {"group": groups, **more}), ("Relu", ("s",), ("y",), {})]
        image = {"x": (FLOAT, ["N", channels, side, side + 1])}
        self.write(name, nodes, image, {"y": (FLOAT, ["N", columns, "H", "W"])}, **constants)

    def dense(self, name, depth, columns, *lead, element=FLOAT, relu=True, bias=True):
        dtype = helper.tensor_dtype_to_np_dtype(element)
        constants = {"w": random(depth, columns, scale=0.1, dtype=dtype)}
        nodes = [("MatMul", ("x", "w"), ("m",), {})]
        if bias:
            constants["b"] = random(columns, dtype=dtype)
            nodes.append(("Add", ("b", "m"), ("a",), {}))
        if relu:
            nodes.append(("Relu", nodes[-1][2], ("r",), {}))
        nodes.append(("Identity", nodes[-1][2], ("y",), {}))
        x, y = (element, ["N", *lead, depth]), (element, ["N", *lead, columns])
        self.write(name, nodes, {"x": x}, {"y": y}, **constants)


def attention(graphs, sequence):
    """One head; products of two activations, softmax and layer normalisation."""
    nodes = [
        *(("MatMul", ("x", f"w{i}"), (i,), {}) for i in "qkv"),
        ("Transpose", ("k",), ("kt",), {"perm": [0, 2, 1]}),
        ("MatMul", ("q", "kt"), ("qk",), {}),
        ("Softmax", ("qk",), ("at",), {"axis": -1}),
        ("MatMul", ("at", "v"), ("av",), {}),
        ("Add", ("av", "x"), ("r",), {}),
        ("LayerNormalization", ("r", "g", "o"), ("y",), {}),
    ]
    constants = {f"w{i}": random(24, 24, scale=0.2) for i in "qkv"}
    ends = (FLOAT, ["N", sequence, 24])
    name = f"attention_{sequence}"
    graphs.write(
        name, nodes, {"x": ends}, {"y": ends},
        g=random(24), o=random(24), **constants,
    )  # fmt: skip


def quantized(graphs):
    """Q/DQ around a product: computed in float, with INT8's numbers."""
    nodes = [
        ("QuantizeLinear", ("x", "xs", "xz"), ("xq",), {}),
        ("DequantizeLinear", ("xq", "xs", "xz"), ("xd",), {}),
        ("DequantizeLinear", ("w", "ws", "wz"), ("wd",), {}),
        ("MatMul", ("xd", "wd"), ("m",), {}),
        ("Relu", ("m",), ("y",), {}),
    ]
    graphs.write(
        "quantized", nodes, {"x": (FLOAT, ["N", 32])}, {"y": (FLOAT, ["N", 20])},
        xs=np.float32(0.02), xz=np.uint8(128), ws=np.float32(0.01), wz=np.int8(0),
        w=RANDOM.integers(-127, 127, (32, 20)).astype(np.int8),
    )  # fmt: skip


def residual(graphs):
    """Batch normalisation, a window with a stride, two ways that meet, pooling over everything."""
    numbers = {f"{k}{i}": np.abs(random(24)) + 0.5 for i in "12" for k in "sbmv"}
    nodes = [
        ("Conv", ("x", "w1"), ("c1",), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("BatchNormalization", ("c1", "s1", "b1", "m1", "v1"), ("n1",), {}),
        ("Relu", ("n1",), ("r1",), {}),
        ("Conv", ("r1", "w2"), ("c2",), {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ("c2", "s2", "b2", "m2", "v2"), ("n2",), {}),
        ("Add", ("n2", "r1"), ("a",), {}),
        ("Relu", ("a",), ("r2",), {}),
        ("GlobalAveragePool", ("r2",), ("g",), {}),
        ("Flatten", ("g",), ("f",), {}),
        ("Gemm", ("f", "w3", "b3"), ("y",), {"transB": 1}),
    ]
    graphs.write(
        "residual", nodes, {"x": (FLOAT, ["N", 3, 16, 16])}, {"y": (FLOAT, ["N", 10])},
        w1=random(24, 3, 3, 3, scale=0.2), w2=random(24, 24, 3, 3, scale=0.1),
        w3=random(10, 24, scale=0.2), b3=random(10), **numbers,
    )  # fmt: skip


def awkward(graphs):
    """Graphs whose layers cannot be merged as most can, which once gave wrong numbers."""
    image, flat = {"x": (FLOAT, ["N", 6, 9, 8])}, {"x": (FLOAT, ["N", 12])}
    out = {name: (FLOAT, ["N", "C", "H", "W"]) for name in ("y", "z")}
    shared = [("Relu", ("c",), ("y",), {}), ("Neg", ("c",), ("z",), {})]
    for name, groups in (("shared", 1), ("shared_grouped", 3)):
        graphs.write(
            name, [("Conv", ("x", "w", "b"), ("c",), {"group": groups}), *shared], image, out,
            w=random(12, 6 // groups, 3, 3), b=random(12),
        )  # fmt: skip
    graphs.write(
        "shared_dense", [("MatMul", ("x", "w"), ("c",), {}), *shared], flat,
        {name: (FLOAT, ["N", 7]) for name in ("y", "z")}, w=random(12, 7),
    )  # fmt: skip
    pool = ("MaxPool", ("x",), ("p",), {"kernel_shape": [1, 1], "strides": [2, 1]})
    graphs.write(
        "pixel", [pool, ("Mul", ("p", "m"), ("q",), {}), ("Add", ("q", "m"), ("y",), {}),
                  ("Abs", ("p",), ("z",), {})],
        image, out, m=random(6, 1, 1),
    )  # fmt: skip
    graphs.write(
        "five", [("Conv", ("x", "w"), ("c",), {}), ("Add", ("c", "b"), ("y",), {})], image,
        {"y": (FLOAT, [1, "N", 4, "H", "W"])}, w=random(4, 6, 3, 3), b=random(1, 1, 1, 1, 6),
    )  # fmt: skip
    graphs.write(
        "taller_bias", [("MatMul", ("x", "w"), ("c",), {}), ("Add", ("c", "b"), ("y",), {})], flat,
        {"y": (FLOAT, [1, "N", 7])}, w=random(12, 7), b=random(1, 1, 7),
    )  # fmt: skip


def trusting(graphs):
    """Operators that take what a caller sends for an index, or divide by it."""
    rows, four = (FLOAT, ["N", 10]), (INT64, ["N", 4])
    pairs, number = (INT64, ["M", 2]), (INT64, ["N"])
    axis = {"axis": 1}
    table = random(10, 3)
    graphs.write(
        "gather", [("Gather", ("t", "i"), ("y",), {})], {"i": four},
        {"y": (FLOAT, ["N", 4, 3])}, t=table,
    )  # fmt: skip
    graphs.write(
        "gather_elements", [("GatherElements", ("x", "i"), ("y",), axis)],
        {"x": rows, "i": four}, {"y": (FLOAT, ["N", 4])},
    )  # fmt: skip
    graphs.write(
        "gather_nd", [("GatherND", ("x", "i"), ("y",), {})], {"x": rows, "i": pairs},
        {"y": (FLOAT, ["M"])},
    )  # fmt: skip
    graphs.write(
        "scatter_elements", [("ScatterElements", ("x", "i", "u"), ("y",), axis)],
        {"x": rows, "i": four, "u": (FLOAT, ["N", 4])}, {"y": rows},
    )  # fmt: skip
    graphs.write(
        "scatter_nd", [("ScatterND", ("x", "i", "u"), ("y",), {})],
        {"x": rows, "i": pairs, "u": (FLOAT, ["M"])}, {"y": rows},
    )  # fmt: skip
    for operator in ("Div", "Mod"):
        graphs.write(
            operator.lower(), [(operator, ("x", "i"), ("y",), {})], {"x": number, "i": number},
            {"y": number},
        )  # fmt: skip
    ways = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [],
                          [helper.make_tensor_value_info(op, *rows)])
        for op in ("Relu", "Identity")
    ]  # fmt: skip
    graphs.write(
        "ways", [("If", ("b",), ("y",), {"then_branch": ways[0], "else_branch": ways[1]})],
        {"b": (TensorProto.BOOL, []), "x": rows}, {"y": rows},
    )  # fmt: skip
    graphs.write(
        "regions",
        [("RoiAlign", ("x", "r", "i"), ("y",), {"output_height": 2, "output_width": 2})],
        {"x": (FLOAT, ["N", 2, 8, 8]), "r": (FLOAT, ["M", 4]), "i": (INT64, ["M"])},
        {"y": (FLOAT, ["M", 2, 2, 2])},
    )  # fmt: skip


def write_all(folder):
    """Every model of these tests."""
    graphs = Graphs(folder)
    for name, arguments in DENSE.items():
        graphs.dense(name, *arguments[:2], *arguments[2:3][0] if arguments[2:] else ())
    graphs.dense("double", 20, 9, element=DOUBLE)
    graphs.dense("half", 16, 8, element=HALF)
    graphs.dense("bare", 33, 17, relu=False, bias=False)
    graphs.dense("relu_alone", 33, 40, bias=False)
    for name, (arguments, more) in CONVOLUTIONS.items():
        graphs.convolution(name, *arguments, **more)
    attention(graphs, "S")
    quantized(graphs)
    residual(graphs)
    awkward(graphs)
    trusting(graphs)
    write_add_sub(folder / "add_sub.onnx")
    write_identity(folder / "identity.onnx", dt.INT64, ("N", 3))
    write_image_mean(folder / "mean.onnx", 8)
    write_mlp(folder / "mlp.onnx", 32)
    write_identity(folder / "text.onnx", dt.BYTES)
    graphs.write(
        "constant", [("Add", ("x", "c"), ("y",), {}), ("Identity", ("c",), ("z",), {})],
        {"x": (FLOAT, ["N", 4])}, {"y": (FLOAT, ["N", 4]), "z": (FLOAT, [4])}, c=random(4),
    )  # fmt: skip
    apart = {"x": (FLOAT, ["N", 4]), "z": (FLOAT, ["M", 4])}
    graphs.write(
        "apart", [("Relu", ("x",), ("y",), {}), ("Relu", ("z",), ("u",), {})],
        apart, {"y": apart["x"], "u": apart["z"]},
    )  # fmt: skip
    (folder / "garbage.onnx").write_bytes(b"\x93not a model" * 20)
    (folder / "digits.onnx").write_bytes(digits.MODEL.read_bytes())


DENSE = {
    "dense_1x1": (1, 1),
    "dense_300x1": (300, 1),
    "dense_48x70": (48, 70),
    "dense_16x129": (16, 129),
    "dense_sequence_free": (12, 20, ("S",)),
}
CONVOLUTIONS = {
    "conv_no_bias": ((2, 16, 9, 7), {"bias": False}),
    "conv_strided": ((4, 70, 11), {"strides": [2, 3], "pads": [2, 0, 1, 1]}),
    "conv_dilated": ((5, 9, 12), {"dilations": [2, 3], "pads": [1, 2, 1, 2]}),
    "conv_pointwise": ((16, 33, 5, 1), {}),
    "conv_depthwise": ((32, 32, 8, 3, 32), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "conv_depthwise_odd": ((6, 6, 8, 3, 6), {"pads": [1, 1, 1, 1]}),
    "conv_grouped": ((8, 16, 6, 3, 4), {}),
}
MODELS = [
    *DENSE, *CONVOLUTIONS, "double", "half", "bare", "relu_alone", "attention_S",
    "quantized", "residual", "add_sub", "identity", "mean", "mlp", "constant", "apart",
    "shared", "shared_grouped", "shared_dense", "pixel", "five", "taller_bias",
]  # fmt: skip


TRUSTING = {
    "gather": (10, -10), "gather_elements": (10, -10), "gather_nd": (10, -10),
    "scatter_elements": (10, -10), "scatter_nd": (10, -10), "div": (1, 1), "mod": (1, 1),
}  # fmt: skip
"""Model: how many indices there are, and the least; of divisors any will do but zero."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The folder with an artefact a model, and what was refused: name to text."""
    engine_or_skip("tvm")
    folder = tmp_path_factory.mktemp("tvm")
    write_all(folder)
    orders = {name: {} for name in [*MODELS, *TRUSTING, "ways", "regions", "text", "garbage"]}
    orders["gather@cuda"] = {"target": "cuda:sm_90"}
    orders["digits@cuda"] = {"target": "cuda:sm_90"}
    orders["digits@tuned"] = {"budget_s": 60.0, "options": {"trials": "3"}}
    orders["mlp@hurried"] = {"budget_s": 1e-9}
    orders["residual@portable"] = {"target": "x86-64-v3"}
    orders["mlp@nowhere"] = {"target": "znver44"}
    orders["mlp@gpu"] = {"target": "cuda"}
    orders["mlp@option"] = {"options": {"trails": "3"}}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder), json.dumps(orders)],
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return folder, {name: text for name, text in told.items() if text}


def ends(session, rows):
    """Inputs that fit, free dimensions behind the first being 5."""
    shapes = [[rows, *(5 if d < 0 else d for d in spec.shape[1:])] for spec in session.inputs]
    return [
        (RANDOM.standard_normal(shape) * 3).astype(spec.dtype.numpy)
        for shape, spec in zip(shapes, session.inputs, strict=True)
    ]


def compare(folder, artefact, model, rows_tried=(1, 2, 3, 4, 13)):
    session = TvmBackend().load(ModelSource("m", folder / artefact))
    reference = ort.InferenceSession(folder / f"{model}.onnx")
    for rows in rows_tried:
        inputs = ends(session, rows)
        wanted = reference.run(
            [spec.name for spec in session.outputs],
            {spec.name: array for spec, array in zip(session.inputs, inputs, strict=True)},
        )
        found = session.run(inputs)
        for mine, other in zip(found, wanted, strict=True):
            assert mine.dtype == other.dtype
            slack = 5e-3 if mine.dtype == np.float16 else TOLERANCE
            np.testing.assert_allclose(mine, other, rtol=slack, atol=slack)
    session.close()


@pytest.mark.parametrize("model", MODELS)
def test_it_answers_as_onnx_runtime_does(compiled, model):
    folder, refused = compiled
    assert model not in refused, refused
    compare(folder, model, model)


def kernels(folder, artefact):
    return json.loads((folder / artefact / "model.json").read_text())["kernels"]


@pytest.mark.parametrize(
    ("model", "count"),
    [("dense_48x70", 1), ("mlp", 3), ("residual", 3), ("conv_depthwise", 1), ("quantized", 1),
     ("conv_grouped", 0), ("attention_S", 1)],
)  # fmt: skip
def test_heavy_layers_are_kernels_of_ours(compiled, model, count):
    """One that is not would be right, but many times slower. Equal ones are counted once."""
    assert len(kernels(compiled[0], model)) == count


def indexed(session, index):
    """Two rows, each index of them ``index``; where one has two numbers, the first is a row."""
    made = []
    for spec in session.inputs:
        shape = [2 if size < 0 else size for size in spec.shape]
        array = RANDOM.standard_normal(shape) * 9
        if spec.name == "i":
            array = np.full(shape, index)
            if shape[1:] == [2]:
                array[:, 0] = [0, 1]
            elif shape[1:] == [4]:
                array[:] = np.where(np.arange(4), np.arange(4), index)
        made.append(array.astype(spec.dtype.numpy))
    return made


@pytest.mark.parametrize("model", TRUSTING)
def test_what_a_caller_sends_cannot_leave_its_tensor(compiled, model):
    """TVM alone would read and write there, or end the process."""
    folder, refused = compiled
    assert model not in refused, refused
    session = TvmBackend().load(ModelSource("m", folder / model))
    size, least = TRUSTING[model]
    wrong = (0,) if size == 1 else (size, least - 1, 2**40, -(2**40))
    for index in wrong:
        with pytest.raises(RunError, match=r"outside of the tensor|divided by zero") as caught:
            session.run(indexed(session, index))
        assert caught.value.caller_fault
    reference = ort.InferenceSession(folder / f"{model}.onnx")
    for index in (5, 9, -1, -7):
        if "scatter" in model and index == -7:
            continue  # Twice the same place: which of the two wins is nowhere said.
        inputs = indexed(session, index)
        names = [spec.name for spec in session.inputs]
        wanted = reference.run(None, dict(zip(names, inputs, strict=True)))
        np.testing.assert_array_equal(session.run(inputs)[0], wanted[0])
    session.close()


@pytest.mark.parametrize(("model", "least"), [("div", -(2**63)), ("mod", 0)])
def test_the_least_number_by_minus_one_ends_nothing(compiled, model, least):
    session = TvmBackend().load(ModelSource("m", compiled[0] / model))
    (found,) = session.run([np.array([-(2**63), 7]), np.array([-1, -1])])
    assert found.tolist() == [least, -7 if model == "div" else 0]
    session.close()


def test_an_index_on_a_gpu_is_held_to_the_bounds(compiled):
    assert "gather@cuda" not in compiled[1], compiled[1]
    content = (compiled[0] / "gather@cuda" / "model.so").read_bytes()
    assert b"min(" in content[content.index(b"__global__") :]


def test_no_rows_are_no_mistake(compiled):
    for model in ("mlp", "residual", "constant", "identity"):
        session = TvmBackend().load(ModelSource("m", compiled[0] / model))
        inputs = ends(session, 0)
        made = session.run(inputs)
        assert [len(y) for y, spec in zip(made, session.outputs, strict=True)
                if spec.shape[0] < 0] == [0]  # fmt: skip
        assert session._lends is None  # nothing was there to be lent
        session.close()


def test_what_one_way_lends_is_not_lent_after_another(compiled):
    session = TvmBackend().load(ModelSource("m", compiled[0] / "ways"))
    given = aligned_bytes(80).view(np.float32).reshape(2, 10)
    given[:] = 5
    for way in (True, False):
        (found,) = session.run([np.array(way), given])
        assert not np.may_share_memory(found, given)
        (found,) = session.clone().run([np.array(way), given])
        assert not np.may_share_memory(found, given)
    session.close()


def test_an_input_among_the_outputs_is_not_lent(compiled):
    """Whatever the first run was given; a copied input would hide it."""
    session = TvmBackend().load(ModelSource("m", compiled[0] / "identity"))
    room = aligned_bytes(8 + 48).view(np.int64)
    for given in (room[1:].reshape(2, 3), room[:6].reshape(2, 3)):
        given[:] = 5
        (found,) = session.run([given])
        given[:] = 6
        np.testing.assert_array_equal(found, 5)
    session.close()


def test_a_constant_among_the_outputs_is_not_lent(compiled):
    session = TvmBackend().load(ModelSource("m", compiled[0] / "constant"))
    inputs = [np.ones((2, 4), np.float32)]
    _, first = session.run(inputs)
    kept = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(session.run(inputs)[1], kept)
    session.close()


@pytest.mark.parametrize(
    ("model", "batched"),
    [("digits@tuned", True), ("add_sub", True), ("apart", False), ("constant", False)],
)
def test_batches_are_made_where_all_rows_are_the_same(compiled, model, batched):
    session = TvmBackend().load(ModelSource("m", compiled[0] / model))
    assert supports_batching(session) is batched
    session.close()


# --- tuning and targets


def test_a_budget_is_spent_on_trials_which_are_written_down(compiled):
    found = kernels(compiled[0], "digits@tuned")
    trials = [trial for kernel in found for trial in kernel["trials_us"]]
    assert len(trials) == 3
    for kernel in found:
        if kernel["trials_us"]:
            assert "x".join(map(str, kernel["tile"])) in kernel["trials_us"]
    compare(compiled[0], "digits@tuned", "digits")


def test_without_time_the_first_candidates_are_taken(compiled):
    assert all(not kernel["trials_us"] for kernel in kernels(compiled[0], "mlp@hurried"))
    compare(compiled[0], "mlp@hurried", "mlp")


def test_an_older_processor_can_be_the_target(compiled):
    folder, refused = compiled
    if "avx2" not in cpu_flags():
        pytest.skip("this processor lacks AVX2")
    assert "residual@portable" not in refused, refused
    told = json.loads((folder / "residual@portable" / "model.json").read_text())["target"]
    assert told["name"] == "x86-64-v3"
    assert {"avx2", "fma"} <= set(told["features"])
    assert not [feature for feature in told["features"] if feature.startswith("avx512")]
    compare(folder, "residual@portable", "residual")


def test_this_processor_can_do_what_was_compiled_for_it(compiled):
    told = json.loads((compiled[0] / "mlp" / "model.json").read_text())["target"]
    assert told["features"]
    assert {FEATURES[word] for word in told["features"]} <= cpu_flags()


def test_a_library_for_gpus_comes_out_and_is_not_served_by_the_cpu(compiled):
    folder, refused = compiled
    assert "digits@cuda" not in refused, refused
    content = (folder / "digits@cuda" / "model.so").read_bytes()
    assert b"__global__" in content
    with pytest.raises(LoadError, match="compiled for cuda"):
        TvmBackend().load(ModelSource("m", folder / "digits@cuda"))
    with pytest.raises(LoadError, match="cuda:0"):
        TvmBackend().load(ModelSource("m", folder / "digits@cuda", "cuda:0"))


# --- what it refuses


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("text", "TVM cannot read"),
        ("regions", "RoiAlign would read any picture"),
        ("garbage", "cannot read"),
        ("mlp@nowhere", "did you mean znver"),
        ("mlp@gpu", "write cuda:sm_90"),
        ("mlp@option", "did you mean trials"),
    ],
)
def test_refusals_are_a_line(compiled, order, said):
    text = compiled[1][order]
    assert said in text
    assert "\n" not in text


def test_without_a_c_compiler_it_is_told_what_to_install(tmp_path):
    engine_or_skip("tvm")
    code = COMPILE.replace("import json", "import os, json", 1).replace(
        "told, steps", "os.environ['PATH'] = ''\ntold, steps"
    )
    write_mlp(tmp_path / "mlp.onnx", 8, 0)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps({"mlp": {}})],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "needs a C compiler" in json.loads(done.stdout)["mlp"]


MASKED = """
import json, sys
from pathlib import Path
from penstock.backends.tvm import library as tvm_library
flags = tvm_library.cpu_flags()
tvm_library.cpu_flags = lambda: frozenset(f for f in flags if not f.startswith("avx512"))
from penstock.backends.base import CompileTask
from penstock.backends.tvm import TvmBackend
TvmBackend().compile(CompileTask(Path(sys.argv[1]) / "mlp.onnx", Path(sys.argv[1]) / "mlp"))
"""


def test_what_a_virtual_machine_hides_is_not_used(tmp_path):
    engine_or_skip("tvm")
    write_mlp(tmp_path / "mlp.onnx", 8, 0)
    (tmp_path / "mlp").mkdir()
    subprocess.run([sys.executable, "-c", MASKED, str(tmp_path)], check=True)
    told = json.loads((tmp_path / "mlp" / "model.json").read_text())["target"]
    assert told["features"]
    assert not [feature for feature in told["features"] if feature.startswith("avx512")]
    compare(tmp_path, "mlp", "mlp")
