"""Runs the TensorRT backend on a real GPU, and tells in JSON how right and how fast it was.

    python deploy/checks/tensorrt_check.py --output tensorrt.json

Models are built, run and held against ONNX Runtime on the CPU: the shipped digits network in FP32
and INT8, tensors that are larger than the pinned memory in both directions, and an output whose
size only a run can tell. Several workers at once must give what one gives. Then batches are timed
on one worker and on several; a model that does little with much input shows whether one worker's
copies overlap with another's. Needs the extras ``tensorrt`` or ``tensorrt-rtx``, ``onnx``,
``onnxruntime`` and ``quantize``.

Each step is told on stderr before it begins, and the JSON is written after each, so what was found
is there if one takes the process with it. A step that fails says so, and the next ones are made.

Exit code: 0 if all results are right, 1 if one is not, 2 if there is nothing to check with.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from penstock.backends.base import LoadError, ModelSource, RunError, Session
from penstock.backends.onnxruntime import OnnxRuntimeBackend
from penstock.backends.quantize.data import samples_of
from penstock.backends.quantize.pipeline import Task, quantize
from penstock.backends.tensorrt import TensorRtBackend
from penstock.loadtest.models import write_add_sub, write_image_mean, write_mlp
from penstock.protocol import dtype as dt
from penstock.protocol.message import Array
from penstock.server import demo

DIGITS: Final = demo.model_repository() / "digits" / "1" / "model.onnx"
ROWS_MAX: Final = 64
BATCHES: Final = (1, 8, 64)
WORKERS: Final = (1, 2, 4)
FP32_MAX: Final = 1e-4
"""How far FP32 may be from the CPU's: TF32 is off, but sums are made in another order."""
INT8_MAX: Final = 0.35
INT8_AGREEMENT_MIN: Final = 0.97
"""Of probabilities: few pictures near a border decide, so agreement counts besides."""
WIDE: Final = 40_000
SIDE: Final = 224
"""Of rows so large that a batch goes through the pinned memory in pieces."""
_WARM_RUNS: Final = 5
_WAIT_S: Final = 120.0

Report = dict[str, Any]
Load = Callable[[Path], Session]


class Steps:
    """The report, which grows by a step at a time, whatever happens in one."""

    def __init__(self, head: Report, output: Path | None) -> None:
        self.report: Report = {**head, "right": False, "failed": [], "steps": {}}
        self._output = output

    def take(self, name: str, step: Callable[[], Report]) -> None:
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            found = step()
            right = found.get("right", True)
        except Exception as error:
            traceback.print_exc()
            found, right = {"error": f"{type(error).__name__}: {error}"}, False
        self.report["steps"][name] = {**found, "took_s": round(time.monotonic() - started, 3)}
        if not right:
            self.report["failed"].append(name)
            print(f"FAILED: {name}: {json.dumps(found)}", file=sys.stderr, flush=True)
        self.write()

    def end(self) -> None:
        self.report["right"] = not self.report["failed"]
        self.write()

    def write(self) -> None:
        if self._output:
            self._output.write_text(self.text() + "\n")

    def text(self) -> str:
        return json.dumps(self.report, indent=1)


def main(argv: Sequence[str] | None = None, backend: TensorRtBackend | None = None) -> int:
    """Checks and measures; ``backend`` may be another than this machine's."""
    options = arguments(argv)
    backend = backend or TensorRtBackend()
    found = backend.engine()
    if found.missing:
        print(f"nothing was checked: {found.missing}", file=sys.stderr)
        return 2
    head = {
        "penstock": version("penstock"),
        "python": platform.python_version(),
        "engine": found.version,
        "devices": list(found.devices),
        "device": options.device,
    }
    steps = Steps(head, options.output)
    with tempfile.TemporaryDirectory() as folder:
        check(backend, Path(folder), options, steps)
    steps.end()
    print(steps.text())
    return 0 if steps.report["right"] else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="write the JSON to this file too")
    parser.add_argument("--device", default="cuda:0", help="the GPU (default: %(default)s)")
    parser.add_argument("--engine", choices=("tensorrt", "tensorrt_rtx"), help="if both are there")
    parser.add_argument("--int8", type=Path, help="digits in symmetric INT8 (default: made here)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each measurement (default: %(default)s)"
    )
    return parser.parse_args(argv)


def check(
    backend: TensorRtBackend, folder: Path, options: argparse.Namespace, steps: Steps
) -> None:
    """All steps. ``folder`` is for models and for the cache of plans."""

    def load(path: Path) -> Session:
        wishes = {"cache_dir": str(folder / "cache"), "tf32": "0"}
        if options.engine:
            wishes["engine"] = options.engine
        return backend.load(
            ModelSource(path.stem, path, options.device, 4, wishes, rows_max=ROWS_MAX)
        )

    int8 = options.int8 or folder / "digits_int8.onnx"
    mlp, wide, mean, found = (folder / f"{n}.onnx" for n in ("mlp", "wide", "mean", "found"))
    write_mlp(mlp, 1024)
    write_add_sub(wide, dt.FP32, WIDE)
    write_image_mean(mean, SIDE)
    write_nonzero(found)
    seconds = options.seconds
    if not options.int8:
        steps.take("quantize", lambda: symmetric(int8))
    steps.take("digits FP32", lambda: classified(DIGITS, load, FP32_MAX, 1.0))
    steps.take("digits INT8", lambda: classified(int8, load, INT8_MAX, INT8_AGREEMENT_MIN))
    steps.take("large tensors", lambda: compared(wide, load))
    steps.take("large inputs", lambda: compared(mean, load))
    steps.take("size told by the run", lambda: if_built(lambda: compared(found, load)))
    steps.take("refusals", lambda: refused(load, backend))
    for name, path in (("digits FP32", DIGITS), ("digits INT8", int8), ("MLP", mlp)):
        steps.take(f"speed of {name}", lambda path=path: measured(path, load, seconds))  # type: ignore[misc]
    steps.take("overlap", lambda: overlapped(mean, load, seconds))


def classified(path: Path, load: Load, difference_max: float, agreement_min: float) -> Report:
    """All pictures through both engines."""
    pictures, labels = demo.heldout()
    started = time.monotonic()
    session = load(path)
    built = time.monotonic()
    load(path).close()
    again = time.monotonic()
    with closing(session), closing(cpu(path)) as other:
        batches = [pictures[i : i + ROWS_MAX] for i in range(0, len(pictures), ROWS_MAX)]
        ours = np.concatenate([session.run([batch])[0] for batch in batches])
        theirs = np.concatenate([other.run([batch])[0] for batch in batches])
    difference = float(np.abs(ours - theirs).max())
    agreement = float((ours.argmax(1) == theirs.argmax(1)).mean())
    return {
        "difference_max": difference,
        "agreement": agreement,
        "accuracy": float((ours.argmax(1) == labels).mean()),
        "accuracy_cpu": float((theirs.argmax(1) == labels).mean()),
        "load_s": round(built - started, 3),
        "load_again_s": round(again - built, 3),
        # Not `>`: what is not a number is never within a limit.
        "right": difference <= difference_max and agreement >= agreement_min,
    }


def compared(path: Path, load: Load) -> Report:
    """Random rows through both engines, in new arrays and in given ones."""
    differences: dict[int, float] = {}
    with closing(load(path)) as session, closing(cpu(path)) as other:
        for rows in (1, 3, ROWS_MAX, 2):
            inputs = inputs_of(session, rows)
            theirs = other.run(inputs)
            given = [np.full_like(array, 77) for array in theirs]
            in_place = session.run_into(inputs, given)  # type: ignore[attr-defined]
            assert all(a is b for a, b in zip(in_place, given, strict=True))
            for ours in (session.run(inputs), given):
                differences[rows] = max(differences.get(rows, 0.0), difference_of(ours, theirs))
    right = all(difference <= FP32_MAX for difference in differences.values())
    return {"difference_max_by_rows": differences, "right": right}


def difference_of(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The greatest; infinity where shapes differ or something is not a number."""
    worst = 0.0
    for mine, wanted in zip(ours, theirs, strict=True):
        if mine.shape != wanted.shape or mine.dtype != wanted.dtype:
            return float("inf")
        found = float(np.abs(mine.astype(np.float64) - wanted).max(initial=0.0))
        worst = max(worst, found if np.isfinite(found) else float("inf"))
    return worst


def if_built(step: Callable[[], Report]) -> Report:
    """A step that not every engine has the operators for."""
    try:
        return step()
    except LoadError as error:
        return {"skipped": str(error)}


def refused(load: Load, backend: TensorRtBackend) -> Report:
    """What has to be refused in words, and does no harm to what comes after it."""
    with closing(load(DIGITS)) as session:
        shape = session.inputs[0].shape[1:]
        said = {}
        try:
            session.run([np.zeros((ROWS_MAX + 1, *shape), np.float32)])
        except RunError as error:
            said["too many rows"] = str(error)
        after = session.run([np.zeros((1, *shape), np.float32)])[0]
    try:
        backend.load(ModelSource("none", DIGITS, "cuda:99"))
    except LoadError as error:
        said["no such GPU"] = str(error)
    return {"said": said, "right": len(said) == 2 and bool(np.isfinite(after).all())}


def measured(path: Path, load: Load, seconds: float) -> Report:
    """Times of one worker for several batches, and rows a second of several workers."""
    with closing(load(path)) as session:
        latency = {}
        for rows in BATCHES:
            times = timed(session, inputs_of(session, rows), seconds)
            p50, p99 = np.percentile(times, (50, 99)) * 1e6
            latency[rows] = {
                "p50_us": round(float(p50), 1),
                "p99_us": round(float(p99), 1),
                "rows_per_s": round(rows * len(times) / sum(times)),
            }
        workers = {n: round(ROWS_MAX * batches_per_s(session, n, seconds)) for n in WORKERS}
    return {"latency": latency, "rows_per_s_by_workers": workers}


def overlapped(path: Path, load: Load, seconds: float) -> Report:
    """How much more goes through with several workers when copies are most of the work."""
    with closing(load(path)) as session:
        rates = {n: batches_per_s(session, n, seconds) for n in WORKERS}
        nbytes = sum(array.nbytes for array in inputs_of(session, ROWS_MAX))
    return {
        "input_bytes": nbytes,
        "gb_per_s_by_workers": {n: round(nbytes * rate / 1e9, 3) for n, rate in rates.items()},
        "ratio_by_workers": {n: round(rate / rates[1], 3) for n, rate in rates.items()},
    }


def timed(session: Session, inputs: Sequence[Array], seconds: float) -> list[float]:
    for _ in range(_WARM_RUNS):
        session.run(inputs)
    times: list[float] = []
    until = time.monotonic() + seconds
    while not times or time.monotonic() < until:
        started = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - started)
    return times


def batches_per_s(session: Session, workers: int, seconds: float) -> float:
    """Of as many clones as ``workers``, each on its thread with inputs of its own.

    Raises:
        RunError: one failed, or did not give what ``session`` gives.
    """
    given = [inputs_of(session, ROWS_MAX, seed) for seed in range(workers)]
    wanted = [session.run(inputs) for inputs in given]
    clones = [session.clone() for _ in range(workers)]  # type: ignore[attr-defined]
    ready = threading.Barrier(workers + 1, timeout=_WAIT_S)
    counts = [0] * workers
    failed: list[Exception] = []
    stop = threading.Event()

    def work(index: int) -> None:
        clone, inputs = clones[index], given[index]
        try:
            for _ in range(_WARM_RUNS):
                found = clone.run(inputs)
            ready.wait()
            while not counts[index] or not stop.is_set():
                found = clone.run(inputs)
                counts[index] += 1
            if difference_of(found, wanted[index]) > FP32_MAX:
                raise RunError(f"worker {index} of {workers} gives other results than one alone")
        except Exception as error:
            failed.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    took = float("inf")
    try:
        ready.wait()
        started = time.perf_counter()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join(_WAIT_S)
        took = time.perf_counter() - started
    except threading.BrokenBarrierError:
        stop.set()
        for thread in threads:
            thread.join(_WAIT_S)
    if any(thread.is_alive() for thread in threads):
        raise RunError(f"a worker of {workers} does not come back")
    for clone in clones:
        clone.close()
    if failed:
        raise failed[0]
    return sum(counts) / took


def inputs_of(session: Session, rows: int, seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [
        random.random((rows, *spec.shape[1:])).astype(spec.dtype.numpy) for spec in session.inputs
    ]


def cpu(path: Path) -> Session:
    return OnnxRuntimeBackend().load(ModelSource("cpu", path))


def symmetric(path: Path) -> Report:
    """Digits in INT8 as TensorRT takes it, made as ``penstock quantize --target tensorrt`` does."""
    pictures, labels = demo.heldout()
    half = len(pictures) // 2
    result = quantize(
        Task(
            model=DIGITS,
            output=path,
            samples=samples_of({"image": pictures[:half]}, labels[:half]),
            evaluation=samples_of({"image": pictures[half:]}, labels[half:]),
            target="tensorrt",
            batches=(),
            comparisons=False,
        )
    )
    return {"method": result.method, "right": result.verdict.passed}


def write_nonzero(path: Path) -> None:
    """Where FP32 [N, 64] is above a half: INT64 [found, 2]."""
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
    ]
    graph = helper.make_graph(
        nodes,
        "found",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("found", TensorProto.INT64, ["k", 2])],
        [helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


if __name__ == "__main__":
    sys.exit(main())
