"""Providers get the options that are theirs; a device that cannot be had is refused."""

import logging
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.onnxruntime.options import session_options
from penstock.backends.onnxruntime.provider import CUDA, TENSORRT, check_chosen, providers

IN_THE_TENSORRT_PROVIDER = """
device_id has_user_compute_stream trt_auxiliary_streams trt_bf16_enable trt_build_heuristics_enable
trt_builder_optimization_level trt_context_memory_sharing_enable trt_cuda_graph_enable
trt_detailed_build_log trt_dla_core trt_dla_enable trt_dump_ep_context_model trt_dump_subgraphs
trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix trt_engine_decryption_enable
trt_engine_decryption_lib_path trt_engine_hw_compatible trt_ep_context_embed_mode
trt_ep_context_file_path trt_external_data_bytestream trt_external_data_bytestream_size
trt_extra_plugin_lib_paths trt_force_sequential_engine_build trt_force_timing_cache trt_fp16_enable
trt_int8_calibration_table_name trt_int8_enable trt_int8_use_native_calibration_table
trt_layer_norm_fp32_fallback trt_load_user_initializer trt_max_partition_iterations
trt_max_workspace_size trt_min_subgraph_size trt_onnx_bytestream trt_onnx_bytestream_size
trt_onnx_model_folder_path trt_op_types_to_exclude trt_preview_features trt_profile_max_shapes
trt_profile_min_shapes trt_profile_opt_shapes trt_sparsity_enable trt_tactic_sources
trt_timing_cache_enable trt_timing_cache_path trt_weight_stripped_engine_enable
"""
"""Names that libonnxruntime_providers_tensorrt.so of onnxruntime-gpu 1.31.1 has in it."""

IN_THE_CUDA_PROVIDER = """
arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_algo_search cudnn_conv_use_max_workspace
device_id do_copy_in_default_stream enable_cuda_graph enable_skip_layer_norm_strict_mode
fuse_conv_bias gpu_external_alloc gpu_external_empty_cache gpu_external_free gpu_mem_limit
has_user_compute_stream prefer_nhwc sdpa_kernel tunable_op_enable tunable_op_max_tuning_duration_ms
tunable_op_tuning_enable use_ep_level_unified_stream use_tf32
"""
"""The same of libonnxruntime_providers_cuda.so."""

BUILT_WITH_ALL = SimpleNamespace(
    __version__="1.31.1",
    get_available_providers=lambda: [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ],
)  # fmt: skip


def source(device="cuda:0", **options):
    return ModelSource("m", Path("m.onnx"), device=device, options=options)


def test_all_names_are_the_engines_own():
    assert set(CUDA) <= set(IN_THE_CUDA_PROVIDER.split())
    assert set(TENSORRT) <= set(IN_THE_TENSORRT_PROVIDER.split())


@pytest.mark.parametrize("key", [*CUDA, *TENSORRT])
def test_every_name_is_known_where_options_are_read(key):
    session_options(ort, source("cpu", **{key: "1"}))


@pytest.mark.parametrize(
    "key",
    [
        "trt_extra_plugin_lib_paths",
        "trt_engine_decryption_lib_path",
        "trt_engine_cache_path",
        "trt_dump_subgraphs",
        "trt_onnx_bytestream",
        "user_compute_stream",
        "enable_cuda_graph",
    ],
)
def test_what_loads_code_writes_files_or_takes_addresses_is_unknown(key):
    with pytest.raises(LoadError, match=f"option '{key}' is not known"):
        session_options(ort, source(**{key: "/tmp/x"}))


def test_cuda_gets_its_options():
    options = {"gpu_mem_limit": "5", "use_tf32": "false", "cudnn_conv_algo_search": "1"}
    wanted = {
        "device_id": "2",
        "gpu_mem_limit": "5",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert providers(BUILT_WITH_ALL, source("cuda:2", **options)) == [
        ("CUDAExecutionProvider", wanted)
    ]


def test_tensorrt_stands_before_cuda(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {
        "execution_provider": "TensorRT",
        "trt_fp16_enable": "true",
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "0",
        "trt_profile_min_shapes": "x:1x8,y:1x2",
        "trt_profile_opt_shapes": "x:4x8,y:4x2",
        "trt_profile_max_shapes": "x:8x8,y:8x2",
        "gpu_mem_limit": "7",
    }
    (trt, trt_options), cuda = providers(BUILT_WITH_ALL, source("cuda:1", **options))
    assert cuda == ("CUDAExecutionProvider", {"device_id": "1", "gpu_mem_limit": "7"})
    folder = tmp_path / "penstock" / "onnxruntime-tensorrt"
    assert trt == "TensorrtExecutionProvider"
    assert trt_options == {
        "device_id": "1",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "0",
        "trt_profile_min_shapes": "x:1x8,y:1x2",
        "trt_profile_opt_shapes": "x:4x8,y:4x2",
        "trt_profile_max_shapes": "x:8x8,y:8x2",
    }
    assert folder.stat().st_mode & 0o777 == 0o700, "engines are programs: nobody else's business"


def test_a_cache_that_cannot_be_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    options = {"execution_provider": "tensorrt", "trt_engine_cache_enable": "1"}
    with pytest.raises(LoadError, match="environment variable XDG_CACHE_HOME"):
        providers(BUILT_WITH_ALL, source(**options))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gpu_mem_limit", "0", "at least 1"),
        ("arena_extend_strategy", "2", "kNextPowerOfTwo"),
        ("cudnn_conv_algo_search", "fastest", "EXHAUSTIVE"),
        ("use_tf32", "maybe", "1, true, 0 or false"),
        ("execution_provider", "rocm", "cuda, tensorrt"),
        ("trt_builder_optimization_level", "6", "at most 5"),
        ("trt_max_workspace_size", "0", "at least 1"),
        ("trt_fp16_enable", "yes", "1, true, 0 or false"),
        ("trt_profile_min_shapes", "x:1x", "must look like input:1x3x224x224"),
        ("trt_profile_min_shapes", "1x3", "must look like"),
        ("trt_op_types_to_exclude", "Max Pool", "MaxPool,TopK"),
        ("trt_engine_cache_prefix", "../x", "letters"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_values_are_checked_on_any_device(key, value, said, device):
    with pytest.raises(LoadError, match=f"option '{key}'.*{said}"):
        providers(BUILT_WITH_ALL, source(device, **{key: value}))


def test_a_profile_is_whole():
    options = {"execution_provider": "tensorrt", "trt_profile_opt_shapes": "x:1x3"}
    with pytest.raises(LoadError, match="needs trt_profile_min_shapes, trt_profile_max_shapes"):
        providers(BUILT_WITH_ALL, source(**options))


@pytest.mark.parametrize(
    ("device", "options", "why"),
    [
        ("cpu", {"gpu_mem_limit": "5"}, "runs on the CPU"),
        ("cpu", {"trt_fp16_enable": "1"}, "runs on the CPU"),
        ("cpu", {"execution_provider": "tensorrt"}, "runs on the CPU"),
        ("cuda:0", {"trt_fp16_enable": "1"}, "without option execution_provider=tensorrt"),
    ],
)
def test_idle_options_are_said_to_do_nothing(caplog, device, options, why):
    with caplog.at_level(logging.WARNING):
        chosen = providers(BUILT_WITH_ALL, source(device, **options))
    assert len(chosen) == 1
    assert next(iter(options)) in caplog.text
    assert why in caplog.text


@pytest.mark.parametrize("there", [(), ("CUDAExecutionProvider",), ("TensorrtExecutionProvider",)])
def test_a_build_without_the_provider_is_refused(there):
    engine = SimpleNamespace(__version__="9", get_available_providers=lambda: list(there))
    missing = "CUDA" if "CUDAExecutionProvider" not in there else "TensorRT"
    if there[:1] != ("TensorrtExecutionProvider",):
        missing = "TensorRT"
    with pytest.raises(LoadError, match=f"onnxruntime 9 is built without {missing}"):
        providers(engine, source(execution_provider="tensorrt"))


@pytest.mark.parametrize(
    "chosen",
    [
        ["CUDAExecutionProvider", "CPUExecutionProvider"],
        ["CPUExecutionProvider"],
        ["TensorrtExecutionProvider", "CPUExecutionProvider"],
    ],
)
def test_another_provider_than_the_one_asked_for_is_refused(chosen):
    given = source(execution_provider="tensorrt")
    wanted = providers(BUILT_WITH_ALL, given)
    with pytest.raises(LoadError, match=f"but onnxruntime chose {', '.join(chosen)}"):
        check_chosen(given, wanted, chosen)
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    check_chosen(given, wanted, names)
