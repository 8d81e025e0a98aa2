"""``penstock quantize``: an INT8 model that has proven its accuracy, or a refusal.

Knows the command line, where models lie and how a result is told. What becomes of the
model is decided in ``penstock.backends.quantize``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.server.commands import values
from penstock.server.commands.failure import USAGE, CommandError
from penstock.server.commands.unwinding import signals_unwind

if TYPE_CHECKING:
    from penstock.backends.quantize.data import Samples
    from penstock.backends.quantize.pipeline import Task
    from penstock.backends.quantize.result import Result

REFUSED: Final = 3
"""The exit status of a model that would lose more than is allowed."""
_NEEDED: Final = {
    "onnx": "onnx", "onnxruntime": "onnxruntime", "matplotlib": "matplotlib",
    "google.protobuf": "protobuf",
}  # fmt: skip

DESCRIPTION: Final = """\
Makes an INT8 model of a float ONNX model: calibrates it with samples, keeps in float the fewest
layers that its accuracy needs, and measures what comes out. A model that loses more than is allowed
is not written. The report (HTML and JSON) is written in either case."""

EPILOG: Final = """\
samples (--data, --eval): x.npz with an array for each input by name and perhaps 'labels'; x.npy for
  a model with one input; or a folder of such files. The first axis counts samples; some hundred do.

examples:
  penstock quantize model.onnx --data calibration/
  penstock quantize models/digits --data train.npz --eval heldout.npz --max-drop 0.3
  penstock quantize model.onnx --data train.npz --into models/digits
  penstock quantize model.onnx --data train.npz --target tensorrt --output model.int8.onnx
  penstock quantize model.onnx --data train.npz --json | jq .kept_float

Exit status: 0 passed and written, 1 not possible, 2 wrong usage, 3 it lost too much accuracy; 130
at Ctrl-C, which leaves nothing half-written."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "quantize",
        help="make an INT8 model that has proven its accuracy",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "model", metavar="MODEL", type=Path,
        help="a float .onnx file, or a model's directory in a repository: its highest version that "
        "was not quantised here",
    )  # fmt: skip
    _add_samples(parser.add_argument_group("samples"))
    _add_output(parser.add_argument_group("where to"))
    _add_bounds(parser.add_argument_group("what it may lose"))
    _add_method(parser.add_argument_group("how"))
    parser.set_defaults(run=run)


def _add_samples(group: Any) -> None:
    group.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        required=True,
        help="samples to calibrate with: .npz, .npy or a folder of them; see below",
    )
    group.add_argument(
        "--eval", metavar="PATH", type=Path, default=None,
        help="samples to judge with, which nothing else sees (default: the half of --data that "
        "chooses between candidates)",
    )  # fmt: skip
    group.add_argument(
        "--samples", metavar="N", type=values.count, default=2000,
        help="take at most N of --data, chosen at random (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--seed",
        metavar="N",
        type=values.index,
        default=0,
        help="of that choice (default: %(default)s)",
    )


def _add_output(group: Any) -> None:
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE", type=Path, default=None,
        help="write this file, instead of one that is there (default: the next version, if MODEL "
        "is one of a model in a repository; else MODEL with .int8.onnx)",
    )  # fmt: skip
    where.add_argument(
        "--into", metavar="DIRECTORY", type=Path, default=None,
        help="a model's directory in a repository, where it becomes the next version",
    )  # fmt: skip
    where.add_argument(
        "--dry-run", action="store_true", help="measure and report, but write no model"
    )
    group.add_argument(
        "--report", metavar="PATH", type=Path, default=None,
        help="write PATH.html and PATH.json; a folder will do (default: NAME-int8 here)",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument("--quiet", action="store_true", help="no progress")


def _add_bounds(group: Any) -> None:
    group.add_argument(
        "--max-drop", metavar="POINTS", type=values.amount, default=0.3,
        help="with labels: percentage points of right answers (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--min-sqnr", metavar="DB", type=values.amount, default=20.0,
        help="without: at least so much signal over noise in the outputs (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--min-cosine", metavar="C", type=values.share, default=0.995,
        help="without: and at least so alike (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-error", metavar="SHARE", type=values.share, default=0.1,
        help="with labels that are real numbers: share of the outputs' spread "
        "(default: %(default)s)",
    )  # fmt: skip


def _add_method(group: Any) -> None:
    group.add_argument(
        "--target", choices=("cpu", "tensorrt"), default="cpu",
        help="what is to run it: ONNX Runtime on a CPU, or TensorRT (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--method", metavar="NAME", action="append", default=[],
        choices=("minmax", "percentile", "mse", "entropy"),
        help="how ranges are chosen: minmax, percentile, mse or entropy; may be given several "
        "times, the best is taken (default: all)",
    )  # fmt: skip
    group.add_argument(
        "--keep-float", metavar="LAYER", action="append", default=[],
        help="leave this layer in float in any case; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--tries", metavar="N", type=values.count, default=64,
        help="candidates that the search may build and measure (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch", metavar="N", type=values.count, action="append", default=[],
        help="measure the speed of batches of N (default: 1, 8 and 32)",
    )  # fmt: skip
    group.add_argument(
        "--threads", metavar="N", type=values.count, default=1,
        help="cores that a run uses (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--smooth", metavar="ALPHA", type=values.share, default=None,
        help="SmoothQuant: move outliers of activations into weights, 0.5 is usual (default: off)",
    )  # fmt: skip
    group.add_argument(
        "--reduce-range", action="store_true",
        help="weights of 7 bits, for other servers on x86 CPUs without VNNI or AMX",
    )  # fmt: skip
    group.add_argument(
        "--no-comparisons", action="store_true",
        help="do not measure FP16 and ONNX Runtime's own quantisers beside it",
    )  # fmt: skip
    group.add_argument(
        "--cache", metavar="FILE", type=Path, default=None,
        help="keep the calibration here, and go on with it after an interruption",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    _check_packages()
    from penstock.server.commands import quantize_files as files

    source = files.model_file(arguments.model)
    files.check(arguments, source)
    with signals_unwind():
        with files.place(arguments, source) as (output, version):
            result = _quantized(arguments, source, output)
            if version is not None:
                version.keep = result.passed
                _write(version.folder / files.RECORD_FILENAME, result.to_json())
        if result.passed and version is not None:
            result = replace(result, written=str(version.path / output.relative_to(version.folder)))
        elif arguments.dry_run:
            result = replace(result, written=None)
        pages = files.report_files(files.report_base(arguments, source))
        for path, text in zip(pages, (_page(result), result.to_json()), strict=True):
            _write(path, text)
    _tell(arguments, result, pages)
    return 0 if result.passed else REFUSED


def _check_packages() -> None:
    missing = [name for module, name in _NEEDED.items() if not _is_there(module)]
    if missing:
        raise CommandError(
            f"quantising needs {', '.join(missing)}, which this installation does not have",
            "pip install 'penstock[server,quantize]'",
            status=USAGE,
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _quantized(arguments: argparse.Namespace, source: Path, output: Path) -> Result:
    from penstock.backends.quantize.errors import QuantizeError
    from penstock.backends.quantize.pipeline import quantize
    from penstock.server.commands.progress import Progress

    try:
        with Progress(sys.stderr, quiet=arguments.quiet) as tell:
            task = _task(arguments, source, output)
            return quantize(replace(task, progress=tell))
    except QuantizeError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise _unwritten(error, output) from error
    except MemoryError as error:
        raise CommandError(
            "there is not enough memory", "fewer --samples or smaller --batch need less"
        ) from error


def _task(arguments: argparse.Namespace, source: Path, output: Path) -> Task:
    from penstock.backends.quantize.gate import Bounds
    from penstock.backends.quantize.pipeline import Task
    from penstock.backends.quantize.thresholds import METHODS

    return Task(
        model=source,
        output=output,
        samples=_samples(source, arguments.data, arguments.samples, arguments.seed),
        target=arguments.target,
        evaluation=None if arguments.eval is None else _samples(source, arguments.eval),
        bounds=Bounds(
            arguments.max_drop, arguments.min_sqnr, arguments.min_cosine, arguments.max_error
        ),
        methods=tuple(dict.fromkeys(arguments.method)) or METHODS,
        float_layers=tuple(arguments.keep_float),
        evaluations_max=arguments.tries,
        threads=arguments.threads,
        batches=tuple(sorted(set(arguments.batch))) or (1, 8, 32),
        comparisons=not arguments.no_comparisons,
        smooth=arguments.smooth,
        reduce_range=arguments.reduce_range,
        cache=arguments.cache,
    )


def _samples(
    source: Path, path: Path, samples_max: int | None = None, seed: int | None = None
) -> Samples:
    from penstock.backends.quantize.data import open_samples
    from penstock.backends.quantize.model_file import read_model

    return open_samples(path, read_model(source).inputs, samples_max=samples_max, seed=seed)


def _page(result: Result) -> str:
    from penstock.backends.quantize.report import page

    return page(result)


def _write(path: Path, text: str) -> None:
    from penstock.backends.quantize.durable import write_whole

    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise _unwritten(error, path) from error


def _unwritten(error: OSError, path: Path) -> CommandError:
    return CommandError(f"cannot write {error.filename or path}: {error.strerror or error}")


def _tell(arguments: argparse.Namespace, result: Result, pages: list[Path]) -> None:
    from penstock.server.commands.quantize_text import lines
    from penstock.server.commands.terminal import forgive, terminal_for

    if arguments.json:
        print(result.to_json())
        return
    forgive(sys.stdout)
    print("\n".join(lines(result, pages, terminal_for(sys.stdout))))
