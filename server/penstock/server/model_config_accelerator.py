"""Triton's execution accelerators as options of the ONNX Runtime backend.

Knows: ``optimization.execution_accelerators`` of a configuration, and the names that Triton gives
to a few of the engine's options there. All other parameters go on as they are, for the backend to
know or to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_PRECISIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
_NAMES: Final = {"max_workspace_size_bytes": "trt_max_workspace_size"}
_PROVIDERS: Final = ("tensorrt", "cuda")

WHERE: Final = "optimization.execution_accelerators.gpu_execution_accelerator"


def accelerator_options(message: Any) -> dict[str, str]:
    """The options that the accelerators of a ModelConfig message stand for.

    Raises:
        ValueError: an accelerator or a precision that is not known, in words.
    """
    options: dict[str, str] = {}
    accelerators = message.optimization.execution_accelerators.gpu_execution_accelerator
    for i, accelerator in enumerate(accelerators):
        where = f"{WHERE}[{i}]"
        if accelerator.name not in _PROVIDERS:
            raise ValueError(
                f"{where}: {accelerator.name!r} is not known; it must be {' or '.join(_PROVIDERS)}"
            )
        # TensorRT's is the one that counts: CUDA takes what it leaves.
        if accelerator.name == "tensorrt" or "execution_provider" not in options:
            options["execution_provider"] = accelerator.name
        for key in sorted(accelerator.parameters):
            options.update(_option(where, key, accelerator.parameters[key]))
    return options


def _option(where: str, key: str, value: str) -> Mapping[str, str]:
    if key != "precision_mode":
        return {_NAMES.get(key, key): value}
    if value not in _PRECISIONS:
        raise ValueError(
            f"{where}: precision_mode is {value!r}; it must be one of {', '.join(_PRECISIONS)}"
        )
    return _PRECISIONS[value]
