"""Options reach ONNX Runtime under Triton's names; others are refused by name."""

from pathlib import Path

import onnxruntime as ort
import pytest

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.onnxruntime.options import (
    CONFIG_KEYS,
    SHRINK,
    has_exact_int8,
    is_quantized,
    run_options,
    session_options,
)


def source(device="cpu", threads=1, **options):
    return ModelSource("m", Path("m.onnx"), device=device, threads=threads, options=options)


def test_defaults_are_those_of_a_server():
    options = session_options(ort, source(threads=3))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"
    with pytest.raises(RuntimeError):  # there is no such entry
        run_options(ort, source())().get_run_config_entry(SHRINK)


def test_tritons_parameters_are_taken():
    options = session_options(
        ort,
        source(
            intra_op_thread_count="0",
            inter_op_thread_count="2",
            execution_mode="1",
            enable_mem_arena="0",
            enable_mem_pattern="0",
            allow_spinning="true",
        ),
    )
    assert options.intra_op_num_threads == 0
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "1"
    shrink = source(**{"memory.enable_memory_arena_shrinkage": "cpu:0"})
    assert run_options(ort, shrink)().get_run_config_entry(SHRINK) == "cpu:0"


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("-1", "BASIC"),
        ("1", "EXTENDED"),
        ("0", "ALL"),
        ("all", "ALL"),
        ("ORT_ENABLE_BASIC", "BASIC"),
        ("Extended", "EXTENDED"),
    ],
)
def test_levels(value, level):
    options = session_options(ort, source(graph_optimization_level=value))
    wanted = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    assert options.graph_optimization_level == wanted


@pytest.mark.parametrize("value", ["2", "disable_all", "ORT_DISABLE_ALL"])
def test_levels_off(value):
    options = session_options(ort, source(graph_optimization_level=value))
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize("key", sorted(CONFIG_KEYS))
def test_config_keys_are_passed_on(key):
    options = session_options(ort, source(**{key: "1"}))
    assert options.get_session_config_entry(key) == "1"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("intra_op_threads", "1", "did you mean intra_op_thread_count"),
        ("session.intra_op.allow_spining", "0", r"did you mean session.intra_op.allow_spinning"),
        ("session.load_model_format", "ORT", "not known"),
        ("xyzzy", "1", "known: allow_spinning, "),
        ("intra_op_thread_count", "-1", "at least 0"),
        ("intra_op_thread_count", "two", "whole number"),
        ("inter_op_thread_count", "", "whole number"),
        ("execution_mode", "2", "1, true, 0 or false"),
        ("enable_mem_arena", "yes", "1, true, 0 or false"),
        ("graph_optimization_level", "3", "one of -1, 0, 1, 2"),
    ],
)
def test_refusals_name_the_option(key, value, said):
    with pytest.raises(LoadError, match=f"option '{key}'.*{said}"):
        session_options(ort, source(**{key: value}))


@pytest.mark.parametrize("value", ["", "cpu", "cpu:x", "0", "cpu:0,gpu:0", "tpu:0"])
def test_arenas_to_shrink_are_checked(value):
    with pytest.raises(LoadError, match=f"option '{SHRINK}' is '{value}'"):
        run_options(ort, source(**{SHRINK: value}))


def test_each_session_has_run_options_of_its_own():
    make = run_options(ort, source(**{SHRINK: "cpu:0;gpu:0"}))
    one, other = make(), make()
    one.terminate = True
    assert not other.terminate


# The flags lines are those of real machines, shortened to what tells them apart.
CPUS = {
    "Intel Haswell, AVX2": ("flags\t\t: fpu sse4_1 sse4_2 avx fma avx2 bmi2\n", False),
    "Intel Skylake-X, AVX512 without VNNI": (
        "flags : avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n", False),
    "AMD Zen 3": ("flags : avx avx2 vaes vpclmulqdq\n", False),
    "Intel Cascade Lake": ("flags : avx2 avx512f avx512vl avx512_vnni\n", True),
    "Intel Alder Lake": ("flags : avx2 avx_vnni gfni\n", True),
    "Intel Sapphire Rapids": ("flags : avx2 amx_bf16 amx_tile amx_int8\n", True),
    "several cores": ("flags : fpu avx2\nflags : fpu avx2\n", False),
    "a model name that lies": ("model name : vnni\nflags : fpu avx2\n", False),
    "ARM": ("Features : fp asimd asimddp i8mm\n", True),
    "no such file": (None, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CPUS)
def test_saturating_int8_is_recognised(tmp_path, name):
    text, exact = CPUS[name]
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert has_exact_int8(path) is exact


PRECISION = "session.x64quantprecision"


@pytest.fixture
def old_cpu(monkeypatch):
    monkeypatch.setattr("penstock.backends.onnxruntime.options.has_exact_int8", lambda: False)


@pytest.mark.parametrize(
    ("content", "quantized"),
    [
        (b"..QuantizeLinear..DequantizeLinear..", True),
        (b"..DynamicQuantizeLinear..MatMulInteger..", True),
        (b"..ConvInteger..", True),
        (b"..QLinearConv..", True),
        (b"..Conv..Relu..Gemm..MatMul..Int8Weights..", False),
        (b"", True),
    ],
)
def test_saturating_int8_is_avoided_where_a_model_has_it(tmp_path, old_cpu, content, quantized):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for given in (path, tmp_path):
        assert is_quantized(given) is quantized
        options = session_options(ort, ModelSource("m", given))
        if quantized:
            assert options.get_session_config_entry(PRECISION) == "1"
        else:
            with pytest.raises(RuntimeError):  # there is no such entry
                options.get_session_config_entry(PRECISION)


def test_the_operator_knows_better(tmp_path, old_cpu):
    options = session_options(ort, source(**{PRECISION: "0"}))
    assert options.get_session_config_entry(PRECISION) == "0"


def test_a_cpu_that_is_exact_reads_no_model(monkeypatch):
    monkeypatch.setattr("penstock.backends.onnxruntime.options.has_exact_int8", lambda: True)
    monkeypatch.setattr("penstock.backends.onnxruntime.options.is_quantized", None)
    with pytest.raises(RuntimeError):
        session_options(ort, source()).get_session_config_entry(PRECISION)
