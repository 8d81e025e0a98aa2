"""Compiles an ONNX model to ``model.so`` and the ``model.json`` that describes it.

Knows TVM's compiler and the order of the steps; what each does is in ``graph``,
``kernels``, ``tuning`` and ``target``. Knows nothing of serving and repositories. The
process that compiles is not one that serves with the runtime alone.

Contract: what comes out is whole or LoadError is raised; a mistake in the model or the options is
told in one line.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from penstock.backends.base import CompileTask, LoadError
from penstock.backends.checks import unknown_option, whole
from penstock.backends.loading import one_line
from penstock.backends.tvm import INSTALL, set_environment
from penstock.backends.tvm.graph import has, layers, lowered, marked, simplified, with_kernels
from penstock.backends.tvm.guards import guarded
from penstock.backends.tvm.library import FORMAT, described, dtype_of
from penstock.backends.tvm.target import Target, target_of
from penstock.backends.tvm.tuning import Tuner, label
from penstock.protocol.message import TensorSpec

ARTEFACT: Final = "model.so"
OPTIONS: Final = frozenset({"trials"})
TRIALS: Final = 64
_COMPILERS: Final = ("c++", "g++", "clang++", "cc", "gcc", "clang")
_TUNE_ROWS_MAX: Final = 8
"""Rows that tiles are tried with: what a batch is under middling load."""


def compile_model(task: CompileTask) -> Path:
    """See ``Compiling.compile``."""
    for key in task.options:
        if key not in OPTIONS:
            raise unknown_option(key, OPTIONS, "tvm")
    trials = whole("trials", task.options["trials"]) if "trials" in task.options else TRIALS
    tvm = compiler()
    target = target_of(tvm, task.target)
    linker = _linker()
    task.progress(f"reading {task.model.name}", 0.0)
    module, inputs, outputs = _imported(tvm, task)
    tuner = Tuner(tvm, target, min(task.rows_max, _TUNE_ROWS_MAX))
    branches = has(tvm, module, lambda expression: isinstance(expression, tvm.relax.If))
    try:
        with target.engine:
            module = _optimised(tvm, module, target, tuner, task, trials)
        task.progress("making machine code", 0.9)
        built = tvm.compile(module, target=target.engine)
        artefact = task.into / ARTEFACT
        task.progress("linking", 0.95)
        built.export_library(str(artefact), cc=linker)
        record = _record(tvm, task, target, tuner, artefact)
        record |= {"inputs": inputs, "outputs": outputs, "branches": branches}
        artefact.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    except LoadError:
        raise
    except OSError as error:
        raise LoadError(f"cannot write to {task.into}: {error.strerror or error}") from error
    except Exception as error:
        raise LoadError(f"TVM cannot compile {task.model}: {one_line(error)}") from error
    task.progress("done", 1.0)
    return artefact


def compiler() -> Any:
    """TVM with its compiler.

    Raises:
        LoadError: it is not installed, or this process has the runtime alone.
    """
    set_environment()
    try:
        onnx = importlib.import_module("onnx")
        tvm = importlib.import_module("tvm")
    except (ImportError, RuntimeError, OSError) as error:
        raise LoadError(
            f"compiling needs TVM and onnx: {INSTALL} onnx ({one_line(error)})"
        ) from error
    if getattr(tvm, "_RUNTIME_ONLY", False):
        raise LoadError(
            "this process has TVM's runtime alone, because it serves models; compile in another "
            "one, with penstock compile, and without TVM_USE_RUNTIME_LIB"
        )
    assert onnx is sys.modules["onnx"]
    importlib.import_module("tvm.relax.frontend.onnx")
    importlib.import_module("tvm.s_tir.dlight")
    return tvm


def _linker() -> str:
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise LoadError(
            "compiling for backend 'tvm' needs a C compiler to link the library, and there is none "
            f"of {', '.join(_COMPILERS)}: install one, as with apt install gcc"
        )
    return found


def _imported(
    tvm: Any, task: CompileTask
) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """The graph as TVM has it, and its inputs and outputs as the sidecar has them, with the names
    and in the order of the ONNX model."""
    onnx = importlib.import_module("onnx")
    try:
        model = onnx.load(str(task.model))
    except Exception as error:
        raise LoadError(f"cannot read {task.model}: {one_line(error)}") from error
    if not model.graph.node:
        raise LoadError(f"{task.model} is not an ONNX model, or one without a single node")
    constants = {tensor.name for tensor in model.graph.initializer}
    try:
        module = tvm.relax.frontend.onnx.from_onnx(model)
    except Exception as error:
        raise LoadError(f"TVM cannot read {task.model}: {one_line(error)}") from error
    main = module["main"]
    names = [value.name for value in model.graph.input if value.name not in constants]
    inputs = [_end(name, param.ty, task) for name, param in zip(names, main.params, strict=True)]
    made = main.ret_ty
    kinds = list(made.fields) if isinstance(made, tvm.relax.TupleType) else [made]
    ends = zip(model.graph.output, kinds, strict=True)
    outputs = [_end(value.name, kind, task) for value, kind in ends]
    return module, inputs, outputs


def _end(name: str, kind: Any, task: CompileTask) -> dict[str, Any]:
    dtype = dtype_of(str(getattr(kind, "dtype", "")))
    shape = getattr(kind, "shape", None)
    if dtype is None or shape is None:
        raise LoadError(
            f"{task.model}: {name!r} is {one_line(kind)}; TVM can serve tensors of "
            "numbers only whose sizes follow from those of the inputs"
        )
    sizes = tuple(int(size.value) if hasattr(size, "value") else -1 for size in shape)
    rows = str(shape[0]) if sizes[:1] == (-1,) else None
    return described(TensorSpec(name, dtype, sizes), rows)


def _optimised(
    tvm: Any, module: Any, target: Target, tuner: Tuner, task: CompileTask, trials: int
) -> Any:
    task.progress("simplifying", 0.02)
    module = guarded(tvm, simplified(tvm, module), target.device)
    if target.device == "cuda":
        return _for_gpu(tvm, module)
    module = marked(tvm, module, target.vectors)
    if task.budget_s > 0 and trials and target.here:
        found = list(layers(tvm, module))
        tuner.tune(
            found,
            task.budget_s,
            trials,
            lambda step, share: task.progress(step, 0.05 + 0.75 * min(share, 1.0)),
        )
    task.progress("packing weights", 0.8)
    return lowered(tvm, with_kernels(tvm, module, target.vectors, tuner))


def _for_gpu(tvm: Any, module: Any) -> Any:
    """TVM's own schedules for GPUs."""
    relax, dlight = tvm.relax.transform, tvm.s_tir.dlight
    passes = [
        relax.DecomposeOpsForInference(),
        relax.LegalizeOps(),
        relax.AnnotateTIROpPattern(),
        relax.FoldConstant(),
        relax.FuseOps(),
        relax.FuseTIR(),
        relax.DeadCodeElimination(),
        dlight.ApplyDefaultSchedule(
            dlight.gpu.Matmul(),
            dlight.gpu.GEMV(),
            dlight.gpu.Reduction(),
            dlight.gpu.GeneralReduction(),
            dlight.gpu.Fallback(),
        ),
    ]
    return tvm.transform.Sequential(passes)(module)


def _record(
    tvm: Any, task: CompileTask, target: Target, tuner: Tuner, artefact: Path
) -> dict[str, Any]:
    """What the sidecar says besides the tensors."""
    return {
        "format": FORMAT,
        "sha256": hashlib.sha256(artefact.read_bytes()).hexdigest(),
        "tvm": str(tvm.__version__),
        "source": {
            "file": task.model.name,
            "sha256": hashlib.sha256(task.model.read_bytes()).hexdigest(),
        },
        "target": {
            "device": target.device,
            "name": target.name,
            "features": list(target.features),
        },
        "rows_max": task.rows_max,
        "kernels": [
            {
                "layer": label(shape),
                "dtype": dtype,
                "tile": [tuned.tile.rows, tuned.tile.vectors],
                "trials_us": {
                    f"{tile.rows}x{tile.vectors}": round(us, 2) for tile, us in tuned.trials.items()
                },
            }
            for (shape, dtype), tuned in tuner.chosen.items()
        ],
    }


__all__ = ["compile_model", "compiler"]
