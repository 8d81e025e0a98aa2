"""Options reach ONNX Runtime under Triton's names; others are refused by name."""

import logging
from pathlib import Path

import onnxruntime as ort
import pytest

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.onnxruntime_options import (
    CONFIG_KEYS,
    has_exact_int8,
    providers,
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
    assert run_options(ort, source()) is None


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
    key = "memory.enable_memory_arena_shrinkage"
    assert run_options(ort, shrink).get_run_config_entry(key) == "cpu:0"


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpu_mem_limit", "0"),
        ("arena_extend_strategy", "2"),
        ("cudnn_conv_algo_search", "fastest"),
        ("use_tf32", "maybe"),
    ],
)
def test_cuda_values_are_checked_on_any_device(key, value):
    with pytest.raises(LoadError, match=f"option '{key}'"):
        providers(ort, source(**{key: value}))


def test_cuda_options_on_the_cpu_are_said_to_do_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        assert providers(ort, source(gpu_mem_limit="5")) == [("CPUExecutionProvider", {})]
    assert "gpu_mem_limit" in caplog.text


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags : fpu avx2 avx_vnni\n", True),
        ("flags : fpu amx_int8\n", True),
        ("flags : fpu avx2\nflags : fpu avx2\n", False),
        ("Features : fp asimd\n", True),
        (None, True),
    ],
)
def test_saturating_int8_is_recognised(tmp_path, text, exact):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert has_exact_int8(path) is exact


def test_saturating_int8_is_avoided(monkeypatch):
    monkeypatch.setattr("penstock.backends.onnxruntime_options.has_exact_int8", lambda: False)
    options = session_options(ort, source())
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    options = session_options(ort, source(**{"session.x64quantprecision": "0"}))
    assert options.get_session_config_entry("session.x64quantprecision") == "0"
