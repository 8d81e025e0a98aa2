"""Turns the options of a ``ModelSource`` into a device and properties for OpenVINO.

Knows OpenVINO's property names and those that Triton's OpenVINO backend adds. Knows nothing of
models and of running, and imports without the engine.

Contract: an option that is not known, has a value that cannot be, or asks for what cannot be had
raises LoadError by name; nothing falls back to another device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock.backends.base import LoadError, ModelSource
from penstock.backends.checks import flag, unknown_option, whole

STREAMS_MAX: Final = 2
"""Streams of a compiled model where nothing else is asked for. Each is compiled at once and has
scratch memory of its own; a lane has at most two workers unless the configuration says otherwise.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compile for: OpenVINO's name of a device, and its properties."""

    device: str
    properties: Mapping[str, Any]


def _choice(*names: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        for name in names:
            if value.strip().lower() == name.lower():
                return name
        raise LoadError(f"option {key!r} is {value!r}; it must be one of {', '.join(names)}")

    return read


def _yes(key: str, value: str) -> bool:
    said = {"yes": "1", "no": "0"}.get(value.strip().lower(), value)
    return flag(key, said)


def _count(key: str, value: str) -> int:
    return whole(key, value, 1)


_PROPERTIES: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": whole,
    "ENABLE_CPU_PINNING": _yes,
    "ENABLE_HYPER_THREADING": _yes,
    "EXECUTION_MODE_HINT": _choice("PERFORMANCE", "ACCURACY"),
    "INFERENCE_NUM_THREADS": _count,
    "INFERENCE_PRECISION_HINT": _choice("f32", "bf16", "f16"),
    "NUM_STREAMS": _count,
    "PERFORMANCE_HINT": _choice("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
    "SCHEDULING_CORE_TYPE": _choice("ANY_CORE", "PCORE_ONLY", "ECORE_ONLY"),
}

_ABOUT_THE_BATCH: Final[Mapping[str, str]] = {
    "ENABLE_BATCH_PADDING": "batches are not padded: a free first dimension takes any number",
    "RESHAPE_IO_LAYERS": "shapes are the model's own: give it the wanted ones before it is saved",
}
"""Switches of Triton's backend that are harmless when off; why they cannot be on."""

_REFUSED: Final[Mapping[str, str]] = {
    "CACHE_DIR": "it writes files where a configuration says; compile the model to IR ahead "
    "(penstock compile), which loads quickly",
    "CPU_DENORMALS_OPTIMIZATION": "it changes the arithmetic of the thread, and so of other models",
    "CPU_EXTENSION_PATH": "it loads a program into the server",
}

_TRITON: Final = ("COMPILATION_NUM_THREADS", "HINT_BF16", "SKIP_OV_DYNAMIC_BATCHSIZE")
_DEVICE: Final = "TARGET_DEVICE"
KNOWN: Final = frozenset({*_PROPERTIES, *_ABOUT_THE_BATCH, *_TRITON, _DEVICE})


def plan(source: ModelSource, devices: Sequence[str], cores: int | None = None) -> Plan:
    """What to compile ``source`` for, on an engine that has ``devices``.

    ``cores`` is how many this process may use; None asks the system.

    Raises:
        LoadError: an option or the device is refused, and why.
    """
    options = {key: value for key, value in source.options.items() if not _said_off(key, value)}
    device = _device(source, options, devices)
    properties: dict[str, Any] = {
        # Other sessions and the event loop share these cores, and two models pinned to the same
        # ones would wait for each other while others idle.
        "ENABLE_CPU_PINNING": False,
        # Where the CPU has BF16 the engine would compute FP32 models in it, without being asked.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if device != "CPU":
        properties = {}  # these defaults are the CPU's
    for key, value in options.items():
        if key in _PROPERTIES:
            properties[key] = _PROPERTIES[key](key, value)
    if "HINT_BF16" in options:
        properties["INFERENCE_PRECISION_HINT"] = "bf16"
    if options.get("EXECUTION_MODE_HINT") and "INFERENCE_PRECISION_HINT" not in options:
        properties.pop("INFERENCE_PRECISION_HINT", None)  # the hint is to choose it
    if device == "CPU":
        _share_cores(source.threads, properties, cores or len(os.sched_getaffinity(0)))
    return Plan(device, properties)


def _said_off(key: str, value: str) -> bool:
    """True for a switch that is off and so changes nothing.

    Raises:
        LoadError: the option is not known, or is refused whatever it says.
    """
    if key in _REFUSED:
        raise LoadError(f"option {key!r} is refused: {_REFUSED[key]}")
    if key not in KNOWN:
        raise unknown_option(key, KNOWN, "openvino")
    if key in _ABOUT_THE_BATCH:
        if _yes(key, value):
            raise LoadError(f"option {key!r} cannot be on: {_ABOUT_THE_BATCH[key]}")
        return True
    if key == "COMPILATION_NUM_THREADS":
        _count(key, value)  # models are compiled on the loader's threads, as many as it has
        return True
    return key in _TRITON and (key == "SKIP_OV_DYNAMIC_BATCHSIZE" or not _yes(key, value))


def _share_cores(threads: int, properties: dict[str, Any], cores: int) -> None:
    """Gives each stream ``threads`` cores, and as many streams as there may be workers."""
    if "PERFORMANCE_HINT" in properties and "NUM_STREAMS" not in properties:
        return  # the hint is to choose both
    streams = properties.setdefault("NUM_STREAMS", max(1, min(STREAMS_MAX, cores // threads)))
    properties.setdefault("INFERENCE_NUM_THREADS", streams * threads)


def _device(source: ModelSource, options: Mapping[str, str], devices: Sequence[str]) -> str:
    have = ", ".join(devices)
    if source.device != "cpu":
        raise LoadError(
            f"device {source.device!r} cannot be used by backend 'openvino', which has no CUDA; "
            f"state kind: KIND_CPU in instance_group (OpenVINO sees {have}; "
            f"option {_DEVICE} chooses among them)"
        )
    wanted = options.get(_DEVICE, "CPU").strip().upper()
    family, _, number = wanted.partition(".")
    if wanted not in ("AUTO", "CPU") and not any(
        name == wanted or (not number and name.partition(".")[0] == family) for name in devices
    ):
        raise LoadError(
            f"option {_DEVICE!r} is {options[_DEVICE]!r}, but OpenVINO sees {have} only"
        )
    return wanted
