"""Turns a ``ModelSource`` into ONNX Runtime session options, run options and providers.

Knows ONNX Runtime's option names and Triton's names for them (the ``parameters`` of its ONNX
Runtime backend). Knows nothing of arrays and of running. ``ort`` is the imported module, passed in
so that this file imports without the engine.

ONNX Runtime takes an unknown configuration key in silence, so keys are held against a list.

Contract: an option that is not known, or has a value that cannot be, raises LoadError by name;
a device that cannot be had raises LoadError, it never becomes the CPU.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import flag, unknown_option, whole

_log = logging.getLogger(__name__)

SHRINK: Final = "memory.enable_memory_arena_shrinkage"

CONFIG_KEYS: Final = frozenset({
    "session.disable_cpu_ep_fallback",
    "session.disable_prepacking",
    "session.disable_quant_qdq",
    "session.disable_double_qdq_remover",
    "session.dynamic_block_base",
    "session.enable_quant_qdq_cleanup",
    "session.force_spinning_stop",
    "session.inter_op.allow_spinning",
    "session.inter_op.spin_backoff_max",
    "session.inter_op.spin_duration_us",
    "session.intra_op.allow_spinning",
    "session.intra_op.spin_backoff_max",
    "session.intra_op.spin_duration_us",
    "session.intra_op_thread_affinities",
    "session.prepack.enable_parallel",
    "session.qdqisint8allowed",
    "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
    "session.use_env_allocators",
    "session.x64quantprecision",
    "optimization.disable_specified_optimizers",
})  # fmt: skip
"""Keys of ``add_session_config_entry`` that an operator may set. Left out on purpose: those that
write files."""

_LEVELS: Final[Mapping[str, str]] = {
    # Triton's numbers for optimization.graph.level; they are not ONNX Runtime's own.
    "-1": "ORT_ENABLE_BASIC",
    "0": "ORT_ENABLE_ALL",
    "1": "ORT_ENABLE_EXTENDED",
    "2": "ORT_DISABLE_ALL",
    "disable_all": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_ALGO_SEARCH: Final = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")
_EXTEND: Final = ("kNextPowerOfTwo", "kSameAsRequested")


def _level(ort: Any, options: Any, key: str, value: str) -> None:
    name = value.strip().lower().removeprefix("ort_").removeprefix("enable_")
    level = _LEVELS.get(name)
    if level is None or not hasattr(ort.GraphOptimizationLevel, level):
        raise LoadError(f"option {key!r} is {value!r}; it must be one of {', '.join(_LEVELS)}")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)


def _mode(ort: Any, options: Any, key: str, value: str) -> None:
    parallel = flag(key, value)
    modes = ort.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if parallel else modes.ORT_SEQUENTIAL


def _spin(ort: Any, options: Any, key: str, value: str) -> None:
    allow_spinning(options, flag(key, value))


def _intra(ort: Any, options: Any, key: str, value: str) -> None:
    options.intra_op_num_threads = whole(key, value)


def _inter(ort: Any, options: Any, key: str, value: str) -> None:
    options.inter_op_num_threads = whole(key, value)


def _arena(ort: Any, options: Any, key: str, value: str) -> None:
    options.enable_cpu_mem_arena = flag(key, value)


def _pattern(ort: Any, options: Any, key: str, value: str) -> None:
    options.enable_mem_pattern = flag(key, value)


_SETTERS: Final[Mapping[str, Callable[[Any, Any, str, str], None]]] = {
    "intra_op_thread_count": _intra,
    "inter_op_thread_count": _inter,
    "execution_mode": _mode,
    "graph_optimization_level": _level,
    "enable_mem_arena": _arena,
    "enable_mem_pattern": _pattern,
    "allow_spinning": _spin,
}


def _choice(names: tuple[str, ...]) -> Callable[[str, str], str]:
    """Reads a value given as Triton's number or as ONNX Runtime's name."""

    def read(key: str, value: str) -> str:
        text = value.strip()
        if text in names:
            return text
        if text in map(str, range(len(names))):
            return names[int(text)]
        raise LoadError(f"option {key!r} is {value!r}; it must be one of {', '.join(names)}")

    return read


_CUDA: Final[Mapping[str, Callable[[str, str], str]]] = {
    "gpu_mem_limit": lambda key, value: str(whole(key, value, 1)),
    "arena_extend_strategy": _choice(_EXTEND),
    "cudnn_conv_algo_search": _choice(_ALGO_SEARCH),
    "cudnn_conv_use_max_workspace": lambda key, value: str(int(flag(key, value))),
    "do_copy_in_default_stream": lambda key, value: str(int(flag(key, value))),
    "prefer_nhwc": lambda key, value: str(int(flag(key, value))),
    "use_ep_level_unified_stream": lambda key, value: str(int(flag(key, value))),
    "use_tf32": lambda key, value: str(int(flag(key, value))),
}

KNOWN: Final = frozenset({*_SETTERS, *CONFIG_KEYS, *_CUDA, SHRINK})


def allow_spinning(options: Any, allowed: bool) -> None:
    """Whether idle pool threads burn CPU for some milliseconds while they wait for more work."""
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(allowed)))


def session_options(ort: Any, source: ModelSource) -> Any:
    """``SessionOptions`` with Penstock's defaults for serving and then the operator's wishes."""
    for key in source.options:
        if key not in KNOWN:
            raise unknown_option(key, KNOWN, "onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = source.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Fatal only: whatever is logged as an error also comes back as an exception, and at level 3
    # every malformed request would write a line to stderr, as many as a caller cares to send.
    options.log_severity_level = 4
    # Other models and the event loop share these cores.
    allow_spinning(options, False)
    if not has_exact_int8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if source.device != "cpu":
        # Refuses models of which one node would run on the CPU; the operator may say 0 to that.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for key, value in source.options.items():
        if key in _SETTERS:
            _SETTERS[key](ort, options, key, value)
        elif key in CONFIG_KEYS:
            options.add_session_config_entry(key, value)
    return options


def run_options(ort: Any, source: ModelSource) -> Any:
    """``RunOptions`` for every run, None (cheaper) where there is nothing to say."""
    arenas = source.options.get(SHRINK)
    if arenas is None:
        return None
    options = ort.RunOptions()
    options.log_severity_level = 4
    options.add_run_config_entry(SHRINK, arenas)
    return options


def providers(ort: Any, source: ModelSource) -> list[tuple[str, dict[str, str]]]:
    """The execution providers for ``source.device``.

    Raises:
        LoadError: the device is not ``cpu`` or ``cuda:N``, or this build of the engine lacks CUDA.
    """
    wishes = {key: value for key, value in source.options.items() if key in _CUDA}
    cuda = {key: _CUDA[key](key, value) for key, value in wishes.items()}
    if source.device == "cpu":
        if cuda:
            _log.warning(
                "model %s runs on the CPU, so these do nothing: %s", source.name, ", ".join(cuda)
            )
        return [("CPUExecutionProvider", {})]
    match = re.fullmatch(r"cuda:(\d+)", source.device)
    if match is None:
        raise LoadError(
            f"device {source.device!r} is not known to backend 'onnxruntime'; use cpu or cuda:N"
        )
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise LoadError(
            f"device {source.device!r} was asked for, but onnxruntime {ort.__version__} is built "
            "without CUDA; for the CPU state kind: KIND_CPU in instance_group, for CUDA "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": match[1], **cuda})]


@functools.cache
def has_exact_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether U8S8 products are summed without saturating at 16 bits.

    x86 without VNNI or AMX computes them with ``vpmaddubsw``, which saturates and has given wrong
    answers for quantised models; ``session.x64quantprecision`` avoids that at some cost. True where
    the CPU is no x86 or cannot be told.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return True
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    if found is None:
        return True
    return any("vnni" in name or name == "amx_int8" for name in found[1].split())
