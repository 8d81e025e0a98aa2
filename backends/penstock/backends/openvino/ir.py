"""Turns an ONNX model into OpenVINO's IR, once, ahead of serving.

Knows the engine's reader and writer. Knows nothing of repositories and of running.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from penstock.backends.base import CompileTask, LoadError
from penstock.backends.checks import flag, known_options
from penstock.backends.openvino.runtime import clean, engine, read

FP16: Final = "compress_to_fp16"


def export(task: CompileTask, filename: str) -> Path:
    """Writes ``filename`` and its ``.bin``. The option ``compress_to_fp16`` halves the weights on
    disk; they are computed with in FP32 all the same.

    Raises:
        LoadError: an option, a target or the model is refused.
    """
    known_options(task.options, (FP16,), "openvino")
    compress = flag(FP16, task.options.get(FP16, "0"))
    if task.target.lower() not in ("", "cpu"):
        raise LoadError(
            f"target {task.target!r}: OpenVINO's IR is the same for every device; leave it out"
        )
    ov, core = engine()
    made = task.into / filename
    try:
        task.progress(f"reading {task.model.name}", 0.0)
        model = read(ov, core, task.model)
        task.progress("compiling it for this machine, to see that it can be", 0.3)
        core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
        task.progress(f"writing {made.name}", 0.8)
        ov.save_model(model, str(made), compress_to_fp16=compress)
    except Exception as error:
        raise LoadError(f"cannot turn {task.model} into IR: {clean(error)}") from error
    task.progress(f"{made.name} and {made.stem}.bin are there", 1.0)
    return made
