"""Turns a ``ModelSource`` into ONNX Runtime session options and run options.

Knows ONNX Runtime's option names and Triton's names for them (the ``parameters`` of its ONNX
Runtime backend); those of providers are ``provider``'s. Knows nothing of arrays and of
running. ``ort`` is the imported module, passed in so that this file imports without the engine.

ONNX Runtime takes an unknown configuration key in silence, so keys are held against a list.

Contract: an option that is not known, or has a value that cannot be, raises LoadError by name.
"""

from __future__ import annotations

import functools
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import flag, unknown_option, whole
from penstock.backends.onnxruntime import provider as onnxruntime_providers

SHRINK: Final = "memory.enable_memory_arena_shrinkage"
_ARENAS: Final = r"[cg]pu:\d+(;[cg]pu:\d+)*"

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


KNOWN: Final = frozenset({*_SETTERS, *CONFIG_KEYS, *onnxruntime_providers.KNOWN, SHRINK})


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
    if not has_exact_int8() and is_quantized(source.path):
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


def run_options(ort: Any, source: ModelSource) -> Callable[[], Any]:
    """Makes the ``RunOptions`` of one session: its runs are interrupted by them.

    Raises:
        LoadError: the arenas to shrink are not written as the engine wants them.
    """
    arenas = source.options.get(SHRINK)
    if arenas is not None and re.fullmatch(_ARENAS, arenas) is None:
        raise LoadError(f"option {SHRINK!r} is {arenas!r}; it must look like cpu:0 or cpu:0;gpu:0")

    def make() -> Any:
        options = ort.RunOptions()
        options.log_severity_level = 4
        if arenas is not None:
            options.add_run_config_entry(SHRINK, arenas)
        return options

    return make


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


_QUANTIZED: Final = (b"Quantize", b"QLinear", b"QGemm", b"QAttention", b"Integer")
"""What the names of all operators on 8-bit integers have in them, or a piece of it."""


def is_quantized(path: Path) -> bool:
    """Whether a model's graph computes with 8-bit integers, by the names that its file has in it.

    True where that cannot be told: the option that depends on it costs speed, not results. Weights
    in files of their own are not read.
    """
    if path.is_dir():
        path = path / "model.onnx"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return any(content.find(name) >= 0 for name in _QUANTIZED)
    except (OSError, ValueError):
        return True
