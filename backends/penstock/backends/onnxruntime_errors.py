"""ONNX Runtime's messages as one clear line, and what an operator can do about them.

Knows the texts of the engine's errors. Knows nothing of sessions and options.
"""

from __future__ import annotations

import re
from typing import Final

_NOISE: Final = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "), ""),
    (re.compile(r"^Load model from .*? failed:\s*"), ""),
    # "/src/x.cc:12 void ns::fn(int) const [with T = int] " before the sentence that says why.
    (
        re.compile(
            r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ "
            r"(?:[^()\n]*?\w+::[^()\n]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? )?"
        ),
        "",
    ),
    (
        re.compile(
            r"Non-zero status code returned while running (\w+) node\. "
            r"Name:'([^']*)' Status Message: "
        ),
        r"node \1 '\2': ",
    ),
    (re.compile(r"\s*Please fix either the inputs/outputs or the model\."), ""),
    (re.compile(r"\s+"), " "),
)

_TERMINATED: Final = "terminate flag"

_DAMAGED: Final = "the file is damaged or cut short, or no ONNX model: copy it here again"
_OPSET: Final = "export the model again with an older opset, or upgrade onnxruntime"
_WEIGHTS: Final = "the files of its weights must lie beside the model, whole"

_ADVICE: Final = (
    ("fallback to CPU EP", "option session.disable_cpu_ep_fallback=0 allows what stays on the CPU"),
    ("Protobuf parsing failed", _DAMAGED),
    ("No graph was found", _DAMAGED),
    ("ORT model verification failed", _DAMAGED),
    ("IR version", "export the model again with an older ir_version, or upgrade onnxruntime"),
    ("is under development", _OPSET),
    ("is not a registered function/op", "custom operators are not loaded: export without them"),
    ("No Op registered for", "export the model again with operators of an opset that it declares"),
    ("External data path", _WEIGHTS),
    ("External initializer", _WEIGHTS),
    ("libnvinfer", "the TensorRT provider needs TensorRT 10, not the one of another backend"),
)


def clean(text: str) -> str:
    """An engine's message as one line, without its prefixes, source files and C++ signatures."""
    for pattern, into in _NOISE:
        text = pattern.sub(into, text)
    return text.strip()


def load_reason(error: Exception) -> str:
    """Why a model was not loaded, and what may help."""
    text = clean(str(error)) or type(error).__name__
    for mark, advice in _ADVICE:
        if mark in text:
            return f"{text.removesuffix('.')}; {advice}"
    return text


def run_reason(error: Exception) -> str:
    """Why a run failed."""
    text = str(error)
    if _TERMINATED in text:
        return "the run was interrupted"
    return clean(text) or type(error).__name__
