"""Which of ONNX Runtime's execution providers a model runs on, and with which options.

Knows the providers for CPU, CUDA and TensorRT and the options of theirs that an operator may set.
Left out of the lists on purpose: what loads libraries, takes addresses, writes dumps, or needs
fixed buffers. ``ort`` is the imported module, passed in so that this file imports without the
engine.

Contract: a device or a provider that cannot be had raises LoadError, it never becomes another one;
so does an option whose value cannot be, whichever provider is used.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import flag, whole

_log = logging.getLogger(__name__)

PROVIDER: Final = "execution_provider"
"""Our option for a GPU's provider: ``cuda`` or ``tensorrt``."""

Reader = Callable[[str, str], str]
Provider = tuple[str, dict[str, str]]


def _flag(key: str, value: str) -> str:
    return str(int(flag(key, value)))


def _whole(least: int, most: int | None = None) -> Reader:
    def read(key: str, value: str) -> str:
        number = whole(key, value, least)
        if most is not None and number > most:
            raise LoadError(f"option {key!r} is {value!r}; it must be at most {most}")
        return str(number)

    return read


def _choice(*names: str) -> Reader:
    """Reads a value given as Triton's number or as ONNX Runtime's name."""

    def read(key: str, value: str) -> str:
        text = value.strip()
        if text in names:
            return text
        if text in map(str, range(len(names))):
            return names[int(text)]
        raise LoadError(f"option {key!r} is {value!r}; it must be one of {', '.join(names)}")

    return read


def _pattern(pattern: str, example: str) -> Reader:
    def read(key: str, value: str) -> str:
        text = value.strip()
        if re.fullmatch(pattern, text) is None:
            raise LoadError(f"option {key!r} is {value!r}; it must look like {example}")
        return text

    return read


_SHAPES: Final = _pattern(
    r"[^,:\s]+:\d+(x\d+)*(,[^,:\s]+:\d+(x\d+)*)*", "input:1x3x224x224,other:1x8"
)

CUDA: Final[Mapping[str, Reader]] = {
    "arena_extend_strategy": _choice("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": _flag,
    "cudnn_conv_algo_search": _choice("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": _flag,
    "do_copy_in_default_stream": _flag,
    "enable_skip_layer_norm_strict_mode": _flag,
    "fuse_conv_bias": _flag,
    "gpu_mem_limit": _whole(1),
    "prefer_nhwc": _flag,
    "sdpa_kernel": _whole(0),
    "tunable_op_enable": _flag,
    "tunable_op_max_tuning_duration_ms": _whole(0),
    "tunable_op_tuning_enable": _flag,
    "use_ep_level_unified_stream": _flag,
    "use_tf32": _flag,
}

TENSORRT: Final[Mapping[str, Reader]] = {
    "trt_auxiliary_streams": _whole(-1),
    "trt_bf16_enable": _flag,
    "trt_build_heuristics_enable": _flag,
    "trt_builder_optimization_level": _whole(0, 5),
    "trt_context_memory_sharing_enable": _flag,
    "trt_detailed_build_log": _flag,
    "trt_dla_core": _whole(0),
    "trt_dla_enable": _flag,
    "trt_engine_cache_enable": _flag,
    "trt_engine_cache_prefix": _pattern(r"[\w-]{1,64}", "a word of letters, digits, _ and -"),
    "trt_engine_hw_compatible": _flag,
    "trt_force_sequential_engine_build": _flag,
    "trt_force_timing_cache": _flag,
    "trt_fp16_enable": _flag,
    "trt_int8_enable": _flag,
    "trt_layer_norm_fp32_fallback": _flag,
    "trt_max_partition_iterations": _whole(1),
    "trt_max_workspace_size": _whole(1),
    "trt_min_subgraph_size": _whole(1),
    "trt_op_types_to_exclude": _pattern(r"\w+(,\w+)*", "MaxPool,TopK"),
    "trt_profile_max_shapes": _SHAPES,
    "trt_profile_min_shapes": _SHAPES,
    "trt_profile_opt_shapes": _SHAPES,
    "trt_sparsity_enable": _flag,
    "trt_timing_cache_enable": _flag,
}

_CACHES: Final = {
    "trt_engine_cache_enable": "trt_engine_cache_path",
    "trt_timing_cache_enable": "trt_timing_cache_path",
}
CACHE_VARIABLE: Final = "XDG_CACHE_HOME"
"""Where TensorRT's engines are kept is for who runs the server to say, not for a model."""

_PROFILES: Final = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")

KNOWN: Final = frozenset({PROVIDER, *CUDA, *TENSORRT})

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"


def providers(ort: Any, source: ModelSource) -> list[Provider]:
    """The execution providers for ``source``, the first one first; all of them must be there.

    Raises:
        LoadError: the device is not ``cpu`` or ``cuda:N``, this build of the engine lacks what it
            takes, or an option has a value that cannot be.
    """
    cuda, tensorrt = _read(CUDA, source), _read(TENSORRT, source)
    wanted = _choice("cuda", "tensorrt")(PROVIDER, source.options.get(PROVIDER, "cuda").lower())
    if source.device == "cpu":
        chosen_anyway = {PROVIDER: wanted} if PROVIDER in source.options else {}
        _warn_idle(source, "runs on the CPU", {**chosen_anyway, **cuda, **tensorrt})
        return [(_CPU, {})]
    match = re.fullmatch(r"cuda:(\d+)", source.device)
    if match is None:
        raise LoadError(
            f"device {source.device!r} is not known to backend 'onnxruntime'; use cpu or cuda:N"
        )
    chosen: list[Provider] = [(_CUDA, {"device_id": match[1], **cuda})]
    if wanted == "tensorrt":
        # What TensorRT cannot run is CUDA's.
        chosen.insert(0, (_TENSORRT, {"device_id": match[1], **_with_caches(tensorrt)}))
    else:
        _warn_idle(source, f"runs without option {PROVIDER}=tensorrt", tensorrt)
    _check_built_in(ort, source.device, [name for name, _ in chosen])
    return chosen


def check_chosen(source: ModelSource, wanted: list[Provider], chosen: list[str]) -> None:
    """Refuses a session that the engine made on other providers than those asked for."""
    names = [name for name, _ in wanted]
    if chosen[: len(names)] != names:
        raise LoadError(
            f"{source.name}: device {source.device!r} was asked for with {', '.join(names)}, "
            f"but onnxruntime chose {', '.join(chosen)}"
        )


def has_cuda(ort: Any) -> bool:
    """Whether this build of the engine could use a GPU."""
    return _CUDA in ort.get_available_providers()


def _read(readers: Mapping[str, Reader], source: ModelSource) -> dict[str, str]:
    return {
        key: readers[key](key, value) for key, value in source.options.items() if key in readers
    }


def _warn_idle(source: ModelSource, how: str, options: Mapping[str, str]) -> None:
    if options:
        _log.warning("model %s %s, so these do nothing: %s", source.name, how, ", ".join(options))


def _with_caches(options: dict[str, str]) -> dict[str, str]:
    given = [key for key in _PROFILES if key in options]
    if 0 < len(given) < len(_PROFILES):
        missing = ", ".join(key for key in _PROFILES if key not in given)
        raise LoadError(f"option {given[0]!r} needs {missing} beside it")
    paths = {path: _cache() for key, path in _CACHES.items() if options.get(key) == "1"}
    return {**options, **paths}


def _cache() -> str:
    base = os.environ.get(CACHE_VARIABLE)
    try:
        path = (Path(base) if base else Path.home() / ".cache") / "penstock/onnxruntime-tensorrt"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # the latter if nobody knows where home is
        raise LoadError(
            f"TensorRT's engines cannot be kept: {error}; name another folder in the environment "
            f"variable {CACHE_VARIABLE}"
        ) from error
    return str(path)


def _check_built_in(ort: Any, device: str, names: list[str]) -> None:
    there = ort.get_available_providers()
    for name in names:
        if name in there:
            continue
        what = "TensorRT" if name == _TENSORRT else "CUDA"
        raise LoadError(
            f"device {device!r} was asked for with {what}, but onnxruntime {ort.__version__} is "
            f"built without {what}; for the CPU state kind: KIND_CPU in instance_group, for {what} "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
